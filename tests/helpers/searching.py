"""`clusterucb.search` with all its options side by side, for tests that vary one of them."""

from __future__ import annotations

import numpy as np

from clusterucb.engine import Budget, Rules, Schedule, SideInformation
from clusterucb.engine import search as engine_search
from clusterucb.jobs.comparison.replay import Terms, Truth

GROUPS = {
    "rules": (Rules, ("rule", "max_per_source", "weights")),
    "side": (SideInformation, ("columns", "prior", "first")),
    "schedule": (Schedule, ("cold_start", "batch_size", "seed")),
}
SPENDING = ("allowance", "until", "watch")


def search(features, score, **options):
    """Call `clusterucb.search`."""
    grouped = {}
    for name, (group, members) in GROUPS.items():
        grouped[name] = group(**{key: options.pop(key) for key in members if key in options})
    spending = {key: options.pop(key) for key in SPENDING if key in options}
    if spending:
        options["budget"] = Budget(draws=options["budget"], **spending)
    return engine_search(features, score, **grouped, **options)


def best_rows(scores, n_select, rule="round-robin"):
    """Return the rows that a rule selects when all scores f64[N, S] are known."""
    return Truth.of(scores, np.zeros(len(scores), str), Terms(n_select, Rules(rule=rule))).best
