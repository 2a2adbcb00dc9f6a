"""Keep the lines of a pool on the disk, and decode a sample only when it is needed.

Millions of lines do not fit into memory. They are written as Arrow to a file without a name (under ``TMPDIR``), with
the number and the origin of each line. The file is memory-mapped once the last line is written. While files are read,
memory holds 16 bytes for each line: parts of its hashes. Once the samples are in order, 8 bytes remain: the row of each
sample. A file without a name disappears with the process, however the process ends.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import InputError
from clusterucb.samples.sample import Rejected, Sample, beginning, decode, qualified, sample_of
from clusterucb.samples.shapes import SHAPES, Layout

if TYPE_CHECKING:
    import pyarrow as pa

_SHAPES = {name: at for at, name in enumerate(SHAPES)}
_BATCH = 8192  # lines in one Arrow batch; memory holds 1.7 KB for each batch
_BATCH_BYTES = 16 << 20  # a batch of fewer lines is written once it has so many bytes
_FORGOTTEN = 256 << 20  # bytes of lines that are read back before the system may take back their memory


@dataclass(frozen=True)
class Origin:
    """The origin of lines.

    Attributes:
        file: the name of the file in messages.
        source: the source of rows without a ``source``.
        subtask: the subtask of rows without a ``subtask``; None in a pool.
    """

    file: str
    source: str
    subtask: str | None


class Lines:
    """Lines on the disk, from which samples are decoded.

    Args:
        layout: how a sample is read from a row.

    Attributes:
        unseen: the columns that the layout names and that no line had so far.
        unread: the columns with values that nothing was read from, in the lines of the current origin.
    """

    def __init__(self, layout: Layout) -> None:
        import pyarrow as pa

        self._layout = layout
        self._shared: frozenset[int] = frozenset()  # hashes of ids before which the name of the file is put
        self.unseen = set(layout.columns.values())
        self.unread: set[str] = set()
        self._origins: list[Origin] = []
        self._contents = array("Q")
        self._shapes = bytearray()  # the place of each line's shape in `SHAPES`
        self._digests = bytearray()  # those that wait to be written
        self._ids = array("Q")
        self._n_lines = 0
        self._waiting: list[tuple[bytes, int, int]] = []
        self._waiting_bytes = 0
        self._read_bytes = 0  # of lines that were read back since the last were forgotten
        self._kept: tuple[pa.ChunkedArray, ...] = ()  # the columns of `_schema`, once all lines are written
        with room_for("lines"):
            self._digest_file = tempfile.TemporaryFile(prefix="clusterucb-")  # noqa: SIM115  (as below)
            self._file = tempfile.TemporaryFile(prefix="clusterucb-")  # noqa: SIM115  (stays open as long as this object exists)
            self._writer = pa.ipc.new_file(self._file, _schema())

    def __len__(self) -> int:
        return self._n_lines

    def begin(self, origin: Origin) -> None:
        """Set the origin of the lines that are read from now on."""
        self._origins.append(origin)
        self.unread = set()

    def read(self, line: bytes, number: int) -> None:
        """Keep a line from the current origin.

        Raises:
            Unreadable: the line is not a sample. It is not kept.
        """
        row = decode(line)
        self.unseen.difference_update(row)
        shape, unread, sample = self._sample_of(row, line, len(self._origins) - 1, number)
        self.unread.update(unread)
        self._shapes.append(_SHAPES[shape])
        self._contents.append(int(sample.content_hash[:16], 16))
        self._digests += sample.digest()
        self._ids.append(_id_key(sample.id))
        self._waiting.append((line, len(self._origins) - 1, number))
        self._n_lines += 1
        self._waiting_bytes += len(line)
        if len(self._waiting) == _BATCH or self._waiting_bytes >= _BATCH_BYTES:
            self._write()

    def close(self) -> None:
        """Write the remaining lines. From now on lines can be read back, and no more can be added."""
        import pyarrow as pa

        if self._waiting:
            self._write()
        with room_for("lines"):
            self._writer.close()
            self._file.flush()
            self._digest_file.flush()
            self._mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._kept = tuple(pa.ipc.open_file(pa.py_buffer(self._mapped)).read_all().columns)

    def forget(self) -> None:
        """Let the system take back the memory of lines that were read back. They are read again when they are used."""
        self._read_bytes = 0
        self._mapped.madvise(mmap.MADV_DONTNEED)

    def sample(self, at: int) -> Sample:
        """Return the sample of the line that was kept as number ``at``."""
        line, origin, number = self._read_back(at)
        return self._sample_of(decode(line), line, origin, number)[-1]

    def rejected(self, at: int, reason: str) -> Rejected:
        """Return the line that was kept as number ``at`` as a rejected line."""
        line, origin, number = self._read_back(at)
        return Rejected(self._origins[origin].file, number, reason, beginning(line))

    @property
    def content_keys(self) -> NDArray[np.uint64]:
        """The first eight bytes of the content hashes, u64[n]. They sort in the order of the hashes."""
        return np.frombuffer(self._contents, np.uint64)

    def shapes(self, rows: NDArray[np.int64]) -> dict[str, Counter[str]]:
        """Return the number of rows of each shape among some samples, for each file."""
        found: dict[str, Counter[str]] = {origin.file: Counter() for origin in self._origins}
        names = list(SHAPES)
        both = self.origins(rows) * len(names) + np.frombuffer(self._shapes, np.uint8)[rows]
        for code, count in zip(*np.unique(both, return_counts=True), strict=True):
            found[self._origins[code // len(names)].file][names[code % len(names)]] += int(count)
        return found

    def forget_hashes(self, rows: NDArray[np.int64]) -> str:
        """Return a hex SHA-256 of everything about some samples that a run depends on; drop all hashes of lines."""
        digests = np.memmap(self._digest_file, np.uint8, "r", shape=(len(self), 32)) if len(self) else None
        whole = hashlib.sha256()
        for begin in range(0, len(rows), _BATCH):
            assert digests is not None
            whole.update(digests[rows[begin : begin + _BATCH]].tobytes())
        del digests
        self._digest_file.close()
        self._contents, self._ids = array("Q"), array("Q")
        self._shapes = bytearray()
        return whole.hexdigest()

    @property
    def id_keys(self) -> NDArray[np.uint64]:
        """Hashes of the ids, u64[n]. Equal ids have equal hashes."""
        return np.frombuffer(self._ids, np.uint64)

    def qualify(self, rows: NDArray[np.int64]) -> None:
        """Put the names of their files before the ids of some lines, from now on.

        Args:
            rows: i64[k], all lines with these ids.
        """
        self._shared = frozenset(self.id_keys[rows].tolist())
        for row in rows.tolist():
            self._ids[row] = _id_key(self.sample(row).id)

    def origins(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of each line's origin, i64[k]."""
        origins: NDArray[np.uint32] = self._kept[1].to_numpy()
        return origins[rows].astype(np.int64)

    def _sample_of(
        self, row: dict[str, Any], line: bytes, origin: int, number: int
    ) -> tuple[str, tuple[str, ...], Sample]:
        place = self._origins[origin]
        shape, unread, sample = sample_of(
            row,
            line,
            self._layout,
            file=place.file,
            number=number,
            source=place.source,
            subtask=place.subtask,
        )
        if self._shared and _id_key(sample.id) in self._shared:
            sample = replace(sample, id=qualified(sample.id, place.source))
        return shape, unread, sample

    def _read_back(self, at: int) -> tuple[bytes, int, int]:
        """Return the bytes, the origin and the number of the line that was kept as number ``at``."""
        line, origin, number = (column[at].as_py() for column in self._kept)
        self._read_bytes += len(line)
        if self._read_bytes > _FORGOTTEN:  # what is mapped counts as the memory of this process
            self.forget()
        return line, origin, number

    def _write(self) -> None:
        import pyarrow as pa

        columns = [list(column) for column in zip(*self._waiting, strict=True)]
        with room_for("lines"):
            self._writer.write_batch(pa.record_batch(columns, schema=_schema()))
            self._digest_file.write(self._digests)
        self._digests.clear()
        self._waiting.clear()
        self._waiting_bytes = 0


