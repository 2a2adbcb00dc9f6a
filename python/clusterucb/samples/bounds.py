"""Bound what rows take while they are read: the longest line, and what compressed data may unpack to."""

from __future__ import annotations

LONGEST_LINE = 64 << 20  # bytes; a longer line is not a sample but a file without line breaks
# What is unpacked at once may unpack to so many bytes, or to so many times its size.
SMALL, RATIO = 64_000_000, 100


def may_unpack_to(packed: int) -> int:
    """Return how many bytes data of a compressed size may unpack to, if it is unpacked at once."""
    return max(SMALL, RATIO * packed)
