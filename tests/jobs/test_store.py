"""A gradient store: written once, whatever happens; then any target is scored without the pool's gradients."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import clusterucb as cu
from clusterucb.cli.main import run
from clusterucb.errors import ClusterUCBWarning, OptionError, RunError
from clusterucb.run import store_shards as shards
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.manifest_file import read_manifest, write_manifest
from clusterucb.run.store_shards import with_failures
from helpers import warm
from helpers.selections import results
from helpers.stores import TRIED, count_gradients
from helpers.tiny import interrupt, read_rows, rows, write_model, write_rows

N = 90
OPTIONS = {"warmup_steps": 5, "sketch_dim": 1024}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Return a folder with a model, a pool, two targets and a store in ``store``."""
    folder = tmp_path_factory.mktemp("store-job")
    write_model(folder / "model")
    lines = [json.dumps(row) for row in rows(N)]
    (folder / "pool.jsonl").write_text("\n".join([*lines, "not json"]) + "\n")
    write_rows(folder / "dev.jsonl", [{**row, "subtask": row["source"]} for row in rows(12, seed=9)])
    write_rows(folder / "other.jsonl", rows(5, seed=10))
    make_store(folder, "store")
    return folder


def make_store(folder, out, **changes):
    options = {**OPTIONS, **changes}
    return cu.sketch(folder / "pool.jsonl", model=folder / "model", out=folder / out, **options)


def select(folder, out, **changes):
    options = {"target": folder / "dev.jsonl", "model": folder / "model", "warmup_steps": 5, **changes}
    options.setdefault("pool", folder / "pool.jsonl")
    return cu.select(out=out, **options)


def files(folder):
    names = ("sketches-*.safetensors", "samples-*.safetensors", "adapter/*", "rejected.jsonl")
    return {path.name: path.read_bytes() for name in names for path in folder.glob(name)}


def test_a_store_has_a_unit_sketch_of_every_sample(job):
    made = cu.GradientStore(job / "store")
    sketches = made.rows(range(N)).astype(np.float64)
    assert sketches.shape == (N, 1024)
    assert np.allclose(np.linalg.norm(sketches, axis=1), 1, atol=0.15)
    assert len(made) == N
    assert made.failures() == {}
    assert [line["line"] for line in read_rows(job / "store" / "rejected.jsonl")] == [N + 1]
    cost = made.manifest.cost
    assert {name: phase.gradients for name, phase in cost.phases.items()} == {"warm-up": 20, "sketches": N}


def test_a_target_is_scored_without_a_gradient_of_the_pool(job, tmp_path, monkeypatch):
    sizes = count_gradients(monkeypatch)
    result = select(job, tmp_path / "run", store=job / "store", scorer="sketch")
    assert sum(sizes) == TRIED + 12  # the target's
    assert result.selection.n_scored == N
    counted = {name: phase.gradients for name, phase in result.cost.phases.items()}
    assert counted == {"features": 0, "target": 12, "clusters": 0, "draws": 0}
    exact = select(job, tmp_path / "exact", adapter=job / "store" / "adapter", budget="100%")
    estimates, truths = (
        {line["id"]: line["subtasks"] for line in read_rows(one.out / "scores.jsonl")}
        for one in (result, exact)
    )
    errors = [
        estimates[name][subtask] - score
        for name, scores in truths.items()
        for subtask, score in scores.items()
    ]
    assert 0 < np.sqrt(np.mean(np.square(errors))) < 1.5 / np.sqrt(1024)
    other = select(job, tmp_path / "other", store=job / "store", target=job / "other.jsonl", scorer="sketch")
    assert sum(sizes) == 3 * TRIED + 12 + 12 + N + 5
    assert other.subtasks != result.subtasks


