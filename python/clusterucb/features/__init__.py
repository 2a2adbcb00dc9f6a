"""Features describe each sample by vectors; the pool is clustered by them. Built-in ones register as a plugin does."""

from clusterucb.features.base import Feature, FeatureBatch
from clusterucb.features.column import Column
from clusterucb.features.concatenation import Concatenation
from clusterucb.features.embedding import Embedding
from clusterucb.features.gradient import Gradient
from clusterucb.features.hidden import Hidden
from clusterucb.features.lexical import Lexical
from clusterucb.hookspecs import hookimpl

__all__ = [
    "Column",
    "Concatenation",
    "Embedding",
    "Feature",
    "FeatureBatch",
    "Gradient",
    "Hidden",
    "Lexical",
]


@hookimpl
def clusterucb_features() -> dict[str, type[Feature]]:
    """Return the built-in features by name."""
    return {
        "column": Column,
        "embedding": Embedding,
        "gradient": Gradient,
        "hidden": Hidden,
        "lexical": Lexical,
    }