def _id_key(name: str) -> int:
    """Return a hash of an id, u64."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("line", pa.large_binary()), ("origin", pa.uint32()), ("number", pa.uint64())])


class Samples(Sequence[Sample]):
    """A sequence of N samples whose lines are on the disk. A sample is decoded when it is accessed.

    Args:
        lines: the lines, closed; more than these samples' lines may be there.
        rows: i64[N], the number of each sample's line in ``lines``.
    """

    def __init__(self, lines: Lines, rows: NDArray[np.int64]) -> None:
        self._lines = lines
        self._rows = rows

    def __len__(self) -> int:
        """Return N."""
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> Samples: ...
    def __getitem__(self, at: int | slice) -> Sample | Samples:
        """Return the sample at a position, or the samples of a slice."""
        if isinstance(at, slice):
            return Samples(self._lines, self._rows[at])
        return self._lines.sample(int(self._rows[at]))

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the samples, decoding them one by one."""
        for begin in range(0, len(self), _BATCH):
            yield from map(self._lines.sample, self._rows[begin : begin + _BATCH].tolist())

    def forget(self) -> None:
        """Let the system take back the memory of lines that were read back."""
        self._lines.forget()

    def take(self, at: Sequence[int] | NDArray[np.int64]) -> Samples:
        """Return the samples at the given positions, in that order."""
        return Samples(self._lines, self._rows[np.asarray(at, np.int64)])


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Turn an error in writing a temporary file into an `InputError` that says what to do.

    Args:
        what: the plural of what the file holds, such as ``lines``.
    """
    try:
        yield
    except OSError as error:
        where = tempfile.tempdir or "any temporary folder"
        raise InputError(
            f"cannot store the pool's {what} in {where}: {error.strerror or error}; free space there, or set TMPDIR "
            "to a folder with as much free space as the pool takes"
        ) from error
