"""Keep the tokens of a pool on the disk, because they are too many for memory, like its lines.

Each token is one i32 in a file without a name (under ``TMPDIR``): its id, whether it is predicted and whether it is
content. Memory holds where each sample begins and how many of its tokens are predicted.
"""

from __future__ import annotations

import mmap
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from clusterucb.samples.encoded import Encoded
from clusterucb.samples.lines import room_for

_WRITE = 1 << 20  # tokens written at a time
_LABEL, _CONTENT, _SHIFT = 1, 2, 2


class TokenFile:
    """Takes encoded samples one at a time, and returns all of them as `EncodedSamples` when it is closed."""

    def __init__(self) -> None:
        with room_for("tokens"):
            self._file = tempfile.TemporaryFile(prefix="clusterucb-")  # noqa: SIM115  (stays open as long as this object exists)
        self._waiting: list[NDArray[np.int32]] = []
        self._n_waiting = 0
        self._ends = array("q", [0])
        self._n_labels = array("q")
        self._largest = 0

    def __len__(self) -> int:
        """Return the number of samples so far."""
        return len(self._n_labels)

    def add(self, sample: Encoded) -> None:
        """Add a sample."""
        packed = sample.tokens << _SHIFT | sample.labels * _LABEL | sample.content * _CONTENT
        self._waiting.append(packed.astype(np.int32))
        self._n_waiting += len(sample)
        self._ends.append(self._ends[-1] + len(sample))
        self._n_labels.append(sample.n_labels)
        self._largest = max(self._largest, int(sample.tokens.max()))
        if self._n_waiting >= _WRITE:
            self._write()

    def close(self) -> EncodedSamples:
        """Write the remaining tokens and return all samples."""
        with room_for("tokens"):
            self._write()
            self._file.flush()
            n_tokens = self._ends[-1]
            packed = (
                np.memmap(self._file, np.int32, "r", shape=(n_tokens,)) if n_tokens else np.empty(0, np.int32)
            )
        ends = np.frombuffer(self._ends, np.int64)
        return EncodedSamples(
            packed, ends[:-1], ends[1:], np.frombuffer(self._n_labels, np.int64), self._largest
        )

    def _write(self) -> None:
        if self._waiting:
            with room_for("tokens"):
                np.concatenate(self._waiting).tofile(self._file)
        self._waiting.clear()
        self._n_waiting = 0


class EncodedSamples(Sequence[Encoded]):
    """A sequence of N encoded samples whose tokens are on the disk.

    Args:
        packed: i32[total], the packed tokens of all samples, one sample after the other.
        starts: i64[N], where each sample's tokens begin in ``packed``.
        ends: i64[N], where each sample's tokens end in ``packed``.
        n_labels: i64[N], the number of predicted tokens of each sample.
        largest_token: the largest token id of all samples.

    Attributes:
        lengths: i64[N], the number of tokens of each sample; read-only.
        n_labels: i64[N], the number of predicted tokens of each sample; read-only.
        largest_token: the largest token id of all samples.
    """

    def __init__(
        self,
        packed: NDArray[np.int32],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        n_labels: NDArray[np.int64],
        largest_token: int,
    ) -> None:
        self._packed = packed
        self._starts, self._ends = starts, ends
        self.lengths = ends - starts
        self.n_labels = n_labels
        for numbers in (self.lengths, self.n_labels):
            numbers.flags.writeable = False
        self.largest_token = largest_token

    def __len__(self) -> int:
        """Return N."""
        return len(self._starts)

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> EncodedSamples: ...
    def __getitem__(self, at: int | slice) -> Encoded | EncodedSamples:
        """Return the sample at a position, or the samples of a slice."""
        if isinstance(at, slice):
            parts = self._starts[at], self._ends[at], self.n_labels[at]
            return EncodedSamples(self._packed, *parts, self.largest_token)
        packed = np.asarray(self._packed[self._starts[at] : self._ends[at]])
        return Encoded((packed >> _SHIFT).astype(np.int64), packed & _LABEL != 0, packed & _CONTENT != 0)

    def forget(self) -> None:
        """Let the system take back the memory of tokens that were read; they are read again when they are used."""
        if isinstance(self._packed, np.memmap):
            pages: mmap.mmap = self._packed._mmap  # type: ignore[attr-defined]
            pages.madvise(mmap.MADV_DONTNEED)

    def __iter__(self) -> Iterator[Encoded]:
        """Iterate over the samples, reading them one by one."""
        return (self[at] for at in range(len(self)))
