"""Read a pool of millions of lines: time against a plain loop over them, and memory against their size.

    python benchmarks/bench_reading.py [--lines 5000000] [--json FILE]

The pool is made in a temporary folder (TMPDIR). The floor is a loop that decodes each line of JSON and hashes what it
holds, which everything that tells duplicates apart has to do; both run in turn, on the same file, in the same process.
Memory is the peak of what the process holds itself (RssAnon): pages of files do not count, the system can
take them back.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
import threading
import time
from pathlib import Path

import msgspec

from clusterucb.pool import read_pool

WORDS = [f"word{number}" for number in range(1000)]


def write_pool(path: Path, n_lines: int) -> None:
    choose = random.Random(0)
    with path.open("w") as lines:
        for number in range(n_lines):
            prompt, answer = (" ".join(choose.choices(WORDS, k=count)) for count in (8, 40))
            row = {"id": f"row-{number}", "prompt": prompt, "completion": answer, "source": f"s{number % 50}"}
            lines.write(json.dumps(row) + "\n")


def floor(path: Path) -> int:
    seen = 0
    with path.open("rb") as lines:
        for line in lines:
            row = msgspec.json.decode(line)
            hashlib.sha256(msgspec.json.encode((row["prompt"], row["completion"]))).digest()
            seen += 1
    return seen


class Peak:
    """The largest RssAnon while a block runs, in bytes."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=5_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.jsonl"
        write_pool(path, arguments.lines)
        began = time.perf_counter()
        assert floor(path) == arguments.lines
        plain = time.perf_counter() - began
        with Peak() as before:
            time.sleep(0.3)
        began = time.perf_counter()
        with Peak() as peak:
            pool = read_pool(path)
        seconds = time.perf_counter() - began
        assert len(pool.samples) == arguments.lines
        assert pool.samples[arguments.lines // 2].source.startswith("s")
        size, held = path.stat().st_size, peak.bytes - before.bytes
    rows = [
        {
            "case": f"read_pool {arguments.lines:,} lines",
            "ratio_to": "decode and hash",
            "ratio": seconds / plain,
        },
        {"case": "memory while reading", "ratio_to": "size of the file", "ratio": held / size},
    ]
    print(
        f"{arguments.lines:,} lines, {size / 1e9:.2f} GB: {seconds:.0f} s; decoding and hashing alone {plain:.0f} s"
    )
    print(
        f"memory: {held / 1e6:.0f} MB, {held / arguments.lines:.0f} bytes a line, {held / size:.2f} of the file"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
