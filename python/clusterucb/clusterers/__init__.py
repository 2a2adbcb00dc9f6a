"""Clusterers divide the pool into arms. Built-in ones register as a plugin does."""

from clusterucb.clusterers.kmeans import KMeans
from clusterucb.clusterers.source import Source
from clusterucb.engine.clusterer import Clusterer, default_n_clusters
from clusterucb.hookspecs import hookimpl

__all__ = ["Clusterer", "KMeans", "Source", "default_n_clusters"]


@hookimpl
def clusterucb_clusterers() -> dict[str, type[Clusterer]]:
    """Return the built-in clusterers by name."""
    return {"kmeans": KMeans, "source": Source}
