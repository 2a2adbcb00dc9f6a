"""Give every strategy a name, also where several packages want the same one.

Decision: a package must not be able to take the name of another package's strategy. So a name that two packages provide
stands for neither: each is named with its package in front, ``package:name``. The names of our own strategies stay
ours, because commands and configuration files rely on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from clusterucb import hookspecs

if TYPE_CHECKING:
    from clusterucb.plugins.strategy import Strategy

Names = dict[tuple[str, str], "Strategy"]
Contested = Mapping[tuple[str, str], tuple[str, ...]]


def named(provided: Iterable[Strategy]) -> tuple[Names, Contested]:
    """Return the strategies by kind and name, and the names that several packages provide.

    Returns:
        The strategies; those whose name is contested have their package in front, but for our own.
        For each contested name, what to write in place of it.
    """
    wanted: dict[tuple[str, str], list[Strategy]] = {}
    for strategy in provided:
        wanted.setdefault((strategy.kind, strategy.name), []).append(strategy)
    table: Names = {}
    contested: dict[tuple[str, str], tuple[str, ...]] = {}
    for (kind, name), some in wanted.items():
        ours = [strategy for strategy in some if strategy.provider == hookspecs.PROJECT]
        theirs = [strategy for strategy in some if strategy.provider != hookspecs.PROJECT]
        if len(some) == 1:
            table[kind, name] = some[0]
            continue
        full = [replace(strategy, name=f"{strategy.provider}:{name}") for strategy in theirs]
        table |= {(kind, strategy.name): strategy for strategy in full}
        if ours:
            table[kind, name] = ours[0]
        contested[kind, name] = tuple(strategy.name for strategy in (*ours, *full))
    return table, contested
