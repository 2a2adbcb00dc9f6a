"""Store a pool's features as files in a run folder, computed once or taken from the cache.

``features-00000.safetensors`` and so on hold the blocks of some thousand rows each. ``features-fit.safetensors`` holds
what the feature learnt from the pool (`Feature.fit`). A file that exists is complete and is never computed again.

Decision: a run takes all features from the cache or none, and a run that began to compute them does not use the cache
later. So its report does not depend on where it was interrupted. ``features-cached.json`` marks features from the
cache. It is written before the first file, and removed if a file has to be computed after all (someone emptied the
cache in the meantime). Such a run reports the cost of computing everything.

The features of a large pool are in half precision where that loses nothing (`clusterucb.run.half_features`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb.atomic import inner_folder, remove_file, write_whole
from clusterucb.errors import RunError
from clusterucb.run.feature_cache import FeatureCache
from clusterucb.run.half_features import mapped, precision, stored
from clusterucb.run.kept_files import KeptFiles, check_arrays, load_arrays

CACHED = "features-cached.json"  # marks features from the cache

Arrays = dict[str, NDArray[Any]]


class Shards:
    """The files with the features of N samples.

    Args:
        files: the files of the run folder.
        folder: the folder of the shards inside the run folder, or "" for the run folder itself. It is created if it
            does not exist.
        n_samples: N.
        size: the number of rows in one shard.
        fits: whether the feature learns something from the pool first.
        halves: whether blocks are stored in half precision where that loses nothing, and are mapped from the disk.
    """

    def __init__(
        self, files: KeptFiles, folder: str, n_samples: int, size: int, *, fits: bool, halves: bool = False
    ) -> None:
        inside = f"{folder}/" if folder else ""
        self._kept = files
        self._folder = inner_folder(files.folder / folder) if folder else files.folder
        self._fit = f"{inside}features-fit.safetensors"
        self._rows = {
            f"{inside}features-{number:05}.safetensors": range(start, min(start + size, n_samples))
            for number, start in enumerate(range(0, n_samples, size))
        }
        self._names = [*([self._fit] if fits else []), *self._rows]
        self._mark = self._folder / CACHED
        self._halves = halves
        # Of each block; the first shard decides.
        self._precision: dict[str, np.dtype[Any] | type[np.generic]] = {}

    def take(self, key: str | None) -> float | None:
        """Take the features from the cache, unless some were computed already.

        Args:
            key: the features' key, from `clusterucb.run.feature_cache.feature_key`. None means that they cannot be
                cached.

        Returns:
            The seconds that computing the features once took; None if they were not taken from the cache.
        """
        paths = [self._kept.folder / name for name in self._names]
        begun = any(path.exists() for path in paths) and not self._mark.exists()
        if self.complete or begun or not key or not self._cache.holds(key):
            return None
        write_whole(self._mark, msgspec.json.encode({"cache": key}))
        seconds = self._cache.take(key, self._folder, [path.name for path in paths])
        if seconds is None:
            return None
        self._kept.record(*self._names)
        try:
            for _ in self._loaded():
                pass
        except RunError as error:
            self._kept.forget(*self._names)
            for path in paths:
                path.unlink()
            self._cache.drop(key, error)
            return None
        return seconds

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
        if self.complete:
            return False
        remove_file(self._mark)
        if self._fit in self._names and self._kept.find(self._fit) is None:
            self._kept.write_arrays(self._fit, fit())
        learnt = self.fitted()
        for name, rows in self._rows.items():
            if self._kept.find(name) is None:
                self._kept.write_arrays(name, self._stored(compute(rows, learnt)))
            elif self._halves and not self._precision:
                shard = self._kept.arrays(name) or {}
                self._precision = {block: part.dtype for block, part in shard.items()}
        return True

    def _stored(self, blocks: dict[str, NDArray[np.float32]]) -> Arrays:
        """Return the blocks of a shard in the precision in which they are stored."""
        if not self._halves:
            return blocks
        self._precision = self._precision or {name: precision(block) for name, block in blocks.items()}
        return {name: stored(block, self._precision.get(name, np.float32)) for name, block in blocks.items()}

    def keep(self, key: str | None, seconds: float) -> None:
        """Keep the features, which took ``seconds`` to compute, in the cache if they have a key."""
        if key:
            self._cache.keep(key, [self._kept.folder / name for name in self._names], seconds)

    def fitted(self) -> Arrays:
        """Return what the feature learnt from the pool, as read-only arrays; empty if it learns nothing or not yet."""
        arrays = (self._kept.arrays(self._fit) if self._fit in self._names else None) or {}
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def blocks(self) -> dict[str, NDArray[Any]]:
        """Return the blocks of all samples, each f32[N, k] and read-only. Beside them, one file is held at a time.

        In half precision, they are f16[N, k], and mapped from the disk.
        """
        n_samples = max(rows.stop for rows in self._rows.values())
        if self._halves:
            return mapped((shard for _, shard in self._loaded()), n_samples)
        blocks: dict[str, NDArray[np.float32]] = {}
        for rows, shard in self._loaded():
            for name, part in shard.items():
                if name not in blocks:
                    blocks[name] = np.empty((n_samples, part.shape[1]), part.dtype)
                blocks[name][rows.start : rows.stop] = part
        for block in blocks.values():
            block.flags.writeable = False
        return blocks

    @cached_property
    def _cache(self) -> FeatureCache:
        return FeatureCache()

    def _loaded(self) -> Iterator[tuple[range, Arrays]]:
        """Yield the rows and the blocks of each shard. All have the same blocks.

        Raises:
            RunError: a file is damaged.
        """
        widths: dict[str, tuple[type[np.generic], int]] = {}
        for name, rows in self._rows.items():
            path = self._kept.path(name)
            try:
                arrays = load_arrays(path)
                widths = widths or {
                    block: (self._type_of(part), part.shape[-1])
                    for block, part in arrays.items()
                    if part.ndim
                }
                check_arrays(arrays, {block: (kind, (len(rows), k)) for block, (kind, k) in widths.items()})
            except ValueError as error:
                raise self._kept.damaged(path, error) from error
            yield rows, arrays

    def _type_of(self, part: NDArray[Any]) -> type[np.generic]:
        """Return the type that the numbers of a block must have, by its first shard."""
        return np.float16 if self._halves and part.dtype == np.float16 else np.float32

    @property
    def complete(self) -> bool:
        """Whether no file is missing."""
        return all(self._kept.find(name) is not None for name in self._names)
