"""Write a larger pool than the demo's, and a target of eight subtasks, for replays on recorded scores.

    python benchmarks/real_pool.py FOLDER

The samples come out of the same wheel, under the same terms (`clusterucb.demo.sources`): up to 108 of each
source, of which 8 are held out for the target where the source is one of its subtasks. Some of the subtasks
make one target: `benchmarks/strategies.py` joins them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from zipfile import ZipFile

import msgspec

from clusterucb.demo.pool import rows_of
from clusterucb.demo.sources import SOURCES, WHEEL
from clusterucb.demo.wheels import fetch
from clusterucb.progress import Screen

SUBTASKS = {
    "food",
    "nth-word",
    "escher-sentences",
    "social-iqa",
    "recurrences",
    "born-first",
    "date-in-words",
    "formal-logic",
}
N_TARGET = 8
N_POOL = 100


def main(folder: Path) -> None:
    pool, target = [], []
    with ZipFile(fetch(WHEEL, Screen())) as archive:
        for source in SOURCES:
            rows = rows_of(archive, source)
            held_out = N_TARGET if source.name in SUBTASKS else 0
            target += [{**row, "subtask": source.name} for row in rows[:held_out]]
            pool += rows[held_out : held_out + N_POOL]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("pool.jsonl", pool), ("target.jsonl", target)):
        (folder / name).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    print(f"{len(pool)} samples of {len(SOURCES)} sources, {len(target)} target samples in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
