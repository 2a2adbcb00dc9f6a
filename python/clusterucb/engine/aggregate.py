"""Aggregate a sample's scores for S subtasks into one reward.

`max` and `mean` use the sample's own scores only. `standardized` takes the largest z-score: the number of standard
deviations that a score lies above its subtask's mean in the pool. Otherwise the subtask with the largest scores would
decide alone (measured: mean scores of .127 against .03 for the others). Mean and deviation are estimated once, from
the cold start, with each draw weighted by one over its inclusion probability. They never change afterwards, so a
reward does not depend on when its row was drawn.

A subtask's weight multiplies its scores or z-scores before the largest is taken. With `mean`, the reward is the
weighted mean of the scores.

The table of aggregates needs no numpy, because the command line offers their names before it imports anything heavy.
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
    """Return one of `AGGREGATES` with the subtasks' weights f64[S] applied; without weights, return it unchanged."""
    aggregate = AGGREGATES[name]
    if weights is None:
        return aggregate
    scale = weights / weights.mean() if name == "mean" else weights
    return lambda scores: aggregate(scores * scale)


class Standardized:
    """Aggregates a sample's scores to the largest of its z-scores.

    Attributes:
        mean, std: f64[S], each subtask's estimated mean and standard deviation in the pool. A deviation of 0 is
            replaced by 1.
    """

    def __init__(
        self,
        scores: NDArray[np.float64],
        probability: NDArray[np.float64],
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        """Estimate mean and deviation from random draws.

        Args:
            scores: f64[m, S], NaN where scoring failed.
            probability: f64[m], the inclusion probability of each draw.
            weights: f64[S], the factor of each subtask's z-scores. By default, 1 each.
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
        """Return the rewards f64[m] of scores f64[m, S]."""
        rewards: NDArray[np.float64] = ((scores - self.mean) / self.std * self._weights).max(axis=1)
        return rewards
