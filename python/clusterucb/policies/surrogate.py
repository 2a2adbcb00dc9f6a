"""Regression in place of arms: learn what influence depends on, and draw where it is predicted to be large.

A bandit knows a cluster by the rewards drawn from it, and nothing of a row that tells it from the others there. This
policy predicts every row's score for every subtask from its features, with a Gaussian process that is fitted to what
was drawn, and draws where mean + kappa * deviation, aggregated as rewards are, is largest (GP-UCB, Srinivas et al.
2010).

Decisions:
    - One output per subtask, the maximum taken afterwards: a maximum of smooth functions is not smooth.
    - The start is the engine's cold start: a share of every cluster, at random, with known probability. What a model
      misses are groups that were never probed.
    - The column ``source`` is part of the kernel, where the pool has several sources.
    - A decision takes a prediction of every row, so there are few: the budget is spent in so many batches.
    - The kernel is learnt when the number of observations has grown by half, from a random part of those before: what
      it is depends on the rewards in the order in which they were drawn, and not on how they were told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.aggregate import STANDARDIZED, Standardized, weighted
from clusterucb.errors import OptionError
from clusterucb.policies.base import Policy
from clusterucb.policies.gaussian import Inputs, Kernel, Posterior
from clusterucb.poolview import PoolView

_FIRST = 32  # observations that the kernel is learnt from at first
_GROWTH = 1.5
_MOST = 384  # observations that it is learnt from
_STEPS = 25
_POINTS = (96, 1024)  # inducing points, at least and at most
_POINTS_TIMES_ROWS = 50_000_000  # decides how long a decision takes


@dataclass
class Surrogate(Policy):
    """Gaussian-process regression on the features, and an upper confidence bound on what it predicts.

    It is best with features that tell rows apart: ``embedding[parts=true]+lexical``.

    Attributes:
        kappa: weight of the predicted deviation.
        batches: how many batches a budget is spent in, the cold start aside: each costs a prediction of all rows.
    """

    cold_start: ClassVar[bool] = True
    kappa: float = 0.5
    batches: int = 20

    def __post_init__(self) -> None:
        if not isinstance(self.kappa, float | int) or not 0 <= self.kappa < math.inf:
            raise OptionError(f"surrogate: kappa is {self.kappa!r}; expected a number of at least 0")
        if not isinstance(self.batches, int) or isinstance(self.batches, bool) or self.batches < 1:
            raise OptionError(f"surrogate: batches is {self.batches!r}; expected a whole number from 1")

    def start(self, pool: PoolView) -> None:
        """Bring the features into the form that the kernel takes them in."""
        self._pool = pool
        self._kernel = Kernel(
            Inputs([pool.features[name] for name in sorted(pool.features)], _categories(pool))
        )
        self._rows = np.zeros(0, np.int64)
        self._scores = np.zeros((0, 0))
        self._next = _FIRST

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the rows with the largest bounds, ties by priority."""
        rows = np.flatnonzero(available)
        if not len(self._rows):
            return rng.permutation(rows)[:n]
        values, mean, std = _standardized(self._scores)
        known = Posterior.of(self._kernel, self._rows, values, self._points(values))
        predicted, deviation = known.predict(rows)
        bound = self._aggregated((predicted + self.kappa * deviation[:, None]) * std + mean)
        order = np.lexsort((self._pool.priority[rows], -bound))
        return rows[order[:n]]

    def tell(
        self,
        rows: NDArray[np.int64],
        rewards: NDArray[np.float64],  # noqa: ARG002
        scores: NDArray[np.float64],
    ) -> None:
        """Add scores, and learn the kernel anew if there are many more than the last time."""
        self._rows = np.concatenate([self._rows, rows])
        self._scores = np.concatenate([self._scores.reshape(-1, scores.shape[1]), scores])
        while len(self._rows) >= self._next:
            known = self._next
            some = np.random.default_rng(known).permutation(known)[:_MOST]
            self._kernel.learn(self._rows[some], _standardized(self._scores[some])[0], _STEPS)
            self._next = math.ceil(known * _GROWTH)

    def _points(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return which observations are inducing points: half of them the best, the others as they came."""
        count = int(np.clip(_POINTS_TIMES_ROWS // len(self._pool), *_POINTS))
        if len(values) <= count:
            return np.arange(len(values))
        n_best = count // 2
        best = np.argsort(-values.max(axis=1), kind="stable")
        others = np.sort(best[n_best:])
        spread = others[np.arange(count - n_best) * len(others) // (count - n_best)]
        return np.concatenate([best[:n_best], spread])

    def _aggregated(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        name, weights = self._pool.aggregate, self._pool.weights
        if name == STANDARDIZED:
            return Standardized(self._scores, np.ones(len(self._scores)), weights)(scores)
        return weighted(name, weights)(scores)


def _categories(pool: PoolView) -> list[NDArray[np.int64]]:
    """Return the sources as numbers, where there are several and some have several rows."""
    if "source" not in pool.columns:
        return []
    found, numbers = np.unique(pool.columns["source"], return_inverse=True)
    return [numbers.astype(np.int64)] if 1 < len(found) < len(pool) else []


def _standardized(
    scores: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return scores f64[n, S] with mean 0 and deviation 1 in each column, and what these were, f64[S]."""
    mean, std = scores.mean(axis=0), scores.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    return (scores - mean) / std, mean, std
