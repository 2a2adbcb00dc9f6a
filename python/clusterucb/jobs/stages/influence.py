"""Compute features, directions and scores with the model.

Each of them is a stage on disk. A run reads back what it has already written, and never computes it again. Sketches
that a gradient store holds are not computed at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from clusterucb import filenames
from clusterucb.atomic import whole_file
from clusterucb.engine.blame import blamed
from clusterucb.engine.budget import Allowance, NothingLeft
from clusterucb.engine.poolview import ESTIMATES
from clusterucb.engine.recall import Recall
from clusterucb.errors import OptionError, warn
from clusterucb.features.base import (
    PASSES,
    Feature,
    FeatureBatch,
    Fitted,
    checked_blocks,
    checked_fit,
)
from clusterucb.features.similarity import similarity
from clusterucb.gradients.accumulate import Accumulator, unit_sketches
from clusterucb.gradients.scorer import Scorer, compute_directions, sketch_directions
from clusterucb.gradients.session import AdaptedModel
from clusterucb.jobs.stages.spending import Spending, spending
from clusterucb.kernels.projection import Sketch
from clusterucb.options.amounts import Seconds, Tokens
from clusterucb.options.search import ScoringSettings
from clusterucb.progress import Observer
from clusterucb.run.feature_cache import feature_key, home
from clusterucb.run.feature_shards import CACHED, Shards
from clusterucb.run.folder import Run
from clusterucb.run.gradient_store import SHARD, GradientStore, StoredScores
from clusterucb.run.ledger import Ledger
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.pool_and_target import Material
from clusterucb.samples.sample import Sample
from clusterucb.wording import counted

_SHARD = 4096  # rows in a feature file


class Influence:
    """The influence of pool samples on a target.

    Args:
        run: the run, whose folder keeps the stages.
        settings: the run's options.
        model: the model at its checkpoint.
        material: the encoded pool of N samples, and the encoded target of S subtasks.
        observer: receives the progress.
        store: the gradient store with the pool's sketches, or None.
    """

    def __init__(
        self,
        run: Run,
        settings: ScoringSettings,
        model: AdaptedModel,
        material: Material,
        observer: Observer,
        store: GradientStore | None = None,
    ) -> None:
        self._run = run
        self._settings = settings
        self._model = model
        self._material = material
        self._observer = observer
        self._store = store
        self._spending: Spending | None = None

    def ledger(self) -> Ledger:
        """Return the run's ledger. The caller opens and closes it."""
        return Ledger(
            self._run.path(filenames.LEDGER),
            subtasks=list(self._material.target),
            tokens=self._material.encoded.lengths,
            failure=lambda row: self._scorer.failures[row],
        )

    def features(self, feature: Feature, folder: str = "") -> dict[str, NDArray[np.float32]]:
        """Return the pool's feature blocks, each f32[N, k]. Missing shards come from the cache or are computed.

        A comparison keeps several features in the run folder. It counts features from the cache with the time that
        they took when they were computed, because it is about the cost of strategies. A selection counts features from
        the cache as free (`reused`).

        Args:
            feature: the feature to compute.
            folder: the shards' folder inside the run folder, if the run keeps several features.
        """
        phase = folder or "features"
        if feature.gradients and self._store is not None:  # the sketches are already on disk
            return self._stored(feature, phase)
        shards = self._shards(feature, folder)
        with self._run.phase(phase):
            key = self._cache_key(feature)
            seconds = shards.take(key)
        timed = self._run.manifest.cost.phases[phase]
        if seconds is not None:
            self._observer.step(f"Features taken from the cache: {home()}")
            timed.seconds += seconds if folder else 0.0
        with self._run.phase(phase):
            computed = shards.fill(
                lambda: self._fit(feature),
                lambda rows, fitted: checked_blocks(
                    feature, blamed(feature.compute)(self._batch(rows, fitted)), len(rows)
                ),
            )
        if computed:
            shards.keep(key, timed.seconds)
        self.count_passes(feature, folder)
        return shards.blocks()

    def count_passes(self, feature: Feature, folder: str = "") -> None:
        """Set the feature's number of passes if fitting has measured it. Call `features` for an equal feature first."""
        _count_passes(feature, self._shards(feature, folder).fitted())

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
            blocks: the pool's feature blocks, from `features`.
            folder: as in `features`.
        """
        path = self._run.path(folder) / filenames.SIMILARITY
        if path.exists():
            return np.asarray(load_file(path)["similarity"])
        fitted = self._shards(feature, folder).fitted()
        material = self._material
        with self._run.phase(folder or "features"):
            targets = [
                checked_blocks(
                    feature,
                    blamed(feature.compute)(self._batch_of(material.target_samples[name], encoded, fitted)),
                    len(encoded),
                )
                for name, encoded in material.target.items()
            ]
            found = similarity({name: blocks[name] for name in feature.compared(blocks)}, targets)
        with whole_file(path) as partial:
            save_file({"similarity": found}, partial)
        return found

    def estimates(self) -> dict[str, NDArray[np.float32]]:
        """Return the scores that the store's sketches estimate, as a block f32[N, S]; 0 where a gradient failed.

        There is no block without a store, or if scores are read from sketches.
        """
        if self._store is None or self._settings.by_sketch:
            return {}
        path = self._run.path(filenames.ESTIMATES)
        if not path.exists():
            targets = self._sketched_directions()
            title = "Reading the store's sketches"
            with self._run.phase("features"), self._observer.count(title, len(self._store)) as advance:
                found = self._store.scores(targets, advance)
            _save(path, {ESTIMATES: np.nan_to_num(found, nan=0.0).astype(np.float32)})
        stored: dict[str, NDArray[np.float32]] = load_file(path)
        return stored

    @contextmanager
    def drawing(
        self,
        budget: int,
        done: tuple[int, int],
        limit: Tokens | Seconds | None = None,
        *,
        spent: bool = False,
    ) -> Iterator[Allowance | None]:
        """Show progress while the block draws. Yields the allowance, or None if the budget is a number of draws.

        Args:
            budget: the number of draws, or the expected number.
            done: the number of draws already recorded, and their tokens.
            limit: the budget if it is a number of tokens or a time; None if it is a number of draws.
            spent: whether the budget in ``limit`` is already spent.
        """
        lengths = self._material.encoded.lengths
        if spent or done[0] >= (budget if limit is None else len(lengths)):
            yield None if limit is None else NothingLeft()
            return
        self._scorer  # noqa: B018  (computes what the scorer needs now, because that shows progress of its own)
        with spending(self._run, self._observer, lengths, limit, budget, done) as self._spending:
            yield self._spending.allowance

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the scores of pool rows i64[m] for every subtask, f64[m, S]; NaN where scoring failed."""
        if self._spending:
            self._spending.scoring(self._material.encoded.lengths[rows])
        return self._scorer(rows)

    def found(self, recall: Recall) -> None:
        """Show the estimated recall beside the progress."""
        if self._spending:
            self._spending.note = f"found {recall}"

    def _advance(self, n: int) -> None:
        if self._spending:
            self._spending.advance(n)

    def _shards(self, feature: Feature, folder: str) -> Shards:
        size = SHARD if feature.gradients else _SHARD
        return Shards(self._run.path(folder), len(self._material.samples), size, fits=feature.fit_samples > 0)

    def _cache_key(self, feature: Feature) -> str | None:
        settings = self._run.manifest.settings
        return feature_key(
            feature,
            {
                **{
                    name: settings.get(name) for name in ("pool content", "encoding content", "model content")
                },
                "dtype": self._settings.dtype,
                "device": self._model.device.partition(":")[0],
                "rows": _SHARD,
            },
        )

    def _stored(self, feature: Feature, phase: str) -> dict[str, NDArray[np.float32]]:
        """Return features that are computed from the store's sketches."""
        n_samples = len(self._material.samples)
        shards = []
        with self._run.phase(phase):
            fitted = self._fit(feature) if feature.fit_samples else {}
            _count_passes(feature, fitted)
            for start in range(0, n_samples, SHARD):
                rows = range(start, min(start + SHARD, n_samples))
                found = blamed(feature.compute)(self._batch(rows, fitted))
                shards.append(checked_blocks(feature, found, len(rows)))
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
                with self._observer.count(title, len(rows)) as advance:
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
            raise OptionError("the target's gradients are no features of it")

        device = self._model.device
        return FeatureBatch(samples, encoded, lambda: self._model.base, sketches or none, fitted, device)

    @property
    def _n_checkpoints(self) -> int:
        return len(self._settings.weights)

    @property
    def _sketch(self) -> Sketch:
        return self._store.sketch if self._store is not None else self._settings.sketch

    @cached_property
    def _sketchers(self) -> list[Accumulator]:
        return self._model.accumulators(sketch=self._sketch)

    @cached_property
    def _scorer(self) -> Scorer | StoredScores:
        settings = self._settings
        if not settings.by_sketch:
            accumulators = self._model.accumulators(directions=self._directions())
            targets = None
        else:
            targets = self._sketched_directions()
            if self._store is not None:
                return StoredScores(self._store, targets, advance=self._advance)
            accumulators = self._sketchers
        return Scorer(
            accumulators,
            self._material.encoded,
            self._model.passes,
            targets=targets,
            advance=self._advance,
        )

    def _sketched_directions(self) -> NDArray[np.float32]:
        return sketch_directions(self._directions(), self._settings.weights, self._sketch)

    def _directions(self) -> list[NDArray[np.float32]]:
        """Return the directions of the S subtasks, f32[S, P] for each checkpoint."""
        path = self._run.path(filenames.DIRECTIONS)
        names = [
            f"directions-{number + 1}" if number else "directions" for number in range(self._n_checkpoints)
        ]
        if path.exists():
            stored = load_file(path)
            return [stored[name] for name in names]
        target = self._material.target
        title = f"Target gradients ({counted(len(target), 'subtask')})"
        found = []
        failures: dict[str, list[str]] = {}
        with (
            self._run.phase("target"),
            self._observer.count(title, self._n_checkpoints * self._material.n_target) as advance,
        ):
            for checkpoint in self._model.checkpoints:
                directions, failed = compute_directions(
                    checkpoint, target, self._model.passes, advance=advance
                )
                found.append(directions)
                failures = {subtask: failures.get(subtask, []) or failed[subtask] for subtask in failed}
        for subtask, reasons in failures.items():
            if reasons:
                warn(
                    f"{counted(len(reasons), 'target sample was', 'target samples were')} left out of subtask "
                    f"{subtask!r}: {reasons[0]}"
                )
        _save(path, dict(zip(names, found, strict=True)))
        return found


def _count_passes(feature: Feature, fitted: Fitted) -> None:
    if PASSES in fitted:
        feature.forward_passes = float(fitted[PASSES].item())


def _save(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    with whole_file(path) as partial:
        save_file(dict(arrays), partial)