def test_exact_scores_spend_the_budget_on_clusters_from_the_store(job, tmp_path, monkeypatch):
    sizes = count_gradients(monkeypatch)
    result = select(job, tmp_path / "run", store=job / "store", policy=cu.UCB(), budget="20%")
    assert sum(sizes) == TRIED + 12 + 18
    assert result.selection.n_scored == 18
    assert {name: phase.gradients for name, phase in result.cost.phases.items()}["features"] == 0
    assert not list((tmp_path / "run").glob("features-*"))
    with pytest.warns(ClusterUCBWarning, match="computes a gradient of every pool sample"):
        features = select(
            job,
            tmp_path / "features",
            features=cu.Gradient(),
            policy=cu.UCB(),
            adapter=job / "store" / "adapter",
            sketch_dim=1024,
        )
    assert features.cost.phases["features"].gradients == N
    for name in ("selected.jsonl", "scores.jsonl"):  # the store's half precision does not move a cluster here
        assert (tmp_path / "features" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_sketches_tell_which_samples_are_worth_an_exact_score(job, tmp_path, monkeypatch):
    options = {"store": job / "store", "budget": "20%", "select": "5"}
    exact = select(job, tmp_path / "exact", adapter=job / "store" / "adapter", budget="100%", select="5")
    sizes = count_gradients(monkeypatch)
    whole = select(job, tmp_path / "whole", **options)
    assert sum(sizes) == TRIED + 12 + 18
    assert np.isin(exact.rows, whole.rows).sum() >= 4
    truth = dict(zip(exact.selection.drawn_rows.tolist(), exact.selection.subtask_scores, strict=True))
    expected = [truth[row] for row in whole.selection.drawn_rows.tolist()]
    np.testing.assert_allclose(whole.selection.subtask_scores, expected, atol=1e-6)
    every = select(job, tmp_path / "every", store=job / "store", scorer="sketch")
    order = np.argsort(every.selection.drawn_rows)
    estimates = load_file(tmp_path / "whole" / "estimates.safetensors")["estimates"]
    np.testing.assert_array_equal(estimates, every.selection.subtask_scores[order].astype(np.float32))
    interrupt(monkeypatch, {1})
    with pytest.raises(KeyboardInterrupt):
        select(job, tmp_path / "cut", **options)
    monkeypatch.undo()
    select(job, tmp_path / "cut", **options)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_a_comparison_shows_what_the_sketches_are_worth(job, tmp_path):
    def recall(scorer):
        one = cu.Contender("surrogate", cu.Surrogate())
        files = {"pool": job / "pool.jsonl", "target": job / "dev.jsonl", "model": job / "model"}
        options = {"strategies": [one], "budgets": ["20%"], "seeds": 2, "select": "5", "store": job / "store"}
        found = cu.compare(**files, out=tmp_path / scorer, scorer=scorer, **options)
        return found, found.recall("surrogate", "20%")

    found, of_exact = recall("exact")
    assert of_exact >= 0.8
    assert (tmp_path / "exact" / "estimates.safetensors").exists()
    assert found.content["strategies"][0]["points"][0]["gradients"] == 12 + 18
    recall("auto")
    assert not (tmp_path / "auto" / "estimates.safetensors").exists()


def test_sketches_score_without_a_store(job, tmp_path, monkeypatch):
    adapter = job / "store" / "adapter"
    result = select(job, tmp_path / "run", adapter=adapter, scorer="sketch", sketch_dim=1024, budget="30%")
    stored = select(job, tmp_path / "stored", store=job / "store", scorer="sketch")
    scores = {line["id"]: line["subtasks"] for line in read_rows(stored.out / "scores.jsonl")}
    lines = read_rows(result.out / "scores.jsonl")
    assert len(lines) == 27
    for line in lines:
        assert line["subtasks"] == pytest.approx(scores[line["id"]], abs=1e-3)
    with pytest.raises(RunError, match="--sketch-dim was 1024, now 2048"):
        select(job, tmp_path / "run", adapter=adapter, scorer="sketch", sketch_dim=2048, budget="30%")
    with pytest.raises(RunError, match="--scorer was sketch, now unset"):
        select(job, tmp_path / "run", adapter=adapter, budget="30%")


def kill_ever_later(job, folder):
    """Make a store in processes that are killed at once, after 2 shards and after 5."""
    warm.load()
    for n_shards in (0, 2, 5):
        child = os.fork()
        if child == 0:
            make_store(job, folder)
            os._exit(0)
        while not (
            (folder / "adapter").exists() and len(list(folder.glob("sketches-*.safetensors"))) >= n_shards
        ):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_store_killed_at_any_time_goes_on_to_the_same_bytes(job, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 16)
    whole = make_store(job, tmp_path / "whole")
    assert len(list(whole.folder.glob("sketches-*"))) == 6
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/jobs']; from test_store import *\n"
        "shards.SHARD = 16\n"
        f"kill_ever_later(Path({str(job)!r}), Path({str(tmp_path / 'killed')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
    with pytest.raises(RunError, match=r"is not finished; repeat the `clusterucb sketch`"):
        cu.GradientStore(tmp_path / "killed")
    make_store(job, tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert np.array_equal(
        whole.rows(range(10, 40)), np.concatenate([whole.rows(range(10, 20)), whole.rows(range(20, 40))])
    )


def test_the_same_command_again_computes_nothing(job, monkeypatch):
    sizes = count_gradients(monkeypatch)
    before = files(job / "store")
    make_store(job, "store")
    assert not sizes
    assert files(job / "store") == before


def test_the_order_of_lines_changes_nothing(job, tmp_path):
    lines = (job / "pool.jsonl").read_text().splitlines()
    half = len(lines) // 2
    (tmp_path / "a.jsonl").write_text("\n".join(lines[half:][::-1]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[:half][::-1]) + "\n")
    shuffled = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    other = cu.sketch(shuffled, model=job / "model", out=tmp_path / "store", **OPTIONS)
    name = "sketches-00000.safetensors"
    assert (other.folder / name).read_bytes() == (job / "store" / name).read_bytes()
    select(job, tmp_path / "run", pool=shuffled, store=job / "store")


def test_a_given_adapter_is_kept_in_the_store(job, tmp_path):
    given = job / "store" / "adapter"
    made = make_store(job, tmp_path / "store", adapter=given)
    name = "sketches-00000.safetensors"
    assert (made.folder / name).read_bytes() == (job / "store" / name).read_bytes()
    kept = {path.name for path in (made.folder / "adapter").iterdir()}
    assert kept == {"adapter_config.json", "adapter_model.safetensors", "optimizer.pt"}
    assert made.manifest.cost.total == 1
    select(job, tmp_path / "run", store=made.folder)


def test_a_sample_whose_gradient_fails_is_named_and_never_selected(job, tmp_path, monkeypatch):
    made = make_store(job, tmp_path / "store")
    name, reasons = "sketches-00000.safetensors", {7: "the gradient is zero"}
    sketches = load_file(made.folder / name)["sketches"]
    sketches[7] = np.nan
    manifest = read_manifest(made.folder)
    files = KeptFiles(made.folder, manifest.files, lambda: write_manifest(made.folder, manifest))
    files.forget(name)
    files.write_arrays(name, {"sketches": sketches}, with_failures(reasons))
    result = select(job, tmp_path / "run", store=made.folder, scorer="sketch", select="50%")
    assert result.outcome.n_failed == 1
    assert 7 not in result.rows
    assert [line["reason"] for line in read_rows(result.out / "rejected.jsonl")][-1] == "the gradient is zero"
    assert np.isfinite(result.scores).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preconditioner": "sgd"}, "--preconditioner is sgd, but the gradient store .* made with adam_less"),
        ({"max_length": 50}, "--max-length is 50, but .* made with 1024"),
        ({"adapter": "x"}, "--adapter is given with --store"),
        (
            {"scorer": "exactly"},
            "--scorer is 'exactly'; expected one of auto, exact, sketch. Did you mean 'exact'",
        ),
        ({"sketch_dim": 1000}, "--sketch-dim is 1000; expected a power of two, such as 512 or 1024"),
        ({"select": "100", "budget": "9"}, "expected at most the budget"),
    ],
)
def test_options_that_do_not_fit_are_refused(job, tmp_path, changes, message):
    with pytest.raises(OptionError, match=message):
        select(job, tmp_path / "run", **{"store": job / "store", **changes})
    assert not (tmp_path / "run").exists()


