"""A selection from a large pool: the order of lines changes nothing; an interrupted run goes on to the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

import clusterucb as cu
from clusterucb.engine import large
from clusterucb.run.kept_files import load_arrays
from helpers.selections import arguments, results, write_job
from helpers.tiny import interrupt


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "LARGE", 50)
        patch.setattr("clusterucb.engine.regression._FIRST", (32, 20))
        folder = write_job(tmp_path_factory.mktemp("job"))
        cu.select(**arguments(folder, "large", **OPTIONS))
    return folder


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(large, "LARGE", 50)
    monkeypatch.setattr("clusterucb.engine.regression._FIRST", (32, 20))


OPTIONS = {"budget": "50%", "select": "10%"}


def test_the_features_of_a_large_pool_are_in_half_precision(job):
    stored = load_arrays(job / "large" / "features-00000.safetensors")
    assert {name: block.dtype for name, block in stored.items()} == dict.fromkeys(
        ("prompt", "answer", "length"), np.float16
    )


def test_the_order_of_lines_changes_no_selection_from_a_large_pool(job, tmp_path):
    lines = (job / "pool.jsonl").read_text().splitlines()
    np.random.default_rng(0).shuffle(lines)
    (tmp_path / "pool.jsonl").write_text("\n".join(lines) + "\n")
    found = cu.select(**arguments(job, tmp_path / "run", **{**OPTIONS, "pool": tmp_path / "pool.jsonl"}))
    expected = results(job / "large")
    del expected["rejected.jsonl"]  # it names lines
    assert {name: (found.out / name).read_bytes() for name in expected} == expected


def test_an_interrupted_selection_from_a_large_pool_goes_on_to_the_same_bytes(job, tmp_path, monkeypatch):
    for number in (1, 6, 3):
        with monkeypatch.context() as patch:
            interrupt(patch, (number,))
            with pytest.raises(KeyboardInterrupt):
                cu.select(**arguments(job, tmp_path / "run", **OPTIONS))
    done = cu.select(**arguments(job, tmp_path / "run", **OPTIONS))
    assert results(done.out) == results(job / "large")
