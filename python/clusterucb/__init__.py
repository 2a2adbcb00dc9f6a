"""Select fine-tuning data by gradient influence under a budget: clusters as bandit arms (ClusterUCB).

    import clusterucb as cu

    result = cu.select(pool="pool.jsonl", target="dev.jsonl", model="path/or/hub-id", out="runs/a")

Names are imported when they are first used: ``import clusterucb``, the strategies and
`clusterucb.engine.loop.search` need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusterucb.lazy import lazy_names
from clusterucb.versions import __version__ as __version__

if TYPE_CHECKING:
    from clusterucb.clusterers import Clusterer, KMeans, Source
    from clusterucb.engine import Budget, PoolView, Rules, Schedule, SideInformation, search
    from clusterucb.errors import ClusterUCBError, ClusterUCBWarning
    from clusterucb.features import (
        Column,
        Concatenation,
        Embedding,
        Feature,
        Gradient,
        Hidden,
        Lexical,
    )
    from clusterucb.hookspecs import hookimpl
    from clusterucb.jobs.comparison.job import compare
    from clusterucb.jobs.comparison.replay import Contender
    from clusterucb.jobs.comparison.results import Comparison
    from clusterucb.jobs.plan import plan
    from clusterucb.jobs.score import Scores, score
    from clusterucb.jobs.select import select
    from clusterucb.jobs.sketch import sketch
    from clusterucb.jobs.stores import merge_stores
    from clusterucb.jobs.trial.job import trial
    from clusterucb.jobs.trial.results import Trial
    from clusterucb.policies import (
        RDS,
        UCB,
        UCB1,
        ArmStats,
        ClusterMean,
        Exhaustive,
        IndexPolicy,
        Policy,
        Random,
        Surrogate,
        ThresholdHard,
        ThresholdNormal,
    )
    from clusterucb.report.plan import Plan
    from clusterucb.report.result import Result
    from clusterucb.run.gradient_store import GradientStore
    from clusterucb.training.reselect import Reselect

__all__ = [
    "RDS",
    "UCB",
    "UCB1",
    "ArmStats",
    "Budget",
    "ClusterMean",
    "ClusterUCBError",
    "ClusterUCBWarning",
    "Clusterer",
    "Column",
    "Comparison",
    "Concatenation",
    "Contender",
    "Embedding",
    "Exhaustive",
    "Feature",
    "Gradient",
    "GradientStore",
    "Hidden",
    "IndexPolicy",
    "KMeans",
    "Lexical",
    "Plan",
    "Policy",
    "PoolView",
    "Random",
    "Reselect",
    "Result",
    "Rules",
    "Schedule",
    "Scores",
    "SideInformation",
    "Source",
    "Surrogate",
    "ThresholdHard",
    "ThresholdNormal",
    "Trial",
    "compare",
    "hookimpl",
    "merge_stores",
    "plan",
    "score",
    "search",
    "select",
    "sketch",
    "trial",
]

_HOMES = {
    "engine": (
        "ArmStats",
        "Budget",
        "Clusterer",
        "IndexPolicy",
        "Policy",
        "PoolView",
        "Rules",
        "Schedule",
        "SideInformation",
        "search",
    ),
    "errors": ("ClusterUCBError", "ClusterUCBWarning"),
    "hookspecs": ("hookimpl",),
    "clusterers": ("KMeans", "Source"),
    "features": ("Column", "Concatenation", "Embedding", "Feature", "Gradient", "Hidden", "Lexical"),
    "policies": (
        "RDS",
        "UCB",
        "UCB1",
        "ClusterMean",
        "Exhaustive",
        "Random",
        "Surrogate",
        "ThresholdHard",
        "ThresholdNormal",
    ),
    "run.gradient_store": ("GradientStore",),
    "report.plan": ("Plan",),
    "report.result": ("Result",),
    "jobs.select": ("select",),
    "jobs.score": ("Scores", "score"),
    "jobs.sketch": ("sketch",),
    "jobs.stores": ("merge_stores",),
    "jobs.plan": ("plan",),
    "jobs.comparison.job": ("compare",),
    "jobs.comparison.replay": ("Contender",),
    "jobs.comparison.results": ("Comparison",),
    "jobs.trial.job": ("trial",),
    "jobs.trial.results": ("Trial",),
    "training": (),
    "training.reselect": ("Reselect",),
}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
