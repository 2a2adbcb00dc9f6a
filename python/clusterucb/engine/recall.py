"""How much of the best has been found: an estimate with an interval, from what was drawn alone.

The best are the ``n_select`` rows that scoring the whole pool would select. If t is the smallest reward among them,
then (drawn rows with a reward of t or more) + (others with one) = n_select: to say how many were found is to say how
many of the rows that were not drawn reach t. Two estimates are made of it:

- By regression. Each row's scores are predicted from the features (`clusterucb.engine.regression`), those of a drawn
  row from all others: the difference between the reward that was drawn and that of the predicted scores is a
      surprise. A row
  that was not drawn reaches t as often as those draws whose predictions are nearest to its own would have, with their
  surprises, from where it stands.
- By the random draws alone, of the cold start or of a uniform policy: t is estimated as the quantile of their rewards,
  weighted by their inclusion probabilities (Hajek 1971), without regard to any features.

Both are taken on the scale of log odds and averaged by the inverse of their variances. That of the second follows from
the number of random draws that are expected among the best: the fewer, and the nearer to all of the best the first
estimate is, the less it can say. The more is drawn at random, the more it counts, which needs no model to be right.
The variance of the first is the sum of

- that of the number of rows that were missed, where it rests on few surprises;
- the square of half of what all surprises and those of the random draws alone say apart. A policy chooses rows because
  it expects much of them, and where the model is poor, that says more of them than the model does: their surprises are
  no fair sample. Those of random draws are one, but few, and taken when the groups that they had hit were known;
- a number learnt from replays on real pools (`benchmarks/bench_recall.py`), whose intervals cover the truth on pools
  that it was not learnt from.

Decisions:
    - An interval ends at whole rows: nine tenths of a row cannot be found.
    - A policy draws what is uncertain, whose surprises are larger than others'. They are not taken in units of the
      deviations that the model expects, all the same: with a gradient store, estimates are then off by .04, not .02.
    - Where predictions hardly differ, many draws are neighbours: what a row is expected to be without its own value is
      less the larger that is, so that few neighbours would be of one value.
    - Draws are not weighted by how few others of their cluster were drawn: a cluster is drawn little because of what
      its few draws have shown, and such weights overstate what was found by .04 to .26 on the pools of the benchmarks.
    - Without random draws there is no estimate: nothing would say what lies where a policy never looked.
    - Several selections in turn (``round-robin``) are estimated one by one, and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.arms import FEWEST_RANDOM
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.regression import Regression

CONFIDENCE = 0.9
_Z = 1.645  # of a normal distribution, for an interval of that confidence
VARIANCE = 0.1  # of the estimate by regression, in log odds, beside what a search itself says of it
_NEIGHBOURS = 20  # draws whose surprises stand for those of a row, at least
_AROUND = 0.1  # of the deviation of surprises: draws whose predictions are as near count, however many
_SURPRISES = 2048  # draws that are taken for it, at most
_PARTS = 256  # of the rows in the order of their predictions; those of one have the same neighbours

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Reward = Callable[[Floats], Floats]  # scores f64[m, S] -> rewards f64[m], as of `clusterucb.engine.aggregate`


@dataclass(frozen=True)
class Recall:
    """The share of the best that has been found.

    Attributes:
        estimate: between 0 and 1.
        low, high: an interval that covers the truth nine times in ten.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.0%} ({100 * self.low:.0f}-{self.high:.0%})"


class Draws(NamedTuple):
    """What a search has drawn, in order.

    Attributes:
        rows: i64[n].
        scores: f64[n, S], NaN where scoring failed.
        chance: f64[n], the probability that a row was drawn by now, where chance decided; NaN where a policy did.
    """

    rows: Rows
    scores: Floats
    chance: Floats


