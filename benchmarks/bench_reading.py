"""Time `read_pool` on millions of lines against a plain loop, and compare its memory with the size of the file.

    python benchmarks/bench_reading.py [--lines 5000000] [--only TEXT] [--json FILE]

The bench writes four kinds of pools to a temporary folder (TMPDIR): all rows distinct, each row twice, each id twice,
and all rows but one unusable. The floor is a loop that decodes each line of JSON and hashes its content, because every
reader that detects duplicates has to do that. The loop and `read_pool` run one after the other, on the same file, in
one process. Memory is the process's largest anonymous memory (RssAnon). It excludes pages of files, which the system
can reclaim.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec

from clusterucb.samples.pool import read_pool

Row = dict[str, str | int]
WORDS = [f"word{number}" for number in range(1000)]


def distinct(number: int) -> Row:
    choose = random.Random(number)
    prompt, answer = (" ".join(choose.choices(WORDS, k=count)) for count in (8, 40))
    return {"id": f"row-{number}", "prompt": prompt, "completion": answer, "source": f"s{number % 50}"}


def twice(number: int) -> Row:
    return distinct(number // 2)


def ids_twice(number: int) -> Row:
    return {**distinct(number), "id": f"row-{number // 2}"}


def unusable(number: int) -> Row:
    row = distinct(number)
    return row if number == 0 else {**row, "completion": number}


# For each kind of pool, the function that makes a row, and the share of rows that become samples.
POOLS: dict[str, tuple[Callable[[int], Row], float]] = {
    "distinct": (distinct, 1),
    "each twice": (twice, 0.5),
    "each id twice": (ids_twice, 0.5),
    "unusable but for one": (unusable, 0),
}


def floor(path: Path) -> int:
    seen = 0
    with path.open("rb") as lines:
        for line in lines:
            row = msgspec.json.decode(line)
            hashlib.sha256(msgspec.json.encode((row["prompt"], row["completion"]))).digest()
            seen += 1
    return seen


class Peak:
    """Records the largest RssAnon while a block runs, in bytes."""

    def __enter__(self) -> Peak:
        self.bytes, self._running = 0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()

    def _watch(self) -> None:
        while self._running:
            status = Path("/proc/self/status").read_text()
            kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, int(kilobytes) * 1024)
            time.sleep(0.1)


def measure(path: Path, n_lines: int, pool: str) -> list[dict[str, str | float]]:
    """Read one kind of pool and return the ratios of its time and its memory."""
    row, share = POOLS[pool]
    with path.open("w") as lines:
        lines.writelines(json.dumps(row(number)) + "\n" for number in range(n_lines))
    size = path.stat().st_size
    began = time.perf_counter()
    assert floor(path) == n_lines
    plain = time.perf_counter() - began
    with Peak() as before:
        time.sleep(0.3)
    began = time.perf_counter()
    with Peak() as peak:
        read = read_pool(path)
    seconds, held = time.perf_counter() - began, peak.bytes - before.bytes
    assert len(read.samples) == max(share * n_lines, 1)
    assert len(read.rejected) == n_lines - len(read.samples)
    assert read.samples[len(read.samples) // 2].source.startswith("s")
    print(
        f"{pool}: {n_lines:,} lines, {size / 1e9:.2f} GB: {seconds:.0f} s; decoding and hashing alone {plain:.0f} s; "
        f"memory {held / 1e6:.0f} MB, {held / n_lines:.0f} bytes a line, {held / size:.2f} of the file",
        flush=True,
    )
    case = f"{n_lines:,} lines, {pool}"
    return [
        {"case": f"read_pool {case}", "ratio_to": "decode and hash", "ratio": round(seconds / plain, 3)},
        {"case": f"memory {case}", "ratio_to": "size of the file", "ratio": round(held / size, 4)},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=5_000_000)
    parser.add_argument("--only", default="", help="only pools whose name contains this text")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh,
    ):
        path = Path(folder) / "pool.jsonl"
        for pool in POOLS:
            if arguments.only in pool:
                rows += fresh.submit(measure, path, arguments.lines, pool).result()
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
