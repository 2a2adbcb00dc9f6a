"""Replay policies on the scores of a run that scored its whole pool.

    clusterucb select POOL --target DEV --model M --out RUN --budget 100% --policy random
    python benchmarks/replay.py RUN [--budgets 5%,10%,20%] [--clusters 50] [--seeds 10]

Prints, for each policy and budget, the mean recall of the exhaustive top 5 % over the seeds: of the run's own
target (the largest of the subtasks' scores), and of each subtask alone. No model is loaded; a replay takes
milliseconds. `clusterucb demo --exhaustive` makes such a run beside its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import clusterucb as cu
from clusterucb.budget import resolve_count
from clusterucb.engine import AGGREGATES
from clusterucb.ledger import Ledger


def recorded(run: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return a run's feature blocks, each f32[N, k], and the scores f64[N, S] of all its samples."""
    shards = [load_file(path) for path in sorted(run.glob("features-*.safetensors"))]
    features = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    n_samples = len(next(iter(features.values())))
    subtasks = json.loads((run / "manifest.json").read_text())["subtasks"]
    with Ledger(run / "ledger.sqlite", subtasks=subtasks, tokens=np.zeros(n_samples), failure=str) as ledger:
        batches = [batch for batch in ledger.recorded() if batch.scores is not None]
    scores = np.full((n_samples, batches[0].scores.shape[1]), np.nan)
    for batch in batches:
        scores[batch.rows] = batch.scores
    if len(rows := np.flatnonzero(np.isnan(scores).all(axis=1))) > n_samples / 100:
        raise SystemExit(
            f"{run} has no scores for {len(rows)} of {n_samples} samples; give a run with --budget 100%"
        )
    return features, scores


def recall(features, scores, *, clusterer, policy, budget, seed) -> float:
    """Return how much of the exhaustive top 5 % a search finds."""
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--budgets", default="5%,10%,20%")
    parser.add_argument("--clusters", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    features, scores = recorded(options.run)
    budgets = options.budgets.split(",")
    targets = {"all subtasks": scores} | {f"subtask {s}": scores[:, [s]] for s in range(scores.shape[1])}
    policies = {
        "random": cu.Random(),
        "ucb1": cu.UCB1(),
        "threshold-hard": cu.ThresholdHard(),
        "threshold-normal": cu.ThresholdNormal(),
        "ucb": cu.UCB(),
    }
    print(f"{len(scores)} samples, recall of the best 5 %, mean over {options.seeds} seeds")
    for target, wanted in targets.items():
        print(f"\n{target:18}" + "".join(f"{budget:>8}" for budget in budgets))
        for name, policy in policies.items():
            means = [
                np.mean(
                    [
                        recall(
                            features,
                            wanted,
                            clusterer=cu.KMeans(n_clusters=options.clusters),
                            policy=policy,
                            budget=budget,
                            seed=seed,
                        )
                        for seed in range(options.seeds)
                    ]
                )
                for budget in budgets
            ]
            print(f"{name:18}" + "".join(f"{mean:8.2f}" for mean in means))


if __name__ == "__main__":
    main()
