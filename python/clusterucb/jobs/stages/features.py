"""Describe the pool: feature blocks, from the run folder, the cache, the store's sketches or the model.

A run reads back the shards that it has already written, and never computes them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.engine.blame import blamed
from clusterucb.engine.large import is_large
from clusterucb.errors import OptionError
from clusterucb.features.base import (
    PASSES,
    Feature,
    FeatureBatch,
    Fitted,
    checked_blocks,
    checked_fit,
)
from clusterucb.features.similarity import similarity
from clusterucb.gradients.accumulate import Accumulated, Step, unit_sketches
from clusterucb.jobs.stages.opening import Session, Stage
from clusterucb.model.vocabulary import has_vocabulary
from clusterucb.options.search import ScoringSettings
from clusterucb.run.feature_cache import feature_key, home
from clusterucb.run.feature_shards import CACHED, Shards
from clusterucb.run.store_shards import SHARD
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.sample import Sample

_SHARD = 4096  # rows in a feature file
_LARGE_SHARD = 16384  # rows in a feature file of a large pool, which would have thousands of files


class PoolFeatures(Stage):
    """The features of a pool.

    Args:
        session: the job, its run folder and its model.
    """

    def __init__(self, session: Session[ScoringSettings]) -> None:
        super().__init__(session)
        self._fitted: dict[str, Fitted] = {}  # by folder

    def blocks(self, feature: Feature, folder: str = "") -> dict[str, NDArray[Any]]:
        """Return the pool's feature blocks, each f32[N, k]; of a large pool f16, mapped from the disk.

        Missing shards come from the cache or are computed.

        A comparison keeps several features in the run folder. It counts features from the cache with the time that
        they took when they were computed, because it is about the cost of strategies. A selection counts features from
        the cache as free (`reused`).

        Args:
            feature: the feature to compute.
            folder: the shards' folder inside the run folder, if the run keeps several features.
        """
        phase = folder or "features"
        if feature.gradients and self._store is not None:  # the sketches are already on disk
            return self._stored(feature, folder)
        shards = self._shards(feature, folder)
        with self._run.phase(phase):
            key = self._cache_key(feature)
            seconds = shards.take(key)
        if seconds is not None:
            self._observer.step(f"Reading features from the cache: {home()}")
            self._run.add_seconds(phase, seconds if folder else 0.0)
        if self._settings.workers is not None and not shards.complete:
            self._model.start_workers()
        with self._run.phase(phase):
            computed = shards.fill(
                lambda: self._fit(feature),
                lambda rows, fitted: checked_blocks(
                    feature,
                    self._computed(feature, rows, fitted),
                    self._material.samples[rows.start : rows.stop],
                ),
            )
        if computed:
            shards.keep(key, self._run.seconds(phase))
        self._fitted[folder] = shards.fitted()
        return shards.blocks()

    def passes(self, feature: Feature, folder: str = "") -> float:
        """Return the feature's forward passes over each sample: as fitting measured them, or as the class declares.

        Args:
            feature, folder: as in `blocks`, which is called first.
        """
        measured = self._fitted.get(folder, {}).get(PASSES)
        return feature.forward_passes if measured is None else float(measured.item())

    @property
    def reused(self) -> bool:
        """Whether the run's features were taken from the cache."""
        return self._run.path(CACHED).exists()

    def similarity(
        self, feature: Feature, blocks: Mapping[str, NDArray[np.float32]], folder: str = ""
    ) -> NDArray[np.float64]:
        """Return the similarity of each pool sample to the target, f64[N].

        Args:
            feature: the feature that described the pool, and here describes the target. It must not use gradients.
            blocks: the pool's feature blocks, from `blocks`.
            folder: as in `blocks`.
        """
        name = f"{folder}/{filenames.SIMILARITY}" if folder else filenames.SIMILARITY
        shape = (len(self._material.samples),)
        kept = self._run.files.arrays(name, {"similarity": (np.float64, shape)})
        if kept is not None:
            return kept["similarity"]
        fitted = self._shards(feature, folder).fitted()
        material = self._material
        with self._run.phase(folder or "features"):
            targets = [
                checked_blocks(
                    feature,
                    blamed(feature.compute)(self._batch_of(material.target_samples[name], encoded, fitted)),
                    material.target_samples[name],
                )
                for name, encoded in material.target.items()
            ]
            found = similarity({name: blocks[name] for name in feature.compared(blocks)}, targets)
        self._run.files.write_arrays(name, {"similarity": found})
        return found

    def _shards(self, feature: Feature, folder: str) -> Shards:
        n_samples = len(self._material.samples)
        size = SHARD if feature.gradients else self._shard_size
        return Shards(
            self._run.files,
            folder,
            n_samples,
            size,
            fits=feature.fit_samples > 0,
            halves=is_large(n_samples),
        )

    @property
    def _shard_size(self) -> int:
        return _LARGE_SHARD if is_large(len(self._material.samples)) else _SHARD

    def _cache_key(self, feature: Feature) -> str | None:
        contents, adapter = self._run.manifest.identity.contents, self._settings.first_adapter
        return feature_key(
            feature,
            {
                **{name: contents.get(name) for name in ("pool", "encoding", "model")},
                **({"vocabulary": contents.get("adapter")} if adapter and has_vocabulary(adapter) else {}),
                "dtype": self._settings.dtype,
                "device": self._model.device.partition(":")[0],
                "rows": self._shard_size,
                **({"quantize": self._settings.quantize} if self._settings.quantize else {}),
            },
        )

    def _computed(self, feature: Feature, rows: range, fitted: Fitted) -> Mapping[str, NDArray[np.float32]]:
        """Return the blocks of some rows, computed on the workers if the feature runs a model."""
        batch = self._batch(rows, fitted)
        runs_model = bool(feature.forward_passes) or PASSES in fitted
        if self._settings.workers is None or feature.gradients or not runs_model:
            return blamed(feature.compute)(batch)
        return self._model.describe(feature, batch.samples, batch.encoded, fitted)

    def _stored(self, feature: Feature, folder: str) -> dict[str, NDArray[np.float32]]:
        """Return features that are computed from the store's sketches."""
        n_samples = len(self._material.samples)
        shards = []
        with self._run.phase(folder or "features"):
            fitted = self._fit(feature) if feature.fit_samples else {}
            self._fitted[folder] = fitted
            for start in range(0, n_samples, SHARD):
                rows = range(start, min(start + SHARD, n_samples))
                found = blamed(feature.compute)(self._batch(rows, fitted))
                shards.append(checked_blocks(feature, found, self._material.samples[rows.start : rows.stop]))
        return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}

    def _fit(self, feature: Feature) -> dict[str, NDArray[Any]]:
        whole = self._batch_of(self._material.samples, self._material.encoded, {})
        return checked_fit(feature, blamed(feature.fit)(whole.spread(feature.fit_samples)))

    def _batch(self, rows: range, fitted: Fitted) -> FeatureBatch:
        here = slice(rows.start, rows.stop)

        def sketches() -> NDArray[np.float32]:
            if self._store is not None:
                found = self._store.rows(rows).astype(np.float32)
            else:
                title = (
                    f"Gradients of samples {rows.start + 1} to {rows.stop} of {len(self._material.samples)}"
                )
                with self._observer.count(title, len(rows), note=self._model.note) as advance:
                    found, _ = unit_sketches(
                        self._sketchers,
                        self._material.encoded[here],
                        self._model.passes,
                        f"features from {rows.start}",
                        advance=advance,
                    )
            return np.nan_to_num(found, copy=False, nan=0.0)

        return self._batch_of(self._material.samples[here], self._material.encoded[here], fitted, sketches)

    def _batch_of(
        self,
        samples: Sequence[Sample],
        encoded: Sequence[Encoded],
        fitted: Fitted,
        sketches: Callable[[], NDArray[np.float32]] | None = None,
    ) -> FeatureBatch:
        def none() -> NDArray[np.float32]:
            raise OptionError("the target's gradients cannot be features")

        device = self._model.device
        return FeatureBatch(samples, encoded, lambda: self._model.base, sketches or none, fitted, device)

    @cached_property
    def _sketchers(self) -> list[Step[Accumulated]]:
        return self._model.accumulators(sketch=self._settings.sketch)
