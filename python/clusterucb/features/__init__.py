"""Features: what the pool is clustered by. The built-in ones register as a plugin would."""

from clusterucb.features.base import Feature, FeatureBatch
from clusterucb.features.embedding import Embedding
from clusterucb.features.gradient import Gradient
from clusterucb.features.hidden import Hidden
from clusterucb.hookspecs import hookimpl

__all__ = ["Embedding", "Feature", "FeatureBatch", "Gradient", "Hidden"]


@hookimpl
def clusterucb_features() -> dict[str, type[Feature]]:
    """Name the built-in features."""
    return {"embedding": Embedding, "gradient": Gradient, "hidden": Hidden}
