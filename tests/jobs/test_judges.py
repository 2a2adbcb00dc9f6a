"""Target samples that are held out have no part in a selection."""

from __future__ import annotations

import json

import pytest

import clusterucb as cu
from clusterucb.samples.pool import read_target
from helpers.selections import arguments, write_job
from helpers.tiny import rows, write_rows


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = write_job(tmp_path_factory.mktemp("job"))
    write_rows(folder / "dev.jsonl", [{**row, "subtask": row["source"]} for row in rows(24, seed=9)])
    return folder


def test_judges_have_no_part_in_a_selection_and_are_named(job, tmp_path):
    given = arguments(job, tmp_path / "run")
    result = cu.select(**given, hold_out="50%")
    inputs, target = result.manifest.inputs, read_target(given["target"])
    judges = {name for names in inputs.judges.values() for name in names}
    assert set(inputs.judges) == set(result.subtasks)
    assert len(judges) + inputs.target_samples == len(target.samples)
    choosing = [
        {**json.loads(sample.raw), "subtask": sample.subtask}
        for sample in target.samples
        if sample.id not in judges
    ]
    alone = cu.select(**{**given, "target": choosing, "out": tmp_path / "alone"})
    assert (alone.ids, alone.scores.tolist()) == (result.ids, result.scores.tolist())
    with pytest.raises(cu.ClusterUCBError, match="--hold-out was 50%, now unset"):
        cu.select(**given)


def test_judges_that_stand_in_the_pool_are_warned_of(job, tmp_path):
    given = arguments(job, tmp_path / "run")
    target = [json.loads(line) for line in given["target"].read_text().splitlines()]
    pool = [json.loads(line) for line in given["pool"].read_text().splitlines() if line.startswith("{")]
    with pytest.warns(cu.ClusterUCBWarning, match=r"\d+ of 13 judges also stand in the pool, the first at"):
        cu.plan(
            [*pool, *({**row, "id": f"judge-{number}"} for number, row in enumerate(target[:12]))],
            target,
            model=given["model"],
            hold_out="50%",
        )


@pytest.mark.parametrize("share", ["7", "100%", "half", ""])
def test_a_share_to_hold_out_is_below_the_whole(job, tmp_path, share):
    with pytest.raises(cu.ClusterUCBError, match="--hold-out is"):
        cu.select(**arguments(job, tmp_path / "run"), hold_out=share)
    assert not (tmp_path / "run").exists()
