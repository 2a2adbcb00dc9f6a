"""What a run computes with the model: features, directions and scores.

Each of them is a stage on disk. What a run has already written is read back and never computed again,
and what a gradient store holds is not computed at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from clusterucb.accumulate import Accumulator, unit_sketches
from clusterucb.adapted import AdaptedModel
from clusterucb.atomic import whole_file
from clusterucb.encode import Encoded
from clusterucb.errors import ClusterUCBWarning, OptionError, PluginError, blamed
from clusterucb.features.base import Feature, FeatureBatch
from clusterucb.ledger import Ledger
from clusterucb.material import Material
from clusterucb.pool import Sample
from clusterucb.progress import Advance, Observer
from clusterucb.projection import Sketch
from clusterucb.run import Run
from clusterucb.scorer import Scorer, compute_directions, sketch_directions
from clusterucb.settings import Settings
from clusterucb.similarity import similarity
from clusterucb.store import SHARD, GradientStore, StoredScores

_SHARD = 4096  # rows in one file of features


class Influence:
    """The influence of pool samples on a target.

    Args:
        run: where stages are kept.
        settings: the run's options.
        model: the model at its checkpoint.
        material: the encoded pool of N samples and target of S subtasks.
        observer: who is told how it gets on.
        store: the pool's sketches, where there are some.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
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
        self._count: Advance = lambda _: None

    def ledger(self) -> Ledger:
        """Return the run's ledger, to be opened and closed by the caller."""
        return Ledger(
            self._run.path("ledger.sqlite"),
            subtasks=list(self._material.target),
            tokens=np.array([len(sample) for sample in self._material.encoded]),
            failure=lambda row: self._scorer.failures[row],
        )

    def features(self, feature: Feature, folder: str = "") -> dict[str, NDArray[np.float32]]:
        """Return the pool's feature blocks, each f32[N, k], computing the shards that are missing.

        Args:
            feature: what to compute.
            folder: where in the run's folder the shards are kept, when it keeps several features.
        """
        shards = []
        n_samples, size = len(self._material.samples), SHARD if feature.gradients else _SHARD
        stored = feature.gradients and self._store is not None
        for number, start in enumerate(range(0, n_samples, size)):
            path = self._run.path(folder) / f"features-{number:05}.safetensors"
            path.parent.mkdir(exist_ok=True)
            if stored or not path.exists():
                rows = range(start, min(start + size, n_samples))
                with self._run.phase(folder or "features"):
                    found = _checked_blocks(feature, blamed(feature.compute)(self._batch(rows)), len(rows))
                if stored:  # they stand on the disk already
                    shards.append(found)
                    continue
                _save(path, found)
            shards.append(load_file(path))
        return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}

    def similarity(
        self, feature: Feature, blocks: Mapping[str, NDArray[np.float32]], folder: str = ""
    ) -> NDArray[np.float64]:
        """Return how similar each pool sample is to the target, f64[N].

        Args:
            feature: what the target is described by, too.
            blocks: the pool's features.
            folder: as in `features`.

        Raises:
            OptionError: the features are gradients.
        """
        if feature.gradients:
            raise OptionError(
                "similarity to the target is what is known without gradients; use other --features, such as hidden "
                "or embedding"
            )
        path = self._run.path(folder) / "similarity.safetensors"
        if path.exists():
            return np.asarray(load_file(path)["similarity"])
        names = feature.similar_by or tuple(blocks)
        target = self._material.target
        with self._run.phase(folder or "features"):
            targets = [
                _checked_blocks(
                    feature,
                    blamed(feature.compute)(self._features_of(self._material.target_samples[name], encoded)),
                    len(encoded),
                )
                for name, encoded in target.items()
            ]
            found = similarity({name: blocks[name] for name in names}, targets)
        with whole_file(path) as partial:
            save_file({"similarity": found}, partial)
        return found

    @contextmanager
    def drawing(self, budget: int, done: int) -> Iterator[None]:
        """Show how much of the budget is spent while the block draws; ``done`` draws are already recorded."""
        if done >= budget:
            yield
            return
        self._scorer  # noqa: B018  (what it needs has progress of its own, which comes first)
        with (
            self._observer.count("Scoring", budget, done=done, unit="draws") as self._count,
            self._run.phase("draws"),
        ):
            yield

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the scores of pool rows i64[m] for every subtask, f64[m, S]; NaN where scoring failed."""
        return self._scorer(rows)

    def _batch(self, rows: range) -> FeatureBatch:
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
                        self._sketcher,
                        self._material.encoded[here],
                        batch_tokens=self._settings.batch_tokens,
                        advance=advance,
                    )
            return np.nan_to_num(found, copy=False, nan=0.0)

        return self._features_of(self._material.samples[here], self._material.encoded[here], sketches)

    def _features_of(
        self,
        samples: Sequence[Sample],
        encoded: Sequence[Encoded],
        sketches: Callable[[], NDArray[np.float32]] | None = None,
    ) -> FeatureBatch:
        def none() -> NDArray[np.float32]:
            raise OptionError("the target's gradients are no features of it")

        return FeatureBatch(samples, encoded, lambda: self._model.base, sketches or none)

    @property
    def _sketch(self) -> Sketch:
        return self._store.sketch if self._store is not None else self._settings.sketch

    @cached_property
    def _sketcher(self) -> Accumulator:
        return self._model.accumulator(sketch=self._sketch)

    @cached_property
    def _scorer(self) -> Scorer | StoredScores:
        settings = self._settings
        directions = self._directions()
        if not settings.by_sketch:
            accumulator = self._model.accumulator(directions=directions)
            targets = None
        else:
            targets = sketch_directions(directions, self._sketch)
            if self._store is not None:
                return StoredScores(self._store, targets, advance=lambda n: self._count(n))
            accumulator = self._sketcher
        return Scorer(
            accumulator,
            self._material.encoded,
            batch_tokens=settings.batch_tokens,
            targets=targets,
            advance=lambda n: self._count(n),
        )

    def _directions(self) -> NDArray[np.float32]:
        """Return the directions of the S subtasks, f32[S, P]."""
        path = self._run.path("directions.safetensors")
        if path.exists():
            directions: NDArray[np.float32] = load_file(path)["directions"]
            return directions
        gradients = self._model.gradients
        target = self._material.target
        title = f"Target gradients ({len(target)} subtask{'s' * (len(target) > 1)})"
        with (
            self._run.phase("target"),
            self._observer.count(title, self._material.n_target) as advance,
        ):
            directions, failures = compute_directions(
                gradients,
                target,
                size=self._model.size,
                batch_tokens=self._settings.batch_tokens,
                device=self._model.device,
                advance=advance,
            )
        for subtask, reasons in failures.items():
            if reasons:
                warnings.warn(
                    f"{len(reasons)} target samples of subtask {subtask!r} were left out: {reasons[0]}",
                    ClusterUCBWarning,
                    stacklevel=2,
                )
        _save(path, {"directions": directions})
        return directions


def _checked_blocks(feature: Feature, found: object, n_rows: int) -> dict[str, NDArray[np.float32]]:
    """Return what a feature computed as arrays that can be saved."""
    name = f"{type(feature).__name__}.compute"
    expected = f"a dict of blocks of numbers, each f32[{n_rows}, k]"
    if not isinstance(found, Mapping) or not found:
        raise PluginError(f"{name} returned {found!r:.80}; expected {expected}")
    blocks = {}
    for key, values in found.items():
        block = np.asarray(values)
        fits = block.ndim == 2 and len(block) == n_rows and block.dtype.kind in "fiub"
        if not isinstance(key, str) or not fits:
            raise PluginError(
                f"{name}: block {key!r} is {block.dtype} of shape {block.shape}; expected {expected}"
            )
        blocks[key] = np.ascontiguousarray(block, np.float32)
        if not np.isfinite(blocks[key]).all():
            raise PluginError(f"{name}: block {key!r} is not finite; expected {expected}, finite")
    return blocks


def _save(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    with whole_file(path) as partial:
        save_file(dict(arrays), partial)