def test_another_model_is_refused(job, tmp_path):
    model = shutil.copytree(job / "model", tmp_path / "model")
    write_model(model, hidden_size=32)
    with pytest.raises(OptionError, match="was made with another model"):
        select(job, tmp_path / "run", model=model, store=job / "store")
    assert not (tmp_path / "run").exists()


def test_what_is_no_store_is_refused(job, tmp_path):
    run_folder = select(job, tmp_path / "run", store=job / "store").out
    with pytest.raises(RunError, match="is not a gradient store but a run"):
        select(job, tmp_path / "again", store=run_folder)
    with pytest.raises(RunError, match="is not a gradient store"):
        select(job, tmp_path / "again", store=tmp_path / "nowhere")
    with pytest.raises(RunError, match="it held a gradient store, now a selection"):
        select(job, job / "store")
    with pytest.raises(RunError, match="--sketch-dim was 1024, now 512"):
        make_store(job, "store", sketch_dim=512)
    shutil.copytree(job / "store", tmp_path / "broken")
    (tmp_path / "broken" / "sketches-00000.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(RunError, match=r"sketches-00000\.safetensors is damaged"):
        select(job, tmp_path / "again", store=tmp_path / "broken")


def test_the_command_line_makes_and_uses_a_store(job, tmp_path, capsys):
    pool, model, out = str(job / "pool.jsonl"), str(job / "model"), str(tmp_path / "store")
    made = ["sketch", pool, "--model", model, "--out", out, "--warmup-steps", "5", "--sketch-dim", "1024"]
    assert run(made) == 0
    shown = capsys.readouterr()
    assert "Sketched 90 of 90 samples in 1024 dimensions" in shown.out
    assert f"--store {out}" in " ".join(shown.out.split())
    assert "Sketching" in shown.err
    assert run([*made, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["sketch"] == {"dimension": 1024, "nonzeros": 2, "seed": 0, "kind": "sjlt"}
    target = str(job / "dev.jsonl")
    chosen = [
        "select",
        pool,
        "--target",
        target,
        "--model",
        model,
        "--store",
        out,
        "--out",
        str(tmp_path / "run"),
    ]
    assert run(chosen) == 0
    assert "after scoring 18" in capsys.readouterr().out
    assert run([*chosen[:-1], str(tmp_path / "all"), "--scorer", "sketch"]) == 0
    assert "after scoring 90" in capsys.readouterr().out
    assert run([*chosen[:-1], str(tmp_path / "b"), "--features", "source"]) == 2
    assert "source" in capsys.readouterr().err
