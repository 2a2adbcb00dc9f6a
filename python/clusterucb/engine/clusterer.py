"""Define the contract of a clusterer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.large import LARGE
from clusterucb.engine.poolview import PoolView


def default_n_clusters(pool: PoolView) -> int:
    """Return a number of clusters that suits the budget: a third of it, so that an arm gets three draws on average.

    With more clusters, first draws would use up the budget. With fewer, each arm would mix good and bad rows
    (benchmarks/README.md has the figures). The number is at most 4 times the square root of N, so that k-means stays
    cheap compared with the gradients of a large pool, and at most 4,000. A pool without a budget counts as one that may
    be drawn whole.
    """
    budget = pool.budget or len(pool)
    return max(min(budget // 3, 4 * math.isqrt(min(len(pool), LARGE))), 1)


class Clusterer(ABC):
    """Groups the pool into clusters, which become the arms of the bandit."""

    @abstractmethod
    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the cluster of every row.

        Args:
            pool: the rows to group. ``pool.matrix()`` returns the features as one f32[N, k] matrix.
            rng: the only permitted source of randomness.

        Returns:
            i64[N], labels 0..K-1. The engine closes gaps. -1 is noise: the engine splits it at random into arms of
            about the median size, so rows are never dropped.
        """
