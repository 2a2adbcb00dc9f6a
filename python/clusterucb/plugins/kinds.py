"""List the kinds of strategies, and for each kind the hook that returns its strategies."""

from __future__ import annotations

from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.policy import Policy
from clusterucb.features.base import Feature

KINDS: dict[str, type] = {"clusterer": Clusterer, "policy": Policy, "feature": Feature}
HOOKS = {
    "clusterer": "clusterucb_clusterers",
    "policy": "clusterucb_policies",
    "feature": "clusterucb_features",
}
