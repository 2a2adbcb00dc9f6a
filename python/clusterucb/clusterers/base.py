"""The contract of a clusterer."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from clusterucb.poolview import PoolView


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
