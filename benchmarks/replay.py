"""Replay policies on the scores of a run that scored its whole pool.

    python benchmarks/real_pool.py POOL
    clusterucb select POOL/pool.jsonl --target POOL/target.jsonl --model M --out RUN --budget 100% --policy random
    python benchmarks/replay.py RUN [--targets food+nth-word,recurrences] [--budgets 5%,10%,20%] [--clusters 50]

Prints, for each target and policy, the mean recall of the exhaustive top 5 % over the seeds. A target is some of
the run's subtasks; by default it is every three neighbours in alphabetical order. No model is loaded; a
replay takes milliseconds. `clusterucb demo --exhaustive` makes such a run beside its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import clusterucb as cu
from clusterucb.aggregate import AGGREGATES
from clusterucb.budget import resolve_count
from clusterucb.ledger import Ledger

POLICIES = {
    "random": cu.Random(),
    "ucb1": cu.UCB1(),
    "threshold-hard": cu.ThresholdHard(),
    "threshold-normal": cu.ThresholdNormal(),
    "ucb": cu.UCB(),
}


def recorded(run: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return a run's feature blocks, each f32[N, k], and for each subtask the scores f64[N] of all samples."""
    shards = [load_file(path) for path in sorted(run.glob("features-*.safetensors"))]
    features = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    n_samples = len(next(iter(features.values())))
    subtasks = json.loads((run / "manifest.json").read_text())["subtasks"]
    with Ledger(run / "ledger.sqlite", subtasks=subtasks, tokens=np.zeros(n_samples), failure=str) as ledger:
        scores = ledger.scores()
    if len(rows := np.flatnonzero(np.isnan(scores).all(axis=1))) > n_samples / 100:
        raise SystemExit(
            f"{run} has no scores for {len(rows)} of {n_samples} samples; give a run with --budget 100%"
        )
    return features, dict(zip(subtasks, scores.T, strict=True))


def recall(features, scores, *, clusterer, policy, budget, seed) -> float:
    """Return how much of the exhaustive top 5 % a search finds; scores f64[N, S]."""
    n_samples = len(scores)
    n_select = resolve_count("5%", "5%", n_samples)
    found = cu.search(
        features,
        lambda rows: scores[rows],
        clusterer=clusterer,
        policy=policy,
        budget=resolve_count("budget", budget, n_samples),
        n_select=n_select,
        seed=seed,
    )
    rewards = np.nan_to_num(AGGREGATES["max"](scores), nan=-np.inf)
    best = np.lexsort((np.arange(n_samples), -rewards))[:n_select]
    return float(np.isin(best, found.rows).mean())


def mean_recall(features, scores, seeds, **search) -> float:
    """Return the mean over the seeds."""
    return float(np.mean([recall(features, scores, seed=seed, **search) for seed in range(seeds)]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--targets", help="subtasks joined by +, targets by commas")
    parser.add_argument("--budgets", default="5%,10%,20%")
    parser.add_argument("--clusters", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    features, scores = recorded(options.run)
    names = sorted(scores)
    triples = ["+".join(names[at : at + 3]) for at in range(len(names) - 2)]
    targets = options.targets.split(",") if options.targets else triples or ["+".join(names)]
    budgets = options.budgets.split(",")
    clusterer = cu.KMeans(n_clusters=options.clusters)
    print(f"recall of the best 5 % of {len(features['embedding'])} samples, mean over {options.seeds} seeds")
    table = np.zeros((len(targets), len(POLICIES), len(budgets)))
    for i, target in enumerate(targets):
        wanted = np.stack([scores[name] for name in target.split("+")], axis=1)
        for j, policy in enumerate(POLICIES.values()):
            for k, budget in enumerate(budgets):
                search = {"clusterer": clusterer, "policy": policy, "budget": budget}
                table[i, j, k] = mean_recall(features, wanted, options.seeds, **search)
        show(target, table[i], budgets)
    show("mean over the targets", table.mean(axis=0), budgets)


def show(title: str, means: np.ndarray, budgets: list[str]) -> None:
    """Print means f64[policies, budgets]."""
    print(f"\n{title}\n{'':18}" + "".join(f"{budget:>8}" for budget in budgets))
    for name, line in zip(POLICIES, means, strict=True):
        print(f"{name:18}" + "".join(f"{mean:8.2f}" for mean in line))


if __name__ == "__main__":
    main()
