"""How messages and tables write counts, sizes, durations, types and text: one function each.

Every room writes numbers through these functions, so that a table, a message and a page agree.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    NoneType: "none",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def printable(text: str) -> str:
    """Return text without what a terminal would obey: control characters, but line breaks, become �."""
    return "".join(one if one.isprintable() or one == "\n" else "�" for one in text)


def one_line(value: object) -> str:
    """Return the text of an exception or value on one line."""
    return " ".join(str(value).split())


def counted(count: int, one: str, more: str = "") -> str:
    """Return a count and what is counted: ``1 cluster``, ``1,234 clusters``.

    Args:
        count: how many there are.
        one: the words after a count of one.
        more: the words after any other count; by default ``one`` with an s.
    """
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``choices``, in whatever case, or an empty string."""
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(word.casefold(), list(folded), n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


def in_bytes(count: float) -> str:
    """Return a number of bytes as people say it."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def in_words(hint: object) -> str:
    """Return what values of a type are: ``int | None`` is "a whole number or none"."""
    origin, kinds = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return in_words(kinds[0])
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, kinds))
    if origin is Literal:
        return f"one of {', '.join(map(str, kinds))}"
    if origin in _WORDS:
        return f"{_WORDS[origin]} ({str(hint).replace('typing.', '')})"
    return _WORDS.get(hint, str(hint))
