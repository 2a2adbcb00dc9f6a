"""What is it worth to a search to know something from before? `python benchmarks/bench_prior.py`

    python benchmarks/bench_prior.py [--pools templated,diverse,code] [--seeds 4] [--json FILE]

Searches are replayed on the recorded scores of three real pools (`replay.py`), with the default strategy: for every two
of a pool's three targets, the scores for the first are what is known (`clusterucb.jobs.stages.prior`) when the second
is searched for. Four things may be known: nothing; what a search with a budget of 20 % has scored for the other
target; all scores for it; and all of them, shuffled among the samples, which say nothing.

Then the checkpoint is another: of the diverse pool there are scores after 150 steps of the warm-up, too. A target is
searched for by these, and what is known was computed after 30: scores for the same target, the principal components of
a gradient store's sketches, or both; and what is best by the earlier scores, scored anew, is seen beside it. The later
scores are those of

    clusterucb select FOLDER/diverse/pool.jsonl --target FOLDER/diverse/target.jsonl --model MODEL \\
      --warmup-steps 150 --policy exhaustive --budget 100% --out FOLDER/diverse-later
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import numpy as np

from clusterucb.jobs.stages.prior import filled
from replay import DATA, Recorded, Searches, parser_of, scores_of
from strategies import TARGETS

BUDGETS = (0.1, 0.2)
KNOWN = ("nothing", "a run", "all scores", "noise")
BEFORE = (*KNOWN[:3], "sketches", "scores and sketches", KNOWN[3])  # of an earlier checkpoint
RANKED = "best by scores, re-scored"
LATER = "diverse"


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


def later_recalls(pool: Recorded, seeds: int) -> dict[str, list[list[float]]]:
    """Return for each of `BEFORE` and each budget the recall of every search at a later checkpoint."""
    after = replace(pool, scores=scores_of(f"{LATER}-later"))
    searches, earlier = Searches(after, "surrogate"), Searches(pool, "surrogate")
    sketches = np.load(DATA / f"{LATER}-components.npz")["components"].astype(np.float32)
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
                found[RANKED][place].append(truth.recall(np.argsort(-stale.rewards, kind="stable")[:count]))
    return found


def means(found: dict[str, list[list[float]]]) -> dict[str, list[float]]:
    """Return the mean recall at each budget."""
    return {
        name: [round(float(np.mean(values)), 4) for values in by_budget] for name, by_budget in found.items()
    }


def table(pools: dict[str, dict[str, list[float]]]) -> str:
    """Return the mean recalls as a table in Markdown."""
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
