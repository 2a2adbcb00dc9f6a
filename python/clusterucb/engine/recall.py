"""Estimate the recall (the share of the best rows that a search has found), with an interval, from the draws alone.

The best rows are the ``n_select`` rows that scoring the whole pool would select. Let t be the smallest reward among
them. Then (drawn rows with a reward of at least t) + (undrawn rows with a reward of at least t) = n_select. So the
recall follows from the number of undrawn rows that reach t. There are two estimates of it:

- By regression. Each row's scores are predicted from the features (`clusterucb.engine.regression`); a drawn row's
  scores are predicted from all other draws. A drawn row's residual is its reward minus the reward of its predicted
  scores. For an undrawn row, take the draws whose predictions are nearest to its own and add each of their residuals to
  the row's prediction. The share of the sums that reach t is the probability that the row reaches t.
- By the random draws alone, which come from the cold start or from a uniform policy. The estimate of t is the quantile
  of their rewards, weighted by the inverse of their inclusion probabilities (Hajek 1971). It uses no features.

Both estimates are taken as log odds and averaged with weights inverse to their variances. The variance of the second
follows from the expected number of random draws among the best rows. It is the larger the fewer these are, and the
nearer the first estimate is to 1. The second estimate needs no correct model, and its weight grows with the number of
random draws. The variance of the first estimate is the sum of

- the variance of the estimated number of missed rows, which is large if few residuals contribute to it;
- ((estimate from all residuals − estimate from the random draws' residuals) / 2)². A policy chooses rows from which it
  expects high rewards. If the model is poor, that expectation says more about these rows than the model does, so their
  residuals are not a fair sample. The residuals of random draws are a fair sample, but a small one, and they are
  computed when later draws have already explored the groups that the random draws hit;
- a constant, learnt from replays on real pools (`benchmarks/bench_recall.py`). With it, the intervals cover the true
  recall on pools from which it was not learnt.

Decisions:
    - An interval ends at whole numbers of rows: nine tenths of a row cannot be found.
    - A policy draws uncertain rows, and their residuals are larger than those of other rows. Still, residuals are not
      divided by the model's deviations: with a gradient store, this would raise the error of the estimates from .02
      to .04.
    - Where predictions hardly differ, many draws count as neighbours. A row's leave-one-out prediction falls as the
      row's own value rises, so a few nearest neighbours would all have about the same value.
    - Draws are not weighted by one over the drawn share of their cluster. A policy draws little from a cluster because
      of the rewards of its few draws, so such weights overstate the recall, by .04 to .26 on the benchmarks' pools.
    - Without random draws there is no estimate: nothing would show what lies where a policy never drew.
    - In a large pool, evenly spaced undrawn rows are predicted, and stand for all. Canonical order is the order of
      content hashes, so they are as good as random ones.
    - With ``round-robin``, the recall of each subtask's selection is estimated separately. The estimates are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.arms import FEWEST_RANDOM
from clusterucb.engine.large import evenly, is_large, largest
from clusterucb.engine.missed import Missed, Predicted
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.regression import Regression
from clusterucb.engine.rules import chosen_of_best

CONFIDENCE = 0.9
_Z = 1.645  # the normal quantile of an interval with this confidence
VARIANCE = 0.1  # the learnt constant in the variance of the estimate by regression, in log odds
_SUBTASKS = 256  # the most subtasks whose recall is estimated while a search runs, evenly spaced among all
_UNDRAWN = 1 << 16  # the most undrawn rows of a large pool that are predicted

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Reward = Callable[[Floats], Floats]  # scores f64[m, S] -> rewards f64[m], an aggregate


@dataclass(frozen=True)
class Recall:
    """The estimated share of the best rows that a search has found.

    Attributes:
        estimate: the estimated recall, between 0 and 1.
        low, high: the ends of an interval that covers the true recall nine times in ten.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.0%} ({100 * self.low:.0f}-{self.high:.0%})"


