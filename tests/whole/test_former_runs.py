"""Folders that version 0.1 wrote are taken up: see tests/data/make_former_runs.py."""

import json
import os
import shutil
from pathlib import Path

import pytest

import clusterucb as cu
from helpers.tiny import read_rows

FORMER = Path(__file__).parents[1] / "data" / "former"
COMMON = {"warmup_steps": 5, "batch_size": 4}
pytestmark = pytest.mark.filterwarnings("ignore:the run in .* was started with other versions")


@pytest.fixture
def former(tmp_path, monkeypatch):
    folder = tmp_path / "former"
    shutil.copytree(FORMER, folder)
    monkeypatch.setenv("CLUSTERUCB_CACHE", str(folder / "cache"))
    return folder


def job(folder, out):
    return {
        "pool": folder / "pool.jsonl",
        "target": folder / "dev.jsonl",
        "model": folder / "model",
        "out": folder / out,
    }


def draws(folder):
    """Return ids of the draws, in their order."""
    return [row["id"] for row in read_rows(folder / "scores.jsonl")]


def test_a_finished_run_is_shown_as_it_is(former):
    before = {
        name: (former / "finished" / name).read_bytes()
        for name in ("selected.jsonl", "scores.jsonl", "rejected.jsonl", "ledger.sqlite")
    }
    said = []
    cu.select(
        **job(former, "finished"),
        select="10%",
        **COMMON,
        observer=lambda text, done, total: said.append(text),
    )
    assert any("is finished" in text for text in said)
    assert {name: (former / "finished" / name).read_bytes() for name in before} == before


def test_an_interrupted_run_goes_on_from_its_draws(former):
    before = draws(former / "interrupted")
    result = cu.select(**job(former, "interrupted"), budget="50%", policy=cu.UCB(beta=0.5), **COMMON)
    anew = cu.select(**job(former, "anew"), budget="50%", policy=cu.UCB(beta=0.5), **COMMON)
    after = draws(former / "interrupted")
    assert 0 < len(before) < len(after) == 20
    assert after[: len(before)] == before
    assert after == draws(former / "anew")
    assert result.ids == anew.ids
    assert result.scores == pytest.approx(anew.scores, rel=1e-4)


def test_a_larger_budget_goes_on_from_a_finished_run(former):
    before = draws(former / "finished")
    cu.select(**job(former, "finished"), budget="40%", **COMMON)
    after = draws(former / "finished")
    assert len(after) == 16
    assert after[: len(before)] == before


def test_a_changed_strategy_is_refused_by_name(former):
    with pytest.raises(cu.ClusterUCBError, match=r"--policy was UCB\(beta=0.5\), now UCB\(beta=1.0\)"):
        cu.select(**job(former, "interrupted"), budget="50%", policy=cu.UCB(), **COMMON)


def test_a_store_is_finished_and_serves_selections(former):
    time = os.stat(former / "store/sketches-00000.safetensors").st_mtime_ns
    store = cu.sketch(
        former / "pool.jsonl", model=former / "model", out=former / "store", warmup_steps=5, sketch_dim=256
    )
    assert len(store) == 40
    assert os.stat(former / "store/sketches-00000.safetensors").st_mtime_ns == time
    before = draws(former / "stored")
    job_ = {**job(former, "stored"), "store": former / "store", "batch_size": 4}
    cu.select(**job_, select="10%")
    assert draws(former / "stored") == before
    cu.select(**job_, budget="40%")
    assert draws(former / "stored")[: len(before)] == before


def test_a_store_learns_its_samples_and_then_grows(former):
    """It serves another pool once the pool that it was made for has been sketched again, which computes nothing."""
    pool = read_rows(former / "pool.jsonl")
    grown = [*pool[::-1], {"prompt": "Where is Rome?", "completion": "Far away."}]
    making = {"model": former / "model", "out": former / "store", "warmup_steps": 5, "sketch_dim": 256}
    with pytest.raises(cu.ClusterUCBError, match="made by a version whose stores do not know their samples"):
        cu.sketch(grown, **making)
    with pytest.raises(cu.ClusterUCBError, match="was made with another pool"):
        cu.select(**{**job(former, "new"), "pool": grown}, store=former / "store")
    assert cu.GradientStore(former / "store").ids == []
    cu.sketch(former / "pool.jsonl", **making)
    store = cu.sketch(grown, **making)
    assert len(store) == 41
    assert sorted(store.ids)[0] != ""
    assert [len(shard) for shard in store.kept.samples] == [40, 1]


def test_runs_and_stores_are_priors(former):
    result = cu.select(**job(former, "new"), prior=[former / "finished", former / "store"], **COMMON)
    assert len(result) == 2


def test_a_comparison_goes_on_with_its_features_and_scores(former):
    before = json.loads((former / "compared/comparison.json").read_text())
    written = {path: path.stat().st_mtime_ns for path in former.glob("compared/features-*/*")}
    assert written
    strategies = [cu.Contender("random", cu.Random()), cu.Contender("ucb", cu.UCB(), cu.KMeans(n_clusters=4))]
    compared = cu.compare(
        **job(former, "compared"),
        scores=former / "scored",
        strategies=strategies,
        budgets=("20%", "50%"),
        seeds=2,
        select="10%",
        **COMMON,
    )
    for strategy, old in zip(compared.content["strategies"], before["strategies"], strict=True):
        assert [one["recall"] for one in strategy["points"]] == [one["recall"] for one in old["points"]]
        assert [one["cost"] for one in strategy["points"]] == [one["cost"] for one in old["points"]]
    now = {path: path.stat().st_mtime_ns for path in former.glob("compared/features-*/*")}
    assert list(now.values()) == list(written.values())


def test_a_cache_stays_usable(former):
    entries = set((former / "cache/features").glob("*/entry.json"))
    assert entries
    cu.select(**job(former, "cached"), **COMMON)
    assert entries <= set((former / "cache/features").glob("*/entry.json"))
