"""Turn a conversation into the text that is tokenised, and a very long text into the part that matters.

Decisions:
    - Nothing is predicted after the last learnt answer that is not blank, so later turns are left out.
    - A control token that is spelt out in a content stays text. A character is inserted into its spelling, and this
      character's tokens are removed after tokenising.
    - A sample is cut to some tokens. Tokenising ten million characters for them would take seconds and gigabytes. So
      only a part of a long text is tokenised, in which the labels lie as in the whole. Whether it was long enough is
      seen afterwards (`Text.margins`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clusterucb.samples.message import TEXT, Message
from clusterucb.samples.pieces import Kind, Piece, Unusable

# A private-use character, inserted into the spelling of a control token in a content so that the spelling stays text.
BREAK = "\ue000"

# Of a text with more than four times as many characters for each token that is kept, only a part is tokenised. If what
# is kept comes closer to the ends of the part than `_MARGIN` tokens, the whole text is tokenised after all.
_CHARACTERS, _MARGIN = 64, 64


class Text(NamedTuple):
    """A conversation before it is tokenised.

    Attributes:
        text: all of it.
        kinds: u8[len(text)], the `Kind` of each character.
        end: the end-of-turn token; "" if there is none.
        before, after: tokens that surround those of the text; the latter are predicted.
        plain: whether it is a text without turns.
        whole: the whole text, if this is only the part of it that matters (`_shortened`).
        margins: how many tokens at the beginning and at the end must not be kept, because more of the text is there.
    """

    text: str
    kinds: NDArray[np.uint8]
    end: str
    before: Sequence[int]
    after: Sequence[int]
    plain: bool = False
    whole: Text | None = None
    margins: tuple[int, int] = (0, 0)


def shortened(text: Text, max_length: int, bos: str) -> Text:
    """Return the part of a very long text that can be kept, so that the rest is not tokenised."""
    most = _CHARACTERS * max_length
    if len(text.text) <= 4 * most:
        return text
    labelled = np.flatnonzero(
        (text.kinds == Kind.ANSWER) | (text.kinds == Kind.END) | (text.kinds == Kind.CALL)
    )
    first, last = int(labelled[0]), int(labelled[-1])
    start = max(first - most, 0)
    stop = len(text.text) if last - first < most else first + most
    kept = len(bos) if start and bos and text.text.startswith(bos) else 0
    at = np.r_[0:kept, start:stop]
    margins = _MARGIN * (start > 0), _MARGIN * (stop < len(text.text))
    cut = text.text[:kept] + text.text[start:stop]
    return text._replace(text=cut, kinds=text.kinds[at], whole=text, margins=margins)


def is_text(messages: Sequence[Message]) -> bool:
    """Return whether a conversation is a plain text, without turns."""
    return len(messages) == 1 and messages[0].role == TEXT


def up_to_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """Return a conversation without the turns after its last answer that says something; a plain text as it is."""
    if is_text(messages):
        if not messages[0].content.strip():
            raise Unusable("empty answer: the text is blank")
        return messages
    answers = [at for at, message in enumerate(messages) if message.learnt]
    if not answers:
        raise Unusable("no assistant turn")
    answered = [at for at in answers if not messages[at].blank]
    if not answered:
        raise Unusable("empty answer")
    return messages[: answered[-1] + 1]


def prompt_and_answer(messages: Sequence[Message]) -> list[Piece]:
    """Return a prompt and its answer, or an answer alone, as pieces without any template."""
    roles = tuple(message.role for message in messages)
    if roles not in (("user", "assistant"), ("assistant",)):
        raise Unusable(
            "chat template: the tokenizer has none, and a conversation of several turns needs one "
            f"({', '.join(roles)}); expected one prompt and its answer"
        )
    *prompt, answer = messages
    return [*(Piece(turn.content, Kind.CONTENT) for turn in prompt), Piece(answer.content, Kind.ANSWER)]


def without_controls(piece: Piece, controls: Iterable[str]) -> list[Piece]:
    """Return a piece in parts, with a character to drop inside each control token that a content spells out."""
    text, kind = piece
    if kind not in (Kind.CONTENT, Kind.ANSWER) or not any(control in text for control in controls):
        return [piece]
    spelt = "|".join(re.escape(control) for control in sorted(controls, key=len, reverse=True))
    cuts = [0, *(match.start() + 1 for match in re.finditer(spelt, text)), len(text)]
    parts = ((Piece(text[start:end], kind), Piece(BREAK, Kind.DROPPED)) for start, end in pairwise(cuts))
    return [part for pair in parts for part in pair][:-1]
