"""Read the shards of a gradient store: which samples each holds, their sketches, and why some have none.

Shards are numbered from 0, and rows are counted through all of them. A shard is never changed once it is written: a
store that grows gets further shards, and each session's last one may be small. Stores of version 0.1 do not know their
samples; there, every shard but the last has `SHARD` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from clusterucb.atomic import unreadable
from clusterucb.errors import RunError
from clusterucb.options.kinds import FLOAT16
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.store_samples import HASH, SHAPES, ShardSamples
from clusterucb.run.store_types import Sketches, loaded, shapes

SHARD = 256  # the most rows in one file, and the most that a crash can lose
_FAILURES = "failures"
_CACHED = 32  # shards that are kept in memory; with 8192 dimensions, one takes 4 MB
_SKETCHES, _SAMPLES = "sketches-", "samples-"


def shard_name(number: int) -> str:
    """Return the file name of a shard's sketches."""
    return f"{_SKETCHES}{number:05}.safetensors"


def samples_name(number: int) -> str:
    """Return the name of the file that says which samples a shard holds."""
    return f"{_SAMPLES}{number:05}.safetensors"


class StoreShards:
    """The shards of a store that is finished.

    Args:
        files: the store's files.
        dimension: d, the dimension of the sketches.
        dtype: how they are stored (`clusterucb.run.store_types`).
        n_rows: the number of rows of a store of version 0.1, which does not know its samples.
        missing: returns the error of a file that is missing.
    """

    def __init__(
        self, files: KeptFiles, *, dimension: int, dtype: str, n_rows: int, missing: Callable[[str], RunError]
    ) -> None:
        self._files = files
        self._dimension = dimension
        self._dtype = dtype
        self._n_former = n_rows
        self._missing = missing
        self.arrays = lru_cache(_CACHED)(self._read)
        self.failures = lru_cache(_CACHED)(self._failures)

    @property
    def knows_samples(self) -> bool:
        """Whether the store knows which samples it holds. Stores of version 0.1 do not."""
        return bool(self._files.recorded(_SAMPLES))

    def __len__(self) -> int:
        """Return the number of shards."""
        if not self.knows_samples:
            return -(-self._n_former // SHARD)
        return len(self._files.recorded(_SAMPLES))

    @cached_property
    def samples(self) -> list[ShardSamples]:
        """The samples of each shard; none for a store of version 0.1."""
        return [self._samples(number) for number in range(len(self))] if self.knows_samples else []

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each shard's rows begin, and the number of all rows M as the last entry, i64[shards + 1]."""
        if self.knows_samples:
            return np.cumsum([0, *map(len, self.samples)], dtype=np.int64)
        return np.append(np.arange(0, self._n_former, SHARD), self._n_former).astype(np.int64)

    @property
    def contents(self) -> NDArray[np.uint8]:
        """The content hash of each row, u8[M, 32]; u8[0, 32] for a store of version 0.1."""
        return np.concatenate([np.zeros((0, HASH), np.uint8), *(one.contents for one in self.samples)])

    def _failures(self, number: int) -> dict[int, str]:
        """Return why rows of a shard have no sketch, by the row's number in the store."""
        path = self._files.find(shard_name(number))
        if path is None:
            raise self._missing(shard_name(number))
        try:
            return failures(path)
        except OSError as error:
            raise unreadable(path, error) from error
        except (SafetensorError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise self._files.damaged(path, error) from error

    def rows(self, rows: NDArray[np.int64]) -> Sketches:
        """Return the sketches [m, d] of rows i64[m] in any order, f16 or f32; NaN where the row is -1."""
        dtype = np.float16 if self._dtype == FLOAT16 else np.float32
        found = np.full((len(rows), self._dimension), np.nan, dtype)
        shard_of = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(shard_of[rows >= 0]).tolist():
            here = np.flatnonzero((shard_of == number) & (rows >= 0))
            found[here] = self.sketches(number, rows[here] - self.starts[number])
        return found

    def sketches(self, number: int, some: NDArray[np.int64] | slice = slice(None)) -> Sketches:
        """Return the sketches of a shard, or of some of its rows, f16[m, d] or f32[m, d].

        The last shards that were asked for stay in memory, as they are stored.
        """
        return loaded({name: values[some] for name, values in self.arrays(number).items()})

    def each(self) -> Iterator[Sketches]:
        """Yield the sketches of every shard, f16[m, d] or f32[m, d]."""
        return map(self.sketches, range(len(self)))

    def _read(self, number: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of a shard's sketches, as they are stored."""
        rows = int(self.starts[number + 1] - self.starts[number])
        return self._arrays(shard_name(number), shapes(self._dtype, rows, self._dimension))

    def _samples(self, number: int) -> ShardSamples:
        name = samples_name(number)
        arrays = self._arrays(name, SHAPES)
        return samples_of(self._files, name, arrays)

    def _arrays(self, name: str, shapes: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        arrays = self._files.arrays(name, shapes)
        if arrays is None:
            raise self._missing(name)
        return arrays


def samples_of(files: KeptFiles, name: str, arrays: Mapping[str, NDArray[Any]]) -> ShardSamples:
    """Return the samples that a file's arrays hold.

    Raises:
        RunError: the file is damaged.
    """
    try:
        return ShardSamples.of(arrays)
    except ValueError as error:
        raise files.damaged(files.folder / name, error) from error


def with_failures(reasons: Mapping[int, str]) -> dict[str, str] | None:
    """Return a shard's header that says why rows have no sketch. One entry holds all: several have no fixed order."""
    return {_FAILURES: msgspec.json.encode(reasons).decode()} if reasons else None


def failures(shard: Path) -> dict[int, str]:
    """Return why rows of a shard have no sketch, by the row's number in the store."""
    with safe_open(shard, "np") as file:
        header = file.metadata() or {}
    if _FAILURES in header:
        return msgspec.json.decode(header[_FAILURES], type=dict[int, str])
    return {int(row): reason for row, reason in header.items()}  # before format 3: an entry for each row
