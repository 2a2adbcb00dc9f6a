"""Influence scores: the agreement of a sample's preconditioned gradient with each target direction.

A subtask's direction is the mean of its samples' unit gradients, V_s. A pool sample's score is the
cosine-like product ⟨Γ_i / ‖Γ_i‖, V_s⟩ (LESS, Xia et al. 2024, eq. 1; ClusterUCB): the mean of the
cosines with each of the subtask's samples, since that is linear in the unit gradients. It is exact:
no random projection stands between.

A sample fails, with its reason, when its gradient is zero or not finite. It never scores as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb import ops
from clusterucb.encode import Encoded, collate, micro_batches
from clusterucb.errors import InputError
from clusterucb.gradients import PerSampleGradients, Sink
from clusterucb.moments import Moments
from clusterucb.preconditioner import Preconditioner

# Padding is never seen by a label position, so any token will do.
_PAD = 0


def compute_directions(
    gradients: PerSampleGradients,
    target: Mapping[str, Sequence[Encoded]],
    *,
    size: int,
    batch_tokens: int,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[NDArray[np.float32], dict[str, list[str]]]:
    """Return the direction of every subtask, and what failed.

    Args:
        gradients: of the model at the checkpoint, entered.
        target: the encoded samples of each subtask; S subtasks.
        size: P, length of the flat parameter space.
        batch_tokens: padded tokens in one pass.
        device: where the model is.
        advance: called with the number of samples done.

    Returns:
        f32[S, P], the mean of the unit gradients, and for each subtask the reasons of its samples that
        failed and were left out.

    Raises:
        InputError: no sample of a subtask has a usable gradient.
    """
    directions = np.zeros((len(target), size), np.float32)
    failures: dict[str, list[str]] = {}
    for direction, (subtask, samples) in zip(directions, target.items(), strict=True):
        reasons = failures.setdefault(subtask, [])
        for batch in micro_batches([len(sample) for sample in samples], batch_tokens):
            reasons += _add_units(direction, gradients, [samples[at] for at in batch], device)
            advance(len(batch))
        if len(reasons) == len(samples):
            raise InputError(
                f"no target sample of subtask {subtask!r} has a usable gradient ({reasons[0]}); expected at "
                "least one. Warm the adapter up for longer, or take other target samples"
            )
        direction /= len(samples) - len(reasons)
    return directions, failures


def _add_units(
    direction: NDArray[np.float32], gradients: PerSampleGradients, samples: Sequence[Encoded], device: str
) -> list[str]:
    """Add the samples' unit gradients to a direction; return why some could not be added."""
    pieces: list[tuple[int, torch.Tensor]] = []
    _backward(gradients, samples, device, lambda *piece: pieces.append(piece))
    norms = np.sqrt(sum(piece.double().square().sum(dim=1).cpu().numpy() for _, piece in pieces))
    faults = [_fault(norm) for norm in norms.tolist()]
    usable = [at for at, fault in enumerate(faults) if fault is None]
    weights = torch.from_numpy(1 / norms[usable])
    for offset, piece in pieces:
        total = weights.to(piece.device) @ piece[usable].double()
        direction[offset : offset + piece.shape[1]] += total.cpu().numpy()
    return [fault for fault in faults if fault]


class Scorer:
    """Scores pool samples; what `clusterucb.engine.search` calls with the rows it draws.

    Pure and deterministic by row for the rows of one call, in whatever micro-batches they run.

    Args:
        gradients: of the model at the checkpoint, entered.
        encoded: the pool's N samples.
        directions: f32[S, P].
        preconditioner, moments: what turns a gradient into an update; moments may be None for ``sgd``.
        batch_tokens: padded tokens in one pass.
        device: where the model is.
        advance: called with the number of samples done.

    Attributes:
        failures: row -> why it could not be scored.
    """

    def __init__(
        self,
        gradients: PerSampleGradients,
        encoded: Sequence[Encoded],
        *,
        directions: NDArray[np.float32],
        preconditioner: Preconditioner,
        moments: Moments | None,
        batch_tokens: int,
        device: str = "cpu",
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._gradients = gradients
        self._encoded = encoded
        self._directions = directions
        self._preconditioner = preconditioner
        self._moments = (moments.m, moments.v) if moments else None
        self._batch_tokens = batch_tokens
        self._device = device
        self._advance = advance
        self.failures: dict[int, str] = {}

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the scores of ``rows`` i64[m] as f64[m, S]; NaN where scoring failed."""
        scores = np.empty((len(rows), len(self._directions)))
        lengths = [len(self._encoded[row]) for row in rows]
        for batch in micro_batches(lengths, self._batch_tokens):
            scores[batch] = self._score(rows[batch])
            self._advance(len(batch))
        return scores

    def _score(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        norm2 = np.zeros(len(rows))
        products = np.zeros((len(rows), len(self._directions)))

        largest = np.zeros(len(rows))  # element of each raw gradient: Adam's direction hides a zero gradient

        def add(offset: int, gradient: torch.Tensor) -> None:
            np.maximum(
                largest, torch.linalg.vector_norm(gradient, math.inf, dim=1).cpu().numpy(), out=largest
            )
            ops.accumulate(
                gradient.cpu(),
                offset,
                preconditioner=self._preconditioner,
                moments=self._moments,
                directions=self._directions,
                norm2=norm2,
                products=products,
            )

        _backward(self._gradients, [self._encoded[row] for row in rows], self._device, add)
        scores = np.full_like(products, np.nan)
        for at, row in enumerate(rows.tolist()):
            if fault := _fault(largest[at]) or _fault(norm2[at]):
                self.failures[row] = fault
            else:
                scores[at] = products[at] / math.sqrt(norm2[at])
        return scores


def _backward(gradients: PerSampleGradients, samples: Sequence[Encoded], device: str, sink: Sink) -> None:
    ids, labels = collate(samples, _PAD)
    gradients.backward(ids.to(device), labels.to(device), sink)


def _fault(size: float) -> str | None:
    """Return why a gradient of this size cannot be used, or None."""
    if not math.isfinite(size):
        return "the gradient is not finite"
    return None if size > 0 else "the gradient is zero"
