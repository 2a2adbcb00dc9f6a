"""From samples to the numbers their gradients come down to: one backward pass, one pass over its gradients.

Gradients arrive matrix by matrix and go at once, preconditioned, into norms, inner products with
directions, and sketches (`clusterucb.ops.accumulate`). Everything stays on the model's device until the
batch is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb import ops
from clusterucb.encode import Encoded, collate, micro_batches
from clusterucb.gradients import PerSampleGradients, Sink
from clusterucb.moments import Moments
from clusterucb.preconditioner import Preconditioner
from clusterucb.projection import Sketch

# Padding is never seen by a label position, so any token will do.
_PAD = 0


class Accumulated(NamedTuple):
    """What a batch's update directions come down to.

    Attributes:
        norm2: f64[B], squared norms.
        products: f64[B, S], inner products with the directions; None without directions.
        sketched: f32[B, d], unscaled sketches; None without a sketch.
        faults: why a sample's gradient cannot be used, or None; one for each sample.
    """

    norm2: NDArray[np.float64]
    products: Any
    sketched: Any
    faults: list[str | None]


class Accumulator:
    """Computes update directions' norms, and their inner products, sketches or both.

    Args:
        gradients: of the model at the checkpoint, entered.
        preconditioner, moments: what turns a gradient into an update; moments may be None for ``sgd``.
        device: where the model is.
        directions: f32[S, P], of the target's subtasks; or None.
        sketch: the projection; or None.

    Attributes:
        sketch: the same.
    """

    def __init__(
        self,
        gradients: PerSampleGradients,
        preconditioner: Preconditioner,
        moments: Moments | None,
        *,
        device: str = "cpu",
        directions: NDArray[np.float32] | None = None,
        sketch: Sketch | None = None,
    ) -> None:
        self._gradients = gradients
        self._preconditioner = preconditioner
        self._device = device
        self._moments = (self._tensor(moments.m), self._tensor(moments.v)) if moments else None
        self._directions = None if directions is None else self._tensor(directions)
        self.sketch = sketch

    def __call__(self, samples: Sequence[Encoded]) -> Accumulated:
        """Return the numbers of B samples."""
        count = len(samples)
        largest = torch.zeros(count, device=self._device)  # raw: Adam's direction hides a zero gradient
        norm2 = self._zeros(torch.float64, count)
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
                preconditioner=self._preconditioner,
                norm2=norm2,
                moments=self._moments,
                directions=self._directions,
                products=products,
                sketch=self.sketch,
                sketched=sketched,
            )

        backward(self._gradients, samples, self._device, add)
        faults = [fault(a) or fault(b) for a, b in zip(largest.tolist(), norm2.tolist(), strict=True)]
        return Accumulated(norm2.cpu().numpy(), products, sketched, faults)

    def _tensor(self, array: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def _zeros(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)


def backward(gradients: PerSampleGradients, samples: Sequence[Encoded], device: str, sink: Sink) -> None:
    """Compute the samples' gradients, and hand them on matrix by matrix."""
    ids, labels = collate(samples, _PAD)
    gradients.backward(ids.to(device), labels.to(device), sink)


def fault(size: float) -> str | None:
    """Return why a gradient of this size cannot be used, or None."""
    if not math.isfinite(size):
        return "the gradient is not finite"
    return None if size > 0 else "the gradient is zero"


def unit_sketches(
    accumulator: Accumulator,
    samples: Sequence[Encoded],
    *,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[NDArray[np.float32], list[str | None]]:
    """Return the finished sketches f32[m, d] of samples, NaN where a gradient fails, and why it does.

    Args:
        accumulator: with a sketch.
        samples: m of them.
        batch_tokens: padded tokens in one pass.
        advance: called with the number of samples done.
    """
    sketch = accumulator.sketch
    assert sketch is not None
    sketches = np.full((len(samples), sketch.dimension), np.nan, np.float32)
    faults: list[str | None] = [None] * len(samples)
    for batch in micro_batches([len(sample) for sample in samples], batch_tokens):
        norm2, _, sketched, found = accumulator([samples[at] for at in batch])
        for at, unit, reason in zip(batch, ops.finish_sketches(norm2, sketched, sketch), found, strict=True):
            faults[at] = reason
            if reason is None:
                sketches[at] = unit
        advance(len(batch))
    return sketches, faults
