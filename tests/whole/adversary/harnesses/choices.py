"""Make decisions from bytes, so that a fuzzer that changes bytes changes rows, files and arrays.

It does what ``atheris.FuzzedDataProvider`` does, without atheris: the committed corpora are replayed where atheris
cannot be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")
_WORDS = (
    *(
        "",
        "a",
        "user",
        "assistant",
        "Is it?",
        "<think>",
        "</think>",
        "<|im_end|>",
        "\n\n",
        '{"a": 1}',
        "[]",
        "é日",
    ),
    *(
        "\x00",
        "\ud800",
        "\x1b[2J",
        "../x",
        "None",
        "0",
        "-1",
        "1e999",
        "nan",
        "true",
        "𝕏",
        "\u202e",
        " ",
        "{{ x }}",
    ),
)
_NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 255, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 2**64, 10**30),
    *(0.0, -0.0, 0.5, 1e-300, 1e300, float("inf"), float("nan")),
)


class Choices:
    """Decisions that follow from bytes. Once the bytes are used up, every decision is the first of its options."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Return whether bytes are left."""
        return self._at < len(self._data)

    def below(self, count: int) -> int:
        """Return a number of at least 0 and below ``count``."""
        return int.from_bytes(self.bytes(1 if count <= 256 else 2 if count <= 65536 else 8)) % count

    def bytes(self, count: int) -> bytes:
        """Return the next ``count`` bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.bytes(len(self._data))

    def one_of(self, options: Sequence[_T]) -> _T:
        """Return one of ``options``."""
        return options[self.below(len(options))]

    def flag(self) -> bool:
        """Return true or false."""
        return bool(self.below(2))

    def text(self) -> str:
        """Return a word that is known to matter, or any text of up to 31 bytes."""
        if (size := self.below(64)) < len(_WORDS):
            return _WORDS[size]
        return self.bytes(size % 32).decode(errors="surrogateescape" if size % 2 else "replace")

    def number(self) -> Any:
        """Return a whole number or a float, often one at a limit."""
        which = self.below(2 * len(_NUMBERS))
        return (
            _NUMBERS[which] if which < len(_NUMBERS) else int.from_bytes(self.bytes(which % 9), signed=True)
        )

    def value(self, depth: int = 3) -> Any:
        """Return any JSON value, with lists and objects in at most ``depth`` levels."""
        kind = self.below(8 if depth else 5)
        if kind < 3:
            return (None, True, False)[kind]
        if kind < 5:
            return self.number() if kind == 3 else self.text()
        if kind == 5:
            return [self.value(depth - 1) for _ in range(self.below(4))]
        return {self.text(): self.value(depth - 1) for _ in range(self.below(4))}
