"""What workers load to compute gradients and features, and how the driver asks them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.engine.blame import blamed
from clusterucb.errors import ModelError, PluginError, WorkerError
from clusterucb.features.base import Feature, FeatureBatch, Fitted
from clusterucb.gradients.accumulate import Accumulated, Accumulator, Checkpoint, Step
from clusterucb.gradients.checkpoints import base_for_adapter, load_checkpoints
from clusterucb.gradients.directions import Summed, UnitGradients
from clusterucb.kernels.projection import Sketch
from clusterucb.model.source import ModelSource
from clusterucb.options.gradients import GradientSettings
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.sample import Sample
from clusterucb.workers.crew import Crew, CrewPending
from clusterucb.workers.lane import Deadly, NoMemory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BASE, _CHECKPOINTS, _ENTERED = "base", "checkpoints", "entered"  # what the programs of a worker share
_ROWS = 32  # samples that a worker describes at once


@dataclass(frozen=True)
class Origin:
    """Where the model and its checkpoints are loaded from. All paths are absolute.

    Attributes:
        settings: the options.
        source: the base model.
        checkpoints: the adapter's folder and the optimiser state's file of each checkpoint; either may be None.
    """

    settings: GradientSettings
    source: ModelSource
    checkpoints: list[tuple[Path | None, Path | None]]

    @classmethod
    def of(
        cls,
        settings: GradientSettings,
        source: ModelSource,
        checkpoints: Sequence[tuple[Path | None, Path | None]],
    ) -> Self:
        """Return the origin with absolute paths, because a worker may run in another folder."""
        given = {name: getattr(settings, name) for name in ("adapter", "optimizer")}
        paths = {name: path.absolute() for name, path in given.items() if path is not None}
        if settings.checkpoint is not None:
            paths["checkpoint"] = [path.absolute() for path in settings.checkpoint]
        name = str(Path(source.name).absolute()) if Path(source.name).is_dir() else source.name
        pairs = [
            (adapter and adapter.absolute(), state and state.absolute()) for adapter, state in checkpoints
        ]
        return cls(replace(settings, **paths), replace(source, name=name), pairs)

    def base(self, device: str, shared: dict[str, Any]) -> PreTrainedModel:
        """Load the base model, unless another program of the worker has.

        Raises:
            WorkerError: this machine does not see a folder or file.
            ModelError: the model cannot be loaded.
        """
        if _BASE not in shared:
            self._check_seen()
            shared[_BASE], _ = base_for_adapter(self.settings, self.source, device)
        base: PreTrainedModel = shared[_BASE]
        return base

    def load(self, device: str, shared: dict[str, Any]) -> list[Checkpoint]:
        """Load the checkpoints, unless another program of the worker has; see `base`."""
        if _CHECKPOINTS not in shared:
            base = self.base(device, shared)
            shared[_CHECKPOINTS] = load_checkpoints(self.settings, base, self.checkpoints)
        checkpoints: list[Checkpoint] = shared[_CHECKPOINTS]
        return checkpoints

    def _check_seen(self) -> None:
        paths = [path for pair in self.checkpoints for path in pair if path is not None]
        if Path(self.source.name).is_absolute():
            paths.append(Path(self.source.name))
        for path in paths:
            if not path.exists():
                raise WorkerError(
                    f"{path} is not there on {platform.node()}, where a worker runs; expected files that every machine "
                    "sees. Put them, and --out, on a disk that all machines share"
                )


@dataclass(frozen=True)
class Reduction:
    """What the gradients of a pass are reduced to, at each checkpoint.

    Attributes:
        unit_sums: whether unit gradients are summed, for directions. If not, gradients are reduced to norms, and to:
        directions: inner products with f32[S, P] for each checkpoint; None computes none.
        sketch: sketches with this projection of the first checkpoint; None computes none.
    """

    unit_sums: bool = False
    directions: Sequence[NDArray[np.float32]] | None = None
    sketch: Sketch | None = None

    def steps(self, checkpoints: Sequence[Checkpoint], device: str) -> list[Step[Any]]:
        """Return what computes passes in this process, for each checkpoint."""
        if self.unit_sums:
            return [UnitGradients(checkpoint, device) for checkpoint in checkpoints]
        return [
            Accumulator(
                checkpoint,
                device=device,
                directions=None if self.directions is None else self.directions[checkpoint.number],
                sketch=self.sketch,
            )
            for checkpoint in checkpoints
        ]


# Returns what computes the passes of a reduction elsewhere, too, from what computes them in this process.
Spread = Callable[[Reduction, list[Step[Any]]], list[Step[Any]]]


class Loads(Protocol):
    """Where checkpoints come from."""

    def load(self, device: str, shared: dict[str, Any]) -> list[Checkpoint]:
        """Load the checkpoints, unless another program of the worker has."""


@dataclass(frozen=True)
class GradientProgram:
    """What a worker loads, to reduce the gradients of passes.

    Attributes:
        origin: where the checkpoints are loaded from.
        reduction: what gradients are reduced to.
    """

    origin: Loads
    reduction: Reduction

    def load(self, device: str, shared: dict[str, Any]) -> tuple[list[int], Callable[..., Any]]:
        """Load the checkpoints, and return their numbers of parameters."""
        steps = self.reduction.steps(self.origin.load(device, shared), device)
        return [step.size for step in steps], partial(_compute, steps, entered(shared))


@dataclass(frozen=True)
class FeatureProgram:
    """What a worker loads, to describe samples by a feature that runs the base model, or a model of its own.

    Attributes:
        origin: where the base model is loaded from.
        feature: the feature. It must not use gradients.
        fitted: what the feature learnt from the pool.
    """

    origin: Origin
    feature: Feature
    fitted: Fitted

    def load(self, device: str, shared: dict[str, Any]) -> tuple[None, Callable[..., Any]]:
        """Load nothing yet: the feature says which model it needs."""
        return None, partial(self._blocks, device, shared)

    def _blocks(
        self, device: str, shared: dict[str, Any], samples: Sequence[Sample], encoded: Sequence[Encoded]
    ) -> dict[str, NDArray[np.float32]]:
        entered(shared).at(None)

        def none() -> NDArray[np.float32]:
            raise PluginError("a feature asks for gradients; expected one that declares them")

        batch = FeatureBatch(
            samples, encoded, lambda: self.origin.base(device, shared), none, self.fitted, device
        )
        return dict(blamed(self.feature.compute)(batch))


class _Entered:
    """Keeps a worker's model at the checkpoint of the last pass, because entering one takes time."""

    def __init__(self) -> None:
        self._step: Step[Any] | None = None
        self._open = ExitStack()

    def at(self, step: Step[Any] | None) -> None:
        """Put the model at the checkpoint of a step; None leaves all checkpoints."""
        if step is not self._step:
            self._step = None
            self._open.close()
            if step is not None:
                self._open.enter_context(step)
            self._step = step


