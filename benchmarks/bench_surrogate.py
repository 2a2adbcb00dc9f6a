"""Measure the time and memory of a surrogate policy's decision, and of an estimate of the recall, on large pools.

    python benchmarks/bench_surrogate.py [--sizes 10000,100000,1000000] [--json FILE]

The features are synthetic: blocks for prompt, answer, their words and lengths, 258 numbers a sample. There are 500
sources and three subtasks. At first 2 % of the pool is scored, and every batch scores another 2 %. Rows divide the time
of a decision (one `ask` and one `tell`) and of an estimate by 5 seconds, their limit on two cores, and the memory that
both add by 4 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np

import clusterucb as cu
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.recall import Draws, RecallEstimator

SECONDS, GIGABYTES = 5, 4
WIDTHS = {"prompt": 64, "answer": 64, "length": 2, "words of prompt": 64, "words of answer": 64}
N_SUBTASKS, N_BATCHES = 3, 4


def made(size: int) -> tuple[PoolView, np.ndarray]:
    """Return a synthetic pool, and scores f64[N, S] that depend on its features."""
    rng = np.random.default_rng(0)
    features = {name: rng.standard_normal((size, width), dtype=np.float32) for name, width in WIDTHS.items()}
    scores = np.sin(features["answer"][:, :N_SUBTASKS]).astype(np.float64)
    scores += features["prompt"][:, :2] @ rng.normal(size=(2, N_SUBTASKS))
    scores += 0.3 * rng.normal(size=scores.shape)
    pool = PoolView(
        features,
        np.zeros(size, np.int64),
        rng.random(size),
        {"source": rng.integers(0, 500, size)},
        budget=size // 5,
        n_select=size // 20,
    )
    return pool, scores


def measured(size: int) -> dict[str, float]:
    """Return the seconds of the start, of a decision and of an estimate, and the added memory in gigabytes."""
    pool, scores = made(size)
    before = getrusage(RUSAGE_SELF).ru_maxrss
    rng = np.random.default_rng(1)
    largest = partial(np.max, axis=1)
    policy, available = cu.Surrogate(), np.ones(size, np.bool_)
    began = time.perf_counter()
    policy.start(pool)
    rows = rng.permutation(size)[: size // 50]
    policy.tell(rows, largest(scores[rows]), scores[rows])
    started = time.perf_counter() - began
    available[rows] = False
    drawn, estimator = [rows], RecallEstimator(pool)
    decisions, estimates = [], []
    for _ in range(N_BATCHES):
        began = time.perf_counter()
        rows = policy.ask(size // 50, available, rng)
        available[rows] = False
        policy.tell(rows, largest(scores[rows]), scores[rows])
        decisions.append(time.perf_counter() - began)
        drawn.append(rows)
        every = np.concatenate(drawn)
        chance = np.full(len(every), np.nan)
        chance[: len(drawn[0])] = 1 / 50
        began = time.perf_counter()
        recall = estimator(Draws(every, scores[every], chance), largest)
        estimates.append(time.perf_counter() - began)
    assert 0 <= recall.low <= recall.high <= 1
    assert scores[rows].max(axis=1).mean() > scores.max(axis=1).mean() + 0.5, "it did not learn"
    return {
        "start": started,
        "decision": float(np.median(decisions)),
        "estimate": float(np.median(estimates)),
        "gigabytes": (getrusage(RUSAGE_SELF).ru_maxrss - before) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one)))
        return
    rows = []
    for size in options.sizes.split(","):  # a process for each size, because peak memory never falls
        found = json.loads(subprocess.check_output([sys.executable, __file__, "--one", size]))
        print(f"N={size:>9} " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
        for what, bound, unit in (
            ("decision", SECONDS, "s"),
            ("estimate", SECONDS, "s"),
            ("gigabytes", GIGABYTES, "GB"),
        ):
            ratio = float(f"{found[what] / bound:.3g}")
            rows.append({"case": f"{what} N={size}", "ratio_to": f"{bound} {unit}", "ratio": ratio})
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
