"""Cluster large pools with the spherical k-means of faiss (Johnson, Douze and Jégou 2017).

Decisions:
    - Centres are learnt on a sample of at most ``max_points_per_centroid`` rows per cluster; then every row is
      assigned to the nearest centre. This sampling saves time, in addition to the faster arithmetic.
    - If the pool has no more distinct directions than the wanted number of clusters, each direction is a cluster.
      faiss would print a warning, and rounding would break the ties between equal centres.
    - Centres are scaled to unit length again before the assignment: faiss's ``spherical`` leaves a centre of length
      zero if its rows cancel out.
    - The number of threads is an option, 1 by default, and not the number of cores. It decides how products are
      blocked, and so how they round. On rows without clear clusters (normal noise), 3 threads put 9 % of the rows into
      other clusters than 1, 2 and 4 threads did. With the same number of threads, repeats are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from clusterucb.clusterers import Clusterer, default_n_clusters
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError
from clusterucb.hookspecs import hookimpl
from numpy.typing import NDArray

__all__ = ["FaissKMeans"]

_BLOCK = 65_536  # rows hashed at a time


@dataclass
class FaissKMeans(Clusterer):
    """Spherical k-means by faiss, for pools of 100,000 rows and more.

    Attributes:
        n_clusters: the number of clusters K; by default a third of the budget, but at most 4 times the square root
            of N. There are fewer clusters if some end up empty, or if the pool has fewer distinct directions.
        niter: the number of passes over the sample.
        max_points_per_centroid: the maximum number of rows per cluster on which centres are learnt; all other rows
            are only assigned to a centre.
        threads: the number of threads that faiss uses; another number may give other clusters.
    """

    n_clusters: int | None = None
    niter: int = 25
    max_points_per_centroid: int = 256
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("n_clusters", "niter", "max_points_per_centroid", "threads"):
            value = getattr(self, name)
            if value is None and name == "n_clusters":
                continue
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                raise OptionError(f"faiss-kmeans: {name} is {value!r}; expected a whole number of at least 1")

    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the cluster of every row, i64[N], numbered from 0 without gaps."""
        seed = int(rng.integers(1, 2**31))
        rows = _unit(pool.matrix())
        n_clusters = min(self.n_clusters or default_n_clusters(pool), len(pool))
        directions, labels = np.unique(_fingerprints(rows), return_inverse=True)
        if len(directions) > n_clusters:
            with _threads(self.threads):
                labels = self._nearest_centres(rows, n_clusters, seed)
        without_gaps: NDArray[np.int64] = np.unique(labels, return_inverse=True)[1]
        return without_gaps

    def _nearest_centres(self, rows: NDArray[np.float32], n_clusters: int, seed: int) -> NDArray[np.int64]:
        """Learn the centres, and return the nearest centre of each row, i64[N]."""
        import faiss  # imported here, so that listing plugins stays fast

        kmeans = faiss.Kmeans(
            rows.shape[1],
            n_clusters,
            niter=self.niter,
            spherical=True,
            seed=seed,
            min_points_per_centroid=1,  # faiss warns of smaller clusters, but small clusters are intended
            max_points_per_centroid=self.max_points_per_centroid,
        )
        kmeans.train(rows)
        centres = np.asarray(kmeans.centroids, dtype=np.float32)
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(_unit(centres))
        labels: NDArray[np.int64] = index.search(rows, 1)[1][:, 0]
        return labels


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Let faiss use ``n`` threads, and restore its global setting afterwards."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale the rows to unit length; rows of zeros stay zeros."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)
    return unit


def _fingerprints(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a hash of each unit row's direction, u64[N]; rows that differ only by rounding have the same hash.

    The hash is a sum of products with random odd numbers modulo 2^64. It is exact, so the order of summation does not
    matter.
    """
    factors = np.random.default_rng(0).integers(2**63, size=rows.shape[1], dtype=np.uint64) * 2 + 1
    hashes = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), _BLOCK):
        steps = np.rint(rows[start : start + _BLOCK].astype(np.float64) * 2**20).astype(np.int64)
        hashes[start : start + _BLOCK] = steps.view(np.uint64) @ factors
    return hashes


@hookimpl
def clusterucb_clusterers() -> dict[str, type[Clusterer]]:
    """Return this package's clusterer by its name."""
    return {"faiss-kmeans": FaissKMeans}