class Draws(NamedTuple):
    """The draws of a search, in order.

    Attributes:
        rows: i64[n], the drawn rows.
        scores: f64[n, S], their scores; NaN where scoring failed.
        chance: f64[n], the probability that random draws have included the row by now; NaN where a policy chose it.
    """

    rows: Rows
    scores: Floats
    chance: Floats


class Outlook(NamedTuple):
    """What the draws and the features let one expect of each row.

    Attributes:
        expected: f64[n, S], each drawn row's scores as they are predicted from all other draws; NaN where they are not.
        missed: f64[N], the expected number of the best rows that an undrawn row stands for; 0 for a drawn one. That is
            the probability that it is among the best. If subtasks select in turn, the sum over the subtasks. In a large
            pool, some evenly spaced rows stand for all.
    """

    expected: Floats
    missed: Floats


class RecallEstimator:
    """Estimates the recall of a search while it runs.

    Args:
        pool: the pool as strategies see it.
    """

    def __init__(self, pool: PoolView) -> None:
        self._pool = pool
        self._regression: Regression | None = None
        self._n_told = 0
        self._predicted: Predicted | None = None  # from all draws so far

    def __call__(self, draws: Draws, reward: Reward) -> Recall | None:
        """Return the estimated recall, or None if too few of the draws were random.

        Args:
            draws: all draws so far, in order; the draws of an earlier call come first.
            reward: the function that turns scores into rewards.
        """
        if len(draws.rows) == len(self._pool):
            return Recall(1.0, 1.0, 1.0)
        found = self._evidence(draws, reward, in_turn=self._pool.rules.in_turn, most=_SUBTASKS)
        return averaged(found) if found else None

    def served(self, draws: Draws, chosen: NDArray[np.bool_], reward: Reward) -> Floats | None:
        """Return the share of each subtask's own best rows that is selected, f64[S], or None if it cannot be estimated.

        A subtask's own best rows are as many as `Rules.seats` says. If not all rows are drawn, it is estimated how many
        of them are among the draws.

        Args:
            draws: all draws.
            chosen: bool[n], whether the draw is selected.
            reward: the function that turns scores into rewards.
        """
        seats = self._pool.rules.seats(self._pool.n_select, draws.scores.shape[1])
        found = np.ones(len(seats))
        if len(draws.rows) < len(self._pool):
            evidence = self._evidence(draws, reward, in_turn=True)
            if not evidence:
                return None
            found = np.array([one.recall().estimate for one in evidence])
        counts = [round(count) for count in (found * seats).tolist()]
        return np.minimum(chosen_of_best(draws.scores, chosen, counts) / seats, 1.0)

    def outlook(self, draws: Draws, reward: Reward) -> Outlook | None:
        """Return what to expect of each row, or None if it cannot be estimated or all rows are drawn.

        Args:
            draws, reward: as in a call of the estimator, which is made with the same draws before.
        """
        if len(draws.rows) == len(self._pool):
            return None
        parts = self._parts(draws, reward, in_turn=self._pool.rules.in_turn, most=_SUBTASKS)
        if not parts or self._predicted is None:
            return None
        expected, missed = np.full(draws.scores.shape, np.nan), np.zeros(len(self._pool))
        good = np.flatnonzero(~np.isnan(reward(draws.scores)))
        expected[good[self._predicted.at]] = self._predicted.left_out
        for part in parts:
            missed[part.predicted.rows] += part.missed()
        return Outlook(expected, missed)

    def evidence(self, draws: Draws, reward: Reward) -> list[Evidence]:
        """Return both estimates, once, or once for each subtask if subtasks select in turn.

        The list is empty if too few of the draws were random.
        """
        return self._evidence(draws, reward, in_turn=self._pool.rules.in_turn)

    def _evidence(
        self, draws: Draws, reward: Reward, *, in_turn: bool, most: int | None = None
    ) -> list[Evidence]:
        """Return both estimates, for each subtask if they select ``in_turn``, but for ``most`` of them at most."""
        return [part.evidence for part in self._parts(draws, reward, in_turn=in_turn, most=most)]

    def _parts(self, draws: Draws, reward: Reward, *, in_turn: bool, most: int | None = None) -> list[_Part]:
        """Return what the estimates of `_evidence` rest on."""
        rows, scores, chance = draws
        rewards = reward(scores)
        regression = self._regression = self._regression or Regression(self._pool, scores.shape[1])
        good = ~np.isnan(rewards)
        if len(rows) > self._n_told:
            news = np.flatnonzero(good[self._n_told :]) + self._n_told
            regression.add(rows[news], scores[news])
            self._n_told, self._predicted = len(rows), None
        if np.count_nonzero(~np.isnan(chance[good])) < FEWEST_RANDOM:
            return []
        if self._predicted is None:
            self._predicted = self._predictions(regression, rows)
        at, left_out, undrawn, predicted, n_undrawn = self._predicted
        known = regression.values
        if not in_turn:
            known, left_out, predicted = (
                column[:, None] for column in (rewards[good], reward(left_out), reward(predicted))
            )
        n_columns = known.shape[1]
        seats = self._pool.rules.seats(self._pool.n_select, n_columns)
        some = np.arange(n_columns)
        if most is not None and most < n_columns:
            some = np.arange(most) * n_columns // most
        return [
            _Part(
                known[:, one],
                Predicted(at, left_out[:, one], undrawn, predicted[:, one], n_undrawn),
                chance[good],
                float(seats[one]),
            )
            for one in some.tolist()
        ]

    def _predictions(self, regression: Regression, drawn: Rows) -> Predicted:
        """Return the predictions for drawn and undrawn rows: for all, or for evenly spaced ones of a large pool."""
        others = np.ones(len(self._pool), np.bool_)
        others[drawn] = False
        undrawn = np.flatnonzero(others)
        some = undrawn[evenly(len(undrawn), _UNDRAWN)] if is_large(len(self._pool)) else undrawn
        return Predicted(*regression.left_out(), some, regression.mean(some), len(undrawn))


