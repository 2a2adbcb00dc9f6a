"""Clusterers: how the pool becomes arms. The built-in ones register as a plugin would."""

from clusterucb.clusterers.kmeans import KMeans
from clusterucb.clusterers.source import Source
from clusterucb.engine.clusterer import Clusterer, default_n_clusters
from clusterucb.hookspecs import hookimpl

__all__ = ["Clusterer", "KMeans", "Source", "default_n_clusters"]


@hookimpl
def clusterucb_clusterers() -> dict[str, type[Clusterer]]:
    """Name the built-in clusterers."""
    return {"kmeans": KMeans, "source": Source}
