"""Everything in a run that needs the model: features, warm-up, directions and scores.

Each of them is a stage on disk. What a run has already written is read back and never computed
again, and the model itself is loaded only when something is missing: taking up a finished run, or
selecting another number of samples from it, costs no model at all.

A run always goes on from its files, also in the session that wrote them: the LoRA that was just
warmed up is loaded from ``adapter/`` like any other. So a run gives the same bits whether or not it
was interrupted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from clusterucb import checkpoint
from clusterucb.atomic import whole_file
from clusterucb.errors import ClusterUCBWarning, PluginError, blamed
from clusterucb.features.base import Feature, FeatureBatch
from clusterucb.gradients import PerSampleGradients
from clusterucb.material import Material
from clusterucb.moments import Moments, load_moments
from clusterucb.parameters import ParameterManifest
from clusterucb.preconditioner import Preconditioner
from clusterucb.progress import Advance, Observer
from clusterucb.run import Run
from clusterucb.scorer import Scorer, compute_directions
from clusterucb.settings import Settings
from clusterucb.warmup import warm_up

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_SHARD = 4096  # rows in one file of features


@dataclass(frozen=True)
class _Checkpoint:
    """What gradients are taken of."""

    gradients: PerSampleGradients
    manifest: ParameterManifest
    preconditioner: Preconditioner
    moments: Moments | None


class Influence:
    """The influence of pool samples on a target; a context manager that lets go of the model's hooks.

    Args:
        run: where stages are kept.
        settings: the run's options.
        source: the base model.
        device: where it runs.
        material: the encoded pool of N samples and target of S subtasks.
        observer: who is told how it gets on.
        base: the model of `load_base`, where it is loaded already.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
        source: checkpoint.ModelSource,
        device: str,
        material: Material,
        observer: Observer,
        base: PreTrainedModel | None = None,
    ) -> None:
        self._run = run
        self._given = base
        self._settings = settings
        self._source = source
        self._device = device
        self._material = material
        self._observer = observer
        self._open = ExitStack()
        self._count: Advance = lambda _: None

    def __enter__(self) -> Self:
        """Return itself; nothing is loaded yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hooks off the model."""
        self._open.close()

    def features(self, feature: Feature) -> dict[str, NDArray[np.float32]]:
        """Return the pool's feature blocks, each f32[N, k], computing the shards that are missing."""
        shards = []
        samples, encoded = self._material.samples, self._material.encoded
        for number, start in enumerate(range(0, len(samples), _SHARD)):
            path = self._run.path(f"features-{number:05}.safetensors")
            if not path.exists():
                rows = slice(start, start + _SHARD)
                batch = FeatureBatch(samples[rows], encoded[rows], self._base)
                with self._run.phase("features"):
                    found = blamed(feature.compute)(batch)
                _save(path, _checked_blocks(feature, found, len(batch.samples)))
            shards.append(load_file(path))
        return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}

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

    def failure(self, row: int) -> str:
        """Return why scoring a row failed."""
        return self._scorer.failures[row]

    @cached_property
    def _base(self) -> PreTrainedModel:
        if self._given is not None:
            return self._given
        return load_base(self._settings, self._source, self._device, self._material, self._observer)

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(
            self._checkpoint.gradients,
            self._material.encoded,
            directions=self._directions(),
            preconditioner=self._checkpoint.preconditioner,
            moments=self._checkpoint.moments,
            batch_tokens=self._settings.batch_tokens,
            device=self._device,
            advance=lambda n: self._count(n),
        )

    @cached_property
    def _checkpoint(self) -> _Checkpoint:
        adapter = self._settings.adapter or self._warmed_up()
        model, manifest, moments = _load_checkpoint(self._settings, self._base, adapter)
        preconditioner = Preconditioner("sgd")
        if moments:
            preconditioner = Preconditioner(
                self._settings.preconditioner, moments.beta1, moments.beta2, moments.eps, moments.step
            )
        if self._device != "cpu":
            self._observer.step(
                "Gradients are scored on the CPU: this version has no kernels for other devices"
            )
        gradients = self._open.enter_context(PerSampleGradients(model, manifest))
        return _Checkpoint(gradients, manifest, preconditioner, moments)

    def _warmed_up(self) -> Path:
        """Return the run's own adapter, trained first if it is not there yet."""
        folder = self._run.path("adapter")
        if folder.exists():
            return folder
        settings = self._settings
        lora = _fresh_lora(settings, self._base)
        steps = self._material.warmup_rows(settings.warmup_steps, settings.seed)
        batches = [[self._material.encoded[row] for row in rows] for rows in steps]
        title = f"Warming up LoRA ({len(batches)} steps)"
        with (
            self._run.phase("warm-up"),
            self._observer.count(title, steps.size) as advance,
        ):
            warm_up(
                lora,
                batches,
                folder,
                learning_rate=settings.warmup_lr,
                device=self._device,
                advance=advance,
            )
        lora.unload()
        return folder

    def _directions(self) -> NDArray[np.float32]:
        """Return the directions of the S subtasks, f32[S, P]."""
        path = self._run.path("directions.safetensors")
        if path.exists():
            directions: NDArray[np.float32] = load_file(path)["directions"]
            return directions
        gradients, manifest = self._checkpoint.gradients, self._checkpoint.manifest
        target = self._material.target
        title = f"Target gradients ({len(target)} subtask{'s' * (len(target) > 1)})"
        with (
            self._run.phase("target"),
            self._observer.count(title, self._material.n_target) as advance,
        ):
            directions, failures = compute_directions(
                gradients,
                target,
                size=manifest.size,
                batch_tokens=self._settings.batch_tokens,
                device=self._device,
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


def load_base(
    settings: Settings,
    source: checkpoint.ModelSource,
    device: str,
    material: Material,
    observer: Observer,
) -> PreTrainedModel:
    """Load the base model, and check that it takes the samples and the adapter or fresh LoRA asked for.

    Nothing is computed and nothing written yet, so a mistake costs nothing.

    Raises:
        ModelError: something does not fit.
    """
    observer.step(f"Loading the model {source.name} on {device}")
    model = source.model(settings.dtype, device)
    samples = [*material.encoded, *chain(*material.target.values())]
    checkpoint.check_limits(
        model,
        longest=max(map(len, samples)),
        largest_token=max(int(sample.tokens.max()) for sample in samples),
    )
    if settings.adapter:
        adapted, _, _ = _load_checkpoint(settings, model, settings.adapter)
    else:
        adapted = _fresh_lora(settings, model)
        ParameterManifest.of(adapted)
    adapted.unload()
    return model


def _fresh_lora(settings: Settings, base: PreTrainedModel) -> PeftModel:
    return checkpoint.attach_lora(
        base,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        targets=settings.target_layers,
        seed=settings.seed,
    )


def _load_checkpoint(
    settings: Settings, base: PreTrainedModel, adapter: Path
) -> tuple[PeftModel, ParameterManifest, Moments | None]:
    """Return an adapter on the base model, where its matrices stand, and its moments unless unused."""
    model = checkpoint.load_adapter(base, adapter)
    manifest = ParameterManifest.of(model)
    if settings.preconditioner == "sgd":
        return model, manifest, None
    path = settings.optimizer_file or adapter / "optimizer.pt"
    return model, manifest, load_moments(path, model, manifest)


def _save(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    with whole_file(path) as partial:
        save_file(dict(arrays), partial)
