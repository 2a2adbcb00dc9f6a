"""Cluster rows by cosine with spherical k-means in numpy.

Decisions:
    - Rows are compared with the centres in blocks, so the N x K matrix of cosines is never held in memory.
    - The code is our own: scikit-learn has no spherical variant, would bring scipy into every installation, and its
      result depends on the number of threads.
    - In a large pool, the centres are those of evenly spaced rows, and there are two levels: the rows are divided into
      about the square root of K groups, and each group into its clusters. To compare ten million rows with 4,000
      centres takes minutes; with 63 and then 63, seconds. Few clusters have one level.
    - k-means++ seeds on a random subset of 64 rows per cluster. That is as good as seeding on all rows, at the cost
      of one pass over the pool.
    - The centre of an empty cluster moves to the row that fits its own cluster worst.
    - The iteration stops when no row changes its cluster, or after `KMeans.max_iter` passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.clusterer import Clusterer, default_n_clusters
from clusterucb.engine.large import evenly, in_parts, is_large, product
from clusterucb.engine.poolview import PoolView, numbered, unit_rows
from clusterucb.errors import OptionError

Product: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]

_BLOCK = 8192  # rows per block; the cosines of 8192 rows with 1000 centres take 33 MB in f32
_SEEDING_ROWS = 64  # rows per cluster that seeding chooses from
_ROWS_OF_CLUSTER = 16  # evenly spaced rows of a large pool for each cluster, to which centres are fitted
_FEWEST_ROWS = 1 << 14  # the fewest of these rows
_PART = 1 << 17  # rows of a large pool that are divided among the groups at a time
_SETTLED = 0.002  # the share of rows that change their cluster at which centres of a large pool are final
_ONE_LEVEL = 256  # the most clusters of a large pool without groups


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
        n_clusters = min(self.n_clusters or default_n_clusters(pool), len(pool))
        if is_large(len(pool)):
            rows = pool.matrix()
            some = unit_rows(rows[evenly(len(rows), max(_FEWEST_ROWS, _ROWS_OF_CLUSTER * n_clusters))])
            return numbered(Tree.of(some, n_clusters, self.max_iter, rng).assign(rows))
        return numbered(_clusters(unit_rows(pool.matrix()), n_clusters, self.max_iter, rng)[0])


@dataclass(frozen=True)
class Tree:
    """The centres of clusters in groups.

    Attributes:
        groups: f32[G, k], the centre of each group.
        clusters: for each group, the centres f32[K_g, k] of its clusters.
    """

    groups: NDArray[np.float32]
    clusters: list[NDArray[np.float32]]

    @classmethod
    def of(cls, rows: NDArray[np.float32], n_clusters: int, max_iter: int, rng: np.random.Generator) -> Tree:
        """Return the centres of about ``n_clusters`` clusters of unit rows f32[n, k]."""
        n_groups = 1 if n_clusters <= _ONE_LEVEL else math.isqrt(n_clusters)
        labels, groups = _clusters(rows, n_groups, max_iter, rng, settled=_SETTLED)
        sizes = np.bincount(labels, minlength=len(groups))
        shares = np.maximum(np.rint(sizes * n_clusters / len(rows)), 1).astype(np.int64)
        clusters = [
            _clusters(rows[labels == group], share, max_iter, rng, settled=_SETTLED)[1]
            if size
            else groups[group, None]
            for group, (size, share) in enumerate(zip(sizes.tolist(), shares.tolist(), strict=True))
        ]
        return cls(groups, clusters)

    def assign(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the cluster of each row f32[N, k], i64[N]: the nearest centre of the group with the nearest centre."""
        first = np.cumsum([0, *map(len, self.clusters)])
        labels = np.empty(len(rows), np.int64)

        def one(here: slice) -> None:
            some, found = rows[here], labels[here]
            group, _ = _assign(some, self.groups, product)
            order = np.argsort(group, kind="stable")
            ends = np.searchsorted(group[order], np.arange(len(self.groups)), side="right").tolist()
            for number, (begin, end) in enumerate(pairwise([0, *ends])):
                members = order[begin:end]
                found[members] = first[number] + _assign(some[members], self.clusters[number], product)[0]

        in_parts(one, len(rows), _PART)
        return labels


def _clusters(
    rows: NDArray[np.float32],
    n_clusters: int,
    max_iter: int,
    rng: np.random.Generator,
    *,
    settled: float = 0.0,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the cluster of each unit row f32[n, k], i64[n], and the centres f32[at most K, k].

    The iteration stops when at most a share ``settled`` of the rows changes its cluster.
    """
    centres = _seed(rows, n_clusters, rng)
    labels = np.full(len(rows), -1, np.int64)
    for _ in range(max_iter):
        nearest, similarity = _assign(rows, centres)
        n_changed = np.count_nonzero(nearest != labels)
        labels = nearest
        if n_changed <= settled * len(rows):
            break
        centres = _centres(rows, labels, similarity, n_clusters)
    return labels, centres


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
    rows: NDArray[np.float32], centres: NDArray[np.float32], times: Product = np.matmul
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each row's nearest centre, i64[N], and the row's cosine with it, f32[N]."""
    labels = np.empty(len(rows), np.int64)
    similarity = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _BLOCK):
        cosine = times(rows[start : start + _BLOCK], centres.T)
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
