"""Characters that a terminal obeys."""

from __future__ import annotations

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # what rich itself writes for bold and colours
EVERYTHING = "".join(
    map(chr, (*range(32), 127, *range(128, 160), 0x61C, 0x200E, 0x202E, 0x2066, 0x2028, 0xFEFF))
)


def obeyed(shown: str) -> str:
    """Return the characters that a terminal would obey, other than line breaks and rich's own colours."""
    return "".join(letter for letter in _COLOUR.sub("", shown) if not letter.isprintable() and letter != "\n")
