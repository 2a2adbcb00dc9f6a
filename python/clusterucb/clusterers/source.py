"""One cluster for each value of a column: the cheapest arms, and often good ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError


@dataclass
class Source(Clusterer):
    """Make one cluster of each value of a column.

    Attributes:
        column: which column; ``source`` is the sample's ``source``, or its file's name without one.
    """

    column: str = "source"

    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        """Return clusters numbered in the sorted order of the column's values."""
        if self.column not in pool.columns:
            there = ", ".join(sorted(pool.columns)) or "none"
            raise OptionError(
                f"clusterer source: the pool has no column {self.column!r}; its columns: {there}"
            )
        clusters: NDArray[np.int64] = np.unique(pool.columns[self.column], return_inverse=True)[1]
        return clusters
