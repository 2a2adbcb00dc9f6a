"""Measure how much prior knowledge helps a search: `python benchmarks/bench_prior.py`.

    python benchmarks/bench_prior.py [--pools templated,diverse,code] [--seeds 4] [--json FILE]

The bench replays searches on the recorded scores of three real pools (`replay.py`), with the default strategy. Each
ordered pair of a pool's three targets gives one search: it looks for the second target, and its prior
(`clusterucb.jobs.stages.prior`) is made from scores for the first. There are four priors: nothing; the scores that a
search with a budget of 20 % computed for the first target; all scores for the first target; and noise, which is all of
these scores shuffled among the samples.

A second part changes the checkpoint instead of the target. The diverse pool also has recorded scores after 150 warm-up
steps. A search uses these scores, and its prior was computed after 30 steps, for the same target: scores, the principal
components of a gradient store's sketches, or both. For comparison, the bench also re-scores the samples that rank best
by the earlier scores. This command computes the later scores:

    clusterucb select FOLDER/diverse/pool.jsonl --target FOLDER/diverse/target.jsonl --model MODEL \\
      --warmup-steps 150 --policy exhaustive --budget 100% --out FOLDER/diverse-later
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import numpy as np

from clusterucb.jobs.stages.prior import filled
from replay import Recorded, Searches, parser_of, scores_of, sketches_of
from strategies import TARGETS

BUDGETS = (0.1, 0.2)
KNOWN = ("nothing", "a run", "all scores", "noise")
BEFORE = (*KNOWN[:3], "sketches", "scores and sketches", KNOWN[3])  # priors from an earlier checkpoint
RANKED = "best by scores, re-scored"
LATER = "diverse"


def recalls(pool: Recorded, seeds: int) -> dict[str, list[list[float]]]:
    """Return the recall of every search, for each prior in `KNOWN` and each budget."""
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


def later_recalls(pool: Recorded, seeds: int) -> dict[str, list[list[float]]]:
    """Return the recall of every search at the later checkpoint, for each prior in `BEFORE` and each budget."""
    after = replace(pool, scores=scores_of(f"{LATER}-later"))
    searches, earlier = Searches(after, "surrogate"), Searches(pool, "surrogate")
    sketches = sketches_of(LATER)
    n_samples = len(pool.scores)
    found: dict[str, list[list[float]]] = {name: [[] for _ in BUDGETS] for name in (*BEFORE, RANKED)}
    for seed in range(seeds):
        for target in TARGETS:
            truth, stale = searches.truth(target), earlier.truth(target)
            run = earlier.searched(stale, int(0.2 * n_samples), seed + 100)
            order = np.random.default_rng(seed).permutation(n_samples)
            known = {
                "nothing": {},
                "a run": {"scores": filled(run.drawn_rows, run.subtask_scores, earlier.blocks, pool.columns)},
                "all scores": {"scores": stale.scores},
                "sketches": {"sketches": sketches},
                "scores and sketches": {"scores": stale.scores, "sketches": sketches},
                "noise": {"scores": stale.scores[order], "sketches": sketches[order]},
            }
            for place, budget in enumerate(BUDGETS):
                count = int(budget * n_samples)
                for name, prior in known.items():
                    rows = searches.searched(truth, count, seed, prior=prior).rows
                    found[name][place].append(truth.recall(rows))
                ranked = stale.rules.choose(np.arange(n_samples), stale.scores, stale.rewards, count, None)
                found[RANKED][place].append(truth.recall(ranked))
    return found


def means(found: dict[str, list[list[float]]]) -> dict[str, list[float]]:
    """Return the mean recall of each prior at each budget."""
    return {
        name: [round(float(np.mean(values)), 4) for values in by_budget] for name, by_budget in found.items()
    }


def table(pools: dict[str, dict[str, list[float]]]) -> str:
    """Return the mean recalls as a Markdown table."""
    heads = " | ".join(f"{name} {budget:.0%}" for name in pools for budget in BUDGETS)
    lines = [f"| known | {heads} |", "|---" * (1 + len(pools) * len(BUDGETS)) + "|"]
    for name in next(iter(pools.values())):
        values = " | ".join(f"{value:.2f}" for pool in pools.values() for value in pool[name])
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines)


def main() -> None:
    options = parser_of(__doc__, seeds=4).parse_args()
    pools, later = {}, {}
    for name in options.pools.split(","):
        pool = Recorded.of(name, options.folder / name)
        pools[name] = means(recalls(pool, options.seeds))
        print(json.dumps({name: pools[name]}), flush=True)
        if name == LATER:
            later[f"{name}, later"] = means(later_recalls(pool, options.seeds))
            print(json.dumps(later), flush=True)
    print(*(table(part) for part in (pools, later) if part), sep="\n\n")
    if options.json:
        content = {"budgets": BUDGETS, "seeds": options.seeds, "pools": pools, "later": later}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
