"""Measure what a store with a byte for each element loses: `python benchmarks/bench_store_types.py`.

    python benchmarks/bench_store_types.py [--pools templated,diverse,code] [--samples 128] [--folder F] [--json F]

For each real pool (`strategies.py`), the bench sketches some random samples for SmolLM2-135M, stores the sketches in
half precision and in bytes (`clusterucb.run.store_types`), and compares the scores that both estimate for each of the
pool's subtasks. Then it adds such differences, drawn at random, to the recorded sketched scores of the whole pool
(``tests/data/*-sketched.npz``), and compares what the best by sketch alone find with and without them. The folder keeps
the stores, so a repeat takes seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import clusterucb as cu
from clusterucb.demo.model import demo_model
from clusterucb.demo.wheels import cache_folder
from clusterucb.engine.rules import Rules
from clusterucb.gradients.directions import sketch_directions
from clusterucb.kernels import ops
from clusterucb.progress import Screen
from clusterucb.run.store_types import loaded, stored
from replay import scores_of
from strategies import POOLS, TARGETS

DRAWS = 20  # times that differences are drawn for a pool


def differences(name: str, n_samples: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores that bytes estimate minus those of half precision, f64[n, S], and the latter."""
    if not (folder / "pool.jsonl").exists():
        POOLS[name](folder)
    lines = (folder / "pool.jsonl").read_text().splitlines()
    some = np.random.default_rng(0).permutation(len(lines))[:n_samples]
    (folder / "some.jsonl").write_text("".join(f"{lines[at]}\n" for at in some))
    model = demo_model(Screen())
    store = cu.sketch(
        folder / "some.jsonl", model=model, out=folder / "store", warmup_steps=10, observer=Screen()
    )
    files = {"pool": folder / "some.jsonl", "target": folder / "target.jsonl", "model": model}
    cu.select(**files, store=store.folder, scorer="sketch", out=folder / "run", observer=Screen())
    directions = [load_file(folder / "run" / "directions.safetensors")["directions"]]
    targets = sketch_directions(directions, [1.0], store.sketch)
    halves = store.rows(range(len(store)))
    in_bytes = loaded(stored(halves.astype(np.float32), "int8"))
    scores = ops.sketch_products(halves, targets)
    return ops.sketch_products(in_bytes, targets) - scores, scores


def recalls(name: str, moved: np.ndarray) -> tuple[float, float]:
    """Return the mean recall of the best 5 % by sketch alone: in half precision, and in bytes."""
    truth, estimates = scores_of(name), scores_of(f"{name}-sketched")
    rng, n_samples = np.random.default_rng(0), len(truth)
    found: tuple[list[float], list[float]] = ([], [])
    for target in TARGETS:
        best = chosen(truth[:, target])
        found[0].append(np.isin(best, chosen(estimates[:, target])).mean())
        for _ in range(DRAWS):
            drawn = moved[rng.integers(0, len(moved), n_samples)]
            found[1].append(np.isin(best, chosen((estimates + drawn)[:, target])).mean())
    halves, in_bytes = (float(np.mean(some)) for some in found)
    return halves, in_bytes


def chosen(scores: np.ndarray) -> np.ndarray:
    """Return the best 5 % of all rows by the default rule."""
    rows = np.arange(len(scores))
    return Rules().choose(rows, scores, scores.max(axis=1), len(scores) // 20, None)


def table(pools: dict[str, dict]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| pool | samples | scores deviate by | bytes move a score by | found in half precision | found in bytes |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in pools.items():
        found = " | ".join(f"{one[key]:.4f}" for key in ("halves", "bytes"))
        lines.append(f"| {name} | {one['samples']} | {one['deviation']:.4f} | {one['moved']:.5f} | {found} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pools", default="templated,diverse,code")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--folder", type=Path, default=cache_folder() / "store-types")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pools = {}
    for name in options.pools.split(","):
        folder = options.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        moved, scores = differences(name, options.samples, folder)
        halves, in_bytes = recalls(name, moved)
        pools[name] = {
            "samples": len(moved),
            "deviation": round(float(scores.std(axis=0).mean()), 5),
            "moved": round(float(np.sqrt((moved**2).mean())), 6),
            "halves": round(halves, 5),
            "bytes": round(in_bytes, 5),
        }
        print(json.dumps({name: pools[name]}), flush=True)
    print(table(pools))
    if options.json:
        options.json.write_text(json.dumps(pools, indent=1) + "\n")


if __name__ == "__main__":
    main()
