"""Measure what a round of a training knows of the next one: `python benchmarks/bench_between_rounds.py FOLDER`.

    python benchmarks/bench_between_rounds.py FOLDER [--pools templated,diverse] [--seeds 8] [--json FILE]

FOLDER holds what `bench_rounds.py --arms dynamic --keep FOLDER` kept: in each of four rounds, the exact scores of all
samples, the sketches of their gradients, and those of the target's directions. No gradient is computed here.

For each round but the first, a search with a budget of 10 % looks for the best 75. Its prior knows a tenth, three
tenths or all of the gradients of the round before, in random order:

- `scores`: their scores; those of other samples are predicted from the features, as in `Reselect`;
- `sketches`: inner products of their sketches with the *new* directions, likewise;
- `both`.

A second table is about audits (`clusterucb.training.audit`). The earlier round has scored the best tenth by its own
scores and a random hundredth of the samples. The recall of an audit of 20 of them is compared with the overlap of the
two rounds' best 75, which an audit should tell.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import clusterucb as cu
from bench_rounds import N_POOL, N_SELECTED, Cell, part_of
from clusterucb.demo.wheels import cache_folder
from clusterucb.engine.rules import Rules
from clusterucb.jobs.comparison.replay import Terms, Truth
from clusterucb.jobs.stages.prior import filled
from clusterucb.kernels import ops
from clusterucb.training import audit
from helpers.searching import search
from replay import Recorded

KNOWN = (0.1, 0.3, 1.0)
BUDGET = N_POOL // 10
N_AUDITS = 200


def rounds_of(folder: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the scores f64[N, S], the sketches f32[N, d] and the directions f32[S, d] of each round."""
    found = []
    for number, place in enumerate(sorted(folder.glob("round-*")), start=1):
        kept = load_file(place / "sketches.safetensors")
        lines = [json.loads(line) for line in (place / "scores.jsonl").read_bytes().splitlines()]
        drawn = json.loads((place / "round.json").read_bytes())["scored"]
        scores = np.full((N_POOL, len(lines[0]["subtasks"])), np.nan)
        scores[drawn] = [list(line["subtasks"].values()) for line in lines]
        found.append(
            (scores, kept["values"].astype(np.float32), np.load(folder / f"directions-{number}.npy"))
        )
    return found


def priors(
    before: tuple[np.ndarray, ...], now: tuple[np.ndarray, ...], rows: np.ndarray, blocks: Any, columns: Any
) -> dict[str, dict[str, np.ndarray]]:
    """Return the blocks of each prior that knows some rows of the round before."""
    scores = filled(rows, before[0][rows], blocks, columns)
    sketched = filled(rows, ops.sketch_products(before[1][rows], now[2]), blocks, columns)
    return {
        "nothing": {},
        "scores": {"scores": scores},
        "sketches": {"sketches": sketched},
        "both": {"scores": scores, "sketches": sketched},
    }


def recalls(rounds: list[Any], blocks: Any, columns: Any, seeds: int) -> list[dict[str, Any]]:
    """Return a row for each share of known gradients and each prior: its recall and its correlation."""
    found: dict[tuple[float, str], list[tuple[float, float]]] = {}
    for before, now in pairwise(rounds):
        truth = Truth.of(now[0], columns["source"], Terms(n_select=N_SELECTED))
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(N_POOL)
            for share in KNOWN:
                rows = np.sort(order[: int(share * N_POOL)])
                for name, prior in priors(before, now, rows, blocks, columns).items():
                    selection = search(
                        blocks,
                        lambda some, truth=truth: truth.scores[some],
                        clusterer=cu.KMeans(),
                        policy=cu.Surrogate(),
                        budget=BUDGET,
                        n_select=N_SELECTED,
                        batch_size=8,
                        seed=seed,
                        columns=columns,
                        prior=prior or None,
                    )
                    block = next(iter(prior.values()), None)
                    alike = 0.0 if block is None else _correlation(block, now[0])
                    found.setdefault((share, name), []).append((truth.recall(selection.rows), alike))
    return [
        {
            "known": share,
            "prior": name,
            "recall": round(float(np.mean([recall for recall, _ in values])), 3),
            "correlation": round(float(np.mean([alike for _, alike in values])), 3),
        }
        for (share, name), values in found.items()
    ]


def _correlation(estimates: np.ndarray, scores: np.ndarray) -> float:
    pairs = zip(estimates.T, scores.T, strict=True)
    return float(np.mean([np.corrcoef(own, true)[0, 1] for own, true in pairs]))


def audits(rounds: list[Any]) -> list[dict[str, Any]]:
    """Return a row for each pair of rounds: the overlap of their best, and the recalls of audits."""
    found = []
    for first in range(len(rounds)):
        for later in range(first + 1, len(rounds)):
            old, new = rounds[first][0], rounds[later][0]
            best, best_now = (_best(scores, N_SELECTED) for scores in (old, new))
            measured = []
            for seed in range(N_AUDITS):
                some = np.random.default_rng(seed).choice(N_POOL, BUDGET // 10, replace=False)
                scored = np.union1d(_best(old, BUDGET), some)
                rows = audit.rows_of_audit(best.tolist(), scored.tolist(), audit.FEWEST * audit.SHARE, seed)
                measured.append(audit.recall(old[rows], new[rows], Rules()))
            found.append(
                {
                    "rounds": f"{first + 1} and {later + 1}",
                    "overlap": round(float(np.isin(best, best_now).mean()), 2),
                    "audit": round(float(np.mean(measured)), 2),
                    "stays": round(float(np.mean(np.array(measured) >= audit.HOLDS)), 2),
                }
            )
    return found


def _best(scores: np.ndarray, n: int) -> np.ndarray:
    rewards = Rules().wanted(scores, n)(scores)
    return Rules().choose(np.arange(len(scores)), scores, rewards, n, None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pools", default="templated,diverse")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for pool in options.pools.split(","):
        rounds = rounds_of(options.folder / Cell(pool, "dynamic", 0, 2e-4).name)
        recorded = Recorded.of(pool, cache_folder().parent / "bench" / pool)
        rows = part_of(len(recorded.scores), 0)
        described = recorded.described(cu.Embedding())
        blocks = {name: np.asarray(block, np.float32)[rows] for name, block in described.items()}
        columns = {name: column[rows] for name, column in recorded.columns.items()}
        results[pool] = {
            "recall": recalls(rounds, blocks, columns, options.seeds),
            "audits": audits(rounds),
        }
        for row in (*results[pool]["recall"], *results[pool]["audits"]):
            print(pool, row, flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
