"""From samples to the numbers their gradients come down to: one backward pass, one pass over its gradients.

Gradients arrive matrix by matrix and go at once, preconditioned, into norms, inner products with
directions, and sketches (`clusterucb.kernels.ops.accumulate`). Everything stays on the model's device until whoever
asked for it reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.gradients.passes import Batch, Passes
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.kernels import ops
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch
from clusterucb.model.moments import Moments
from clusterucb.progress import Advance
from clusterucb.samples.encode import Encoded


@dataclass(frozen=True)
class Checkpoint:
    """What is differentiated, where, and what turns a gradient into an update.

    Attributes:
        gradients: of the model at the checkpoint; entered by those who use it.
        size: P, the length of the flat parameter space.
        preconditioner: what turns a gradient into an update.
        moments: of the optimiser; None for ``sgd``.
        weight: of its scores among those of all checkpoints; they add up to one.
        number: its place among all checkpoints, from 0; each has a projection of its own.
    """

    gradients: PerSampleGradients
    size: int
    preconditioner: Preconditioner = Preconditioner("sgd")  # noqa: RUF009  (frozen)
    moments: Moments | None = None
    weight: float = 1.0
    number: int = 0


class Accumulated(NamedTuple):
    """What a batch's update directions come down to, on the device that they are computed on.

    Attributes:
        largest: f32[B], the largest parts of the raw gradients; Adam's direction hides a gradient of zero.
        norm2: f64[B], squared norms.
        products: f64[B, S], inner products with the directions; None without directions.
        sketched: f32[B, d], unscaled sketches; None without a sketch.
    """

    largest: torch.Tensor
    norm2: torch.Tensor
    products: Any
    sketched: Any

    def faults(self) -> list[str | None]:
        """Return why a sample's gradient cannot be used, or None; one for each sample."""
        sizes = zip(self.largest.tolist(), self.norm2.tolist(), strict=True)
        return [fault(a) or fault(b) for a, b in sizes]


class Accumulator:
    """Computes update directions' norms, and their inner products, sketches or both, at one checkpoint.

    A context manager, inside which the model is at that checkpoint.

    Args:
        checkpoint: what is differentiated, and what turns a gradient into an update.
        device: where the model is.
        directions: f32[S, P], of the target's subtasks; or None.
        sketch: the projection of the first checkpoint; or None.

    Attributes:
        checkpoint: the same.
        sketch: this checkpoint's projection; or None.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        directions: NDArray[np.float32] | None = None,
        sketch: Sketch | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self._device = device
        moments = checkpoint.moments
        self._moments = (self._tensor(moments.m), self._tensor(moments.v)) if moments else None
        self._directions = None if directions is None else self._tensor(directions)
        self.sketch = sketch and sketch.of_checkpoint(checkpoint.number)

    def __enter__(self) -> Self:
        """Put the model at the checkpoint."""
        self.checkpoint.gradients.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the model back."""
        self.checkpoint.gradients.__exit__(kind, error, trace)

    def __call__(self, batch: Batch) -> Accumulated:
        """Return the numbers of B samples."""
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
    """Return why a gradient of this size cannot be used, or None."""
    if not math.isfinite(size):
        return "the gradient is not finite"
    return None if size > 0 else "the gradient is zero"


def unit_sketches(
    accumulators: Sequence[Accumulator],
    samples: Sequence[Encoded],
    passes: Passes,
    call: str,
    *,
    advance: Advance = lambda _: None,
) -> tuple[NDArray[np.float32], list[str | None]]:
    """Return the finished sketches f32[m, d] of samples, NaN where a gradient fails, and why it does.

    Those of several checkpoints are added, each with the root of its weight: inner products of what comes out estimate
    the weighted sums of the checkpoints' cosines.

    Args:
        accumulators: with a sketch, one for each checkpoint.
        samples: m of them.
        passes: what puts them into passes of the model.
        call: names this call among all of a run.
        advance: called with the number of samples done at every checkpoint.
    """
    sketch = accumulators[0].sketch
    assert sketch is not None
    sketches = np.zeros((len(samples), sketch.dimension), np.float32)
    faults: list[str | None] = [None] * len(samples)
    for one, rows, found in over(accumulators, samples, passes, call, faults, advance):
        root = np.float32(math.sqrt(one.weight))
        sketches[rows] += root * ops.finish_sketches(found.norm2, found.sketched, sketch)
    sketches[[reason is not None for reason in faults]] = np.nan
    return sketches, faults


def over(
    accumulators: Sequence[Accumulator],
    samples: Sequence[Encoded],
    passes: Passes,
    call: str,
    faults: list[str | None],
    advance: Advance,
) -> Iterator[tuple[Checkpoint, NDArray[np.int64], Accumulated]]:
    """Yield the numbers of m samples, checkpoint by checkpoint and pass by pass, with the samples' positions.

    Args:
        accumulators, samples, passes, call, advance: as of `unit_sketches`.
        faults: of the samples; what is found at any checkpoint is entered.
    """
    for accumulator in accumulators:
        checkpoint = accumulator.checkpoint
        with accumulator:
            for rows, found in passes.over(call, checkpoint.number, samples, accumulator):
                yield checkpoint, rows, found
                for at, reason in zip(rows, found.faults(), strict=True):
                    faults[at] = faults[at] or reason
                if accumulator is accumulators[-1]:
                    advance(len(rows))
