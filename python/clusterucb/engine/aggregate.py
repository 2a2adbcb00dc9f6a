"""Turn a sample's scores for S subtasks into one reward, for each rule of selection.

One subtask often has larger scores than the others by nature: another mean, another spread. Under the paper's rule it
then decides alone. On three real pools, one subtask's samples were .83 to 1.00 of the selection for seven of nine
targets, and of the other subtasks' own best between .00 and .30 were in it.

- ``round-robin``: each subtask's best in turn. A row is selected if one of its scores is among that subtask's largest.
  So the reward is the largest of the row's z-scores: the number of standard deviations that a score lies above its
  subtask's mean in the pool.
- ``paper``: the largest score.
- ``mean``: the mean score.
- ``standardized``: the largest z-score; unlike under ``round-robin``, the rows with the largest rewards are selected.

A subtask's weight multiplies its scores or z-scores before the largest is taken; with ``mean``, the reward is the
weighted mean. Under ``round-robin``, a weight is a share of the turns, and z-scores count from the value that so many
rows of a normal distribution exceed.

With a single subtask, all rules are the same: the reward is the score.

The table of rules needs no numpy, because the command line offers their names before it imports anything heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ROUND_ROBIN, PAPER, MEAN, STANDARDIZED = RULES = ("round-robin", "paper", "mean", "standardized")


def combined(rule: str, scores: Floats, weights: Floats | None) -> Floats:
    """Return the rewards f64[m] of scores f64[m, S] under ``paper`` or ``mean``, with the subtasks' weights f64[S].

    A row with NaN gets NaN.
    """
    if weights is not None:
        scores = scores * (weights / weights.mean() if rule == MEAN else weights)
    found: Floats = scores.mean(axis=1) if rule == MEAN else scores.max(axis=1)
    return found


class Standardized:
    """Aggregates a sample's scores to the largest of its z-scores.

    Attributes:
        mean, std: f64[S], each subtask's estimated mean and standard deviation in the pool. A deviation of 0 is
            replaced by 1.
    """

    def __init__(
        self,
        scores: Floats,
        probability: Floats,
        *,
        factors: Floats | None = None,
        cuts: Floats | None = None,
    ) -> None:
        """Estimate mean and deviation from draws.

        Args:
            scores: f64[m, S], NaN where scoring failed.
            probability: f64[m], the inclusion probability of each draw.
            factors: f64[S], the factor of each subtask's z-scores. By default, 1 each.
            cuts: f64[S], the z-score of each subtask that counts as 0. By default, 0 each.
        """
        import numpy as np

        n_subtasks = scores.shape[1]
        self._factors = np.ones(n_subtasks) if factors is None else factors
        self._cuts = np.zeros(n_subtasks) if cuts is None else cuts
        good = np.isfinite(scores).all(axis=1)
        if not good.any():
            self.mean, self.std = np.zeros(n_subtasks), np.ones(n_subtasks)
            return
        weight = 1 / probability[good]
        self.mean = np.average(scores[good], axis=0, weights=weight)
        std = np.sqrt(np.average((scores[good] - self.mean) ** 2, axis=0, weights=weight))
        self.std = np.where(std > 0, std, 1.0)

    def __call__(self, scores: Floats) -> Floats:
        """Return the rewards f64[m] of scores f64[m, S]."""
        rewards: Floats = (((scores - self.mean) / self.std - self._cuts) * self._factors).max(axis=1)
        return rewards


def normal_cuts(seats: Floats, n_rows: int) -> Floats:
    """Return the z-scores f64[S] that ``seats`` f64[S] of ``n_rows`` normal values exceed, less that of equal seats."""
    import numpy as np

    shares = (np.append(seats, seats.mean()) / n_rows).clip(0.5 / n_rows, 0.5)
    *cuts, equal = (NormalDist().inv_cdf(1 - share) for share in shares)
    return np.array(cuts) - equal


def above_cuts(known: Floats, seats: Floats) -> Callable[[Floats], Floats]:
    """Return a function of scores f64[m, S]: how far rows lie above the cut of any subtask, in its deviations, f64[m].

    A subtask's cut is the score that its ``seats`` best known rows reach: a row above it would be selected.

    Args:
        known: f64[n, S], the known scores.
        seats: f64[S], the number of rows to select for each subtask.
    """
    import numpy as np

    first = len(known) - np.ceil(seats).astype(np.int64).clip(1, len(known))
    cut = np.array([np.partition(own, at)[at] for own, at in zip(known.T, first, strict=True)])
    std = known.std(axis=0)
    unit = np.where(std > 0, std, 1.0)

    def above(scores: Floats) -> Floats:
        found: Floats = ((scores - cut) / unit).max(axis=1)
        return found

    return above
