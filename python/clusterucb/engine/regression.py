"""Predict the values of all rows from the draws of a search, with a Gaussian process that is fitted as draws arrive.

Decisions:
    - The clusters and the column ``source`` are part of the kernel if they have several values: a bandit learns from
      them, so the regression uses them too.
    - The kernel is learnt again each time the number of observations has grown by half, from a random part of the
      observations up to then. It therefore depends on the values and their order, and not on how they were batched.
    - Half of the inducing points are the best observations; the other half are spread evenly over the rest. A larger
      pool has fewer inducing points, because their number decides how long a prediction of all rows takes.
"""

from __future__ import annotations

import math
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.gaussian import Kernel, KernelInputs, Posterior
from clusterucb.engine.poolview import PoolView, numbered

_FIRST = 32  # observations before the kernel is first learnt
_GROWTH = 1.5
_MOST = 384  # the most observations from which the kernel is learnt
_STEPS = 25
_POINTS = (96, 1024)  # the fewest and the most inducing points
_POINTS_TIMES_ROWS = 50_000_000

_INPUTS: WeakKeyDictionary[PoolView, KernelInputs] = WeakKeyDictionary()

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class Regression:
    """Predicts the values of a pool's rows from the observed values of some.

    Args:
        pool: the pool, N rows.
        n_outputs: V, the number of values of a row.
    """

    def __init__(self, pool: PoolView, n_outputs: int) -> None:
        self._kernel = Kernel(_inputs(pool))
        self._n_rows = len(pool)
        self.rows = np.zeros(0, np.int64)
        self.values = np.zeros((0, n_outputs))
        self._next = _FIRST

    def add(self, rows: Rows, values: Floats) -> None:
        """Add the values f64[m, V] of rows i64[m]. Learn the kernel again if the number has grown enough."""
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
        """Return the predicted values f64[m, V] of rows i64[m]."""
        posterior, mean, std = self._known
        return posterior.mean(rows) * std + mean

    def predict(self, rows: Rows) -> tuple[Floats, Floats]:
        """Return the predicted values f64[m, V] of rows i64[m], and their standard deviations f64[m, V]."""
        posterior, mean, std = self._known
        predicted, deviation = posterior.predict(rows)
        return predicted * std + mean, deviation[:, None] * std

    def left_out(self) -> Floats:
        """Return the leave-one-out predictions f64[n, V] of the observed rows: each without its own values."""
        posterior, mean, std = self._known
        return posterior.left_out(self.rows, (self.values - mean) / std) * std + mean

    @cached_property
    def _known(self) -> tuple[Posterior, Floats, Floats]:
        values, mean, std = _standardized(self.values)
        return Posterior.of(self._kernel, self.rows, values, self._points(values)), mean, std

    def _points(self, values: Floats) -> Rows:
        """Return the positions of the observations that are inducing points."""
        count = int(np.clip(_POINTS_TIMES_ROWS // self._n_rows, *_POINTS))
        if len(values) <= count:
            return np.arange(len(values))
        n_best = count // 2
        best = np.argsort(-values.max(axis=1), kind="stable")
        others = np.sort(best[n_best:])
        spread = others[np.arange(count - n_best) * len(others) // (count - n_best)]
        return np.concatenate([best[:n_best], spread])


def _inputs(pool: PoolView) -> KernelInputs:
    """Return a pool's rows in the form that a kernel needs; all regressions on a pool share them."""
    if pool not in _INPUTS:
        features, prior = ([named[name] for name in sorted(named)] for named in (pool.features, pool.prior))
        _INPUTS[pool] = KernelInputs(features, _categories(pool), prior)
    return _INPUTS[pool]


def _categories(pool: PoolView) -> list[Rows]:
    """Return clusters and sources as numbers, each if it has several values and not a different value in every row."""
    columns = [pool.labels, *([pool.columns["source"]] if "source" in pool.columns else [])]
    return [numbers for numbers in map(numbered, columns) if 1 < numbers.max() + 1 < len(pool)]


def _standardized(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return values f64[n, V] scaled to mean 0 and deviation 1 in each column, and their mean and deviation f64[V]."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    return (values - mean) / std, mean, std
