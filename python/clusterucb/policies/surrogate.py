"""Predict every row's score from its features by regression, and draw where the prediction is large.

A bandit knows a cluster only by the rewards drawn from it, and cannot tell the rows of a cluster apart. This policy
predicts every row's score for every subtask from the row's features, with a Gaussian process fitted to the observed
scores. It draws the rows whose bounds, mean + kappa * deviation, the rule of selection wants most (GP-UCB, Srinivas et
al. 2010).

Decisions:
    - The regression has one output per subtask. The rule is applied to its bounds: a maximum of smooth functions is not
      smooth. Under ``round-robin``, the rows are drawn whose bounds lie farthest above the scores that a subtask's best
      rows so far reach.
    - The policy begins with the engine's cold start, which draws a share of every cluster at random, with known
      probability. A model misses the groups from which nothing was ever drawn.
    - Every decision needs a prediction for every available row. So the budget is spent in a small, fixed number of
      batches.
    - In a large pool, all rows are predicted only when the kernel was learnt again, and the rows with the largest
      bounds become candidates: four times as many as there were observations, which are more than are drawn until the
      kernel is learnt again, but at most twice the draws that are left. In the last quarter of the budget, the
      candidates stay. In between, a decision predicts the candidates alone. They follow from the observations up to
      then, so that a resumed search has the same ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.large import in_parts, is_large, largest
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.regression import Regression
from clusterucb.errors import OptionError

_EARLY = 0.75  # the share of the budget after which a large pool has no new candidates
_AT_ONCE = 4096  # rows of a large pool whose scores are predicted at a time


@dataclass
class Surrogate(Policy):
    """Gaussian-process regression on the features, and an upper confidence bound on the predicted scores.

    Attributes:
        kappa: the weight of the predicted standard deviation.
        batches: the number of batches in which the budget is spent after the cold start. Each batch costs a
            prediction of all available rows.
    """

    cold_start: ClassVar[bool] = True
    predicts: ClassVar[bool] = True
    kappa: float = 0.25
    batches: int = 20

    def __post_init__(self) -> None:
        if not isinstance(self.kappa, float | int) or not 0 <= self.kappa < math.inf:
            raise OptionError(f"surrogate: kappa is {self.kappa!r}; expected a number of at least 0")
        if not isinstance(self.batches, int) or isinstance(self.batches, bool) or self.batches < 1:
            raise OptionError(
                f"surrogate: batches is {self.batches!r}; expected a whole number of at least 1"
            )

    def start(self, pool: PoolView) -> None:
        """Forget all scores, and begin with ``pool``."""
        self._pool = pool
        self._regression: Regression | None = None
        self._candidates = (0, np.zeros(0, np.int64))  # after so many observations

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the available rows with the largest bounds, or random ones while no score is known.

        The row with the lower ``priority`` wins a tie.
        """
        if not n:
            return np.zeros(0, np.int64)
        if self._regression is None:
            return rng.permutation(np.flatnonzero(available))[:n]
        rows = self._worth_a_prediction(self._regression, n, available)
        bound = self._bounds(self._regression, rows, len(self._regression.rows))
        first = largest(bound, n)
        order = np.lexsort((self._pool.priority[rows[first]], -bound[first]))
        return rows[first[order[:n]]]

    def tell(
        self,
        rows: NDArray[np.int64],
        rewards: NDArray[np.float64],  # noqa: ARG002
        scores: NDArray[np.float64],
    ) -> None:
        """Add the observed scores to the regression."""
        if self._regression is None:
            self._regression = Regression(self._pool, scores.shape[1])
        self._regression.add(rows, scores)

    def _worth_a_prediction(
        self, regression: Regression, n: int, available: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Return the available rows; of a large pool, the candidates among them, if there are ``n``."""
        early = [count for count in regression.when_learnt if count <= _EARLY * self._pool.budget]
        n_then = early[-1] if early else 0
        if n_then and is_large(len(self._pool)):
            if self._candidates[0] != n_then:
                others = np.ones(len(self._pool), np.bool_)
                others[regression.rows[:n_then]] = False
                rows = np.flatnonzero(others)
                best = largest(
                    self._bounds(regression, rows, n_then), min(4 * n_then, 2 * (self._pool.budget - n_then))
                )
                self._candidates = (n_then, rows[best])
            candidates = self._candidates[1]
            candidates = candidates[available[candidates]]
            if len(candidates) >= n:
                return candidates
        return np.flatnonzero(available)

    def _bounds(self, regression: Regression, rows: NDArray[np.int64], n_first: int) -> NDArray[np.float64]:
        """Return how much the rule wants each of the rows i64[m], by the first observations, f64[m]."""
        wanted = self._pool.rules.wanted(regression.values[:n_first], self._pool.n_select)
        bounds = np.empty(len(rows))
        regression.predict(rows[:0], n_first)  # computes the posterior before there are threads

        def one(here: slice) -> None:
            predicted, deviation = regression.predict(rows[here], n_first)
            bounds[here] = wanted(predicted + self.kappa * deviation)

        in_parts(one, len(rows), _AT_ONCE if is_large(len(self._pool)) else max(len(rows), 1))
        return bounds
