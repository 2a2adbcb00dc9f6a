"""Policies decide which rows to draw next. Built-in ones register as a plugin does."""

from clusterucb.engine.arm_stats import ArmStats
from clusterucb.engine.policy import IndexPolicy, Policy
from clusterucb.hookspecs import hookimpl
from clusterucb.policies.baselines import RDS, ClusterMean, Exhaustive
from clusterucb.policies.random import Random
from clusterucb.policies.surrogate import Surrogate
from clusterucb.policies.ucb import UCB, UCB1, ThresholdHard, ThresholdNormal

__all__ = [
    "RDS",
    "UCB",
    "UCB1",
    "ArmStats",
    "ClusterMean",
    "Exhaustive",
    "IndexPolicy",
    "Policy",
    "Random",
    "Surrogate",
    "ThresholdHard",
    "ThresholdNormal",
]


@hookimpl
def clusterucb_policies() -> dict[str, type[Policy]]:
    """Return the built-in policies by name."""
    return {
        "ucb": UCB,
        "ucb1": UCB1,
        "surrogate": Surrogate,
        "threshold-hard": ThresholdHard,
        "threshold-normal": ThresholdNormal,
        "random": Random,
        "exhaustive": Exhaustive,
        "rds": RDS,
        "cluster-mean": ClusterMean,
    }