def entered(shared: dict[str, Any]) -> _Entered:
    """Return what puts a worker's model at a checkpoint, the same for all its programs."""
    entered: _Entered = shared.setdefault(_ENTERED, _Entered())
    return entered


def _compute(steps: Sequence[Step[Any]], place: _Entered, number: int, samples: Sequence[Encoded]) -> Any:
    """Return the result of a pass, in a form that does not need the model's device."""
    step = steps[number]
    place.at(step)
    found = step.lane.begin(samples).result()
    if not isinstance(found, Accumulated):
        return Summed.of(found)
    return Accumulated(*(part.cpu().numpy() if isinstance(part, torch.Tensor) else part for part in found))


class WorkersStep:
    """A step of a program that workers have loaded.

    Args:
        crew: the workers.
        key: the program's name.
        number: the checkpoint's number, counted from 0.
        reduction: what gradients are reduced to.
        weight: the weight of the checkpoint's scores.
        size: P, the length of the flat parameter space.

    Attributes:
        number, weight, size, n_directions, sketch: as for `Step`.
        ahead: how many passes may have begun before the result of the first is read.
    """

    def __init__(
        self, crew: Crew, key: str, number: int, reduction: Reduction, weight: float, size: int
    ) -> None:
        self.number, self.weight, self.size = number, weight, size
        self.n_directions = 0 if reduction.directions is None else len(reduction.directions[number])
        self.sketch = reduction.sketch and reduction.sketch.of_checkpoint(number)
        self.ahead = 4 * crew.size
        self._crew = crew
        self._key = key

    @property
    def lane(self) -> Self:
        """Computes passes on the workers."""
        return self

    def begin(self, samples: Sequence[Encoded]) -> CrewPending:
        """Hand a pass over B samples out."""
        return CrewPending(self._crew, self._crew.begin(self._key, self.number, list(samples)))

    def __enter__(self) -> Self:
        """Do nothing: a worker puts its model at the checkpoint."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""


def on_workers(crew: Crew, origin: Origin, reduction: Reduction) -> list[Step[Any]]:
    """Load the checkpoints on workers, and return what computes passes there, for each checkpoint.

    Raises:
        ModelError: a worker has too little memory for the model.
    """
    try:
        key, sizes = crew.load(GradientProgram(origin, reduction))
    except NoMemory as error:
        raise ModelError(
            "memory is too small for the models of all workers; expected more memory, or fewer --workers"
        ) from error
    sized = enumerate(zip(origin.settings.weights, sizes, strict=True))
    return [WorkersStep(crew, key, number, reduction, *one) for number, one in sized]


def described_on_workers(
    crew: Crew, program: FeatureProgram, samples: Sequence[Sample], encoded: Sequence[Encoded]
) -> dict[str, NDArray[np.float32]]:
    """Return a feature's blocks of m samples, each f32[m, k].

    A feature's row does not depend on its batch, so the samples are divided as suits the workers.

    Raises:
        WorkerError: workers die of the samples.
    """
    key, _ = crew.load(program)
    numbers = [
        crew.begin(key, list(samples[start : start + _ROWS]), list(encoded[start : start + _ROWS]))
        for start in range(0, len(samples), _ROWS)
    ]
    try:
        parts = [crew.answer(number) for number in numbers]
    except (NoMemory, Deadly) as error:
        raise WorkerError(
            f"workers cannot compute the features ({error or 'memory is too small'}); expected more memory, or fewer "
            "--workers"
        ) from error
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
