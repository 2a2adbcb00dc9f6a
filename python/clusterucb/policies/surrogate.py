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
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.regression import Regression
from clusterucb.errors import OptionError


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

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the available rows with the largest bounds, or random ones while no score is known.

        The row with the lower ``priority`` wins a tie.
        """
        rows = np.flatnonzero(available)
        if self._regression is None:
            return rng.permutation(rows)[:n]
        predicted, deviation = self._regression.predict(rows)
        bound = self._pool.rules.wanted(
            predicted + self.kappa * deviation, self._regression.values, self._pool.n_select
        )
        order = np.lexsort((self._pool.priority[rows], -bound))
        return rows[order[:n]]

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
