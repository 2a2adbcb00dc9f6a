"""Measure how the recall of a search depends on the size of the pool: `python benchmarks/bench_pool_sizes.py`.

    python benchmarks/bench_pool_sizes.py [--pools templated,diverse,code] [--seeds 4] [--json FILE]

Replays searches of the default strategy on random parts of the recorded pools (`replay.py`), for the best 5 % of each
part. The budget is a share of the part, so a small part gets few draws.
"""

from __future__ import annotations

import json

import numpy as np

import clusterucb as cu
from clusterucb.jobs.comparison.replay import Terms, Truth
from replay import Recorded, parser_of, search
from strategies import TARGETS

SIZES = (300, 600, 1000, 1500)  # and the whole pool
BUDGETS = (0.1, 0.2)


def recalls(pool: Recorded, seeds: int) -> list[dict[str, float]]:
    """Return a row for each size: the mean recall at each budget, over the targets and the seeds."""
    described = {
        name: np.asarray(block, np.float32) for name, block in pool.described(cu.Embedding()).items()
    }
    n_all, rows = len(pool.scores), []
    for size in (*SIZES, n_all):
        found: dict[float, list[float]] = {budget: [] for budget in BUDGETS}
        for seed in range(seeds):
            part = np.sort(np.random.default_rng([seed, size]).choice(n_all, size, replace=False))
            blocks = {name: block[part] for name, block in described.items()}
            columns = {name: column[part] for name, column in pool.columns.items()}
            for target in TARGETS:
                truth = Truth.of(pool.scores[part][:, target], columns["source"], Terms(n_select=size // 20))
                for budget in BUDGETS:
                    selection = search(
                        blocks,
                        lambda some, truth=truth: truth.scores[some],
                        clusterer=cu.KMeans(),
                        policy=cu.Surrogate(),
                        budget=int(budget * size),
                        n_select=size // 20,
                        batch_size=8,
                        seed=seed,
                        columns=columns,
                    )
                    found[budget].append(truth.recall(selection.rows))
        rows.append(
            {"samples": size, **{f"{budget:.0%}": round(float(np.mean(v)), 3) for budget, v in found.items()}}
        )
    return rows


def main() -> None:
    options = parser_of(__doc__, seeds=4).parse_args()
    found = {}
    for name in options.pools.split(","):
        found[name] = recalls(Recorded.of(name, options.folder / name), options.seeds)
        for row in found[name]:
            print(name, row, flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
