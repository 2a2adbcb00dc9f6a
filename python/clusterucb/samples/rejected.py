"""Keep the rejected lines of a pool on the disk, because every line of a pool of millions may be rejected.

Memory holds at most 32 bytes for each line: its file and number, and where its reason and its beginning are in a file
without a name (under ``TMPDIR``). That file only grows. Lines that are alike, one after the other, take their place in
it once: a table may have millions of empty rows.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Self, overload

import numpy as np
from numpy.typing import NDArray

from clusterucb.atomic import write_lines
from clusterucb.samples.lines import room_for
from clusterucb.samples.sample import Rejected, by_frequency

_WAITING = 1 << 20  # bytes of texts that are written at a time


class RejectedLines(Sequence[Rejected]):
    """A sequence of rejected lines in reading order: by file, in the order of ``files``, then by line number.

    Args:
        files: the files that the lines are from.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._files = list(dict.fromkeys(files))
        self._numbers = {file: number for number, file in enumerate(self._files)}
        self._texts = _Texts()
        self._file = array("I")
        self._line = array("Q")
        self._text = array("Q")
        self._order: NDArray[np.int64] | None = None

    def add(self, rejected: Rejected) -> None:
        """Add a line. Lines may be added in any order."""
        self._file.append(self._numbers[rejected.file])
        self._line.append(rejected.line)
        self._text.append(self._texts.add(rejected.reason, rejected.text))
        self._order = None

    def copy(self) -> Self:
        """Return a copy. Lines that are added to the copy are not added to this sequence."""
        copied = type(self)(self._files)
        copied._texts = self._texts
        copied._file, copied._line, copied._text = self._file[:], self._line[:], self._text[:]
        return copied

    def by_file(self) -> dict[str, int]:
        """Return the number of rejected lines of each file."""
        counts = np.bincount(np.frombuffer(self._file, np.uint32), minlength=len(self._files))
        return dict(zip(self._files, counts.tolist(), strict=True))

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self._line)

    @overload
    def __getitem__(self, at: int) -> Rejected: ...
    @overload
    def __getitem__(self, at: slice) -> list[Rejected]: ...
    def __getitem__(self, at: int | slice) -> Rejected | list[Rejected]:
        """Return the line at a position, or the lines of a slice."""
        if isinstance(at, slice):
            return list(map(self._read, self._in_order()[at].tolist()))
        return self._read(int(self._in_order()[at]))

    def __iter__(self) -> Iterator[Rejected]:
        """Iterate over the lines, reading them one by one."""
        return map(self._read, map(int, self._in_order()))

    def _in_order(self) -> NDArray[np.int64]:
        if self._order is None:
            self._order = np.lexsort((np.array(self._line), np.array(self._file)))
        return self._order

    def _read(self, number: int) -> Rejected:
        file = self._files[self._file[number]]
        return Rejected(file, self._line[number], *self._texts[self._text[number]])


def write_rejected(path: Path, *parts: Iterable[Rejected]) -> dict[str, int]:
    """Write ``rejected.jsonl`` and return the number of lines for each kind of reason, the most frequent first.

    Args:
        path: the path of the file.
        parts: the rejected lines, which are written one part after the other.
    """
    counts: Counter[str] = Counter()

    def counted() -> Iterator[Rejected]:
        for line in chain(*parts):
            counts[line.kind] += 1
            yield line

    write_lines(path, (line._asdict() for line in counted()))
    return by_frequency(counts)


class _Texts:
    """Pairs of texts in a temporary file, numbered in the order in which they were added.

    A pair that is added twice in a row keeps its number.
    """

    def __init__(self) -> None:
        self._last: tuple[str, str] | None = None
        self._read: tuple[int, tuple[str, str]] | None = None
        self._waiting = bytearray()
        self._file: IO[bytes] | None = None
        self._starts = array("Q", [0])
        self._cuts = array("I")

    def add(self, first: str, second: str) -> int:
        if (first, second) != self._last:
            self._last = first, second
            # Reasons may name files, whose names need not be UTF-8.
            parts = [text.encode("utf-8", "surrogatepass") for text in self._last]
            self._waiting += b"".join(parts)
            self._cuts.append(len(parts[0]))
            self._starts.append(self._starts[-1] + sum(map(len, parts)))
            if len(self._waiting) > _WAITING:
                self._write()
        return len(self._cuts) - 1

    def __getitem__(self, number: int) -> tuple[str, str]:
        if self._read is None or self._read[0] != number:
            start, end, cut = self._starts[number], self._starts[number + 1], self._cuts[number]
            if self._waiting or self._file is None:
                self._write()
            assert self._file is not None
            both = os.pread(self._file.fileno(), end - start, start)
            texts = both[:cut].decode("utf-8", "surrogatepass"), both[cut:].decode("utf-8", "surrogatepass")
            self._read = number, texts
        return self._read[1]

    def _write(self) -> None:
        with room_for("rejected lines"):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="clusterucb-")  # noqa: SIM115  (stays open as long as this object exists)
            self._file.write(self._waiting)
            self._file.flush()
        self._waiting.clear()
