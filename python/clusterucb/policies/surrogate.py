"""Regression in place of arms: learn what influence depends on, and draw where it is predicted to be large.

A bandit knows a cluster by the rewards drawn from it, and nothing of a row that tells it from the others there. This
policy predicts every row's score for every subtask from its features, with a Gaussian process that is fitted to what
was drawn, and draws where mean + kappa * deviation, aggregated as rewards are, is largest (GP-UCB, Srinivas et al.
2010).

Decisions:
    - One output per subtask, the maximum taken afterwards: a maximum of smooth functions is not smooth.
    - The start is the engine's cold start: a share of every cluster, at random, with known probability. What a model
      misses are groups that were never probed.
    - A decision takes a prediction of every row, so there are few: the budget is spent in so many batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.aggregate import STANDARDIZED, Standardized, weighted
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.regression import Regression
from clusterucb.errors import OptionError


@dataclass
class Surrogate(Policy):
    """Gaussian-process regression on the features, and an upper confidence bound on what it predicts.

    Attributes:
        kappa: weight of the predicted deviation.
        batches: how many batches a budget is spent in, the cold start aside: each costs a prediction of all rows.
    """

    cold_start: ClassVar[bool] = True
    predicts: ClassVar[bool] = True
    kappa: float = 0.25
    batches: int = 20

    def __post_init__(self) -> None:
        if not isinstance(self.kappa, float | int) or not 0 <= self.kappa < math.inf:
            raise OptionError(f"surrogate: kappa is {self.kappa!r}; expected a number of at least 0")
        if not isinstance(self.batches, int) or isinstance(self.batches, bool) or self.batches < 1:
            raise OptionError(f"surrogate: batches is {self.batches!r}; expected a whole number from 1")

    def start(self, pool: PoolView) -> None:
        """Forget all scores."""
        self._pool = pool
        self._regression: Regression | None = None

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the rows with the largest bounds, ties by priority."""
        rows = np.flatnonzero(available)
        if self._regression is None:
            return rng.permutation(rows)[:n]
        predicted, deviation = self._regression.predict(rows)
        bound = self._aggregated(predicted + self.kappa * deviation, self._regression.values)
        order = np.lexsort((self._pool.priority[rows], -bound))
        return rows[order[:n]]

    def tell(
        self,
        rows: NDArray[np.int64],
        rewards: NDArray[np.float64],  # noqa: ARG002
        scores: NDArray[np.float64],
    ) -> None:
        """Add scores."""
        if self._regression is None:
            self._regression = Regression(self._pool, scores.shape[1])
        self._regression.add(rows, scores)

    def _aggregated(self, scores: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
        name, weights = self._pool.aggregate, self._pool.weights
        if name == STANDARDIZED:
            return Standardized(known, np.ones(len(known)), weights)(scores)
        return weighted(name, weights)(scores)
