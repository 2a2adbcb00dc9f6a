"""The bandit loop, and the contracts of what it calls. It needs numpy alone.

`search` (in `clusterucb.engine.loop`) spends a budget of draws on a pool. A `Clusterer` makes the arms, a `Policy`
decides what is drawn, a score function says what a draw is worth.
"""

from clusterucb.engine.arm_stats import ArmStats
from clusterucb.engine.clusterer import Clusterer, default_n_clusters
from clusterucb.engine.loop import Batch, Journal, Selection, search
from clusterucb.engine.policy import IndexPolicy, Policy
from clusterucb.engine.poolview import ESTIMATES, PoolView
from clusterucb.engine.recall import Recall

__all__ = [
    "ESTIMATES",
    "ArmStats",
    "Batch",
    "Clusterer",
    "IndexPolicy",
    "Journal",
    "Policy",
    "PoolView",
    "Recall",
    "Selection",
    "default_n_clusters",
    "search",
]
