"""Compute influence scores: the agreement of a sample's preconditioned gradient with each target direction.

A subtask's direction V_s is the mean of its samples' unit gradients. A pool sample's score is the inner product
⟨Γ_i / ‖Γ_i‖, V_s⟩ (LESS, Xia et al. 2024, eq. 1; ClusterUCB). It is the mean of the cosines with each of the subtask's
samples, because the product is linear in the unit gradients. By default the score is exact: no random projection is
involved. Sketches estimate it, with an error of about 1 / sqrt(d) for a direction of length one.

A sample whose gradient is zero or not finite fails, and its reason is kept. It never scores as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.draws import RowScores
from clusterucb.gradients.accumulate import Accumulated, Step, over, unit_sketches
from clusterucb.gradients.passes import Passes
from clusterucb.kernels import ops
from clusterucb.progress import Advance
from clusterucb.samples.encoded import Encoded

Keep = Callable[[NDArray[np.int64], NDArray[np.float32]], None]


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
        keep: called with rows i64[m] and their finished sketches f32[m, d], NaN where a gradient failed, after exact
            scoring with accumulators that also sketch. The sketches take no pass of their own.
        advance: called with the number of samples that are done.
    """

    def __init__(
        self,
        accumulators: Sequence[Step[Accumulated]],
        encoded: Sequence[Encoded],
        passes: Passes,
        *,
        targets: NDArray[np.float32] | None = None,
        keep: Keep | None = None,
        advance: Advance = lambda _: None,
    ) -> None:
        self._accumulators = accumulators
        self._encoded = encoded
        self._passes = passes
        self._targets = targets
        self._keep = keep
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
            scores, faults, sketches = self._exact(samples, call)
            if self._keep is not None:
                self._keep(rows, sketches)
        scores[[reason is not None for reason in faults]] = np.nan
        reasons = zip(rows.tolist(), faults, strict=True)
        return RowScores(scores, {row: reason for row, reason in reasons if reason})

    def _exact(
        self, samples: Sequence[Encoded], call: str
    ) -> tuple[NDArray[np.float64], list[str | None], NDArray[np.float32]]:
        """Return the scores, why some failed, and the sketches f32[m, d]; d is 0 if there are none."""
        scores = np.zeros((len(samples), self._accumulators[0].n_directions))
        sketch = self._accumulators[0].sketch
        sketches = np.zeros((len(samples), sketch.dimension if sketch else 0), np.float32)
        faults: list[str | None] = [None] * len(samples)
        for weight, rows, numbers in over(
            self._accumulators, samples, self._passes, call, faults, self._advance
        ):
            scores[rows] += weight * ops.finish(numbers.norm2, numbers.products)
            if sketch:
                root = np.float32(math.sqrt(weight))
                sketches[rows] += root * ops.finish_sketches(numbers.norm2, numbers.sketched, sketch)
        sketches[[reason is not None for reason in faults]] = np.nan
        return scores, faults, sketches
