"""What the draws of a search tell of all other rows: a Gaussian process that is fitted as they come.

Decisions:
    - The clusters and the column ``source`` are part of the kernel, where there are several: what a bandit learns from
      is not thrown away.
    - The kernel is learnt when the number of observations has grown by half, from a random part of those before: what
      it is depends on the values in the order in which they came, and not on how they were told.
    - Inducing points are the best half and an even spread of the rest; a pool of many rows has fewer, which decides
      how long a prediction of all rows takes.
"""

from __future__ import annotations

import math
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.gaussian import Inputs, Kernel, Posterior
from clusterucb.engine.poolview import PoolView

_FIRST = 32  # observations that the kernel is learnt from at first
_GROWTH = 1.5
_MOST = 384  # observations that it is learnt from
_STEPS = 25
_POINTS = (96, 1024)  # inducing points, at least and at most
_POINTS_TIMES_ROWS = 50_000_000

_INPUTS: WeakKeyDictionary[PoolView, Inputs] = WeakKeyDictionary()

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class Regression:
    """Predicts values of a pool's rows from those of some.

    Args:
        pool: N rows.
        n_outputs: V, how many values a row has.
    """

    def __init__(self, pool: PoolView, n_outputs: int) -> None:
        self._kernel = Kernel(_inputs(pool))
        self._n_rows = len(pool)
        self.rows = np.zeros(0, np.int64)
        self.values = np.zeros((0, n_outputs))
        self._next = _FIRST

    def add(self, rows: Rows, values: Floats) -> None:
        """Add values f64[m, V] of rows i64[m], and learn the kernel anew if there are many more than the last time."""
        if len(rows):
            self.__dict__.pop("_known", None)
        self.rows = np.concatenate([self.rows, rows])
        self.values = np.concatenate([self.values, values])
        while len(self.rows) >= self._next:
            count = self._next
            some = np.random.default_rng(count).permutation(count)[:_MOST]
            self._kernel.learn(self.rows[some], _standardized(self.values[some])[0], _STEPS)
            self._next = math.ceil(count * _GROWTH)

    def mean(self, rows: Rows) -> Floats:
        """Return what values rows i64[m] are expected to have, f64[m, V]."""
        posterior, mean, std = self._known
        return posterior.mean(rows) * std + mean

    def predict(self, rows: Rows) -> tuple[Floats, Floats]:
        """Return what values rows i64[m] are expected to have, f64[m, V], and how far they may be off, f64[m, V]."""
        posterior, mean, std = self._known
        predicted, deviation = posterior.predict(rows)
        return predicted * std + mean, deviation[:, None] * std

    def left_out(self) -> Floats:
        """Return what value each row that was added would be expected to have without its own, f64[n, V]."""
        posterior, mean, std = self._known
        return posterior.left_out(self.rows, (self.values - mean) / std) * std + mean

    @cached_property
    def _known(self) -> tuple[Posterior, Floats, Floats]:
        values, mean, std = _standardized(self.values)
        return Posterior.of(self._kernel, self.rows, values, self._points(values)), mean, std

    def _points(self, values: Floats) -> Rows:
        """Return which observations are inducing points."""
        count = int(np.clip(_POINTS_TIMES_ROWS // self._n_rows, *_POINTS))
        if len(values) <= count:
            return np.arange(len(values))
        n_best = count // 2
        best = np.argsort(-values.max(axis=1), kind="stable")
        others = np.sort(best[n_best:])
        spread = others[np.arange(count - n_best) * len(others) // (count - n_best)]
        return np.concatenate([best[:n_best], spread])


def _inputs(pool: PoolView) -> Inputs:
    """Return the rows of a pool as a kernel sees them, the same for all that ask."""
    if pool not in _INPUTS:
        features, prior = ([named[name] for name in sorted(named)] for named in (pool.features, pool.prior))
        _INPUTS[pool] = Inputs(features, _categories(pool), prior)
    return _INPUTS[pool]


def _categories(pool: PoolView) -> list[Rows]:
    """Return clusters and sources as numbers, where there are several and some have several rows."""
    columns = [pool.labels, *([pool.columns["source"]] if "source" in pool.columns else [])]
    found = (np.unique(column, return_inverse=True) for column in columns)
    return [numbers.astype(np.int64) for values, numbers in found if 1 < len(values) < len(pool)]


def _standardized(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return values f64[n, V] with mean 0 and deviation 1 in each column, and what these were, f64[V]."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    return (values - mean) / std, mean, std
