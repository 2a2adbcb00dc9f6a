"""How the rounds of a training select: the schedules that `Reselect` knows by name, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from clusterucb.clusterers.kmeans import KMeans
from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.policy import Policy
from clusterucb.errors import OptionError
from clusterucb.policies.ucb import UCB

Which = Literal["never", "first", "always"]  # of the rounds


@dataclass(frozen=True)
class Plan:
    """How the rounds of a training select.

    Attributes:
        exhaustive: which rounds compute every gradient.
        remembers: whether the scores of earlier rounds are the prior of a round.
        policy: the policy of rounds that do not compute every gradient; None for that of `clusterucb.select`.
        sketches: the rounds whose gradients leave sketches behind.
        clusterer: clusters the sketches of the first round, for all later rounds; None to cluster the features.
    """

    exhaustive: Which = "never"
    remembers: bool = True
    policy: Policy | None = None
    sketches: Which = "never"
    clusterer: Clusterer | None = None


def among(which: Which, number: int) -> bool:
    """Return whether a round, counted from 1, is among those that ``which`` names."""
    return which == "always" or (which == "first" and number == 1)


PLANS: Mapping[str, Plan] = MappingProxyType(
    {
        "ours": Plan(),
        # Dynamic-ClusterUCB (Wang et al., 2025): the gradients of the first period make the clusters.
        "paper": Plan("first", remembers=False, policy=UCB(), sketches="first", clusterer=KMeans()),
        # Dynamic LESS, which the paper compares with.
        "dynamic": Plan("always", remembers=False),
    }
)


def plan_of(name: str) -> Plan:
    """Return the plan of a name.

    Raises:
        OptionError: no plan has this name.
    """
    if not isinstance(name, str) or name not in PLANS:
        raise OptionError(f"schedule is {name!r}; expected one of {', '.join(PLANS)}")
    return PLANS[name]
