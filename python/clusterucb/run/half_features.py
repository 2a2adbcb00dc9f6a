"""Store the features of a large pool in half precision, and map them from the disk.

Ten million rows of 130 features take 5.2 GB in single precision. In half precision they take 2.6 GB, in files without
a name (under ``TMPDIR``) that are mapped into memory: the system reads what is used, and may forget it again.

Decisions:
    - Half precision has eleven bits. A block is stored so only if the rounding errors are below a hundredth of the
      features' spread, and its numbers far below the largest that half precision has. The first shard decides for all:
      its rows are the first in canonical order, as good as random ones.
    - A later number that is too large becomes the largest, 65,504.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.samples.lines import room_for

_MOST = 1024.0  # the largest number in the first shard of a block in half precision
_LARGEST = float(np.finfo(np.float16).max)
_LOST = 1e-4  # the largest mean squared rounding error, as a share of the variance

Blocks = Mapping[str, NDArray[Any]]


def precision(block: NDArray[np.float32]) -> type[np.float16] | type[np.float32]:
    """Return in which precision a block is stored, by the rows f32[m, k] of its first shard."""
    if not block.size or np.abs(block).max() > _MOST:
        return np.float32
    lost = (block - block.astype(np.float16)).astype(np.float64)
    spread = (block - block.mean(axis=0, dtype=np.float64)).astype(np.float64)
    return np.float16 if np.vdot(lost, lost) <= _LOST * np.vdot(spread, spread) else np.float32


def stored(block: NDArray[np.float32], precision: np.dtype[Any] | type[np.generic]) -> NDArray[Any]:
    """Return a block f32[m, k] in the precision in which it is stored."""
    if precision == np.float32:
        return block
    return block.clip(-_LARGEST, _LARGEST).astype(precision)


def mapped(shards: Iterable[Blocks], n_rows: int) -> dict[str, NDArray[Any]]:
    """Write shards to files without a name, and return the blocks mapped from there, each [N, k] and read-only.

    Args:
        shards: the shards in order, N rows in all. Each has the same blocks.
        n_rows: N.

    Raises:
        InputError: there is no room for the files.
    """
    files: dict[str, Any] = {}
    found: dict[str, NDArray[Any]] = {}
    with ExitStack() as opened, room_for("features"):
        for shard in shards:
            for name, part in shard.items():
                if name not in files:
                    files[name] = opened.enter_context(tempfile.TemporaryFile(prefix="clusterucb-"))
                    found[name] = np.zeros((n_rows, 0), part.dtype) if not part.shape[1] else part
                files[name].write(np.ascontiguousarray(part).data)
        for name, file in files.items():
            file.flush()
            if width := found[name].shape[1]:  # the mapping keeps the file
                found[name] = np.asarray(np.memmap(file, found[name].dtype, "r", shape=(n_rows, width)))
            found[name].flags.writeable = False
    return found
