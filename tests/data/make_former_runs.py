"""Writes tests/data/former/: folders as version 0.1 (commit e55d48e) wrote them, which every later version takes up.

Run by that version's Python, from the root of a clone of it, with this file and a folder to write to:

    python make_former_runs.py FOLDER

It needs that clone's tests/ (`tiny.py`). The folder then holds a job (`model`, `pool.jsonl`, `dev.jsonl`), and what
each command makes of it: `finished` and `interrupted` selections, a gradient `store`, a selection `stored` with its
help, a run `scored` that has scored the whole pool, a comparison `compared`, and the `cache` of features.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd() / "tests"))
FOLDER = Path(sys.argv[1])
os.environ["CLUSTERUCB_CACHE"] = str(FOLDER / "cache")

import tiny  # noqa: E402

import clusterucb as cu  # noqa: E402

COMMON = {"warmup_steps": 5, "batch_size": 4}


def job(out: str) -> dict[str, object]:
    """Return the arguments that every command gets."""
    paths = {"pool": "pool.jsonl", "model": "model", "out": out}
    return {name: FOLDER / path for name, path in paths.items()}


def interrupt_draws(passes: int) -> None:
    """Let a selection end, as Ctrl-C ends it, after so many passes over the pool's samples."""
    compute, left = cu.engine.search.__globals__["_State"].add, iter(range(passes))

    def add(self, batch, score):
        if batch.scores is None and next(left, None) is None:
            raise KeyboardInterrupt
        return compute(self, batch, score)

    cu.engine.search.__globals__["_State"].add = add
    try:
        cu.select(
            target=FOLDER / "dev.jsonl", budget="50%", policy=cu.UCB(beta=0.5), **COMMON, **job("interrupted")
        )
    except KeyboardInterrupt:
        pass
    finally:
        cu.engine.search.__globals__["_State"].add = compute


def main() -> None:
    """Write all of them."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    tiny.write_job(FOLDER)
    target = {"target": FOLDER / "dev.jsonl"}
    cu.select(**target, select="10%", **COMMON, **job("finished"))
    interrupt_draws(3)
    cu.sketch(warmup_steps=5, sketch_dim=256, **job("store"))
    cu.select(**target, store=FOLDER / "store", batch_size=4, select="10%", **job("stored"))
    cu.select(**target, budget="100%", policy=cu.Exhaustive(), select="10%", **COMMON, **job("scored"))
    cu.compare(
        **target,
        scores=FOLDER / "scored",
        strategies=[
            cu.Contender("random", cu.Random()),
            cu.Contender("ucb", cu.UCB(), cu.KMeans(n_clusters=4)),
        ],
        budgets=("20%", "50%"),
        seeds=2,
        select="10%",
        **COMMON,
        **job("compared"),
    )
    for lock in FOLDER.rglob("lock"):
        lock.unlink()


main()
