"""Estimate how much lower the judges' loss is after one training than after another, with a bootstrap interval.

The unit of a comparison is a pair: the same judge and the same seed in two arms. The bootstrap (Efron 1979) draws seeds
and, within each subtask, judges, both with replacement. Every judge is measured under every seed, so each draw weighs
whole seeds and whole judges. The learning rates are not drawn: their differences are averaged.

Decision: the mean over subtasks gives every subtask the same weight, however many judges it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_DRAWS = 10_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A mean difference of losses.

    Attributes:
        mean: the estimate; below 0 where the first training is better.
        low, high: the ends of its interval, with the confidence `CONFIDENCE`.
    """

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``lower``, ``higher``, or ``unclear`` if the interval includes 0."""
        if self.high < 0:
            return "lower"
        return "higher" if self.low > 0 else "unclear"


def differences(
    ours: Mapping[str, Floats], theirs: Mapping[str, Floats]
) -> tuple[dict[str, Difference], Difference]:
    """Return the differences of losses by subtask, and of their mean over the subtasks.

    Args:
        ours, theirs: the losses of the judges of each subtask, f64[rates, seeds, judges]. An arm that does not depend
            on the seed or the rate has a length of 1 there. Subtasks with the same number of seeds share their seeds.
    """
    rng = np.random.default_rng(0)
    apart = {name: (ours[name] - theirs[name]).mean(axis=0) for name in ours}  # f64[seeds, judges]
    of_seeds: dict[int, Floats] = {}
    drawn = {}
    for name, values in apart.items():
        n_seeds, n_judges = values.shape
        if n_seeds not in of_seeds:
            of_seeds[n_seeds] = _weights(rng, n_seeds)
        of_judges = _weights(rng, n_judges)
        drawn[name] = np.einsum("ds,sj,dj->d", of_seeds[n_seeds], values, of_judges, optimize=True)
    means = {name: float(values.mean()) for name, values in apart.items()}
    of_mean = np.mean(list(drawn.values()), axis=0)
    return (
        {name: _interval(means[name], drawn[name]) for name in apart},
        _interval(float(np.mean(list(means.values()))), of_mean),
    )


def _weights(rng: np.random.Generator, count: int) -> Floats:
    """Return the shares that draws with replacement give to ``count`` things, f64[draws, count]."""
    return rng.multinomial(count, np.full(count, 1 / count), size=_DRAWS) / count


def _interval(mean: float, drawn: Floats) -> Difference:
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [outside, 1 - outside])
    return Difference(mean, float(low), float(high))
