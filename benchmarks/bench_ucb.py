"""Choose the defaults of `ucb` (clusters, cold start, β) on two pools and read them off on the third.

    python benchmarks/bench_ucb.py [--pools templated,diverse,code] [--seeds 2] [--json FILE]

The bench replays searches on the recorded scores of three real pools (`replay.py`), with the default rule of selection.
For each pool, it takes the settings with the highest mean recall on the other pools, over all budgets, and shows their
recall on this pool beside that of the present defaults. It takes ten minutes on one core.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product
from math import isqrt

import numpy as np

import clusterucb as cu
from clusterucb.jobs.comparison.replay import Clusterings, Contender, Terms, Truth, replay
from replay import BUDGETS, Recorded, parser_of
from strategies import TARGETS

# The number of clusters for a budget of b draws from a pool of n rows.
CLUSTERS: dict[str, Callable[[int, int], int]] = {
    "budget / 3": lambda b, n: min(b // 3, 4 * isqrt(n)),
    "budget / 4": lambda b, n: min(b // 4, 4 * isqrt(n)),
    "budget / 6": lambda b, _: b // 6,
    "budget / 10": lambda b, _: b // 10,
    "root of N": lambda _, n: isqrt(n),
    "2 x root of N": lambda _, n: 2 * isqrt(n),
}
COLD = (0.1, 0.25, 0.5)  # of the budget
BETAS = (0.5, 1.0, 2.0)
DEFAULTS = ("budget / 3", 0.25, 1.0)

Setting = tuple[str, float, float]


def recalls(pool: Recorded, seeds: int) -> Iterator[tuple[Setting, list[float]]]:
    """Yield each setting and its mean recall at each budget."""
    n_rows = len(pool.scores)
    blocks, terms = pool.described(cu.Embedding()), Terms(n_rows // 20)
    truths = [Truth.of(pool.scores[:, target], pool.columns["source"], terms) for target in TARGETS]
    clusterings: dict[int, Clusterings] = {}
    for name, cold, beta in product(CLUSTERS, COLD, BETAS):
        found = []
        for share in BUDGETS:
            budget = int(share * n_rows)
            count = CLUSTERS[name](budget, n_rows)
            one = Contender("ucb", cu.UCB(beta=beta), cu.KMeans(n_clusters=count), cold_start=cold * share)
            shared = clusterings.setdefault(count, {})
            replays = [
                replay(one, truth, blocks, pool.columns, [budget], seeds, terms, shared)[0]
                for truth in truths
            ]
            found.append(
                float(
                    np.mean(
                        [
                            truth.recall(each.selection.rows)
                            for truth, some in zip(truths, replays, strict=True)
                            for each in some
                        ]
                    )
                )
            )
        yield (name, cold, beta), found


def held_out(found: dict[str, dict[Setting, list[float]]], pool: str) -> dict[str, object]:
    """Return the settings that are best on the other pools, and their recall on this pool beside the defaults'."""
    others = [of_pool for name, of_pool in found.items() if name != pool]
    best = max(found[pool], key=lambda setting: np.mean([of_pool[setting] for of_pool in others]))
    return {
        "chosen": best,
        "recall": np.round(found[pool][best], 4).tolist(),
        "defaults": np.round(found[pool][DEFAULTS], 4).tolist(),
    }


def main() -> None:
    options = parser_of(__doc__, seeds=2).parse_args()
    found = {}
    for name in options.pools.split(","):
        found[name] = dict(recalls(Recorded.of(name, options.folder / name), options.seeds))
        ranked = sorted(found[name], key=lambda setting: -np.mean(found[name][setting]))
        print(f"{name}: best {ranked[0]} {np.round(found[name][ranked[0]], 3).tolist()}", flush=True)
    content = {
        "budgets": BUDGETS,
        "seeds": options.seeds,
        "held_out": {name: held_out(found, name) for name in found} if len(found) > 1 else {},
        "pools": {
            name: [
                {
                    "clusters": key[0],
                    "cold_start": key[1],
                    "beta": key[2],
                    "recall": np.round(value, 4).tolist(),
                }
                for key, value in of_pool.items()
            ]
            for name, of_pool in found.items()
        },
    }
    print(json.dumps(content["held_out"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
