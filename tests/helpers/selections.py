"""A selection job with bad lines and several subtasks, its arguments, and the files that it writes."""

from __future__ import annotations

import json

import clusterucb as cu
from helpers.tiny import rows, write_model, write_rows

RESULTS = ("selected.jsonl", "scores.jsonl", "rejected.jsonl")
N = 90  # samples of the pool; a budget of 20 % is 18, a selection of 5 % is 4


def write_job(folder):
    """Write and return a folder with a model, a pool and a target, and a finished run in ``done``."""
    write_model(folder / "model")
    bad = ['{"prompt": "no answer"}', "not json", '{"prompt": "blank", "completion": "  "}']
    lines = [json.dumps(row) for row in rows(N)]
    (folder / "pool.jsonl").write_text("\n".join([*lines[:40], *bad, *lines[40:]]) + "\n")
    write_rows(folder / "dev.jsonl", [{**row, "subtask": row["source"]} for row in rows(12, seed=9)])
    cu.select(**arguments(folder, "done"))
    return folder


def arguments(folder, out, **changes):
    return {
        "pool": folder / "pool.jsonl",
        "target": folder / "dev.jsonl",
        "model": folder / "model",
        "out": folder / out,
        "warmup_steps": 5,
        "batch_size": 4,
        **changes,
    }


def results(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}
