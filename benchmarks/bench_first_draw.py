"""Time and memory from the call of `select` to its first draw, with a tiny model and a large pool.

    python benchmarks/bench_first_draw.py [--lines 100000] [--against PYTHON] [--json FILE]

Everything before the first gradient is measured: reading, encoding, features, arms. The time is that of the default
features. The memory is measured in a second run with one number a row as features (`column`), because the size of
features is the user's choice; it is the peak of what the process holds itself (RssAnon), less the peak of the same
selection with 20,000 lines, by the lines that it has more.

With ``--against`` the same is run by another Python, in which another version of clusterucb is installed, in turn with
this one: the ratio is that of the two times.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

from helpers import tiny  # noqa: E402  (it lies in tests/)

FEW = 20_000  # lines that have filled every buffer
WORDS = [f"word{number}" for number in range(1000)]
RUN = """
import json, os, sys, threading, time
os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
import clusterucb as cu
import torch, transformers, peft
from clusterucb import policies

folder, pool, features = sys.argv[1:]

class Stop(cu.Random):
    def ask(self, n, available, rng):
        raise KeyboardInterrupt

peak, running = [0], True

def watch():
    while running:
        lines = open("/proc/self/status").read().splitlines()
        peak[0] = max(peak[0], int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))))
        time.sleep(0.05)

watcher = threading.Thread(target=watch)
watcher.start()
options = {"features": cu.Column("size"), "clusterer": cu.Source()} if features == "column" else {}
began = time.perf_counter()
try:
    cu.select(pool, folder + "/dev.jsonl", model=folder + "/model", policy=Stop(), warmup_steps=1, budget=50,
              select=5, **options)
except KeyboardInterrupt:
    pass
seconds = time.perf_counter() - began
running = False
watcher.join()
print(json.dumps({"seconds": seconds, "bytes": peak[0] * 1024}))
"""


def write_pool(path: Path, n_lines: int) -> Path:
    """Write a pool of distinct rows."""
    choose = random.Random(0)
    with path.open("w") as lines:
        for number in range(n_lines):
            prompt, answer = (" ".join(choose.choices(WORDS, k=count)) for count in (8, 40))
            row = {"id": f"row-{number}", "prompt": prompt, "completion": answer, "source": f"s{number % 50}"}
            lines.write(json.dumps({**row, "size": [number]}) + "\n")
    return path


def measure(python: str, folder: Path, pool: Path, features: str) -> dict[str, float]:
    """Return seconds and peak bytes of one run."""
    done = subprocess.run(
        [python, "-c", RUN, str(folder), str(pool), features], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{python} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--memory-lines", type=int, help="lines of the run that measures memory; as --lines")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--against", metavar="PYTHON")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tiny.write_model(folder / "model")
        tiny.write_rows(folder / "dev.jsonl", tiny.rows(6, seed=3))
        pool = write_pool(folder / "pool.jsonl", options.lines)
        seconds: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for python in filter(None, (sys.executable, options.against)):
                seconds.setdefault(python, []).append(measure(python, folder, pool, "default")["seconds"])
        ours = min(seconds[sys.executable])
        print(f"{options.lines:,} lines: first draw after {ours:.1f} s", flush=True)
        if options.against:
            ratio = ours / min(seconds[options.against])
            print(f"{ratio:.2f} of {options.against}", flush=True)
            case = f"first draw, {options.lines:,} lines"
            rows.append({"case": case, "ratio_to": "version 0.1", "ratio": round(ratio, 3)})
        n_lines = options.memory_lines or options.lines
        few = measure(sys.executable, folder, write_pool(folder / "few.jsonl", FEW), "column")
        many = measure(sys.executable, folder, write_pool(pool, n_lines), "column")
        held = (many["bytes"] - few["bytes"]) / (n_lines - FEW)
        print(f"memory: {held:.0f} bytes a line over {n_lines:,} lines")
        rows.append({"case": f"memory, {n_lines:,} lines", "ratio_to": "lines", "ratio": round(held, 1)})
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
