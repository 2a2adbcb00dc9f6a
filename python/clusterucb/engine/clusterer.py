"""The contract of a clusterer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.poolview import PoolView


def default_n_clusters(pool: PoolView) -> int:
    """Return how many clusters suit the budget: a third of it, so that an arm gets three draws on average.

    More would use the budget up for first draws, fewer leave each arm a mixture of good and bad rows
    (benchmarks/README.md has the figures). At most 4 times the square root of N, so that k-means stays cheap beside
    the gradients of a large pool. A pool without a budget may be drawn whole.
    """
    budget = pool.budget or len(pool)
    return max(min(budget // 3, 4 * math.isqrt(len(pool))), 1)


class Clusterer(ABC):
    """Groups the pool into clusters, which become the arms of the bandit."""

    @abstractmethod
    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the cluster of every row.

        Args:
            pool: the rows to group; ``pool.matrix()`` is the features as one f32[N, k] matrix.
            rng: the only permitted source of randomness.

        Returns:
            i64[N], 0..K-1 (gaps are closed by the engine). -1 is noise, which the engine splits at
            random into arms of about the median size: rows are never dropped.
        """
