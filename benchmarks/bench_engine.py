"""Time the engine and a policy without scoring: the cost of one draw, and of a whole replay.

    python benchmarks/bench_engine.py [--json FILE] [--policies ucb,random] [--sizes 10000,100000,1000000]

Scores are read from an array. There are 1,000 arms and 64 draws a batch. Each row is the time of one draw divided by
its limit of 50 microseconds; a gradient takes a thousand times as long. The bench subtracts the time of a search with
half the draws, and so leaves out the work that does not depend on the number of draws: sorting the pool into arms and
the cold start. The limit for a replay of 5,000 rows with 577 features, clustering included, is one second.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import clusterucb as cu
from clusterucb import plugins

ALLOWED = 50e-6  # seconds a draw
N_ARMS = 1000
N_DRAWS = 6400
N_REPLAYED, WIDTH = 5000, 577


def seconds(policy: cu.Policy, scores: np.ndarray, labels: np.ndarray, draws: int) -> float:
    """Return the seconds of a search that makes ``draws`` draws after its cold start."""
    budget = N_ARMS + draws
    began = time.perf_counter()
    found = cu.search(
        np.zeros((len(scores), 1), np.float32),
        scores.__getitem__,
        clusterer=labels,
        policy=policy,
        budget=budget,
        n_select=100,
        schedule=cu.Schedule(cold_start=0.0, batch_size=64),
    )
    taken = time.perf_counter() - began
    assert found.n_scored == budget == len(set(found.drawn_rows.tolist())), "the budget was not kept"
    return taken


def replay_seconds(policy: cu.Policy, seed: int) -> float:
    """Return the seconds of a replay with the default clusterer and a budget of 20 %."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(100, size=N_REPLAYED)
    features = rng.normal(size=(100, WIDTH))[topic] + rng.normal(size=(N_REPLAYED, WIDTH))
    scores = rng.normal(size=100)[topic] + rng.normal(size=N_REPLAYED)
    began = time.perf_counter()
    cu.search(
        features.astype(np.float32),
        scores.__getitem__,
        clusterer=cu.KMeans(),
        policy=policy,
        budget=N_REPLAYED // 5,
        n_select=N_REPLAYED // 20,
        schedule=cu.Schedule(batch_size=8, seed=seed),
    )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument(
        "--policies", default="ucb,threshold-hard,threshold-normal,thompson,cluster-mean,random"
    )
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    installed, rows = plugins.load(), []
    for name in options.policies.split(","):
        policy = installed.make("policy", name, {})
        for size in map(int, options.sizes.split(",")):
            rng = np.random.default_rng(size)
            labels = rng.permutation(np.arange(size) % N_ARMS)
            scores = rng.normal(size=N_ARMS)[labels] + rng.normal(size=size)
            times = [
                seconds(policy, scores, labels, N_DRAWS) - seconds(policy, scores, labels, N_DRAWS // 2)
                for _ in range(options.rounds + 1)
            ]
            a_draw = float(np.median(times[1:])) / (N_DRAWS - N_DRAWS // 2)
            case = f"{name} K={N_ARMS} batch=64 N={size}"
            rows.append({"case": case, "ratio_to": "50 us a draw", "ratio": float(f"{a_draw / ALLOWED:.3g}")})
            print(f"{case:45} {1e6 * a_draw:7.1f} us a draw", flush=True)
        whole = float(np.median([replay_seconds(policy, seed) for seed in range(options.rounds)]))
        rows.append(
            {"case": f"replay {name} N={N_REPLAYED}", "ratio_to": "1 s", "ratio": float(f"{whole:.3g}")}
        )
        print(f"{rows[-1]['case']:45} {whole:7.2f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
