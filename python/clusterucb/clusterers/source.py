"""Make one cluster of each value of a column: the cheapest arms, and often good ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.poolview import PoolView, numbered
from clusterucb.errors import OptionError


@dataclass
class Source(Clusterer):
    """Make one cluster of each value of a column.

    Attributes:
        column: the name of the column. The column ``source`` has each sample's ``source``, or the name of its file
            if the sample has none.
    """

    column: str = "source"

    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        """Return the cluster of every row, i64[N]; clusters are numbered by the sorted values of the column.

        Raises:
            OptionError: the pool has no such column.
        """
        if self.column not in pool.columns:
            columns = ", ".join(sorted(pool.columns)) or "none"
            raise OptionError(
                f"clusterer source: the pool has no column {self.column!r}; its columns: {columns}"
            )
        return numbered(pool.columns[self.column])
