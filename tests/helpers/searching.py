"""`clusterucb.search` with all its options side by side, for tests that vary one of them."""

from __future__ import annotations

from clusterucb.engine import Budget, Rules, Schedule, SideInformation
from clusterucb.engine import search as engine_search

GROUPS = {
    "rules": (Rules, ("aggregate", "select_by", "max_per_source", "weights")),
    "side": (SideInformation, ("columns", "prior")),
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
