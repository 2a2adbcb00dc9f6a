"""Time `faiss-kmeans` against the built-in `kmeans` on a synthetic pool.

python benchmark.py [--rows 200000] [--dims 64] [--clusters 450]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from clusterucb.clusterers import Clusterer, KMeans
from clusterucb.engine.poolview import PoolView
from numpy.typing import NDArray

from clusterucb_faiss import FaissKMeans


def main() -> None:
    """Cluster one pool with both clusterers; print the seconds and the mean cosine of rows with their centre."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=450)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(options.clusters, options.dims))
    rows = topics[rng.integers(options.clusters, size=options.rows)]
    rows = (rows + rng.normal(size=rows.shape)).astype(np.float32)
    pool = PoolView({"x": rows}, np.zeros(len(rows), np.int64), np.zeros(len(rows)))
    print(f"{options.rows} rows, {options.dims} dimensions, {options.threads} threads of faiss")
    seconds = {}
    clusterers: tuple[Clusterer, ...] = (
        KMeans(options.clusters),
        FaissKMeans(options.clusters, threads=options.threads),
    )
    for clusterer in clusterers:
        start = time.perf_counter()
        labels = clusterer.fit_predict(pool, np.random.default_rng(0))
        name = type(clusterer).__name__
        seconds[name] = time.perf_counter() - start
        print(
            f"{name:12} {seconds[name]:7.1f} s   {labels.max() + 1} clusters   {_fit(pool, labels):.4f} cosine"
        )
    print(f"ratio {seconds['KMeans'] / seconds['FaissKMeans']:.1f}")


def _fit(pool: PoolView, labels: NDArray[np.int64]) -> float:
    """Return the mean cosine of rows with the mean of their cluster."""
    rows = pool.matrix()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sums = np.zeros((labels.max() + 1, rows.shape[1]))
    np.add.at(sums, labels, rows)
    centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return float(np.einsum("ij,ij->i", rows, centres[labels]).mean())


if __name__ == "__main__":
    main()
