"""Measure the scores and gradients of a few samples, for `clusterucb.jobs.doctor.probes` to compare.

Scores come from preconditioned gradients. Gradients are compared without the preconditioner, by their sketches, which
keep lengths within a few percent. The sketches are made on the CPU, where every installation can make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clusterucb.gradients.accumulate import Accumulator, Checkpoint
from clusterucb.gradients.directions import UnitGradients, compute_directions
from clusterucb.gradients.passes import PaddedBatch, Passes
from clusterucb.gradients.per_sample import PerSampleGradients, Sink
from clusterucb.kernels import ops
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch
from clusterucb.samples.encoded import Encoded

_SKETCH = Sketch(8192, 4)
_IGNORED = -100  # the label that Hugging Face ignores


class Change(NamedTuple):
    """The largest change of a score (a difference of cosines) and of a gradient (relative to its length)."""

    score: float
    gradient: float


class Measured(NamedTuple):
    """The measurements of m samples: scores f64[m], sketches of gradients f32[m, d], and a fault or None for each."""

    scores: NDArray[np.float64]
    gradients: NDArray[np.float32]
    faults: list[str | None]

    def take(self, at: slice | list[int]) -> Measured:
        """Return the measurements of some of the samples."""
        return Measured(self.scores[at], self.gradients[at], np.array(self.faults, object)[at].tolist())

    def change(self, true: Measured) -> Change:
        """Return the largest change of a score and of a gradient, from ``true`` to these."""
        scores = np.abs(self.scores - true.scores)
        apart = np.linalg.norm(self.gradients - true.gradients, axis=1)
        return Change(float(scores.max()), float((apart / np.linalg.norm(true.gradients, axis=1)).max()))

    def cosine(self, true: Measured) -> float:
        """Return the smallest cosine between a sample's gradient here and its gradient in ``true``."""
        lengths = np.linalg.norm(self.gradients, axis=1) * np.linalg.norm(true.gradients, axis=1)
        return float(((self.gradients * true.gradients).sum(axis=1) / lengths).min())


def direction_of(checkpoint: Checkpoint, samples: Sequence[Encoded], device: str) -> NDArray[np.float32]:
    """Return the direction, f32[1, P], of a target that consists of ``samples``."""
    directions, _ = compute_directions(
        UnitGradients(checkpoint, device), {"probes": samples}, Passes(1, device)
    )
    return directions


def measure(
    checkpoint: Checkpoint,
    groups: Sequence[Sequence[Encoded]],
    device: str,
    directions: NDArray[np.float32] | None = None,
) -> Measured:
    """Measure samples, each group in one pass. Without directions, every score is zero."""
    watched = _Watched(checkpoint.gradients)
    seen = replace(checkpoint, gradients=cast(PerSampleGradients, watched))
    with Accumulator(seen, device=device, directions=directions) as accumulator:
        passes = [accumulator(PaddedBatch.of(group, device)) for group in groups]
    scores = [
        np.zeros(len(one.norm2)) if directions is None else ops.finish(one.norm2, one.products)[:, 0]
        for one in passes
    ]
    faults = [fault for one in passes for fault in one.faults()]
    return Measured(np.concatenate(scores), np.concatenate(watched.sketches), faults)


class _Watched:
    """Per-sample gradients that are passed on, and whose sketches, f32[B, d] for each pass, are kept on the CPU."""

    def __init__(self, gradients: PerSampleGradients) -> None:
        self._gradients = gradients
        self.sketches: list[NDArray[np.float32]] = []

    def __enter__(self) -> Self:
        self._gradients.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gradients.__exit__(kind, error, trace)

    def backward(self, batch: PaddedBatch, sink: Sink) -> Tensor:
        """Call `PerSampleGradients.backward`, and sketch every gradient on its way to ``sink``."""
        norm2 = np.zeros(len(batch.lengths))
        sketched = np.zeros((len(batch.lengths), _SKETCH.dimension), np.float32)
        self.sketches.append(sketched)

        def both(offset: int, gradient: Tensor) -> None:
            sink(offset, gradient)
            own = gradient.cpu().numpy()
            ops.accumulate(
                own, offset, preconditioner=Preconditioner(), norm2=norm2, sketch=_SKETCH, sketched=sketched
            )

        return self._gradients.backward(batch, both)


class Autograd(PerSampleGradients):
    """The gradient of one sample, computed the plain way: autograd, an attention mask and the model's own loss."""

    @classmethod
    def of(cls, gradients: PerSampleGradients) -> Self:
        """Return the plain gradients of the same matrices, without checkpointing, which does not change gradients."""
        return cls(
            gradients.model, gradients.manifest, adapter=gradients._adapter, autocast=gradients._autocast
        )

    def backward(self, batch: PaddedBatch, sink: Sink) -> Tensor:
        """Compute the gradient of a batch of one sample."""
        labels = torch.full_like(batch.ids, _IGNORED)
        labels.view(-1)[batch.predicting + 1] = batch.predicted
        weights = [self.model.get_parameter(one.torch_name) for one in self.manifest]
        for weight in weights:  # frozen again on exit
            weight.requires_grad_(True)
        enabled = self._autocast is not None
        with torch.autocast(batch.ids.device.type, self._autocast, enabled=enabled):
            mask = torch.ones_like(batch.ids)
            loss: Tensor = self.model(
                input_ids=batch.ids, attention_mask=mask, labels=labels, use_cache=False
            ).loss
        found = torch.autograd.grad(loss, weights, materialize_grads=True)
        for one, gradient in zip(self.manifest, found, strict=True):
            sink(one.offset, gradient.flatten().float()[None])
        return loss.detach()[None].float()
