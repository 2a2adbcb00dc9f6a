"""Put counts, sizes, types and text into words, with one function for each.

Messages, tables and pages all call these functions, so that they write the same value in the same way.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_NAMED = 6  # names that a list shows
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a path",
    NoneType: "none",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def printable(text: str) -> str:
    """Return text that is safe to print on a terminal: control characters other than line breaks become �."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)


def listed_names(names: Collection[str]) -> str:
    """Return names in alphabetical order, the first six of them, safe to print."""
    first, more = sorted(names)[:_NAMED], len(names) - _NAMED
    shown = [f"{one_line(printable(name)):.40}" for name in first]
    return ", ".join([*shown, f"and {more:,} more"] if more > 0 else shown)


def one_line(value: object) -> str:
    """Return the text of an exception or value on one line."""
    return " ".join(str(value).split())


def counted(count: int, one: str, more: str = "") -> str:
    """Return a count with its noun: ``1 cluster``, ``1,234 clusters``.

    Args:
        count: the number of things.
        one: the singular, used for a count of 1.
        more: the plural, used for every other count. By default, ``one`` with an s.
    """
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` with the closest of ``choices``, ignoring case; "" if none is close."""
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(word.casefold(), list(folded), n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


def in_bytes(count: float) -> str:
    """Return a number of bytes in GB, in MB below 100 million bytes, or in kB below 100 thousand."""
    if count >= 1e8:
        return f"{count / 1e9:,.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def duration(seconds: float) -> str:
    """Return a measured time: ``3.2 s``, ``12 min 34 s`` or ``10 h 5 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def rounded_duration(seconds: float) -> str:
    """Return an estimated time in at most three digits: ``12 s``, ``80 min``, ``5 h`` or ``4.5 d``."""
    for size, unit in ((1, "s"), (60, "min"), (3600, "h")):
        if seconds < 100 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} d"


def clock(seconds: float) -> str:
    """Return the time that is left as a clock shows it: ``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def in_words(hint: object) -> str:
    """Return a type hint in words: ``int | None`` becomes "a whole number or none"."""
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
