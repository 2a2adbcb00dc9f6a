"""Time and memory from the call of `select` to its first draw, with a tiny model and a large pool.

    python benchmarks/bench_first_draw.py [--lines 100000] [--memory-lines 5000000] [--against PYTHON] [--json FILE]

The run ends when the first batch of the cold start has been scored, so everything before is measured: reading,
encoding, features, clusters, warm-up, the target's gradients and the order of the cold start. The time is that of the
default features and clusters. The memory is measured in a second run with one number a row as features (`Column`) and
the sources as clusters, because the size of features is the user's choice. It is the peak of what the process holds
itself (RssAnon, read from outside every hundredth of a second), less the peak of the same selection with 20,000 lines,
by the lines that it has more. That run also counts how often the pool's file is opened, and the bytes that the process
reads by system calls, as a multiple of the file's size: 1 means that the file is read once.

With ``--against`` the same is timed by another Python, in which another version of clusterucb is installed, in turn
with this one: the ratio is that of the shortest times. The ratio of processor time, which a busy machine changes
less, stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

from helpers import tiny  # noqa: E402  (it lies in tests/)

FEW = 20_000  # lines that have filled every buffer
WORDS = [f"word{number}" for number in range(1000)]
RUN = """
import json, os, sys, time
os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
import clusterucb as cu
import torch, transformers, peft
from clusterucb import clusterers, policies

folder, pool, features = sys.argv[1:]
opened = 0

def watch(event, arguments):
    global opened
    opened += event == "open" and arguments[0] in (pool, os.fsencode(pool))

def bytes_read():
    return int(next(line.split()[1] for line in open("/proc/self/io") if line.startswith("rchar")))

class Stop(cu.UCB):
    def tell(self, rows, rewards, scores):
        seconds, read = time.perf_counter() - began, bytes_read() - before
        cpu = time.process_time() - spent
        print(json.dumps({"seconds": seconds, "cpu": cpu, "read": read, "opened": opened}), flush=True)
        os._exit(0)

sys.addaudithook(watch)
options = {"features": cu.Column("size"), "clusterer": cu.Source()} if features == "column" else {}
before, began, spent = bytes_read(), time.perf_counter(), time.process_time()
cu.select(pool, folder + "/dev.jsonl", model=folder + "/model", policy=Stop(), warmup_steps=1, budget=50, select=5,
          **options)
"""


def write_pool(path: Path, n_lines: int, *, short: bool = False) -> Path:
    """Write a pool of distinct rows: prompts with their answers; or short texts, which are encoded faster."""
    choose = random.Random(0)
    with path.open("w") as lines:
        for number in range(n_lines):
            prompt, answer = (
                " ".join(choose.choices(WORDS, k=count)) for count in ((2, 2) if short else (8, 40))
            )
            row = {"text": f"{number} {prompt}"} if short else {"prompt": prompt, "completion": answer}
            known = {"id": f"row-{number}", "source": f"s{number % 50}", "size": [number]}
            lines.write(json.dumps({**row, **known}) + "\n")
    return path


def measure(python: str, folder: Path, pool: Path, features: str) -> dict[str, float]:
    """Return seconds, processor seconds, peak bytes, bytes read and openings of the pool of one run."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as temporary,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
    ):
        running = subprocess.Popen(
            [python, "-c", RUN, str(folder), str(pool), features],
            stdout=out,
            stderr=errors,
            env={**os.environ, "TMPDIR": temporary},
        )
        peak = 0
        while running.poll() is None:
            peak = max(peak, anonymous(running.pid))
            time.sleep(0.01)
        for file in (out, errors):
            file.seek(0)
        if running.returncode:
            raise SystemExit(f"{python} failed:\n{errors.read()[-3000:].decode()}")
        return {**json.loads(out.read().splitlines()[-1]), "bytes": peak}


def anonymous(process: int) -> int:
    """Return the bytes of memory that a process holds itself, without pages of files; 0 if it has ended."""
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def compare_times(folder: Path, options: argparse.Namespace) -> list[dict[str, str | float]]:
    """Time this version and, if there is one, the other in turn."""
    pool = write_pool(folder / "pool.jsonl", options.lines)
    ours, theirs = sys.executable, options.against
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for python in filter(None, (ours, theirs)):
            runs.setdefault(python, []).append(measure(python, folder, pool, "default"))
            print(
                "{}: {seconds:.1f} s, {cpu:.1f} s of processors".format(python, **runs[python][-1]),
                flush=True,
            )
    if not theirs:
        return []
    rows: list[dict[str, str | float]] = []
    for kind, name in (("seconds", "first draw"), ("cpu", "processor time until the first draw")):
        ratio = min(run[kind] for run in runs[ours]) / min(run[kind] for run in runs[theirs])
        print(f"{name}: {ratio:.2f} of {theirs}", flush=True)
        rows.append(
            {"case": f"{name}, {options.lines:,} lines", "ratio_to": "version 0.1", "ratio": round(ratio, 3)}
        )
    return rows


def measure_memory(folder: Path, options: argparse.Namespace) -> list[dict[str, str | float]]:
    """Measure the memory for each line, and how often the pool is read."""
    n_lines, pool = options.memory_lines, folder / "pool.jsonl"
    few = measure(sys.executable, folder, write_pool(pool, FEW, short=options.short), "column")
    size_of_few = pool.stat().st_size
    many = measure(sys.executable, folder, write_pool(pool, n_lines, short=options.short), "column")
    size = pool.stat().st_size
    held = (many["bytes"] - few["bytes"]) / (n_lines - FEW)
    read = (many["read"] - few["read"]) / (size - size_of_few)
    print(
        f"{n_lines:,} lines, {size / 1e9:.2f} GB: first draw after {many['seconds']:.0f} s; opened "
        f"{many['opened']} time(s); read {read:.3f} times; memory {few['bytes'] / 1e6:.0f} MB with {FEW:,} lines, "
        f"{many['bytes'] / 1e6:.0f} MB with all: {held:.1f} bytes a line",
        flush=True,
    )
    case = f"{n_lines:,} lines"
    return [
        {"case": f"memory, {case} less {FEW:,}", "ratio_to": "lines", "ratio": round(held, 1)},
        {"case": f"openings of the pool, {case}", "ratio_to": "1", "ratio": many["opened"]},
        {"case": f"bytes read, {case}", "ratio_to": "size of the file", "ratio": round(read, 3)},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lines", type=int, default=100_000, help="lines of the runs that are timed; 0 for none"
    )
    parser.add_argument(
        "--memory-lines", type=int, default=250_000, help="lines of the run that measures memory; 0 for none"
    )
    parser.add_argument(
        "--short", action="store_true", help="measure memory with short lines: memory is the same"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--against", metavar="PYTHON")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tiny.write_model(folder / "model")
        tiny.write_rows(folder / "dev.jsonl", tiny.rows(6, seed=3))
        if options.lines:
            rows += compare_times(folder, options)
        if options.memory_lines:
            rows += measure_memory(folder, options)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
