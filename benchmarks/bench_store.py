"""Measure how much a gradient store helps a search: `python benchmarks/bench_store.py`.

    python benchmarks/bench_store.py [--pools templated,diverse,code] [--seeds 5] [--json FILE]

The bench replays searches on the recorded scores of real pools (`replay.py`). The pools were sketched with 8192
dimensions at the same checkpoint, and the scores estimated from the sketches are recorded too
(``tests/data/*-sketched.npz``, written by `benchmarks/record.py`). Each budget is spent in three ways: by the default
strategy without a store, by the default strategy with a store, and on the samples that rank best by sketch. The ranking
by sketch costs no gradients.

For searches with a store, the bench also compares the estimated recall with the truth (`clusterucb.engine.recall`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from clusterucb.engine.poolview import ESTIMATES
from clusterucb.engine.rules import Rules
from replay import Recorded, Searches, parser_of, scores_of
from strategies import TARGETS

BUDGETS = (0.05, 0.075, 0.1, 0.2)
WAYS = ("nothing known", "best by sketch, re-scored", "a store")
SKETCHED = "by sketch alone"  # spends no budget


def replays(name: str, pool: Recorded, seeds: int) -> Iterator[dict]:
    """Yield the recall of every way, and the estimate of the search with a store, for each target, budget and seed."""
    estimates = scores_of(f"{name}-sketched")
    searches, n_samples = Searches(pool, "surrogate"), len(pool.scores)
    for target in TARGETS:
        truth = searches.truth(target)
        own = estimates[:, target]
        best_first = Rules().choose(np.arange(n_samples), own, own.max(axis=1), n_samples, None)
        prior = {ESTIMATES: estimates[:, target]}
        for budget in BUDGETS:
            count = int(budget * n_samples)
            for seed in range(seeds):
                known = searches.searched(truth, count, seed, prior=prior, watch=lambda _: None)
                found = {
                    "nothing known": truth.recall(searches.searched(truth, count, seed).rows),
                    "best by sketch, re-scored": truth.recall(best_first[:count]),
                    "a store": truth.recall(known.rows),
                    SKETCHED: truth.recall(best_first[: len(truth.best)]),
                }
                said = known.recall and [known.recall.estimate, known.recall.low, known.recall.high]
                yield {"budget": budget, "found": found, "said": said}


def summary(some: list[dict]) -> dict:
    """Return the mean recall of every way at each budget, and the accuracy of the estimates."""
    recall = {
        way: [
            round(float(np.mean([one["found"][way] for one in some if one["budget"] == budget])), 4)
            for budget in BUDGETS
        ]
        for way in WAYS
    }
    stated = [(one["found"]["a store"], one["said"]) for one in some if one["said"]]
    return {
        "recall": recall,
        SKETCHED: round(float(np.mean([one["found"][SKETCHED] for one in some])), 4),
        "stated": {
            "searches": len(stated),
            "of": len(some),
            "error": round(float(np.mean([abs(said[0] - truth) for truth, said in stated])), 4),
            "covered": round(float(np.mean([said[1] <= truth <= said[2] for truth, said in stated])), 4),
            "width": round(float(np.median([said[2] - said[1] for _, said in stated])), 4),
        },
    }


def table(pools: dict[str, dict]) -> str:
    """Return the mean recalls as a Markdown table."""
    heads = " | ".join(f"{name} {100 * budget:g} %" for name in pools for budget in BUDGETS)
    lines = [f"| known | {heads} |", "|---" * (1 + len(pools) * len(BUDGETS)) + "|"]
    for way in WAYS:
        values = " | ".join(f"{value:.2f}" for pool in pools.values() for value in pool["recall"][way])
        lines.append(f"| {way} | {values} |")
    return "\n".join(lines)


def main() -> None:
    options = parser_of(__doc__, seeds=5).parse_args()
    pools = {}
    for name in options.pools.split(","):
        pool = Recorded.of(name, options.folder / name)
        pools[name] = summary(list(replays(name, pool, options.seeds)))
        print(json.dumps({name: pools[name]}), flush=True)
    print(table(pools))
    if options.json:
        content = {"budgets": BUDGETS, "seeds": options.seeds, "pools": pools}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
