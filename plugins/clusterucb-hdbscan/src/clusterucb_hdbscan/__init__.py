"""HDBSCAN (Campello, Moulavi and Sander 2013; McInnes, Healy and Astels 2017) as a clusterer.

It finds how many clusters there are by itself, of any shape and density, and calls rows noise that belong
to none.

Decisions:
    - Distances are Euclidean on the leading principal directions of ``pool.matrix()``: in hundreds of
      dimensions all distances are alike, and the search trees of HDBSCAN are no faster than comparing all.
      The directions come from the k x k matrix of products, exactly, so the order of rows hardly matters
      even in the last bit; only beyond 2,048 columns from a randomised SVD.
    - The minimum spanning tree is exact, by Prim's algorithm: quadratic in the rows whatever they look like.
      hdbscan's own choice takes half its time where rows lie near a few dimensions and twice its time where
      they fill 32, and is approximate, so that the order of rows would matter.
    - Beyond ``max_fit`` rows a sample is clustered, and every other row has the label of the nearest row of
      the sample, noise included. hdbscan's own ``approximate_predict`` needs its prediction data, which it
      cannot make where everything is noise, and walks the rows one by one in Python.
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
_EXACT = 2048  # columns up to which all products are computed: 2048 x 2048 in f64 is 34 MB
_ENTRIES = 1 << 24  # of a matrix of distances held at a time: 64 MB in f32


@dataclass
class Hdbscan(Clusterer):
    """HDBSCAN on the leading principal directions of all features.

    Where nothing is a cluster, every row is noise whatever ``noise`` is, and the engine makes arms of it.

    Attributes:
        min_cluster_size: rows of the pool that a cluster has at least; by default a quarter of the root
            of N, at least 5.
        min_samples: neighbours by which density is measured: more of them means more noise; by default 5,
            or ``min_cluster_size`` where that is smaller.
        n_components: principal directions kept, at most what there is.
        noise: what becomes of noise: ``nearest`` (the cluster whose centroid is nearest), ``arms`` (of the
            clusters' median size, made at random by the engine) or ``single`` (one cluster).
        max_fit: rows clustered at most; of a larger pool, a random sample is.
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
            return np.zeros(len(rows), np.int64)  # a single cluster, which HDBSCAN never returns
        if len(rows) <= self.max_fit:
            labels = self._fit(rows, len(rows))
        else:
            sample = np.sort(rng.choice(len(rows), self.max_fit, replace=False))
            fitted = self._fit(rows[sample], len(rows))
            labels = fitted[_nearest(rows, rows[sample])]
            labels[sample] = fitted
        return _with_noise(self.noise, rows, labels)

    def _fit(self, rows: NDArray[np.float32], n_pool: int) -> NDArray[np.int64]:
        """Return the clusters of ``rows`` f32[n, d], which stand for a pool of ``n_pool`` rows."""
        wanted = self.min_cluster_size or max(round(n_pool**0.5 / 4), 5)
        size = max(round(wanted * len(rows) / n_pool), 2)
        if len(rows) < max(size, 3):  # hdbscan fails on less
            return np.full(len(rows), -1, np.int64)
        samples = min(self.min_samples or min(5, wanted), len(rows) - 1)
        from hdbscan import HDBSCAN  # type: ignore[import-untyped]  # here: listing plugins is to stay fast

        model = HDBSCAN(
            min_cluster_size=size, min_samples=samples, algorithm="prims_kdtree", core_dist_n_jobs=1
        )
        return np.asarray(model.fit_predict(rows.astype(np.float64)), dtype=np.int64)


def _reduced(rows: NDArray[np.float32], n_components: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the rows in their leading principal directions, f32[N, min(k, n_components)]."""
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
    """Return the nearest of ``points`` f32[m, d] for each row, i64[N]; of equally near ones the first."""
    nearest = np.empty(len(rows), np.intp)
    half_squares = np.einsum("ij,ij->i", points, points) / 2
    step = max(_ENTRIES // len(points), 1)
    for start in range(0, len(rows), step):
        closeness = rows[start : start + step] @ points.T - half_squares
        nearest[start : start + step] = closeness.argmax(axis=1)
    return nearest


def _with_noise(noise: str, rows: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the labels without gaps, with noise where the option wants it."""
    is_noise = labels < 0
    found, labels = labels, np.full(len(labels), -1, np.int64)
    clusters, labels[~is_noise] = np.unique(found[~is_noise], return_inverse=True)
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
    """Name this package's clusterer."""
    return {"hdbscan": Hdbscan}
