"""Cluster rows by cosine with spherical k-means in numpy.

Decisions:
    - Rows are compared with the centres in blocks, so the N x K matrix of cosines is never held in memory.
    - The code is our own: scikit-learn has no spherical variant, would bring scipy into every installation, and its
      result depends on the number of threads. Pools too large for numpy (millions of rows) are left to a plugin.
    - k-means++ seeds on a random subset of 64 rows per cluster. That is as good as seeding on all rows, at the cost
      of one pass over the pool.
    - The centre of an empty cluster moves to the row that fits its own cluster worst.
    - The iteration stops when no row changes its cluster, or after `KMeans.max_iter` passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.clusterer import Clusterer, default_n_clusters
from clusterucb.engine.poolview import PoolView, numbered, unit_rows
from clusterucb.errors import OptionError

_BLOCK = 8192  # rows per block; the cosines of 8192 rows with 1000 centres take 33 MB in f32
_SEEDING_ROWS = 64  # rows per cluster that seeding chooses from


@dataclass
class KMeans(Clusterer):
    """Spherical k-means on all features.

    Attributes:
        n_clusters: the number of clusters K; by default a third of the budget, but at most 4 times the square root
            of N. There are fewer clusters if the pool has fewer distinct rows.
        max_iter: the maximum number of passes over the pool.
    """

    n_clusters: int | None = None
    max_iter: int = 50

    def __post_init__(self) -> None:
        for name in ("n_clusters", "max_iter"):
            value = getattr(self, name)
            if value is None and name == "n_clusters":
                continue
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                raise OptionError(f"kmeans: {name} is {value!r}; expected a whole number of at least 1")

    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the cluster of every row, i64[N], numbered from 0 without gaps."""
        rows = unit_rows(pool.matrix())
        n_clusters = min(self.n_clusters or default_n_clusters(pool), len(pool))
        centres = _seed(rows, n_clusters, rng)
        labels = np.full(len(rows), -1, np.int64)
        for _ in range(self.max_iter):
            nearest, similarity = _assign(rows, centres)
            if np.array_equal(nearest, labels):
                break
            labels = nearest
            centres = _centres(rows, labels, similarity, n_clusters)
        return numbered(labels)


def _seed(rows: NDArray[np.float32], n_clusters: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Choose centres that lie far apart (k-means++, Arthur and Vassilvitskii 2007), f32[at most K, k]."""
    subset = rows[rng.permutation(len(rows))[: _SEEDING_ROWS * n_clusters]]
    chosen = [int(rng.integers(len(subset)))]
    distance = np.full(len(subset), np.inf)
    for _ in range(n_clusters - 1):
        # The squared distance of unit vectors is 2 - 2 cos. For an equal row, rounding may make it negative.
        distance = np.minimum(distance, np.maximum(1 - subset @ subset[chosen[-1]], 0).astype(np.float64))
        distance[distance < 1e-6] = 0
        total = distance.sum()
        if total == 0:  # every row equals a centre, so a further centre would get no row
            break
        chosen.append(int(rng.choice(len(subset), p=distance / total)))
    return subset[chosen]


def _assign(
    rows: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each row's nearest centre, i64[N], and the row's cosine with it, f32[N]."""
    labels = np.empty(len(rows), np.int64)
    similarity = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _BLOCK):
        cosine = rows[start : start + _BLOCK] @ centres.T
        best = cosine.argmax(axis=1)
        labels[start : start + _BLOCK] = best
        similarity[start : start + _BLOCK] = cosine[np.arange(len(best)), best]
    return labels, similarity


def _centres(
    rows: NDArray[np.float32], labels: NDArray[np.int64], similarity: NDArray[np.float32], n_clusters: int
) -> NDArray[np.float32]:
    """Return the clusters' means, scaled to unit length, f32[K, k]; an empty cluster gets a row that fits worst."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=n_clusters)
    filled = np.flatnonzero(counts)
    begin = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.zeros((n_clusters, rows.shape[1]), np.float32)
    sums[filled] = np.add.reduceat(rows[order], begin[filled], axis=0)
    empty = np.flatnonzero(counts == 0)
    sums[empty] = rows[np.argsort(similarity, kind="stable")[: len(empty)]]
    return unit_rows(sums)
