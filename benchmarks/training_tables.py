"""Turn the results of `bench_training.py` into the tables of benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

POOLS = ("templated", "diverse", "code")
USUAL = {"share": 0.05, "rate": 2e-4}  # the selections and the learning rate of the tables
Results = Sequence[dict[str, Any]]


def usual(rows: Results) -> Results:
    """Return the results with the share and the learning rate of the tables."""
    return [row for row in rows if USUAL.items() <= row.items()]


def losses(rows: Results, arms: Sequence[str]) -> str:
    """Return the judges' mean losses: a row for each subtask, a column for each arm."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in usual(rows):
        if "target" in row:
            for name, value in row["subtasks"].items():
                found.setdefault((row["pool"], name), {})[row["arm"]] = value
    cells = (
        (f"{pool}: {name}", [f"{of_arms[arm]:.2f}" if arm in of_arms else "–" for arm in arms])
        for (pool, name), of_arms in sorted(found.items(), key=lambda item: POOLS.index(item[0][0]))
    )
    return _table("pool: subtask", _code(arms), cells)


def less_random(rows: Results, arms: Sequence[str]) -> str:
    """Return the losses less those after random samples: a row for each pool, a column for each arm."""
    cells = []
    for pool in POOLS:
        digits = 3 if pool == "code" else 2
        found = {row["arm"]: row for row in usual(rows) if row.get("pools") == [pool]}
        numbers = ([found[arm][name] for name in ("mean", "low", "high")] for arm in arms)
        cells.append((pool, [_interval(*of_arm, digits) for of_arm in numbers]))
    return _table("", _code(arms), cells)


def kept(rows: Results) -> str:
    """Return the part of the exhaustive selection's gain that searches keep: a row for each pool and for all."""
    parts = {(*row["pools"], row["arm"]): row["kept"] for row in usual(rows) if "kept" in row}
    places = [*((pool, (pool,)) for pool in POOLS), ("all three", POOLS)]
    cells = (
        (name, [f"{parts[*pools, arm]:.2f}" for arm in ("search20", "search10")]) for name, pools in places
    )
    return _table("", ["20 % of the gradients", "10 %"], cells)


def _code(names: Iterable[str]) -> list[str]:
    return [f"`{name}`" for name in names]


def _interval(mean: float, low: float, high: float, digits: int) -> str:
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _table(corner: str, head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    lines = [f"| {' | '.join([corner, *head])} |".replace("|  |", "| |"), f"|{'---|' * (len(head) + 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join([name, *cells])} |" for name, cells in rows)])
