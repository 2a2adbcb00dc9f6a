"""Encode conversations as tokens, and mark the tokens that are predicted (the labels).

Decisions:
    - Labels are each answer's content and the end-of-turn token after it. A blank answer has no labels. Nothing
      is predicted after the last answer that is not blank, so later turns are left out.
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
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ModelError, OptionError
from clusterucb.samples.chat import ChatTemplate, Kind, Piece, Unusable
from clusterucb.samples.shapes import TEXT, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoded", "Encoder", "Unusable"]

# The version of the encoding rules. Raise it when a change gives other tokens or labels for the same conversation.
_RULES = 1

# A private-use character, inserted into the spelling of a control token in a content so that the spelling stays text.
_BREAK = "\ue000"


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One sample as T tokens.

    Attributes:
        tokens: i64[T], the token ids.
        labels: bool[T]. True where the token is predicted from the tokens before it; never true for the first token.
        content: bool[T]. True where the token belongs to a message's content, in any role; false for the template's
            tokens.
    """

    tokens: NDArray[np.int64]
    labels: NDArray[np.bool_]
    content: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_labels(self) -> int:
        """Number of tokens that are predicted."""
        return int(self.labels.sum())


class Encoder:
    """Encodes conversations with a tokenizer and its chat template.

    Args:
        tokenizer: a fast tokenizer from transformers.
        max_length: the largest number of tokens of a sample, at least 2. Longer samples are cut.

    Raises:
        OptionError: ``max_length`` is too small.
        ModelError: the tokenizer has no character offsets, or neither a chat template nor an EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        if max_length < 2:
            raise OptionError(
                f"max_length is {max_length}; expected at least 2: a token, and one to predict it from"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"the tokenizer is a {type(tokenizer).__name__}, which does not say where its tokens are in "
                "the text; expected a fast tokenizer. Save one as tokenizer.json in the model's folder"
            )
        if tokenizer.chat_template is None and tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has neither a chat template nor an EOS token, so no answer would have an end; "
                "expected one of them. Set `chat_template` or `eos_token` in its tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._template = None if tokenizer.chat_template is None else ChatTemplate(tokenizer)
        added = tokenizer.added_tokens_decoder
        self._added = {str(token): number for number, token in added.items() if str(token).strip()}
        # Tables of bool by token id: looking a token up is faster than np.isin on every sample.
        numbers = np.arange(max(len(tokenizer), *self._added.values(), 0) + 1)
        self._is_added = np.isin(numbers, list(self._added.values()))
        self._special = {text for text, number in self._added.items() if added[number].special}
        self._is_special = np.isin(numbers, [self._added[text] for text in self._special])
        first = tokenizer("", add_special_tokens=True)["input_ids"][:1]
        self._bos = first if first == [tokenizer.bos_token_id] else []

    def __call__(self, messages: Sequence[Message]) -> Encoded:
        """Encode one conversation.

        Raises:
            Unusable: the conversation cannot be encoded, or nothing in it is predicted.
            ModelError: the chat template is not valid Jinja.
        """
        if [message.role for message in messages] == [TEXT]:
            return self._plain(messages[0].content)
        answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
        if not answers:
            raise Unusable("no assistant turn")
        not_blank = [at for at in answers if messages[at].content.strip()]
        if not not_blank:
            raise Unusable("empty answer")
        messages = messages[: not_blank[-1] + 1]
        if self._template:
            encoded = self._tokenise(*self._template(messages))
        else:
            eos = self._tokenizer.eos_token_id
            pieces = _prompt_and_answer(messages)
            encoded = _surrounded(self._bos, self._tokenise(pieces, self._tokenizer.eos_token), [eos])
        encoded.labels[:1] = False
        if not (encoded.labels & encoded.content).any():
            raise Unusable("chat template: it, or the tokenizer, leaves nothing of the answer")
        return _truncate(encoded, self._max_length, self._tokenizer.bos_token_id)

    def _plain(self, text: str) -> Encoded:
        """Encode a plain text, which is not a conversation."""
        if not text.strip():
            raise Unusable("empty answer: the text is blank")
        encoded = _surrounded(self._bos, self._tokenise([Piece(text, Kind.ANSWER)], ""), [])
        encoded.labels[:1] = False
        if not encoded.labels.any():
            raise Unusable(
                "too short: the text is one token; expected one to predict, and one to predict it from"
            )
        return _truncate(encoded, self._max_length, self._tokenizer.bos_token_id)

    @property
    def max_length(self) -> int:
        """The largest number of tokens of a sample."""
        return self._max_length

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of everything that determines the tokens and labels of a conversation."""
        self._tokenizer("")  # resets padding and truncation that another caller may have set
        decisive = (
            _RULES,
            self._tokenizer.backend_tokenizer.to_str(),
            {name: str(token) for name, token in self._tokenizer.special_tokens_map.items()},
            self._template and self._template.source,
            self._max_length,
        )
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def _tokenise(self, pieces: Iterable[Piece], end: str) -> Encoded:
        """Tokenise text whose characters are all of a known kind. ``end`` is the end-of-turn token, or ""."""
        controls = self._special | ({end} & self._added.keys())
        pieces = [part for piece in pieces for part in _without_controls(piece, controls)]
        text = "".join(piece.text for piece in pieces)
        kinds = np.repeat([piece.kind for piece in pieces], [len(piece.text) for piece in pieces])
        batch = self._tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about texts longer than the model's window: we cut them ourselves
        )
        tokens = np.array(batch["input_ids"], np.int64)
        starts, ends = self._spans(tokens, np.array(batch["offset_mapping"], np.int64).reshape(-1, 2), text)

        def holds(*wanted: Kind) -> NDArray[np.bool_]:
            there = np.logical_or.reduce([kinds == kind for kind in wanted])
            total = np.concatenate(([0], np.cumsum(there)))
            return np.asarray(total[ends] > total[starts])

        dropped, content = holds(Kind.DROPPED), holds(Kind.CONTENT, Kind.ANSWER)
        control = self._is_special[tokens] | (tokens == self._added.get(end, -1))
        control &= tokens != self._tokenizer.unk_token_id  # the unknown token replaces ordinary text
        for at in np.flatnonzero((dropped | control) & content):
            near = text[max(starts[at] - 8, 0) : ends[at] + 8].replace(_BREAK, "")
            raise Unusable(
                f"control token: a turn spells out one that cannot be encoded as text, near {near!r}"
            )
        keep = ~dropped
        return Encoded(tokens[keep], holds(Kind.ANSWER, Kind.END)[keep], content[keep])

    def _spans(
        self, tokens: NDArray[np.int64], offsets: NDArray[np.int64], text: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where each token's characters begin and end, i64[T] each.

        The tokenizer's offsets are corrected in two ways. A byte-level post-processor may trim whitespace off the
        offsets: this whitespace is given to the token after the gap. An added token may absorb whitespace (``lstrip``,
        ``rstrip``): this whitespace is taken from the token, since it may be part of a content while the token is the
        template's.
        """
        starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
        previous = np.concatenate(([0], ends[:-1]))
        for at in np.flatnonzero(starts > previous):
            if text[previous[at] : starts[at]].isspace():
                starts[at] = previous[at]
        for at in np.flatnonzero(self._is_added[tokens]):
            written = text[starts[at] : ends[at]]
            if written.strip():
                starts[at] += len(written) - len(written.lstrip())
                ends[at] -= len(written) - len(written.rstrip())
        return starts, ends


def _prompt_and_answer(messages: Sequence[Message]) -> list[Piece]:
    """Return a prompt and its answer, or an answer alone, as pieces without any template."""
    roles = tuple(message.role for message in messages)
    if roles not in (("user", "assistant"), ("assistant",)):
        raise Unusable(
            "chat template: the tokenizer has none, and a conversation of several turns needs one "
            f"({', '.join(roles)}); expected one prompt and its answer"
        )
    *prompt, answer = messages
    return [*(Piece(turn.content, Kind.CONTENT) for turn in prompt), Piece(answer.content, Kind.ANSWER)]


def _without_controls(piece: Piece, controls: Iterable[str]) -> list[Piece]:
    """Return a piece in parts, with a character to drop inside each control token that a content spells out."""
    text, kind = piece
    if kind not in (Kind.CONTENT, Kind.ANSWER) or not any(control in text for control in controls):
        return [piece]
    spelt = "|".join(re.escape(control) for control in sorted(controls, key=len, reverse=True))
    cuts = [0, *(match.start() + 1 for match in re.finditer(spelt, text)), len(text)]
    parts = ((Piece(text[start:end], kind), Piece(_BREAK, Kind.DROPPED)) for start, end in pairwise(cuts))
    return [part for pair in parts for part in pair][:-1]


def _surrounded(before: Sequence[int], encoded: Encoded, after: Sequence[int]) -> Encoded:
    """Return a sample with unlabelled tokens added before it and labelled tokens added after it."""
    sizes = len(before), len(after)
    return Encoded(
        np.concatenate((np.array(before, np.int64), encoded.tokens, np.array(after, np.int64))),
        np.pad(encoded.labels, sizes, constant_values=(False, True)),
        np.pad(encoded.content, sizes),
    )


def _truncate(encoded: Encoded, max_length: int, bos: int | None) -> Encoded:
    """Cut a sample to ``max_length`` tokens, and keep as much of the answers as possible.

    The tokens after the last label are cut first, then those at the start except a BOS token. If the labels span more
    than the window, at most a quarter of ``max_length`` is kept of the tokens before them, and the end of the labels
    is cut.
    """
    if len(encoded) <= max_length:
        return encoded
    labelled = np.flatnonzero(encoded.labels)
    first, stop = int(labelled[0]), int(labelled[-1]) + 1
    kept = int(encoded.tokens[0] == bos)
    window = max_length - kept
    least = 1 - kept  # the first label needs a token before it
    if stop <= max_length:
        start = kept
    elif stop - first + least <= window:
        start = stop - window
    else:
        start = first - min(first - kept, max(max_length // 4, least))
    at = np.concatenate((np.arange(kept), np.arange(start, start + window)))
    return Encoded(encoded.tokens[at], encoded.labels[at], encoded.content[at])
