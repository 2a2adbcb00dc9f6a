"""What are scores for another target worth? `python benchmarks/bench_prior.py`

    python benchmarks/bench_prior.py [--pools templated,diverse,code] [--seeds 2] [--json FILE]

Searches are replayed on the recorded scores of three real pools (`replay.py`), with the default strategy: for every two
of a pool's three targets, the scores for the first are what is known (`clusterucb.prior`) when the second is searched
for. Four things may be known: nothing; what a search with a budget of 20 % has scored for the other target; all scores
for it; and all of them, shuffled among the samples, which say nothing.
"""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np

from clusterucb.prior import filled
from replay import Recorded, Searches, parser_of
from strategies import TARGETS

BUDGETS = (0.1, 0.2)
KNOWN = ("nothing", "a run", "all scores", "noise")


def recalls(pool: Recorded, seeds: int) -> dict[str, list[list[float]]]:
    """Return for each of `KNOWN` and each budget the recall of every search."""
    searches = Searches(pool, "surrogate")
    n_samples = len(pool.scores)
    truths = list(map(searches.truth, TARGETS))
    found: dict[str, list[list[float]]] = {name: [[] for _ in BUDGETS] for name in KNOWN}
    for seed in range(seeds):
        for earlier, later in permutations(truths, 2):
            run = searches.searched(earlier, int(0.2 * n_samples), seed + 100)
            order = np.random.default_rng(seed).permutation(n_samples)
            known = {
                "nothing": None,
                "a run": filled(run.drawn_rows, run.subtask_scores, searches.blocks, pool.columns),
                "all scores": earlier.scores,
                "noise": earlier.scores[order],
            }
            for name, prior in known.items():
                for place, budget in enumerate(BUDGETS):
                    selection = searches.searched(later, int(budget * n_samples), seed, prior=prior)
                    found[name][place].append(later.recall(selection.rows))
    return found


def table(pools: dict[str, dict[str, list[float]]]) -> str:
    """Return the mean recalls as a table in Markdown."""
    heads = " | ".join(f"{name} {budget:.0%}" for name in pools for budget in BUDGETS)
    lines = [f"| known | {heads} |", "|---" * (1 + len(pools) * len(BUDGETS)) + "|"]
    for name in KNOWN:
        values = " | ".join(f"{value:.2f}" for pool in pools.values() for value in pool[name])
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines)


def main() -> None:
    options = parser_of(__doc__, seeds=2).parse_args()
    pools = {}
    for name in options.pools.split(","):
        found = recalls(Recorded.of(name, options.folder / name), options.seeds)
        pools[name] = {
            known: [round(float(np.mean(values)), 4) for values in by_budget]
            for known, by_budget in found.items()
        }
        print(json.dumps({name: pools[name]}), flush=True)
    print(table(pools))
    if options.json:
        content = {"budgets": BUDGETS, "seeds": options.seeds, "pools": pools}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
