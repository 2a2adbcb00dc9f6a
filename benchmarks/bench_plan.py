"""Compare the time and peak memory that `clusterucb plan` predicts with those of `clusterucb select`.

    python benchmarks/bench_plan.py [--json FILE] [--only TEXT]

The model is SmolLM2-135M-Instruct; the pool is the demo's. Each command runs in its own process. Its peak memory is the
largest resident set that the system reports, less that of a process that only imports the libraries. A ratio is the
plan's prediction divided by the selection's measurement. Run this on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clusterucb.demo.model import demo_model
from clusterucb.demo.pool import demo_pool
from clusterucb.progress import Screen

CASES = {
    "by default": [],
    "long samples, checkpointing": ["--checkpointing", "--max-length", "256", "--budget", "10%"],
    "layers by pattern": [
        *("--parameters", "model.layers.1*.mlp.down_proj", "--preconditioner", "sgd", "--budget", "10%"),
    ],
    "hidden states": ["--features", "hidden", "--budget", "10%", "--lora-targets", "all-linear"],
}
IMPORTS = "import torch, transformers, peft, clusterucb.jobs.stages.influence"


def timed(command: list[str]) -> tuple[str, float, int]:
    """Run a command and return its output, its duration in seconds and its peak memory in bytes."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return output, time.perf_counter() - began, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    pool, target = demo_pool(Screen())
    job = [str(pool), "--target", str(target), "--model", str(demo_model(Screen()))]
    _, starting, imported = timed([sys.executable, "-c", IMPORTS])
    cores = len(os.sched_getaffinity(0))
    found = {"device": f"{platform.machine()} CPU, {cores} threads", "rows": []}
    for case, changes in CASES.items():
        if options.only not in case:
            continue
        folder = Path(tempfile.mkdtemp())
        program = [sys.executable, "-m", "clusterucb"]
        environment = ["env", "CLUSTERUCB_CACHE_LIMIT=0"]  # compute features instead of loading them
        rest = [*job, "--out", str(folder / "run"), *changes]
        said, taken, _ = timed([*environment, *program, "plan", *rest, "--json", "--quiet"])
        plan = json.loads(said)
        _, seconds, peak = timed([*environment, *program, "select", *rest, "--quiet"])
        row = {
            "case": case,
            "seconds": round(seconds - starting, 1),
            "time ratio": float(f"{plan['seconds'] / (seconds - starting):.3g}"),
            "memory above imports": peak - imported,
            "memory ratio": float(f"{(plan['memory'] - imported) / (peak - imported):.3g}"),
            "plan's own seconds": round(taken - starting, 1),
        }
        found["rows"].append(row)
        print(row, flush=True)
        shutil.rmtree(folder)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
