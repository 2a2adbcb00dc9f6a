"""Measure searches whose gradient store holds a part of the pool: `python benchmarks/bench_store_parts.py`.

    python benchmarks/bench_store_parts.py [--pools templated,diverse,code] [--seeds 2] [--json FILE]

The bench replays searches on the recorded scores, features and sketched scores of real pools (``tests/data``), without
a model. A random part of each pool counts as held by the store. What the store lacks gets one of three estimates: 0, as
samples without a sketch do; a prediction from the features; or that prediction, and up to a quarter of the budget for
the most promising of these samples before the policy chooses, as `clusterucb select --store` does it.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import clusterucb as cu
from clusterucb.engine.poolview import ESTIMATES
from clusterucb.engine.rules import Rules
from clusterucb.jobs.stages.influence import most_promising
from clusterucb.jobs.stages.prior import filled

DATA = Path(__file__).parents[1] / "tests" / "data"
TARGETS = (slice(0, 3), slice(3, 6))  # subtasks in alphabetical order
PARTS = (0.95, 0.8, 0.5)  # shares of the pool that the store holds
BUDGETS = (0.1, 0.2)
WAYS = ("no store", "0", "predicted", "predicted, some drawn first", "the whole pool")


def scores_of(name: str) -> np.ndarray:
    """Return recorded scores f64[N, S] with the subtasks in alphabetical order."""
    recorded = np.load(DATA / f"{name}.npz")
    return recorded["scores"][:, np.argsort(recorded["subtasks"])].astype(np.float64)


def searches(name: str, seeds: int) -> Iterator[dict]:
    """Yield the recall of every way: of the best of the whole pool, and of those that the store lacks."""
    recorded = np.load(DATA / f"{name}.npz")
    features = {block: recorded[block].astype(np.float32) for block in ("embedding", "length")}
    all_scores, all_estimates = scores_of(name), scores_of(f"{name}-sketched")
    n_samples = len(all_scores)
    for target in TARGETS:
        scores, estimates = all_scores[:, target], all_estimates[:, target]
        n_select = n_samples // 20
        best = Rules().choose(np.arange(n_samples), scores, scores.max(axis=1), n_select, None)
        for seed in range(seeds):
            for part in PARTS:
                held = np.random.default_rng(seed).random(n_samples) < part
                rows = np.flatnonzero(held)
                predicted = filled(rows, estimates[rows], features, {})
                sides = {
                    "no store": {},
                    "0": {"prior": {ESTIMATES: np.where(held[:, None], estimates, 0)}},
                    "predicted": {"prior": {ESTIMATES: predicted}},
                    "predicted, some drawn first": {
                        "prior": {ESTIMATES: predicted},
                        "first": most_promising(predicted, held),
                    },
                    "the whole pool": {"prior": {ESTIMATES: estimates}},
                }
                for budget in BUDGETS:
                    found = {}
                    for way, side in sides.items():
                        selection = cu.search(
                            features,
                            scores.__getitem__,
                            clusterer=None,
                            policy=cu.Surrogate(),
                            budget=int(budget * n_samples),
                            n_select=n_select,
                            side=cu.SideInformation(**side),
                            schedule=cu.Schedule(batch_size=8, seed=seed),
                        )
                        hit = np.isin(best, selection.rows)
                        lacking = hit[~held[best]]
                        found[way] = [share(hit), share(lacking) if len(lacking) else None]
                    yield {"part": part, "budget": budget, "found": found}


def share(hit: np.ndarray) -> float:
    """Return the share of the rows that were found."""
    return round(float(hit.mean()), 4)


def table(found: dict[str, list[dict]]) -> str:
    """Return the mean recalls as a Markdown table: of all best samples, and of those that the store lacks."""
    heads = [f"{part:.0%}, budget {budget:.0%}" for part in PARTS for budget in BUDGETS]
    lines = [f"| pool | estimate | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for name, some in found.items():
        for way in WAYS:
            cells = []
            for part in PARTS:
                for budget in BUDGETS:
                    of = [one["found"][way] for one in some if (one["part"], one["budget"]) == (part, budget)]
                    whole, lacking = np.nanmean(np.array(of, np.float64), axis=0)
                    cells.append(f"{whole:.2f} ({lacking:.2f})")
            lines.append(f"| {name} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pools", default="templated,diverse,code")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = {name: list(searches(name, options.seeds)) for name in options.pools.split(",")}
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
