"""Cluster a pool with HDBSCAN (Campello, Moulavi and Sander 2013; McInnes, Healy and Astels 2017).

HDBSCAN finds the number of clusters by itself. Clusters may have any shape and density, and rows that belong to no
cluster are noise.

Decisions:
    - Distances are Euclidean in the leading principal directions of ``pool.matrix()``: in hundreds of dimensions all
      distances are similar, and the search trees of HDBSCAN are no faster than comparing all pairs. The directions are
      computed exactly from the k x k matrix of products, so the order of rows hardly matters, even in the last bit.
      Only beyond 2,048 columns do they come from a randomised SVD.
    - The minimum spanning tree is exact, by Prim's algorithm, whose time is quadratic in the number of rows. The
      algorithm that hdbscan would choose takes half that time if rows lie near a few dimensions and twice that time if
      they fill 32. It is approximate, so the order of rows would matter.
    - If there are more than ``max_fit`` rows, a sample is clustered, and every other row gets the label of the nearest
      row in the sample, even if that is noise. hdbscan's own ``approximate_predict`` needs prediction data, which
      hdbscan cannot make if every row is noise, and it loops over the rows in Python.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from clusterucb.clusterers import Clusterer
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError
from clusterucb.hookspecs import hookimpl
from clusterucb.wording import did_you_mean
from numpy.typing import NDArray

__all__ = ["Hdbscan"]

NOISE = ("arms", "nearest", "single")
_EXACT = 2048  # the largest number of columns for exact directions; 2048 x 2048 products in f64 take 34 MB
_ENTRIES = 1 << 24  # the largest number of distances in memory at a time: 64 MB in f32


@dataclass
class Hdbscan(Clusterer):
    """HDBSCAN on the leading principal directions of all features.

    If HDBSCAN finds no cluster, every row is noise, whatever ``noise`` is, and the engine makes random arms.

    Attributes:
        min_cluster_size: the minimum number of the pool's rows in a cluster; by default a quarter of the square root
            of N, but at least 5.
        min_samples: the number of neighbours by which density is measured; a larger number makes more rows noise. By
            default 5, or ``min_cluster_size`` if that is smaller.
        n_components: the number of principal directions to keep; at most the number of columns.
        noise: the treatment of noise. ``nearest`` puts each row into the cluster with the nearest centroid, ``arms``
            lets the engine make random arms of the clusters' median size, ``single`` makes one cluster of all noise.
        max_fit: the maximum number of rows to cluster; of a larger pool, a random sample is clustered.
    """

    min_cluster_size: int | None = None
    min_samples: int | None = None
    n_components: int = 32
    noise: str = "nearest"
    max_fit: int = 50_000

    def __post_init__(self) -> None:
        least = {"min_cluster_size": 2, "min_samples": 1, "n_components": 1, "max_fit": 2}
        for name, low in least.items():
            value = getattr(self, name)
            if value is None and name.startswith("min_"):
                continue
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < low:
                raise OptionError(f"hdbscan: {name} is {value!r}; expected a whole number of at least {low}")
        if self.noise not in NOISE:
            raise OptionError(
                f"hdbscan: noise is {self.noise!r}; expected one of {', '.join(NOISE)}."
                f"{did_you_mean(str(self.noise), NOISE)}"
            )

    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the cluster of every row, i64[N], -1 for noise."""
        rows = _reduced(pool.matrix(), self.n_components, rng)
        if len(rows) == 1 or not np.ptp(rows, axis=0).any():
            return np.zeros(len(rows), np.int64)  # HDBSCAN itself never returns a single cluster
        if len(rows) <= self.max_fit:
            labels = self._fit(rows, len(rows))
        else:
            sample = np.sort(rng.choice(len(rows), self.max_fit, replace=False))
            fitted = self._fit(rows[sample], len(rows))
            labels = fitted[_nearest(rows, rows[sample])]
            labels[sample] = fitted
        return _with_noise(self.noise, rows, labels)

    def _fit(self, rows: NDArray[np.float32], n_pool: int) -> NDArray[np.int64]:
        """Return the clusters i64[n] of ``rows`` f32[n, d], which represent a pool of ``n_pool`` rows."""
        wanted = self.min_cluster_size or max(round(n_pool**0.5 / 4), 5)
        size = max(round(wanted * len(rows) / n_pool), 2)
        if len(rows) < max(size, 3):  # hdbscan fails on fewer rows
            return np.full(len(rows), -1, np.int64)
        samples = min(self.min_samples or min(5, wanted), len(rows) - 1)
        from hdbscan import HDBSCAN  # type: ignore[import-untyped]  # here, so that listing plugins stays fast

        model = HDBSCAN(
            min_cluster_size=size, min_samples=samples, algorithm="prims_kdtree", core_dist_n_jobs=1
        )
        return np.asarray(model.fit_predict(rows.astype(np.float64)), dtype=np.int64)


def _reduced(rows: NDArray[np.float32], n_components: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Project the rows f32[N, k] to their leading principal directions, f32[N, min(k, n_components)]."""
    width = rows.shape[1]
    if width <= n_components:  # a rotation changes no distance
        return rows
    if width <= _EXACT:
        products = rows.T.astype(np.float64) @ rows
        directions = np.linalg.eigh(products)[1][:, -n_components:]
    else:
        seed = int(rng.integers(2**31))
        from sklearn.utils.extmath import randomized_svd  # type: ignore[import-untyped]

        directions = randomized_svd(rows, min(n_components, len(rows)), random_state=seed)[2].T
    reduced: NDArray[np.float32] = rows @ directions.astype(np.float32)
    return reduced


def _nearest(rows: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the index of the nearest of ``points`` f32[m, d] to each row f32[N, d], i64[N]; the first wins a tie."""
    nearest = np.empty(len(rows), np.intp)
    half_squares = np.einsum("ij,ij->i", points, points) / 2
    step = max(_ENTRIES // len(points), 1)
    for start in range(0, len(rows), step):
        closeness = rows[start : start + step] @ points.T - half_squares
        nearest[start : start + step] = closeness.argmax(axis=1)
    return nearest


def _with_noise(noise: str, rows: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the labels i64[N] without gaps, with noise treated as the option ``noise`` says."""
    is_noise = labels < 0
    with_gaps, labels = labels, np.full(len(labels), -1, np.int64)
    clusters, labels[~is_noise] = np.unique(with_gaps[~is_noise], return_inverse=True)
    if not len(clusters) or noise == "arms" or not is_noise.any():
        return labels
    if noise == "single":
        labels[is_noise] = len(clusters)
        return labels
    counts = np.bincount(labels[~is_noise])
    centroids = np.zeros((len(clusters), rows.shape[1]))
    np.add.at(centroids, labels[~is_noise], rows[~is_noise])
    labels[is_noise] = _nearest(rows[is_noise], (centroids / counts[:, None]).astype(np.float32))
    return labels


@hookimpl
def clusterucb_clusterers() -> dict[str, type[Clusterer]]:
    """Return this package's clusterer by its name."""
    return {"hdbscan": Hdbscan}
