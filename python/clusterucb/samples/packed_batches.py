"""Refuse Arrow files whose compressed batches unpack to far more than their size, before Arrow unpacks one.

Arrow unpacks a batch at once. What its buffers unpack to stands before each of them. pyarrow does not show these
numbers, so they are read here: "Encapsulated message format" and "Compression" in Arrow's columnar format, and
Message.fbs and File.fbs, which are tables of FlatBuffers.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from clusterucb.errors import InputError
from clusterucb.samples import bounds
from clusterucb.wording import in_bytes

_MAGIC = b"ARROW1"
_CONTINUES = 0xFFFFFFFF  # what a message begins with
_DICTIONARY, _BATCH = 2, 3  # kinds of messages


def check_batches(file: Path) -> None:
    """Check that no batch of an Arrow file or stream unpacks to far more than its size. A broken file is let pass.

    Raises:
        InputError: a batch does.
    """
    with (
        file.open("rb") as opened,
        suppress(struct.error, ValueError),
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        tail = content[-10:] if content[:6] == _MAGIC else b""
        for at in _listed(content, tail) if tail else _streamed(content):
            packed, unpacked = _sizes(content, *at)
            if unpacked > bounds.may_unpack_to(packed):
                raise InputError(
                    f"{file} has a record batch that unpacks to {in_bytes(unpacked)}, more than {bounds.RATIO} times "
                    "its compressed size; expected batches of fewer rows: write it again, or without compression"
                )


def _number(content: mmap.mmap, at: int, kind: str = "i") -> int:
    """Return the number at a place: i or q with a sign, I, H or B without."""
    if at < 0:
        raise ValueError(at)
    return int(struct.unpack_from(f"<{kind}", content, at)[0])


def _field(content: mmap.mmap, table: int, number: int) -> int | None:
    """Return the place of a field of a table; None if the table lacks it."""
    about = table - _number(content, table)
    if 4 + 2 * number >= _number(content, about, "H"):
        return None
    return table + offset if (offset := _number(content, about + 4 + 2 * number, "H")) else None


def _follow(content: mmap.mmap, table: int, number: int) -> int | None:
    """Return the place that a field of a table points to; None if the table lacks it."""
    at = _field(content, table, number)
    return None if at is None else at + _number(content, at, "I")


def _root(content: mmap.mmap, at: int) -> int:
    return at + _number(content, at, "I")


def _listed(content: mmap.mmap, tail: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each message and its body begin that the end of a file lists."""
    footer = _root(content, len(content) - 10 - struct.unpack("<i", tail[:4])[0])
    for number in (2, 3):  # the dictionaries, the batches
        if (blocks := _follow(content, footer, number)) is None:
            continue
        for block in range(blocks + 4, blocks + 4 + 24 * _number(content, blocks, "I"), 24):
            message, length = _number(content, block, "q"), _number(content, block + 8)
            marked = _number(content, message, "I") == _CONTINUES
            yield message + (8 if marked else 4), message + length


def _streamed(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield where each message and its body begin in a stream."""
    at = 0
    while at < len(content) and _number(content, at, "I") == _CONTINUES:
        length = _number(content, at + 4)
        if length <= 0:
            return
        body = at + 8 + length
        yield at + 8, body
        size = _field(content, _root(content, at + 8), 3)
        at = body + max(0, _number(content, size, "q") if size is not None else 0)


def _sizes(content: mmap.mmap, message: int, body: int) -> tuple[int, int]:
    """Return how many bytes the buffers of a message have, and how many they unpack to; (0, 0) without buffers."""
    table = _root(content, message)
    kind, batch = _field(content, table, 1), _follow(content, table, 2)
    if kind is None or batch is None or (holds := _number(content, kind, "B")) not in (_DICTIONARY, _BATCH):
        return 0, 0
    if holds == _DICTIONARY and (batch := _follow(content, batch, 1)) is None:
        return 0, 0
    buffers = _follow(content, batch, 2)
    if buffers is None or _field(content, batch, 3) is None:
        return 0, 0
    packed = unpacked = 0
    for at in range(buffers + 4, buffers + 4 + 16 * _number(content, buffers, "I"), 16):
        if (length := _number(content, at + 8, "q")) > 8:
            packed += length
            size = _number(content, body + _number(content, at, "q"), "q")
            unpacked += max(size, 0)  # -1 stands before a buffer that is not compressed
    return packed, unpacked
