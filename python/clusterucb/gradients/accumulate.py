"""Reduce per-sample gradients to norms, inner products and sketches.

A batch takes one backward pass. Its gradients arrive matrix by matrix; each matrix is preconditioned and added to the
norms, the inner products with directions, and the sketches at once (`clusterucb.kernels.ops.accumulate`), so memory is
read once. The numbers stay on the model's device until the caller reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.gradients.passes import Here, PaddedBatch, Passes
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.kernels import ops
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch
from clusterucb.model.moments import Moments
from clusterucb.progress import Advance
from clusterucb.samples.encoded import Encoded
from clusterucb.workers.lane import Lane

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of the model: its per-sample gradients, and the preconditioner that turns them into updates.

    Attributes:
        gradients: the per-sample gradients of the model at this checkpoint; the user enters this context manager.
        size: P, the length of the flat parameter space.
        preconditioner: turns a gradient into an update direction.
        moments: the optimiser's moments; None for ``sgd``.
        weight: the weight of this checkpoint's scores; the weights of all checkpoints add up to one.
        number: the checkpoint's number, counted from 0; each checkpoint has its own projection.
    """

    gradients: PerSampleGradients
    size: int
    preconditioner: Preconditioner = Preconditioner("sgd")  # noqa: RUF009  (frozen)
    moments: Moments | None = None
    weight: float = 1.0
    number: int = 0


class Step(Protocol[Result_co]):
    """What is computed on every pass at one checkpoint.

    A context manager: inside it, the model is at that checkpoint.

    Attributes:
        number: the checkpoint's number, counted from 0.
        weight: the weight of the checkpoint's scores.
        size: P, the length of the flat parameter space.
        n_directions: S, the number of directions.
        sketch: the projection for this checkpoint; None if there are no sketches.
    """

    number: int
    weight: float
    size: int
    n_directions: int
    sketch: Sketch | None

    @property
    def lane(self) -> Lane[Result_co]:
        """Computes the passes."""

    def __enter__(self) -> Self:
        """Put the model at the checkpoint."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the model."""


class Accumulated(NamedTuple):
    """The norms, inner products and sketches of a batch's update directions, tensors on the model's device.

    What workers computed are arrays.

    Attributes:
        largest: f32[B], the largest absolute element of each raw gradient. It reveals a gradient of zero, which Adam's
            update direction hides.
        norm2: f64[B], the squared norms.
        products: f64[B, S], the inner products with the directions; None without directions.
        sketched: f32[B, d], the sketches, without their scale; None without a sketch.
    """

    largest: Any
    norm2: Any
    products: Any
    sketched: Any

    def faults(self) -> list[str | None]:
        """Return for each of the B samples why its gradient cannot be used, or None if it can."""
        sizes = zip(self.largest.tolist(), self.norm2.tolist(), strict=True)
        return [fault(largest) or fault(square) for largest, square in sizes]


