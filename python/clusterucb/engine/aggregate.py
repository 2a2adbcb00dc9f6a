"""How a sample's scores for S subtasks become its one reward.

`max` and `mean` look at the sample alone. `standardized` first brings the subtasks to one scale, so that the one
with the largest scores does not decide alone (measured: mean scores of .127 against .03 for the others): a score
becomes how many standard deviations it lies above its subtask's mean in the pool. Mean and deviation are estimated
once, from the cold start, weighted by one over the probability with which a row got into it, and never changed
again: a reward does not depend on when it was drawn.

A subtask's weight multiplies its scores (brought to one scale or not) before the largest is taken, and counts as a
weight in a mean.

The table stands apart, without numpy, because the command line offers its names before anything heavy
is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Aggregate = Callable[[NDArray[np.float64]], NDArray[np.float64]]

# scores f64[m, S] -> rewards f64[m]; NaN stays NaN
AGGREGATES: dict[str, Aggregate] = {
    "max": lambda scores: scores.max(axis=1),
    "mean": lambda scores: scores.mean(axis=1),
}
STANDARDIZED = "standardized"
NAMES = (*AGGREGATES, STANDARDIZED)


def weighted(name: str, weights: NDArray[np.float64] | None) -> Aggregate:
    """Return one of `AGGREGATES` with a weight f64[S] for each subtask; as it is where there are none."""
    aggregate = AGGREGATES[name]
    if weights is None:
        return aggregate
    scale = weights / weights.mean() if name == "mean" else weights
    return lambda scores: aggregate(scores * scale)


class Standardized:
    """The largest of a sample's standardised scores.

    Attributes:
        mean, std: f64[S], estimates for the pool; a deviation of 0 counts as 1.
    """

    def __init__(
        self,
        scores: NDArray[np.float64],
        probability: NDArray[np.float64],
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        """Estimate from random draws: scores f64[m, S], NaN where scoring failed, and inclusion f64[m].

        Each subtask's standardised scores count by its weight, f64[S].
        """
        import numpy as np

        self._weights = np.ones(scores.shape[1]) if weights is None else weights
        good = np.isfinite(scores).all(axis=1)
        if not good.any():
            self.mean, self.std = np.zeros(scores.shape[1]), np.ones(scores.shape[1])
            return
        weight = 1 / probability[good]
        self.mean = np.average(scores[good], axis=0, weights=weight)
        std = np.sqrt(np.average((scores[good] - self.mean) ** 2, axis=0, weights=weight))
        self.std = np.where(std > 0, std, 1.0)

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return rewards f64[m] of scores f64[m, S]."""
        rewards: NDArray[np.float64] = ((scores - self.mean) / self.std * self._weights).max(axis=1)
        return rewards
