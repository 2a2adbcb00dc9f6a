"""Influence scores: the agreement of a sample's preconditioned gradient with each target direction.

A subtask's direction is the mean of its samples' unit gradients, V_s. A pool sample's score is the
cosine-like product ⟨Γ_i / ‖Γ_i‖, V_s⟩ (LESS, Xia et al. 2024, eq. 1; ClusterUCB): the mean of the
cosines with each of the subtask's samples, since that is linear in the unit gradients. By default it is
exact: no random projection stands between. Sketches estimate it, with an error of about 1 / sqrt(d) for
a direction of length one.

A sample fails, with its reason, when its gradient is zero or not finite. It never scores as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb import ops
from clusterucb.accumulate import Accumulator, backward, fault
from clusterucb.encode import Encoded, micro_batches
from clusterucb.errors import InputError
from clusterucb.gradients import PerSampleGradients
from clusterucb.preconditioner import Preconditioner
from clusterucb.projection import Sketch


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
    backward(gradients, samples, device, lambda *piece: pieces.append(piece))
    norms = np.sqrt(sum(piece.double().square().sum(dim=1).cpu().numpy() for _, piece in pieces))
    faults = [fault(norm) for norm in norms.tolist()]
    usable = [at for at, found in enumerate(faults) if found is None]
    weights = torch.from_numpy(1 / norms[usable])
    for offset, piece in pieces:
        total = weights.to(piece.device) @ piece[usable].double()
        direction[offset : offset + piece.shape[1]] += total.cpu().numpy()
    return [found for found in faults if found]


class Scorer:
    """Scores pool samples; what `clusterucb.engine.search` calls with the rows it draws.

    Pure and deterministic by row for the rows of one call, in whatever micro-batches they run.

    Args:
        accumulator: with the directions for exact scores, or with a sketch.
        encoded: the pool's N samples.
        batch_tokens: padded tokens in one pass.
        targets: f32[S, d], the finished sketches of the directions, where sketches score; or None.
        advance: called with the number of samples done.

    Attributes:
        failures: row -> why it could not be scored.
    """

    def __init__(
        self,
        accumulator: Accumulator,
        encoded: Sequence[Encoded],
        *,
        batch_tokens: int,
        targets: NDArray[np.float32] | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._accumulator = accumulator
        self._encoded = encoded
        self._batch_tokens = batch_tokens
        self._targets = targets
        self._advance = advance
        self.failures: dict[int, str] = {}

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the scores of ``rows`` i64[m] as f64[m, S]; NaN where scoring failed."""
        scores: list[NDArray[np.float64]] = [np.empty(0)] * len(rows)
        lengths = [len(self._encoded[row]) for row in rows]
        for batch in micro_batches(lengths, self._batch_tokens):
            for at, score in zip(batch, self._score(rows[batch]), strict=True):
                scores[at] = score
            self._advance(len(batch))
        return np.stack(scores)

    def _score(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        norm2, products, sketched, faults = self._accumulator([self._encoded[row] for row in rows])
        self.failures |= {row: found for row, found in zip(rows.tolist(), faults, strict=True) if found}
        sketch = self._accumulator.sketch
        if self._targets is None or sketch is None:
            scores = ops.finish(norm2, products)
        else:
            scores = ops.sketch_products(ops.finish_sketches(norm2, sketched, sketch), self._targets)
        scores[[found is not None for found in faults]] = np.nan
        return scores


def sketch_directions(directions: NDArray[np.float32], sketch: Sketch) -> NDArray[np.float32]:
    """Return the finished sketches f32[S, d] of directions f32[S, P], whose norms they keep."""
    sketched = np.zeros((len(directions), sketch.dimension), np.float32)
    ops.accumulate(
        directions,
        0,
        preconditioner=Preconditioner("sgd"),
        norm2=np.zeros(len(directions)),
        sketch=sketch,
        sketched=sketched,
    )
    sketched *= np.float32(sketch.scale)
    return sketched
