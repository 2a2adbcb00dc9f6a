"""Cluster a pool by the sketches of its gradients that the first round of a training has kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.poolview import PoolView


@dataclass
class OfSketches(Clusterer):
    """Clusters sketches of gradients in place of the features.

    Attributes:
        clusterer: the clusterer, alone in a tuple.
        path: the file of the sketches of all rows (`clusterucb.training.rounds.Sketches`).
    """

    clusterer: tuple[Clusterer]
    path: str

    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the cluster of every row, i64[N]. A row without a sketch counts as the zero vector."""
        sketches = np.nan_to_num(load_file(self.path)["values"].astype(np.float32), copy=False, nan=0.0)
        return self.clusterer[0].fit_predict(replace(pool, features={"gradient": sketches}), rng)
