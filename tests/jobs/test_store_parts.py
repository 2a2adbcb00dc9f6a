"""A pool that a gradient store covers in part: the rest is scored exactly, within the budget, and is charged."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

import clusterucb as cu
from clusterucb.errors import OptionError, RunError
from helpers.selections import results
from helpers.stores import TRIED, count_gradients
from helpers.tiny import interrupt, read_rows, rows, write_model, write_rows

HELD, ALL = 40, 50
TARGET = 5


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Return a folder with a model, a target, and a store of the first rows."""
    folder = tmp_path_factory.mktemp("parts")
    write_model(folder / "model")
    write_rows(folder / "dev.jsonl", rows(TARGET, seed=9))
    make(folder, rows(HELD), folder / "store")
    return folder


def make(job, pool, out):
    return cu.sketch(pool, model=job / "model", out=out, warmup_steps=2, sketch_dim=256)


def select(job, out, **changes):
    options = {"store": job / "store", "select": "4", **changes}
    return cu.select(
        options.pop("pool", rows(ALL)), job / "dev.jsonl", model=job / "model", out=out, **options
    )


def scores(folder):
    return {line["id"]: line["subtasks"] for line in read_rows(folder / "scores.jsonl")}


def new_ids():
    return {row["id"] for row in rows(ALL)[HELD:]}


def test_what_the_store_lacks_is_scored_exactly_and_charged(job, tmp_path, monkeypatch):
    sizes, said = count_gradients(monkeypatch), []
    result = select(
        job,
        tmp_path / "run",
        scorer="sketch",
        budget="20%",
        observer=lambda text, done, total: said.append(text),
    )
    assert sum(sizes) == TRIED + TARGET + ALL - HELD
    assert f"The gradient store {job / 'store'} covers 40 of 50 samples; 10 are not covered" in said
    assert result.selection.n_scored == ALL
    assert result.cost.phases["draws"].gradients == ALL - HELD
    assert result.to_json()["pool_unsketched"] == ALL - HELD
    stored = scores(select(job, tmp_path / "part", scorer="sketch", pool=rows(HELD)).out)
    whole = {"store": None, "adapter": job / "store" / "adapter", "budget": "100%"}
    exact = scores(select(job, tmp_path / "exact", **whole).out)
    for name, found in scores(tmp_path / "run").items():
        if name in new_ids():
            assert found == pytest.approx(exact[name], abs=1e-6)
        else:
            assert found == stored[name]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("9", "expected at least 10"),
        ("10tok", r"expected at least \d+ tokens"),
        ("1h", "expected a number of"),
    ],
)
def test_a_budget_that_does_not_cover_the_rest_is_refused(job, tmp_path, budget, expected):
    with pytest.raises(OptionError, match=f"10 samples of the pool, which the gradient store .* {expected}"):
        select(job, tmp_path / "run", scorer="sketch", budget=budget)
    with pytest.raises(OptionError, match=expected):
        cu.plan(
            rows(ALL),
            job / "dev.jsonl",
            model=job / "model",
            store=job / "store",
            scorer="sketch",
            budget=budget,
        )
    assert not (tmp_path / "run").exists()


def test_exact_scoring_keeps_the_budget_and_resumes_to_the_same_bytes(job, tmp_path, monkeypatch):
    sizes = count_gradients(monkeypatch)
    whole = select(job, tmp_path / "whole", budget="40%")
    assert sum(sizes) == TRIED + TARGET + 20
    assert whole.cost.phases["draws"].gradients == 20
    estimates = load_file(tmp_path / "whole" / "estimates.safetensors")["estimates"]
    assert estimates.shape == (ALL, 1)
    assert (estimates != 0).all()
    interrupt(monkeypatch, {1})
    with pytest.raises(KeyboardInterrupt):
        select(job, tmp_path / "cut", budget="40%")
    monkeypatch.undo()
    select(job, tmp_path / "cut", budget="40%")
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_a_policy_that_clusters_by_sketches_takes_a_part(job, tmp_path):
    result = select(job, tmp_path / "run", policy=cu.UCB(), budget="50%")
    assert result.cost.phases["features"].gradients == 0
    assert result.selection.n_scored == 25


def test_scores_and_comparisons_of_the_whole_pool_compute_the_rest(job, tmp_path, monkeypatch):
    sizes = count_gradients(monkeypatch)
    arguments = (rows(ALL), job / "dev.jsonl")
    found = cu.score(*arguments, model=job / "model", store=job / "store")
    assert np.isfinite(found.values).all()
    assert sum(sizes) == TRIED + TARGET + ALL - HELD
    one = cu.Contender("surrogate", cu.Surrogate())
    options = {"strategies": [one], "budgets": ["20%"], "seeds": 1, "select": "4", "store": job / "store"}
    cu.compare(*arguments, model=job / "model", out=tmp_path / "c", **options)
    assert sum(sizes) == 2 * (TRIED + TARGET + ALL - HELD)


def test_a_plan_counts_the_gradients_of_the_rest(job):
    planned = cu.plan(
        rows(ALL), job / "dev.jsonl", model=job / "model", store=job / "store", scorer="sketch", budget="20%"
    )
    assert planned.cost.phases["draws"].gradients == ALL - HELD


def test_a_run_is_not_resumed_once_the_store_holds_more(job, tmp_path):
    store = make(job, rows(HELD), tmp_path / "store")
    select(job, tmp_path / "run", store=store.folder, scorer="sketch")
    make(job, rows(ALL), store.folder)
    with pytest.raises(RunError, match="the store content has changed"):
        select(job, tmp_path / "run", store=store.folder, scorer="sketch")
    whole = select(job, tmp_path / "again", store=store.folder, scorer="sketch")
    assert whole.cost.phases["draws"].gradients == 0


def test_a_store_without_any_of_the_pool_is_refused(job, tmp_path):
    pool = [{**row, "completion": "Nothing else."} for row in rows(5)]
    with pytest.raises(
        OptionError, match="covers 0 of 5 samples; 5 are not covered; expected a store of this pool"
    ):
        select(job, tmp_path / "run", pool=pool)
    assert not (tmp_path / "run").exists()
