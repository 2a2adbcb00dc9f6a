"""Keep statistics of the rewards observed in each arm.

Means and deviations are updated reward by reward (Welford), not from sums of squares. An arm whose rewards are all
equal then has a deviation of exactly zero, however small the rewards are. Statistics that cost more than O(K)
(`quantile`, `exceedance`, `remaining`) are computed only when a policy reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class ArmStats:
    """Statistics of K arms. The arrays that a policy receives are read-only.

    Attributes:
        size: i64[K], the number of rows in each arm.
        count: i64[K], the number of observed rewards. Failed draws do not count.
        mean, min, max: f64[K], of the observed rewards; NaN where ``count`` is 0.
        total: the number of observed rewards over all arms.
    """

    def __init__(self, size: NDArray[np.int64] | Sequence[int]) -> None:
        """Begin without observations. ``size`` i64[K] is the number of rows in each arm."""
        self.size = np.asarray(size, dtype=np.int64)
        n_arms = len(self.size)
        self.count = np.zeros(n_arms, np.int64)
        self.mean = np.full(n_arms, np.nan)
        self.min = np.full(n_arms, np.nan)
        self.max = np.full(n_arms, np.nan)
        self.total = 0
        self._squares = np.zeros(n_arms)  # sum of squared deviations from the mean
        self._arms = np.empty(64, np.int64)  # the arm of every observation; doubled when full
        self._rewards = np.empty(64)
        self._labels: NDArray[np.int64] | None = None
        self._available: NDArray[np.bool_] | None = None

    def add(self, arms: NDArray[np.int64], rewards: NDArray[np.float64]) -> None:
        """Add the rewards f64[m] observed in arms i64[m]."""
        for arm, reward in zip(arms.tolist(), rewards.tolist(), strict=True):
            count = self.count[arm] = self.count[arm] + 1
            if count == 1:
                self.mean[arm] = self.min[arm] = self.max[arm] = reward
                continue
            shift = reward - self.mean[arm]
            self.mean[arm] += shift / count
            self._squares[arm] += shift * (reward - self.mean[arm])
            self.min[arm] = min(self.min[arm], reward)
            self.max[arm] = max(self.max[arm], reward)
        total = self.total + len(arms)
        if total > len(self._arms):
            room = max(total, 2 * len(self._arms))
            self._arms = np.concatenate([self._arms[: self.total], np.empty(room - self.total, np.int64)])
            self._rewards = np.concatenate([self._rewards[: self.total], np.empty(room - self.total)])
        self._arms[self.total : total] = arms
        self._rewards[self.total : total] = rewards
        self.total = total

    def seen_from(self, labels: NDArray[np.int64], available: NDArray[np.bool_]) -> ArmStats:
        """Return a read-only view that shares these statistics and knows which rows can still be drawn.

        Args:
            labels: i64[N], the arm of each row.
            available: bool[N], True where the row can still be drawn.
        """
        view = object.__new__(ArmStats)
        view.__dict__.update(self.__dict__)
        for name in ("size", "count", "mean", "min", "max"):
            array = view.__dict__[name] = view.__dict__[name].view()
            array.flags.writeable = False
        view._labels, view._available = labels, available
        return view

    @property
    def std(self) -> NDArray[np.float64]:
        """f64[K], the population standard deviation of the rewards; NaN where ``count`` is 0."""
        with np.errstate(invalid="ignore"):
            return np.sqrt(self._squares / np.where(self.count > 0, self.count, np.nan))

    @property
    def remaining(self) -> NDArray[np.int64]:
        """i64[K], the number of rows that can still be drawn."""
        if self._labels is None or self._available is None:
            return self.size - self.count
        return np.bincount(self._labels[self._available], minlength=len(self.size))

    @property
    def pending(self) -> NDArray[np.int64]:
        """i64[K], the number of drawn rows without a reward. They are still being scored, or scoring failed."""
        return self.size - self.count - self.remaining

    def quantile(self, q: float) -> float:
        """Return the ``q`` quantile of all rewards so far, linearly interpolated; NaN if there are none."""
        return float(np.quantile(self._rewards[: self.total], q)) if self.total else float("nan")

    def exceedance(self, threshold: float) -> NDArray[np.float64]:
        """Return the share of each arm's rewards at or above ``threshold``, f64[K]; NaN where there are none."""
        above = self._arms[: self.total][self._rewards[: self.total] >= threshold]
        with np.errstate(invalid="ignore"):
            return np.bincount(above, minlength=len(self.size)) / np.where(self.count > 0, self.count, np.nan)