class RecallEstimator:
    """Estimates the recall of a search as it goes on.

    Args:
        pool: the pool as strategies see it.
        in_turn: whether the subtasks' own best are selected in turn, and not the largest rewards.
    """

    def __init__(self, pool: PoolView, *, in_turn: bool = False) -> None:
        self._pool = pool
        self._in_turn = in_turn
        self._regression: Regression | None = None
        self._n_told = 0

    def __call__(self, draws: Draws, reward: Reward) -> Recall | None:
        """Return the recall after some draws, those of an earlier call first; None if too few of them were random.

        Args:
            draws: all draws.
            reward: how the scores of a row become its reward.
        """
        if len(draws.rows) == len(self._pool):
            return Recall(1.0, 1.0, 1.0)
        found = self.evidence(draws, reward)
        if not found:
            return None
        each = [(one.estimate, one.low, one.high) for one in (evidence.recall() for evidence in found)]
        weights = [evidence.n_best for evidence in found]
        return Recall(*np.average(each, axis=0, weights=weights).tolist())

    def evidence(self, draws: Draws, reward: Reward) -> list[Evidence]:
        """Return what the draws say, for each subtask where its own best are selected; nothing without random draws."""
        rows, scores, chance = draws
        rewards = reward(scores)
        regression = self._regression = self._regression or Regression(self._pool, scores.shape[1])
        good = ~np.isnan(rewards)
        news = np.flatnonzero(good[self._n_told :]) + self._n_told
        regression.add(rows[news], scores[news])
        self._n_told = len(rows)
        if np.count_nonzero(~np.isnan(chance[good])) < FEWEST_RANDOM:
            return []
        others = np.ones(len(self._pool), np.bool_)
        others[rows] = False
        values = regression.values, regression.left_out(), regression.mean(np.flatnonzero(others))
        if not self._in_turn:
            values = rewards[good, None], reward(values[1])[:, None], reward(values[2])[:, None]
        wanted = self._wanted(values[0].shape[1])
        return [
            _evidence(known, left_out, predicted, chance[good], n_best)
            for known, left_out, predicted, n_best in zip(*(each.T for each in values), wanted, strict=True)
        ]

    def _wanted(self, n_kinds: int) -> list[float]:
        """Return how many are the best of each kind of value."""
        n_select, weights = self._pool.n_select, self._pool.weights
        turns = np.ones(n_kinds) if weights is None or not self._in_turn else weights
        shares: list[float] = np.maximum(turns / turns.sum() * n_select, 1.0).tolist()
        return shares


class Evidence(NamedTuple):
    """Two estimates of a recall, as logarithms of odds.

    Attributes:
        n_best: how many are the best.
        by_regression: what predictions and surprises say.
        of_regression: its variance, by what this search says of it.
        by_random: what the random draws say.
        of_random: its variance.
    """

    n_best: float
    by_regression: float
    of_regression: float
    by_random: float
    of_random: float

    def recall(self, variance: float = VARIANCE) -> Recall:
        """Return their mean, weighted by variances.

        Args:
            variance: of the estimate by regression, beside `of_regression`.
        """
        of_regression = variance + self.of_regression
        share = of_regression / (of_regression + self.of_random)
        middle = (1 - share) * self.by_regression + share * self.by_random
        n_missed = self.n_best * (1 - _share(middle, self.n_best))
        deviation = math.sqrt(share * self.of_random + 1 / (n_missed + 1))
        estimate, low, high = (_share(middle + side * _Z * deviation, self.n_best) for side in (0, -1, 1))
        whole_low, whole_high = math.floor(low * self.n_best), math.ceil(high * self.n_best)
        return Recall(estimate, whole_low / self.n_best, min(whole_high / self.n_best, 1.0))