@dataclass(frozen=True, eq=False)
class _Part:
    """One column of values (the rewards, or the scores for one subtask), and what is predicted of it.

    Attributes:
        values: f64[n], the values of the drawn rows.
        predicted: the predictions of this column.
        chance: f64[n], the inclusion probabilities; NaN where a policy chose the row.
        n_best: the number of best rows.
    """

    values: Floats
    predicted: Predicted
    chance: Floats
    n_best: float

    @cached_property
    def _falling(self) -> Floats:
        """The largest values, in falling order: one more than the whole numbers of the best rows."""
        return np.sort(self.values[largest(self.values, math.floor(self.n_best) + 1)])[::-1]

    @cached_property
    def _missed(self) -> Missed:
        return Missed(self.values[self.predicted.at], self.predicted, slice(None))

    @cached_property
    def _found(self) -> float:
        """The number of drawn values among the best, by regression."""
        return _found(self._falling, self.n_best, self._missed)

    @property
    def _least(self) -> float:
        """The smallest value that counts as one of the best."""
        return float(self._falling[min(math.ceil(self._found), len(self._falling)) - 1])

    @cached_property
    def evidence(self) -> Evidence:
        """Both estimates."""
        values, n_best, found = self.values, self.n_best, self._found
        random = ~np.isnan(self.chance)
        weights = 1 / self.chance[random]
        n_rows = len(values) + self.predicted.n_undrawn
        expected = _n_effective(weights) * n_best / n_rows  # expected random draws among the best
        least = _quantile(values[random], weights, n_best * weights.sum() / n_rows)
        by_random = min(float(np.count_nonzero(values >= least)), n_best)
        fairly = Missed(values[self.predicted.at], self.predicted, random[self.predicted.at])
        by_regression = _odds(found, n_best)
        doubt = (by_regression - _odds(_found(self._falling, n_best, fairly), n_best)) / 2
        lifted = self._missed.lifted(self._least)
        slope = found * (1 / (found + 1) + 1 / (n_best - found + 1))  # d (log odds) / d (log found)
        of_regression = doubt**2 + (slope * (1 - found / n_best)) ** 2 / _n_effective(lifted)
        return Evidence(n_best, by_regression, of_regression, _odds(by_random, n_best), slope**2 / expected)

    def missed(self) -> Floats:
        """Return for each predicted row how many of the missed best rows it stands for, f64[u].

        The regression divides them among the rows (`Missed.by_row`); their number follows from the estimated recall.
        """
        by_row = self._missed.by_row(self._least)
        expected = self.n_best * (1 - self.evidence.recall().estimate)
        return by_row * (expected / max(float(by_row.sum()), 1e-12))


