"""Scores of an earlier run as something to predict new ones by."""

from __future__ import annotations

import json

import numpy as np
import pytest

import clusterucb as cu
from clusterucb.engine.components import MAX_DIM
from clusterucb.errors import OptionError, RunError
from clusterucb.jobs.stages.prior import EarlierScores, components, filled
from clusterucb.run.pool_sketches import PoolSketches
from helpers.searching import search
from helpers.selections import N, arguments, results, write_job
from helpers.tiny import interrupt, rows, write_rows

NONE = np.zeros((0, 32), np.uint8)  # content hashes that nobody reads


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"))


def noisy(n_rows=300, seed=0):
    """Return features that say nothing, scores f64[N, 1], and others f64[N, 2] that go with them."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n_rows, 1))
    earlier = np.hstack([scores + 0.2 * rng.normal(size=(n_rows, 1)), rng.normal(size=(n_rows, 1))])
    return rng.normal(size=(n_rows, 3)).astype(np.float32), scores, earlier


def found(features, scores, **options):
    options = {
        "clusterer": cu.KMeans(n_clusters=10),
        "policy": cu.Surrogate(),
        "budget": len(scores) // 5,
        "n_select": len(scores) // 20,
        **options,
    }
    return search(features, lambda drawn: scores[drawn], **options)


def recall(selection, scores):
    best = np.argsort(-scores[:, 0])[: len(scores) // 20]
    return np.isin(best, selection.rows).mean()


def test_scores_that_go_with_the_new_ones_are_found_by():
    with_prior, without = [], []
    for seed in range(3):
        features, scores, earlier = noisy(seed=seed)
        with_prior.append(recall(found(features, scores, prior=earlier), scores))
        without.append(recall(found(features, scores), scores))
    assert np.mean(with_prior) > 0.8
    assert np.mean(without) < 0.5


@pytest.mark.parametrize(("n_rows", "budget", "n_random"), [(300, 30, 3), (300, 60, 10), (2000, 400, 40)])
def test_estimates_of_the_very_scores_leave_little_to_chance(n_rows, budget, n_random):
    features, scores, earlier = noisy(n_rows)
    options = {"budget": budget, "n_select": 15, "watch": lambda _: None}
    told = found(features, scores, prior={"estimates": earlier[:, :1]}, **options)
    chance = told.drawn_probability[~np.isnan(told.drawn_probability)]
    assert chance.tolist() == [n_random / n_rows] * n_random  # of the whole pool, whatever the arms
    assert (told.recall is None) == (n_random < 10)
    by_arm = found(features, scores, prior={"scores": earlier[:, :1]}, **options)
    assert np.count_nonzero(~np.isnan(by_arm.drawn_probability)) > n_random
    options |= {"policy": cu.UCB(), "watch": None}
    unmoved = found(features, scores, prior={"estimates": earlier[:, :1]}, **options)
    assert unmoved.drawn_rows.tolist() == found(features, scores, **options).drawn_rows.tolist()


def test_clusterers_do_not_see_them():
    features, scores, earlier = noisy()
    assert found(features, scores, prior=earlier).labels.tolist() == found(features, scores).labels.tolist()


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (np.zeros((299, 2)), "prior 'scores' has 299 rows; expected 300, one for each sample"),
        (np.zeros(300), "prior block 'scores' has shape"),
        (np.full((300, 1), np.nan), "prior block 'scores' holds NaN or infinity"),
    ],
)
def test_every_sample_has_one(prior, message):
    features, scores, _ = noisy()
    with pytest.raises(OptionError, match=message):
        found(features, scores, prior=prior)


def test_what_is_not_known_is_predicted():
    rng = np.random.default_rng(0)
    place = rng.uniform(-1, 1, size=(200, 2)).astype(np.float32)
    scores = np.stack([place[:, 0], -place[:, 1]], axis=1).astype(np.float64)
    known = rng.permutation(200)[:80]
    every = filled(known, scores[known], {"place": place}, {})
    assert every.dtype == np.float32
    np.testing.assert_array_equal(every[known], scores[known].astype(np.float32))
    assert np.abs(every - scores).mean() < 0.1
    np.testing.assert_array_equal(
        filled(np.arange(200), scores, {"place": place}, {}), scores.astype(np.float32)
    )


def test_an_earlier_run_is_read_by_the_samples_ids(job):
    earlier = EarlierScores(job / "done")
    lines = [json.loads(line) for line in (job / "done" / "scores.jsonl").read_text().splitlines()]
    assert earlier.subtasks == list(lines[0]["subtasks"])
    known = earlier.of_pool(["nobody", lines[3]["id"], lines[1]["id"]], NONE, {})
    assert known.description.startswith("2 of 3 samples have scores in ")
    block = known.block({"place": np.arange(3, dtype=np.float32)[:, None]}, {})
    np.testing.assert_allclose(
        block[1:], [list(lines[place]["subtasks"].values()) for place in (3, 1)], rtol=1e-6
    )
    with pytest.raises(OptionError, match="has scored 18 samples, but none of this pool"):
        earlier.of_pool(["nobody"], NONE, {})


def test_a_run_learns_from_another_and_goes_on_to_the_same_bytes(job, tmp_path, monkeypatch):
    write_rows(tmp_path / "dev.jsonl", rows(5, seed=4))
    write_rows(tmp_path / "pool.jsonl", rows(N + 30))  # an extension of the pool that was scored

    def selected(out, **changes):
        options = {"pool": tmp_path / "pool.jsonl", "target": tmp_path / "dev.jsonl", "prior": job / "done"}
        return cu.select(**{**arguments(job, tmp_path / out), **options, **changes})

    said = []
    whole = selected("whole", observer=lambda text, done, total: said.append(text))
    assert any(text.startswith(f"18 of {N + 30} samples have scores in ") for text in said)
    assert whole.manifest.identity.contents["prior"] == [EarlierScores(job / "done").fingerprint]
    interrupt(monkeypatch, {2})
    with pytest.raises(KeyboardInterrupt):
        selected("cut")
    monkeypatch.undo()
    selected("cut")
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    with pytest.raises(RunError, match="prior content"):
        selected("cut", prior=tmp_path / "whole")
    with pytest.raises(OptionError, match="--prior is given, but UCB does not predict scores"):
        selected("ucb", policy=cu.UCB())


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"not json\n",
        b'{"id": "a"}\n',
        b'{"id": "a\xff", "subtasks": {"x": 1.0}}\n',
        b'{"id": "a", "subtasks": {"x": 1.0}}\n{"id": "b", "subtasks": {"y": 1.0}}\n',
        b'{"id": "a", "subtasks": {"x": "1.0"}}\n',
        b"[" * 100_000,
    ],
)
def test_what_is_no_run_is_refused(job, tmp_path, content):
    if content is not None:
        (tmp_path / "scores.jsonl").write_bytes(content)
    with pytest.raises(RunError, match=r"expected the --out of an earlier job|has scored nothing|is damaged"):
        cu.select(**arguments(job, tmp_path / "run", prior=tmp_path))
    assert not (tmp_path / "run").exists()


def test_there_is_none_in_a_comparison(job, tmp_path):
    files = {"pool": job / "pool.jsonl", "target": job / "dev.jsonl", "model": job / "model"}
    one = cu.Contender("one", cu.Surrogate())
    with pytest.raises(OptionError, match="there is no option 'prior'"):
        cu.compare(**files, out=tmp_path / "c", strategies=[one], prior=job / "done")


def test_a_store_of_another_checkpoint_is_learnt_from(job, tmp_path):
    files = {"pool": job / "pool.jsonl", "model": job / "model"}
    store = cu.sketch(**files, out=tmp_path / "store", warmup_steps=1, sketch_dim=256)
    said = []
    result = cu.select(
        **arguments(job, tmp_path / "run", prior=[job / "done", store.folder]),
        observer=lambda text, done, total: said.append(text),
    )
    assert any(text.startswith(f"18 of {N} samples have scores in ") for text in said)
    assert f"{N} samples have sketches in {store.folder}" in said
    fingerprints = [EarlierScores(job / "done").fingerprint, store.fingerprint]
    assert result.manifest.identity.contents["prior"] == fingerprints
    block = components(PoolSketches(store, np.arange(len(store))))
    sketches = store.rows(range(N)).astype(np.float64)
    centred = sketches - sketches.mean(axis=0)
    lengths = np.linalg.svd(centred, compute_uv=False)[: block.shape[1]]
    assert block.shape == (N, MAX_DIM)
    np.testing.assert_allclose(np.linalg.svd(block, compute_uv=False), lengths, rtol=0.05)
    grown = {**arguments(job, tmp_path / "grown", prior=store.folder), "pool": tmp_path / "pool.jsonl"}
    write_rows(tmp_path / "pool.jsonl", rows(N + 30))
    cu.select(**grown, observer=lambda text, done, total: said.append(text))
    assert f"{N} of {N + 30} samples have sketches in {store.folder}" in said
    write_rows(tmp_path / "pool.jsonl", [{**row, "completion": "Yes."} for row in rows(30)])
    with pytest.raises(
        OptionError, match="is a gradient store of another pool; expected a store that holds samples of this"
    ):
        cu.select(**{**grown, "out": tmp_path / "no"})
    assert not (tmp_path / "no").exists()