def _evidence(values: Floats, left_out: Floats, predicted: Floats, chance: Floats, n_best: float) -> Evidence:
    """Return what values of one kind say.

    Args:
        values: f64[n], what was drawn.
        left_out: f64[n], what each draw's value was expected to be by all others.
        predicted: f64[N - n], what those of the other rows are expected to be.
        chance: f64[n], inclusion probabilities; NaN where a policy decided.
        n_best: how many are the best.
    """
    falling = np.sort(values)[::-1]
    random = ~np.isnan(chance)
    weights = 1 / chance[random]
    n_rows = len(values) + len(predicted)
    expected = _n_effective(weights) * n_best / n_rows  # random draws among the best
    least = _quantile(values[random], weights, n_best * weights.sum() / n_rows)
    by_random = min(float(np.searchsorted(-falling, -least, side="right")), n_best)
    missed, fairly = (_Missed(values[some], left_out[some], predicted) for some in (slice(None), random))
    found = _found(falling, n_best, missed)
    by_regression = _odds(found, n_best)
    doubt = (by_regression - _odds(_found(falling, n_best, fairly), n_best)) / 2
    lifted = missed.lifted(float(falling[min(math.ceil(found), len(falling)) - 1]))
    slope = found * (1 / (found + 1) + 1 / (n_best - found + 1))  # of the log odds, by the logarithm of found
    of_regression = doubt**2 + (slope * (1 - found / n_best)) ** 2 / _n_effective(lifted)
    return Evidence(n_best, by_regression, of_regression, _odds(by_random, n_best), slope**2 / expected)


class _Missed:
    """How many rows that were not drawn have a value of at least so much, by regression.

    Args:
        values, left_out: f64[m], of the draws whose surprises are taken.
        predicted: f64[N - n], of the other rows.
    """

    def __init__(self, values: Floats, left_out: Floats, predicted: Floats) -> None:
        order = np.argsort(left_out, kind="stable")[:: -(-len(left_out) // _SURPRISES)]
        expected, self._surprises = left_out[order], (values - left_out)[order]
        self._predicted = np.sort(predicted)
        bounds = np.linspace(0, len(predicted), min(_PARTS, len(predicted)) + 1).astype(np.int64)
        middle = self._predicted[(bounds[:-1] + bounds[1:]) // 2]
        least = min(_NEIGHBOURS, len(order))
        place = (np.searchsorted(expected, middle) - least // 2).clip(0, len(order) - least)
        around = _AROUND * self._surprises.std()
        first = np.minimum(place, np.searchsorted(expected, middle - around))
        last = np.maximum(place + least, np.searchsorted(expected, middle + around, side="right"))
        self._parts = np.stack([bounds[:-1], bounds[1:], first, last], axis=1).tolist()

    def __call__(self, least: float) -> float:
        return float(self.lifted(least).sum())

    def lifted(self, least: float) -> Floats:
        """Return how many of them each surprise stands for, f64[m] in the order of what was expected."""
        reach = np.searchsorted(self._predicted, least - self._surprises)  # from which row on it is enough
        lifted = np.zeros(len(reach))
        for begin, end, first, last in self._parts:
            lifted[first:last] += (end - reach[first:last]).clip(0, end - begin) / (last - first)
        return lifted


def _found(falling: Floats, n_best: float, missed: Callable[[float], float]) -> float:
    """Return how many of the values, falling, are among the best, given how many others reach a value."""
    low, high = 0, min(math.floor(n_best), len(falling))
    while low < high:
        middle = (low + high + 1) // 2
        if middle + missed(float(falling[middle - 1])) <= n_best:
            low = middle
        else:
            high = middle - 1
    return min(low + 0.5, n_best)


def _quantile(values: Floats, weights: Floats, above: float) -> float:
    """Return the value that rows of so much weight reach."""
    order = np.argsort(-values, kind="stable")
    return float(np.interp(above, np.cumsum(weights[order]), values[order]))


def _n_effective(weights: Floats) -> float:
    """Return how many of equal weight would say as much (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum()) if weights.any() else math.inf


def _odds(n_found: float, n_best: float) -> float:
    """Return the logarithm of the odds that one of the best has been found, short of certainty."""
    return math.log((n_found + 1) / (n_best - n_found + 1))


def _share(odds: float, n_best: float) -> float:
    """Return the share that `_odds` is of."""
    return min(max(((n_best + 2) / (1 + math.exp(-odds)) - 1) / n_best, 0.0), 1.0)
