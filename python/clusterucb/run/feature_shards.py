"""Store a pool's features as files in a run folder, computed once or taken from the cache.

``features-00000.safetensors`` and so on hold the blocks of some thousand rows each. ``features-fit.safetensors`` holds
what the feature learnt from the pool (`Feature.fit`). A file that exists is complete and is never computed again.

Decision: a run takes all features from the cache or none, and a run that began to compute them does not use the cache
later. So its report does not depend on where it was interrupted. ``features-cached.json`` marks features from the
cache. It is written before the first file, and removed if a file has to be computed after all (someone emptied the
cache in the meantime). Such a run reports the cost of computing everything.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from clusterucb.atomic import whole_file, write_whole
from clusterucb.run.feature_cache import FeatureCache

CACHED = "features-cached.json"  # marks features from the cache

Arrays = dict[str, NDArray[Any]]


class Shards:
    """The files with the features of N samples.

    Args:
        folder: the folder of the files. It is created if it does not exist.
        n_samples: N.
        size: the number of rows in one shard.
        fits: whether the feature learns something from the pool first.
    """

    def __init__(self, folder: Path, n_samples: int, size: int, *, fits: bool) -> None:
        folder.mkdir(exist_ok=True)
        starts = range(0, n_samples, size)
        self._fit = folder / "features-fit.safetensors"
        self._rows = {
            folder / f"features-{number:05}.safetensors": range(start, min(start + size, n_samples))
            for number, start in enumerate(starts)
        }
        self._files = [*([self._fit] if fits else []), *self._rows]
        self._mark = folder / CACHED

    def take(self, key: str | None) -> float | None:
        """Take the features from the cache, unless some were computed already.

        Args:
            key: the features' key, from `clusterucb.run.feature_cache.feature_key`. None means that they cannot be
                cached.

        Returns:
            The seconds that computing the features once took; None if they were not taken from the cache.
        """
        begun = any(path.exists() for path in self._files) and not self._mark.exists()
        if self._complete or begun or not key or not (cache := FeatureCache()).holds(key):
            return None
        write_whole(self._mark, msgspec.json.encode({"cache": key}))
        seconds = cache.take(key, self._mark.parent)
        return seconds if self._complete else None

    def fill(
        self,
        fit: Callable[[], Arrays],
        compute: Callable[[range, Arrays], dict[str, NDArray[np.float32]]],
    ) -> bool:
        """Compute the missing files.

        Args:
            fit: a function that returns what the feature learns from the pool.
            compute: a function of a range of rows and of what was learnt. It returns the rows' blocks.

        Returns:
            Whether a file was missing.
        """
        if self._complete:
            return False
        self._mark.unlink(missing_ok=True)
        if self._fit in self._files and not self._fit.exists():
            _save(self._fit, fit())
        learnt = self.fitted()
        for path, rows in self._rows.items():
            if not path.exists():
                _save(path, compute(rows, learnt))
        return True

    def keep(self, key: str | None, seconds: float) -> None:
        """Keep the features, which took ``seconds`` to compute, in the cache if they have a key."""
        if key:
            FeatureCache().keep(key, self._files, seconds)

    def fitted(self) -> Arrays:
        """Return what the feature learnt from the pool, as read-only arrays; empty if it learns nothing or not yet."""
        arrays: Arrays = load_file(self._fit) if self._fit.exists() else {}
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def blocks(self) -> dict[str, NDArray[np.float32]]:
        """Return the blocks of all samples, each f32[N, k] and read-only. Beside them, one file is held at a time."""
        first, n_samples = next(iter(self._rows)), max(rows.stop for rows in self._rows.values())
        blocks = {
            name: np.empty((n_samples, *part.shape[1:]), part.dtype)
            for name, part in load_file(first).items()
        }
        for path, rows in self._rows.items():
            shard = load_file(path)
            for name, block in blocks.items():
                np.concatenate([shard[name]], out=block[rows.start : rows.stop])  # refuses another width
        for block in blocks.values():
            block.flags.writeable = False
        return blocks

    @property
    def _complete(self) -> bool:
        return all(path.exists() for path in self._files)


def _save(path: Path, arrays: Arrays) -> None:
    with whole_file(path) as partial:
        save_file(arrays, partial)
