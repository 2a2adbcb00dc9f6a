"""Compute influence scores: the agreement of a sample's preconditioned gradient with each target direction.

A subtask's direction V_s is the mean of its samples' unit gradients. A pool sample's score is the inner product
⟨Γ_i / ‖Γ_i‖, V_s⟩ (LESS, Xia et al. 2024, eq. 1; ClusterUCB). It is the mean of the cosines with each of the subtask's
samples, because the product is linear in the unit gradients. By default the score is exact: no random projection is
involved. Sketches estimate it, with an error of about 1 / sqrt(d) for a direction of length one.

A sample whose gradient is zero or not finite fails, and its reason is kept. It never scores as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.engine.draws import RowScores
from clusterucb.errors import InputError
from clusterucb.gradients.accumulate import Accumulator, Checkpoint, fault, over, unit_sketches
from clusterucb.gradients.passes import PaddedBatch, Passes
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.kernels import ops
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch
from clusterucb.progress import Advance
from clusterucb.samples.encoded import Encoded

HELD = 1 << 27  # bytes of a pass's target gradients, which are kept until their norms are known


def compute_directions(
    checkpoint: Checkpoint,
    target: Mapping[str, Sequence[Encoded]],
    passes: Passes,
    *,
    advance: Advance = lambda _: None,
) -> tuple[NDArray[np.float32], dict[str, list[str]]]:
    """Return the direction of every subtask at a checkpoint, and the reasons why samples failed.

    Args:
        checkpoint: the checkpoint, with P parameters.
        target: the encoded samples of each of S subtasks.
        passes: groups the samples into passes of the model.
        advance: called with the number of samples that are done.

    Returns:
        f32[S, P], the means of the unit gradients; and for each subtask, the reason of each sample that failed and
        was left out of the mean.

    Raises:
        InputError: no sample of a subtask has a usable gradient.
    """
    directions = np.zeros((len(target), checkpoint.size), np.float32)
    failures: dict[str, list[str]] = {}
    most = max(HELD // (4 * checkpoint.size), 1)
    with checkpoint.gradients as gradients:
        for number, (subtask, samples) in enumerate(target.items(), checkpoint.number * len(target)):
            direction = directions[number % len(target)]
            reasons = failures.setdefault(subtask, [])
            for rows, pieces in passes.over(
                "target", number, samples, partial(_pieces, gradients), most=most
            ):
                reasons += _add_units(direction, pieces)
                advance(len(rows))
            if len(reasons) == len(samples):
                raise InputError(
                    f"no target sample of subtask {subtask!r} has a usable gradient ({reasons[0]}); expected at "
                    "least one. Warm the adapter up for longer, or use other target samples"
                )
            direction /= len(samples) - len(reasons)
    return directions, failures


_Pieces = list[tuple[int, torch.Tensor]]


def _pieces(gradients: PerSampleGradients, batch: PaddedBatch) -> _Pieces:
    pieces: _Pieces = []
    gradients.backward(batch, lambda *piece: pieces.append(piece))
    return pieces


def _add_units(direction: NDArray[np.float32], pieces: _Pieces) -> list[str]:
    """Add the usable unit gradients of a pass to a direction; return the reasons of the samples that failed."""
    norms = np.sqrt(sum(piece.double().square().sum(dim=1).cpu().numpy() for _, piece in pieces))
    faults = [fault(norm) for norm in norms.tolist()]
    usable = [at for at, reason in enumerate(faults) if reason is None]
    weights = torch.from_numpy(1 / norms[usable])
    for offset, piece in pieces:
        total = weights.to(piece.device) @ piece[usable].double()
        direction[offset : offset + piece.shape[1]] += total.cpu().numpy()
    return [reason for reason in faults if reason]


class Scorer:
    """Scores pool samples; `clusterucb.engine.loop.search` calls it with the rows of each draw.

    With several checkpoints, a score is the sum of the checkpoints' scores, each times its weight (LESS, Xia et al.
    2024, where the weights are the learning rates). For the rows of one call, a row's score is a pure function.

    Args:
        accumulators: one for each checkpoint, with the directions for exact scores, or with a sketch.
        encoded: the pool's N samples.
        passes: groups the samples into passes of the model.
        targets: f32[S, d], the finished sketches of the directions if scores are read from sketches; None for exact
            scores.
        advance: called with the number of samples that are done.
    """

    def __init__(
        self,
        accumulators: Sequence[Accumulator],
        encoded: Sequence[Encoded],
        passes: Passes,
        *,
        targets: NDArray[np.float32] | None = None,
        advance: Advance = lambda _: None,
    ) -> None:
        self._accumulators = accumulators
        self._encoded = encoded
        self._passes = passes
        self._targets = targets
        self._advance = advance

    def __call__(self, rows: NDArray[np.int64]) -> RowScores:
        """Return the scores f64[m, S] of ``rows`` i64[m], and why scoring failed."""
        samples, call = [self._encoded[row] for row in rows], f"rows from {rows[0]}"
        if self._targets is not None:
            sketches, faults = unit_sketches(
                self._accumulators, samples, self._passes, call, advance=self._advance
            )
            scores = ops.sketch_products(sketches, self._targets)
        else:
            scores, faults = self._exact(samples, call)
        scores[[reason is not None for reason in faults]] = np.nan
        reasons = zip(rows.tolist(), faults, strict=True)
        return RowScores(scores, {row: reason for row, reason in reasons if reason})

    def _exact(self, samples: Sequence[Encoded], call: str) -> tuple[NDArray[np.float64], list[str | None]]:
        scores: list[Any] = [0.0] * len(samples)
        faults: list[str | None] = [None] * len(samples)
        for checkpoint, rows, numbers in over(
            self._accumulators, samples, self._passes, call, faults, self._advance
        ):
            for at, cosine in zip(rows, ops.finish(numbers.norm2, numbers.products), strict=True):
                scores[at] = scores[at] + checkpoint.weight * cosine
        return np.stack(scores), faults


def sketch_directions(
    directions: Sequence[NDArray[np.float32]], weights: Sequence[float], sketch: Sketch
) -> NDArray[np.float32]:
    """Return the finished sketches f32[S, d] of the subtasks' directions.

    Args:
        directions: f32[S, P] for each checkpoint.
        weights: the weight of each checkpoint. The checkpoints' sketches are added up as in `unit_sketches`.
        sketch: the projection for the first checkpoint.
    """
    total = np.zeros((len(directions[0]), sketch.dimension), np.float32)
    for number, (own, weight) in enumerate(zip(directions, weights, strict=True)):
        sketched = np.zeros_like(total)
        ops.accumulate(
            own,
            0,
            preconditioner=Preconditioner("sgd"),
            norm2=np.zeros(len(own)),
            sketch=sketch.of_checkpoint(number),
            sketched=sketched,
        )
        total += sketched * np.float32(sketch.scale * math.sqrt(weight))
    return total
