"""The target's rows may have another shape than the pool's, and other columns."""

from __future__ import annotations

from pathlib import Path

import pytest

import clusterucb as cu
from clusterucb.errors import OptionError
from helpers.tiny import read_rows, rows, write_model, write_rows

OPTIONS = {"budget": "100%", "select": 3, "warmup_steps": 1}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_rows(tmp_path / "pool.jsonl", rows(12))
    write_rows(tmp_path / "dev.jsonl", rows(4, seed=3))
    return tmp_path


def select(job: Path, name: str, pool: str = "pool.jsonl", target: str = "dev.jsonl", **options):
    cu.select(job / pool, job / target, model=job / "model", out=job / name, **OPTIONS, **options)
    return {row["id"]: row["score"] for row in read_rows(job / name / "scores.jsonl")}


def test_columns_of_the_target_alone(job: Path) -> None:
    expected = select(job, "expected")
    renamed = [{"q": row["prompt"], "a": row["completion"]} for row in rows(4, seed=3)]
    write_rows(job / "other.jsonl", renamed)
    columns = {"prompt": "q", "completion": "a"}
    assert select(job, "run", target="other.jsonl", target_columns=columns) == expected
    with pytest.raises(OptionError, match="--target-columns names nope, which no row has"):
        select(job, "none", target="other.jsonl", target_columns={**columns, "source": "nope"})


def test_columns_of_the_pool_do_not_bind_the_target(job: Path) -> None:
    expected = select(job, "expected")
    renamed = [{"id": row["id"], "q": row["prompt"], "a": row["completion"]} for row in rows(12)]
    write_rows(job / "other.jsonl", renamed)
    columns = {"prompt": "q", "completion": "a"}
    assert select(job, "run", pool="other.jsonl", columns=columns) == expected
    assert select(job, "own", pool="other.jsonl", columns=columns, target_columns={}) == expected
    with pytest.raises(OptionError, match="--columns names nope, which no row has"):
        select(job, "none", columns={"source": "nope"}, target_columns={})


def test_a_shape_of_the_target_alone(job: Path) -> None:
    expected = select(job, "expected")
    turns = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in rows(4, seed=3)
    ]
    write_rows(job / "turns.jsonl", turns)
    given = {"target": "turns.jsonl", "format": "prompt-completion"}
    assert select(job, "run", **given, target_format="auto") == expected
    assert select(job, "named", **given, target_format="messages") == expected