def averaged(found: Sequence[Evidence], variance: float = VARIANCE) -> Recall:
    """Return the recall of a selection from the evidence on its parts, such as the subtasks that select in turn.

    Args:
        found: the evidence on each part.
        variance: the learnt constant in the variance of the estimate by regression.
    """
    parts = [evidence.recall(variance) for evidence in found]
    each = [(part.estimate, part.low, part.high) for part in parts]
    return Recall(*np.average(each, axis=0, weights=[evidence.n_best for evidence in found]).tolist())


class Evidence(NamedTuple):
    """Two estimates of a recall, as log odds.

    Attributes:
        n_best: the number of best rows.
        by_regression: the estimate from predictions and residuals.
        of_regression: the variance of ``by_regression`` as far as this search shows it, without the learnt constant.
        by_random: the estimate from the random draws.
        of_random: the variance of ``by_random``.
    """

    n_best: float
    by_regression: float
    of_regression: float
    by_random: float
    of_random: float

    def recall(self, variance: float = VARIANCE) -> Recall:
        """Return the mean of both estimates, with weights inverse to their variances.

        Args:
            variance: the constant to add to `of_regression`.
        """
        of_regression = variance + self.of_regression
        share = of_regression / (of_regression + self.of_random)
        middle = (1 - share) * self.by_regression + share * self.by_random
        n_missed = self.n_best * (1 - _share(middle, self.n_best))
        deviation = math.sqrt(share * self.of_random + 1 / (n_missed + 1))
        estimate, low, high = (_share(middle + side * _Z * deviation, self.n_best) for side in (0, -1, 1))
        whole_low, whole_high = math.floor(low * self.n_best), math.ceil(high * self.n_best)
        return Recall(estimate, whole_low / self.n_best, min(whole_high / self.n_best, 1.0))


def _found(falling: Floats, n_best: float, missed: Callable[[float], float]) -> float:
    """Return how many of the drawn values are among the best.

    Args:
        falling: f64[n], the drawn values in falling order, or the first ``n_best`` of them.
        n_best: the number of best rows.
        missed: a function that returns how many undrawn rows have at least a given value.
    """
    low, high = 0, min(math.floor(n_best), len(falling))
    while low < high:
        middle = (low + high + 1) // 2
        if middle + missed(float(falling[middle - 1])) <= n_best:
            low = middle
        else:
            high = middle - 1
    return min(low + 0.5, n_best)


def _quantile(values: Floats, weights: Floats, above: float) -> float:
    """Return the value that rows with a total weight of ``above`` reach."""
    enough = largest(values, math.ceil(above / weights.min()) + 2)
    order = enough[np.argsort(-values[enough], kind="stable")]
    return float(np.interp(above, np.cumsum(weights[order]), values[order]))


def _n_effective(weights: Floats) -> float:
    """Return the effective sample size: the number of equally weighted draws with the same variance (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum()) if weights.any() else math.inf


def _odds(n_found: float, n_best: float) -> float:
    """Return the log odds that a best row has been found. Adding 1 to both counts keeps them finite."""
    return math.log((n_found + 1) / (n_best - n_found + 1))


def _share(odds: float, n_best: float) -> float:
    """Return the share of the best rows that has the given log odds: the inverse of `_odds`."""
    return min(max(((n_best + 2) / (1 + math.exp(-odds)) - 1) / n_best, 0.0), 1.0)
