"""Predict the values of all rows from the draws of a search, with a Gaussian process that is fitted as draws arrive.

Decisions:
    - The clusters and the column ``source`` are part of the kernel if they have several values: a bandit learns from
      them, so the regression uses them too.
    - The kernel is learnt again each time the number of observations has grown by half, from a random part of the
      observations up to then. It therefore depends on the values and their order, and not on how they were batched.
    - In a large pool, it is learnt when the number has grown fourfold: a batch has ten thousands of observations, of
      which a few hundred random ones are used.
    - Half of the inducing points are the best observations; the other half are spread evenly over the rest. A larger
      pool has fewer inducing points, because their number decides how long a prediction of all rows takes.
    - In a large pool, at most 65,536 evenly spaced observations count. A posterior of so many and one of two million
      hardly differ with 64 inducing points, but the latter takes thirty times as long in each batch.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.gaussian import Kernel, KernelInputs, Posterior
from clusterucb.engine.large import evenly, is_large
from clusterucb.engine.poolview import PoolView, numbered

# Of pools that are not large, and of large ones, whose batches are large, too:
_FIRST = (32, 400)  # observations before the kernel is first learnt
_GROWTH = (1.5, 4)
_FIRST_STEPS = (25, 100)  # steps in which it is first learnt
_MOST = 384  # the most observations from which the kernel is learnt
_STEPS = 25
_KEPT = {"kernel": 64, "posterior": 2}  # results of each kind that regressions on a pool share
_POINTS = (96, 1024)  # the fewest and the most inducing points
_POINTS_OF_LARGE = 64  # inducing points in a large pool
_POINTS_TIMES_ROWS = 50_000_000
_OBSERVED = 1 << 16  # the most observations that count in a large pool
_LEFT_OUT = 1 << 15  # the most of them that are predicted without their own values

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Result = TypeVar("Result")


class _Shared:
    """What all regressions on a pool share: its rows, and what was computed last.

    A policy and the estimate of the recall fit the same regression to the same draws. Each result is a function of its
    key, so it does not matter which of them asks first.

    Attributes:
        inputs: the rows in the form that a kernel needs.
    """

    def __init__(self, pool: PoolView) -> None:
        features, prior = ([named[name] for name in sorted(named)] for named in (pool.features, pool.prior))
        self.inputs = KernelInputs(features, _categories(pool), prior)
        self._kept: dict[str, dict[bytes, Any]] = {}

    def once(self, kind: str, key: Sequence[NDArray[Any]], compute: Callable[[], Result]) -> Result:
        """Return what ``compute`` returns, unless it was computed for the same arrays ``key`` lately."""
        digest = hashlib.sha256()
        for array in key:
            digest.update(np.ascontiguousarray(array).data)
        kept, name = self._kept.setdefault(kind, {}), digest.digest()
        if name not in kept:
            if len(kept) >= _KEPT[kind]:
                del kept[next(iter(kept))]
            kept[name] = compute()
        return cast("Result", kept[name])

    @classmethod
    def of(cls, pool: PoolView) -> _Shared:
        """Return what the regressions on a pool share."""
        if pool not in _SHARED:
            _SHARED[pool] = cls(pool)
        return _SHARED[pool]


_SHARED: WeakKeyDictionary[PoolView, _Shared] = WeakKeyDictionary()


class Regression:
    """Predicts the values of a pool's rows from the observed values of some.

    Args:
        pool: the pool, N rows.
        n_outputs: V, the number of values of a row.

    Attributes:
        rows: i64[n], the observed rows, in order.
        values: f64[n, V], their values.
        when_learnt: n each time that the kernel was learnt, in rising order.
    """

    def __init__(self, pool: PoolView, n_outputs: int) -> None:
        self._shared = _Shared.of(pool)
        self._kernel = Kernel(self._shared.inputs)
        self._n_rows, self._is_large = len(pool), is_large(len(pool))
        self.rows = np.zeros(0, np.int64)
        self.values = np.zeros((0, n_outputs))
        self.when_learnt: list[int] = []
        self._parameters = [self._kernel.parameters]  # before the kernel is first learnt, and each time after
        self._posteriors: dict[int, tuple[Posterior, Floats, Floats]] = {}  # by the number of observations
        self._next = _FIRST[self._is_large]

    def add(self, rows: Rows, values: Floats) -> None:
        """Add the values f64[m, V] of rows i64[m]. Learn the kernel again if the number has grown enough."""
        if len(rows):
            self._posteriors.clear()
        self.rows = np.concatenate([self.rows, rows])
        self.values = np.concatenate([self.values, values])
        while len(self.rows) >= self._next:
            count = self._next
            some = np.random.default_rng(count).permutation(count)[:_MOST]
            steps = _STEPS if self.when_learnt else _FIRST_STEPS[self._is_large]
            self._learn(self.rows[some], _standardized(self.values[some])[0], steps)
            self._next = math.ceil(count * _GROWTH[self._is_large])
            self.when_learnt.append(len(self.rows))
            self._parameters.append(self._kernel.parameters)

    def _learn(self, rows: Rows, values: Floats, steps: int) -> None:
        kernel = self._kernel

        def compute() -> Floats:
            kernel.learn(rows, values, steps)
            return kernel.parameters

        kernel.parameters = self._shared.once("kernel", (kernel.parameters, rows, values), compute)

    def mean(self, rows: Rows) -> Floats:
        """Return the predicted values f64[m, V] of rows i64[m]."""
        posterior, mean, std = self._posterior(len(self.rows))
        return posterior.mean(rows) * std + mean

    def predict(self, rows: Rows, n_first: int | None = None) -> tuple[Floats, Floats]:
        """Return the predicted values f64[m, V] of rows i64[m], and their standard deviations f64[m, V].

        Args:
            rows: the rows.
            n_first: the number of observations, from the first on, that are used, with the kernel learnt by then; None
                for all.
        """
        posterior, mean, std = self._posterior(len(self.rows) if n_first is None else n_first)
        predicted, deviation = posterior.predict(rows)
        return predicted * std + mean, deviation[:, None] * std

    def left_out(self) -> tuple[Rows | slice, Floats]:
        """Return the leave-one-out predictions f64[m, V] of observed rows: each without its own values.

        Before them, the positions of these rows among the observations: all, or some of a large pool.
        """
        posterior, mean, std = self._posterior(len(self.rows))
        used = self._used(len(self.rows))
        if not isinstance(used, slice):
            used = used[evenly(len(used), _LEFT_OUT)]
        return used, posterior.left_out(self.rows[used], (self.values[used] - mean) / std) * std + mean

    def _posterior(self, n_first: int) -> tuple[Posterior, Floats, Floats]:
        """Return the posterior given the first observations, and the mean and deviation of their values."""
        if n_first not in self._posteriors:
            used = self._used(n_first)
            values, mean, std = _standardized(self.values[:n_first][used])
            rows, kernel = self.rows[:n_first][used], copy(self._kernel)
            kernel.parameters = self._parameters[bisect_right(self.when_learnt, n_first)]
            found = self._shared.once(
                "posterior",
                (kernel.parameters, rows, values),
                lambda: Posterior.of(kernel, rows, values, self._points(values)),
            )
            self._posteriors[n_first] = (found, mean, std)
        return self._posteriors[n_first]

    def _used(self, n_first: int) -> Rows | slice:
        """Return the positions of the observations, of the first ones, that count."""
        return evenly(n_first, _OBSERVED) if self._is_large else slice(None)

    def _points(self, values: Floats) -> Rows:
        """Return the positions of the observations that are inducing points."""
        count = int(np.clip(_POINTS_TIMES_ROWS // self._n_rows, *_POINTS))
        if self._is_large:
            count = _POINTS_OF_LARGE
        if len(values) <= count:
            return np.arange(len(values))
        n_best = count // 2
        best = np.argsort(-values.max(axis=1), kind="stable")
        others = np.sort(best[n_best:])
        spread = others[np.arange(count - n_best) * len(others) // (count - n_best)]
        return np.concatenate([best[:n_best], spread])


def _categories(pool: PoolView) -> list[NDArray[np.int32]]:
    """Return clusters and sources as numbers, each if it has several values and not a different value in every row."""
    columns = [pool.labels, *([pool.columns["source"]] if "source" in pool.columns else [])]
    return [
        numbers.astype(np.int32) for numbers in map(numbered, columns) if 1 < numbers.max() + 1 < len(pool)
    ]


def _standardized(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return values f64[n, V] scaled to mean 0 and deviation 1 in each column, and their mean and deviation f64[V]."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    return (values - mean) / std, mean, std
