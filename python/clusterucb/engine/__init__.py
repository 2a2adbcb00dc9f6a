"""Run the bandit loop and define the contracts of the strategies that it calls. The only dependency is numpy.

`search` (in `clusterucb.engine.loop`) spends a `Budget` of draws on a pool. A `Clusterer` makes the arms, a `Policy`
chooses the rows to draw, a score function scores them, and `Rules` decide which drawn rows are selected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusterucb.lazy import lazy_names

if TYPE_CHECKING:
    from clusterucb.engine.arm_stats import ArmStats
    from clusterucb.engine.arms import Schedule
    from clusterucb.engine.budget import Allowance, Budget
    from clusterucb.engine.clusterer import Clusterer, default_n_clusters
    from clusterucb.engine.draws import Batch, Journal, RowScores
    from clusterucb.engine.loop import Selection, search
    from clusterucb.engine.policy import IndexPolicy, Policy
    from clusterucb.engine.poolview import ESTIMATES, PoolView, SideInformation
    from clusterucb.engine.recall import Recall
    from clusterucb.engine.rules import Rules

__all__ = [
    "ESTIMATES",
    "Allowance",
    "ArmStats",
    "Batch",
    "Budget",
    "Clusterer",
    "IndexPolicy",
    "Journal",
    "Policy",
    "PoolView",
    "Recall",
    "RowScores",
    "Rules",
    "Schedule",
    "Selection",
    "SideInformation",
    "default_n_clusters",
    "search",
]

_HOMES = {
    "arm_stats": ("ArmStats",),
    "arms": ("Schedule",),
    "budget": ("Allowance", "Budget"),
    "clusterer": ("Clusterer", "default_n_clusters"),
    "draws": ("Batch", "Journal", "RowScores"),
    "loop": ("Selection", "search"),
    "policy": ("IndexPolicy", "Policy"),
    "poolview": ("ESTIMATES", "PoolView", "SideInformation"),
    "recall": ("Recall",),
    "rules": ("Rules",),
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
