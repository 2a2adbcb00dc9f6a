"""Encode conversations as tokens, and mark the tokens that are predicted (the labels).

Decisions:
    - Labels are the content of each answer that is learnt and the end-of-turn token after it. A blank answer has no
      labels. Of a turn with calls or thoughts, all that the model writes is learnt
      (`clusterucb.samples.tool_template`).
    - The text is tokenised once, as a whole, so that the tokens are those that a trainer would see.
    - A token with characters of both header and content belongs to the content: the content cannot be produced
      without predicting this token.
    - A control token that is spelt out in a content stays text. A character is inserted into its spelling, and this
      character's tokens are removed after tokenising. Tokenising in pieces would need a second pass, and it would add
      a space after the seam with SentencePiece vocabularies. Control tokens are the special tokens and the
      end-of-turn token, but not tokens that are meant to occur in text, such as ``<think>``.
    - All tokens of a plain text are predicted, without a template and without an end token, since the text may
      continue.
    - Without a chat template, only a prompt and its answer can be encoded: BOS (if the tokenizer writes it),
      prompt, answer, EOS. For longer conversations we would have to invent a format that the model has never seen.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ModelError, OptionError
from clusterucb.samples.chat import ChatTemplate
from clusterucb.samples.encoded import Encoded, surrounded, truncated
from clusterucb.samples.message import TOOLS, Message
from clusterucb.samples.pieces import Kind, Piece, Unusable
from clusterucb.samples.texts import (
    BREAK,
    Text,
    is_text,
    prompt_and_answer,
    shortened,
    up_to_last_answer,
    without_controls,
)
from clusterucb.samples.tokenizing import check_growth, check_ids, tokenizing
from clusterucb.wording import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The version of the encoding rules. Raise it when a change gives other tokens or labels for the same conversation.
_RULES = 1


_LISTED = 12  # tokens that a message names

_Result = TypeVar("_Result")


class Encoder:
    """Encodes conversations with a tokenizer and its chat template.

    Args:
        tokenizer: a fast tokenizer from transformers.
        max_length: the largest number of tokens of a sample, at least 2. Longer samples are cut.
        parsed: special tokens that are tokens where a content spells them. Others stay text there.

    Raises:
        OptionError: ``max_length`` is too small, or the tokenizer lacks a token of ``parsed``.
        ModelError: the tokenizer has no character offsets, or neither a chat template nor an EOS token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, parsed: Collection[str] = ()
    ) -> None:
        if max_length < 2:
            raise OptionError(
                f"max_length is {max_length}; expected at least 2, because each token is predicted from earlier ones"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"the tokenizer is a {type(tokenizer).__name__}, which gives no positions of its tokens in "
                "the text; expected a fast tokenizer. Save one as tokenizer.json in the model's folder"
            )
        if tokenizer.chat_template is None and tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has neither a chat template nor an EOS token to end an answer; "
                "expected one of them. Set `chat_template` or `eos_token` in its tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._template = None if tokenizer.chat_template is None else ChatTemplate(tokenizer)
        added = tokenizer.added_tokens_decoder
        check_ids(added)
        check_growth(tokenizer)
        self._added = {str(token): number for number, token in added.items() if str(token).strip()}
        # Tables of bool by token id: looking a token up is faster than np.isin on every sample.
        numbers = np.arange(max(len(tokenizer), *self._added.values(), 0) + 1)
        self._is_added = np.isin(numbers, list(self._added.values()))
        if unknown := sorted(set(parsed) - self._added.keys()):
            raise OptionError(
                f"--special-tokens names {unknown[0]!r}, which is no token of its own in the tokenizer; expected some "
                f"of {', '.join(sorted(self._added)[:_LISTED])}{', ...' if len(self._added) > _LISTED else ''}"
            )
        self._parsed = frozenset(parsed)
        self._spelt: Counter[str] = Counter()  # how many conversations spell each special token
        self._special = {
            text for text, number in self._added.items() if added[number].special and text not in self._parsed
        }
        self._is_special = np.isin(numbers, [self._added[text] for text in self._special])
        with tokenizing():
            first = tokenizer("", add_special_tokens=True)["input_ids"][:1]
        self._bos = first if first == [tokenizer.bos_token_id] else []

    def __call__(self, messages: Sequence[Message]) -> Encoded:
        """Encode one conversation.

        Raises:
            Unusable: the conversation cannot be encoded, or nothing in it is predicted.
            ModelError: the chat template is not valid.
        """
        (encoded,) = self.batch([messages])
        if isinstance(encoded, Unusable):
            raise encoded
        return encoded

    def batch(self, conversations: Iterable[Sequence[Message]]) -> list[Encoded | Unusable]:
        """Encode conversations together, each as alone; return the reason in place of one that cannot be encoded.

        The tokenizer gets all texts in one call, which it spreads over the cores.

        Raises:
            ModelError: the chat template is not valid.
        """
        texts = self.texts(conversations)
        return self.labelled(texts, self.tokenised(texts))

    def texts(self, conversations: Iterable[Sequence[Message]]) -> list[Text | Unusable]:
        """Return conversations as texts: the first step of `batch`."""
        cut = [self._attempt(self._cut, messages) for messages in conversations]
        chats = [messages for messages in cut if not isinstance(messages, Unusable) and not is_text(messages)]
        rendered = iter(self._template.render(chats) if self._template else [""] * len(chats))
        return [
            messages
            if isinstance(messages, Unusable)
            else self._attempt(self._text, messages, "" if is_text(messages) else next(rendered))
            for messages in cut
        ]

    def _cut(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return a conversation up to its last answer, as the template can write it."""
        cut = up_to_last_answer(messages)
        if self._template:
            cut = self._template.tools.fitted(cut)
        for message in cut:
            written = (
                message.content if message.role == TOOLS else "".join(call.text for call in message.calls)
            )
            if written and (spelt := next((token for token in self._special if token in written), None)):
                raise Unusable(
                    f"control token: a tool or a call contains {spelt!r}, which cannot be encoded as text"
                )
        return cut

    def notes(self, what: str) -> list[str]:
        """Return what the user should know about the conversations since the last call, as sentences.

        Args:
            what: what the conversations are: ``pool``, say.
        """
        notes = []
        if self._template and (count := self._template.tools.without_tools):
            self._template.tools.without_tools = 0
            notes.append(
                f"{counted(count, 'sample')} of the {what} are read without their definitions of tools, because the "
                "model's chat template has no place for these"
            )
        if self._spelt:
            found = [f"{token} in {count:,}" for token, count in self._spelt.most_common(_LISTED)]
            self._spelt.clear()
            notes.append(
                f"samples of the {what} spell special tokens, which are read as text: {', '.join(found)}. To read some "
                "as tokens, name them: --special-tokens"
            )
        return notes

    def tokenised(
        self, texts: Iterable[Text | Unusable]
    ) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Return the tokens of each text and where they stand: the second step of `batch`.

        It may run in another thread, while the other steps work on other texts.
        """
        good = [text.text for text in texts if isinstance(text, Text)]
        if not good:
            return iter(())
        with tokenizing():
            found = self._tokenizer(
                good,
                add_special_tokens=False,
                split_special_tokens=False,
                return_offsets_mapping=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,  # a text longer than the model's window is cut here
            )
        return zip(found["input_ids"], found["offset_mapping"], strict=True)

    def labelled(
        self, texts: Sequence[Text | Unusable], tokenised: Iterable[tuple[list[int], list[tuple[int, int]]]]
    ) -> list[Encoded | Unusable]:
        """Return samples of tokenised texts: the last step of `batch`."""
        good = [text for text in texts if isinstance(text, Text)]
        samples = iter(self._labelled(good, list(tokenised)) if good else ())
        return [
            self._attempt(self._encoded, text, next(samples)) if isinstance(text, Text) else text
            for text in texts
        ]

    @staticmethod
    def _attempt(make: Callable[..., _Result], *arguments: Any) -> _Result | Unusable:
        try:
            return make(*arguments)
        except Unusable as error:
            return error

    def _text(self, messages: Sequence[Message], rendered: str | Unusable) -> Text:
        """Return the text of a conversation, every character of a known kind."""
        if isinstance(rendered, Unusable):
            raise rendered
        return self._shortened(self._whole_text(messages, rendered))

    def _shortened(self, text: Text) -> Text:
        return shortened(text, self._max_length, self._tokenizer.bos_token or "")

    def _whole_text(self, messages: Sequence[Message], rendered: str) -> Text:
        if is_text(messages):
            whole = self._joined([Piece(messages[0].content, Kind.ANSWER)], "", before=self._bos)
            return whole._replace(plain=True)
        if self._template:
            return self._joined(*self._template.pieces(messages, rendered))
        eos = [self._tokenizer.eos_token_id]
        return self._joined(
            prompt_and_answer(messages), self._tokenizer.eos_token, before=self._bos, after=eos
        )

    def _joined(
        self, pieces: Iterable[Piece], end: str, *, before: Sequence[int] = (), after: Sequence[int] = ()
    ) -> Text:
        """Return pieces as one text; ``end`` is the end-of-turn token."""
        controls = (self._special | ({end} & self._added.keys())) - self._parsed
        pieces = list(pieces)
        said = "\0".join(piece.text for piece in pieces if piece.kind in (Kind.CONTENT, Kind.ANSWER))
        if spelt := [control for control in controls if control in said]:
            self._spelt.update(spelt)
        parts = [part for piece in pieces for part in without_controls(piece, spelt)]
        kinds = np.repeat(
            np.array([part.kind for part in parts], np.uint8), [len(part.text) for part in parts]
        )
        return Text("".join(part.text for part in parts), kinds, end, before, after)

    def _encoded(self, text: Text, encoded: Encoded | Unusable) -> Encoded:
        """Return a sample that the model can use, given the labelled tokens of its text."""
        if isinstance(encoded, Unusable):
            raise encoded
        if text.before or text.after:
            encoded = surrounded(text.before, encoded, text.after)
        encoded.labels[:1] = False
        if not (encoded.labels & encoded.content).any():
            raise Unusable(
                "too short: the text is one token; expected at least two"
                if text.plain or len(encoded) - len(text.after) == 1
                else "chat template: the template or the tokenizer removes the whole answer"
            )
        cut, window = truncated(encoded, self._max_length, self._tokenizer.bos_token_id)
        before, after = text.margins
        if text.whole and (window.start < before or window.stop > len(encoded) - after):
            whole = [text.whole]
            return self._encoded(text.whole, next(self._labelled(whole, list(self.tokenised(whole)))))
        return cut

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the chat template in use."""
        return self._tokenizer

    @property
    def max_length(self) -> int:
        """The largest number of tokens of a sample."""
        return self._max_length

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of everything that determines the tokens and labels of a conversation."""
        with tokenizing():
            self._tokenizer("")  # resets padding and truncation that another caller may have set
        decisive = (
            _RULES,
            self._tokenizer.backend_tokenizer.to_str(),
            {name: str(token) for name, token in self._tokenizer.special_tokens_map.items()},
            self._template and self._template.source,
            self._max_length,
            *sorted(self._parsed),
            *([self._template.inner_end] if self._template and self._template.inner_end else []),
        )
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def _labelled(
        self, texts: Sequence[Text], tokenised: Sequence[tuple[list[int], list[tuple[int, int]]]]
    ) -> Iterator[Encoded | Unusable]:
        """Yield the tokens of texts with their labels. All texts are worked on as one."""
        lengths = [len(ids) for ids, _ in tokenised]
        n_tokens = sum(lengths)
        tokens = np.fromiter(chain.from_iterable(ids for ids, _ in tokenised), np.int64, n_tokens)
        flat = chain.from_iterable(chain.from_iterable(offsets for _, offsets in tokenised))
        places = np.fromiter(flat, np.int64, 2 * n_tokens).reshape(-1, 2)
        begins = np.cumsum([0, *(len(text.text) for text in texts)])[:-1]  # of each text in all of them
        places += np.repeat(begins, lengths)[:, None]
        bounds = np.cumsum([0, *lengths])
        whole = "".join(text.text for text in texts)
        starts, ends = self._spans(tokens, places, whole, bounds[:-1], begins)
        kinds = np.concatenate([text.kinds for text in texts])

        def holds(*wanted: Kind) -> NDArray[np.bool_]:
            table = np.zeros(len(Kind), np.int32)
            table[list(wanted)] = 1
            total = np.zeros(len(kinds) + 1, np.int32)
            np.cumsum(table[kinds], out=total[1:])
            return total[ends] > total[starts]

        dropped, content = holds(Kind.DROPPED), holds(Kind.CONTENT, Kind.ANSWER)
        calls, labels = holds(Kind.CALL), holds(Kind.ANSWER, Kind.END, Kind.CALL)
        ending = [-1 if text.end in self._parsed else self._added.get(text.end, -1) for text in texts]
        turn_ends = np.repeat(ending, lengths)
        control = self._is_special[tokens] | (tokens == turn_ends)
        control &= tokens != self._tokenizer.unk_token_id  # which stands for whatever has no other token
        faults = (dropped | control) & content
        for number, (first, last) in enumerate(pairwise(bounds.tolist())):
            here = slice(first, last)
            if faults[here].any():
                at = first + int(np.argmax(faults[here]))
                yield _spelt_out(texts[number].text, starts[at] - begins[number], ends[at] - begins[number])
                continue
            keep = ~dropped[here]
            yield Encoded(tokens[here][keep], labels[here][keep], (content | calls)[here][keep])

    def _spans(
        self,
        tokens: NDArray[np.int64],
        offsets: NDArray[np.int64],
        text: str,
        firsts: NDArray[np.int64],
        begins: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where each token's characters begin and end, i64[T] each.

        Offsets are wrong for our purpose in two ways, which are corrected. Whitespace that a byte-level post-processor
        trims off belongs to the token after the gap. Whitespace that an added token takes in (``lstrip``, ``rstrip``)
        may belong to a content, though the token belongs to the template.

        Args:
            tokens: i64[T], of several texts.
            offsets: i64[T, 2], where they stand in ``text``.
            text: all texts.
            firsts: the first token of each text.
            begins: where each text begins.
        """
        starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
        previous = np.concatenate(([0], ends[:-1]))[: len(ends)]
        there = firsts < len(tokens)
        previous[firsts[there]] = begins[there]
        for at in np.flatnonzero(starts > previous).tolist():
            if text[previous[at] : starts[at]].isspace():
                starts[at] = previous[at]
        for at in np.flatnonzero(self._is_added[tokens]).tolist():
            written = text[starts[at] : ends[at]]
            if written.strip():
                starts[at] += len(written) - len(written.lstrip())
                ends[at] -= len(written) - len(written.rstrip())
        return starts, ends


def _spelt_out(text: str, start: int, end: int) -> Unusable:
    near = text[max(start - 8, 0) : end + 8].replace(BREAK, "")
    return Unusable(f"control token: a turn contains one that cannot be encoded as text, near {near!r}")