class AtCheckpoint(Generic[Result]):
    """Computes passes in this process, at one checkpoint.

    A context manager: inside it, the model is at that checkpoint. Subclasses run one pass when they are called.

    Args:
        checkpoint: the checkpoint.
        device: the model's device.

    Attributes:
        checkpoint: the checkpoint.
        number, weight, size, n_directions, sketch: as for `Step`; there are no directions and sketches by default.
    """

    n_directions = 0
    sketch: Sketch | None = None

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.number, self.weight, self.size = checkpoint.number, checkpoint.weight, checkpoint.size
        self._device = device

    @cached_property
    def lane(self) -> Lane[Result]:
        """Computes passes in this process."""
        return Here(self, self._device)

    def __enter__(self) -> Self:
        """Put the model at the checkpoint."""
        self.checkpoint.gradients.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the model."""
        self.checkpoint.gradients.__exit__(kind, error, trace)

    def __call__(self, batch: PaddedBatch) -> Result:
        """Run one pass over B samples."""
        raise NotImplementedError


class Accumulator(AtCheckpoint[Accumulated]):
    """Computes the norms of update directions, and their inner products, sketches or both, at one checkpoint.

    Args:
        checkpoint: the checkpoint.
        device: the model's device.
        directions: f32[S, P], the directions of the target's subtasks; None computes no inner products.
        sketch: the projection for the first checkpoint; None computes no sketches.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        directions: NDArray[np.float32] | None = None,
        sketch: Sketch | None = None,
    ) -> None:
        super().__init__(checkpoint, device)
        moments = checkpoint.moments
        self._moments = (self._tensor(moments.m), self._tensor(moments.v)) if moments else None
        self.n_directions = 0 if directions is None else len(directions)
        self._directions = None if directions is None else self._tensor(directions)
        self.sketch = sketch and sketch.of_checkpoint(checkpoint.number)

    def __call__(self, batch: PaddedBatch) -> Accumulated:
        """Run one backward pass over B samples, and return their numbers."""
        count = len(batch.lengths)
        largest, norm2 = self._zeros(torch.float32, count), self._zeros(torch.float64, count)
        products = sketched = None
        if self._directions is not None:
            products = self._zeros(torch.float64, count, len(self._directions))
        if self.sketch is not None:
            sketched = self._zeros(torch.float32, count, self.sketch.dimension)

        def add(offset: int, gradient: torch.Tensor) -> None:
            torch.maximum(largest, torch.linalg.vector_norm(gradient, math.inf, dim=1), out=largest)
            ops.accumulate(
                gradient,
                offset,
                preconditioner=self.checkpoint.preconditioner,
                norm2=norm2,
                moments=self._moments,
                directions=self._directions,
                products=products,
                sketch=self.sketch,
                sketched=sketched,
            )

        self.checkpoint.gradients.backward(batch, add)
        return Accumulated(largest, norm2, products, sketched)

    def _tensor(self, array: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def _zeros(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)


def fault(size: float) -> str | None:
    """Return why a gradient of this size (a norm or a largest element) cannot be used, or None if it can."""
    if not math.isfinite(size):
        return "the gradient is not finite"
    return None if size > 0 else "the gradient is zero"


def unit_sketches(
    accumulators: Sequence[Step[Accumulated]],
    samples: Sequence[Encoded],
    passes: Passes,
    call: str,
    *,
    advance: Advance = lambda _: None,
) -> tuple[NDArray[np.float32], list[str | None]]:
    """Return the finished sketches of samples, and the reasons why some failed.

    The sketches of several checkpoints are added up, each times the root of its checkpoint's weight. Inner products of
    these sums estimate the weighted sums of the checkpoints' cosines.

    Args:
        accumulators: one for each checkpoint, with a sketch.
        samples: m samples.
        passes: groups the samples into passes of the model.
        call: a name for this call that is unique within the run.
        advance: called with the number of samples that are done at every checkpoint.

    Returns:
        f32[m, d], the sketches, NaN where a gradient failed; and for each sample why it failed, or None.
    """
    sketch = accumulators[0].sketch
    assert sketch is not None
    sketches = np.zeros((len(samples), sketch.dimension), np.float32)
    faults: list[str | None] = [None] * len(samples)
    for weight, rows, numbers in over(accumulators, samples, passes, call, faults, advance):
        root = np.float32(math.sqrt(weight))
        sketches[rows] += root * ops.finish_sketches(numbers.norm2, numbers.sketched, sketch)
    sketches[[reason is not None for reason in faults]] = np.nan
    return sketches, faults


def over(
    accumulators: Sequence[Step[Accumulated]],
    samples: Sequence[Encoded],
    passes: Passes,
    call: str,
    faults: list[str | None],
    advance: Advance,
) -> Iterator[tuple[float, NDArray[np.int64], Accumulated]]:
    """Yield the numbers of m samples, checkpoint by checkpoint and pass by pass.

    Args:
        accumulators, samples, passes, call, advance: as for `unit_sketches`.
        faults: one entry for each sample; the first reason why its gradient fails at any checkpoint is written to it.

    Yields:
        The checkpoint's weight, the positions i64[B] of a pass's samples, and the numbers of these B samples.
    """

    def killed(at: int, how: str) -> None:
        faults[at] = faults[at] or f"workers die of the sample: {how}"

    for accumulator in accumulators:
        with accumulator:
            for rows, numbers in passes.over(
                call, accumulator.number, samples, accumulator.lane, killed=killed
            ):
                yield accumulator.weight, rows, numbers
                for at, reason in zip(rows, numbers.faults(), strict=True):
                    faults[at] = faults[at] or reason
                if accumulator is accumulators[-1]:
                    advance(len(rows))
