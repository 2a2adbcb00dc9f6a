"""The pieces of a conversation's text: the template's own text, contents, and what is learnt."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Unusable(Exception):
    """One sample cannot be encoded. The reason goes into ``rejected.jsonl``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Kind(IntEnum):
    """The kind of a piece of a conversation's text."""

    TEMPLATE = 0
    CONTENT = 1  # the content of a turn that is not learnt
    ANSWER = 2  # the content of an assistant turn that is learnt
    END = 3  # the end-of-turn token after a learnt answer
    DROPPED = 4  # text that is tokenised, and whose tokens are then removed
    CALL = 5  # text of the template in a learnt turn with calls or thoughts, such as a call


class Piece(NamedTuple):
    """A stretch of text of one kind."""

    text: str
    kind: Kind
