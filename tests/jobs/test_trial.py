"""A trial trains on a selection and on other samples, and judges the trainings on unseen samples."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import clusterucb as cu
from clusterucb import filenames
from clusterucb.errors import RunError
from clusterucb.run.locks import FolderLock
from clusterucb.run.manifest_file import read_manifest, write_manifest
from helpers.selections import arguments, write_job
from helpers.tiny import rows, write_rows

OPTIONS = {"seeds": 2, "epochs": 1}


def judges(seed=50, count=60):
    return [{**row, "subtask": row["source"]} for row in rows(count, seed=seed)]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = write_job(tmp_path_factory.mktemp("job"))
    write_rows(folder / "judges.jsonl", judges())
    return folder


@pytest.fixture(scope="module")
def tried(job):
    return cu.trial(job / "done", judge=job / "judges.jsonl", arms="all,rds,exhaustive", **OPTIONS)


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / filenames.CELLS).iterdir())}


def test_a_trial_says_what_each_arm_gains_in_each_subtask(job, tried):
    content = tried.content
    assert tried.out == job / "done" / "trial"
    assert json.loads((tried.out / "trial.json").read_text()) == content
    assert (tried.out / "trial.html").read_text().count("<script") == 2
    arms = {arm["name"]: arm for arm in content["arms"]}
    assert list(arms) == ["selection", "random", "all", "rds", "exhaustive", "nothing"]
    assert content["judges"] == {name: count for name, count in content["judges"].items() if count >= 2}
    for arm in arms.values():
        assert arm["subtasks"].keys() == content["judges"].keys()
        assert arm["mean"] == pytest.approx(np.mean(list(arm["subtasks"].values())))
        assert arm["worst"] == max(arm["subtasks"].values())
    assert arms["random"]["less_random"] is None
    for name in arms.keys() - {"random"}:
        mean, low, high = tried.difference(name)
        assert low <= mean <= high
        assert mean == pytest.approx(arms[name]["mean"] - arms["random"]["mean"])
        for subtask in content["judges"]:
            apart = arms[name]["subtasks"][subtask] - arms["random"]["subtasks"][subtask]
            assert tried.difference(name, subtask)[0] == pytest.approx(apart)
    assert repr(tried).startswith("<Trial: Training on the selection")


def test_all_arms_take_the_same_steps_and_random_ones_the_same_tokens(tried):
    arms = {arm["name"]: arm for arm in tried.content["arms"]}
    steps = {name: arm["curve"][-1]["step"] for name, arm in arms.items()}
    assert {steps[name] for name in steps.keys() - {"nothing"}} == {1}
    assert steps["nothing"] == 0
    assert arms["nothing"]["training"]["passes"] == 0
    assert arms["random"]["tokens"] == pytest.approx(arms["selection"]["tokens"], rel=0.1)
    assert {arm["training"]["passes"] for name, arm in arms.items() if name != "nothing"} == {4}


def test_the_cost_of_choosing_counts_every_pass_but_the_warm_up(job, tried):
    arms = {arm["name"]: arm for arm in tried.content["arms"]}
    cost = json.loads((job / "done" / "manifest.json").read_text())["cost"]
    draws = sum(phase["gradients"] for name, phase in cost["phases"].items() if name != "warm-up")
    forward = sum(phase["forward_passes"] for name, phase in cost["phases"].items() if name != "warm-up")
    assert arms["selection"]["selecting"]["passes"] == pytest.approx(draws + 0.43 * forward)
    assert arms["exhaustive"]["selecting"]["passes"] == 90 + 12
    assert arms["random"]["selecting"]["passes"] == arms["nothing"]["selecting"]["passes"] == 0


def test_exhaustive_selects_what_a_run_that_scores_everything_selects(job, tried):
    whole = cu.select(
        **arguments(
            job, job / "whole", budget="100%", policy=cu.Exhaustive(), adapter=job / "done" / "adapter"
        )
    )
    alone = cu.trial([job / "done", job / "whole"], judge=job / "judges.jsonl", out=job / "two", **OPTIONS)
    arms = {arm["name"]: arm for arm in alone.content["arms"]}
    assert list(arms) == ["done", "whole", "random", "nothing"]
    (exhaustive,) = (arm for arm in tried.content["arms"] if arm["name"] == "exhaustive")
    assert arms["whole"]["subtasks"] == pytest.approx(exhaustive["subtasks"], rel=1e-5)
    assert len(whole) == exhaustive["samples"]


def test_an_interrupted_trial_resumes_with_the_same_bytes(job, tried, monkeypatch, tmp_path):
    from clusterucb.jobs.trial.training import Trainer

    trained, n_left = Trainer.trained, 3

    def stopping(self, *given):
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise KeyboardInterrupt
        return trained(self, *given)

    asked = {"judge": job / "judges.jsonl", "arms": "rds", "out": tmp_path / "trial", **OPTIONS}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "trained", stopping)
        with pytest.raises(KeyboardInterrupt):
            cu.trial(job / "done", **asked)
    assert len(files_of(tmp_path / "trial")) == 3
    again = cu.trial(job / "done", **asked)
    for name, content in files_of(again.out).items():
        ours, theirs = json.loads(content), json.loads(files_of(tried.out)[name])
        assert (ours["losses"], ours["elsewhere"]) == (theirs["losses"], theirs["elsewhere"])
    monkeypatch.setattr(Trainer, "trained", stopping)
    held = FolderLock(asked["out"])
    with pytest.raises(RunError, match="is in use by another process"):
        cu.trial(job / "done", **asked)
    finished = cu.trial(job / "done", no_lock=True, **asked)
    held.release()
    assert [arm["curve"] for arm in finished.content["arms"]] == [
        arm["curve"] for arm in again.content["arms"]
    ]


def test_the_start_of_a_training_does_not_depend_on_the_trainings_before(tried):
    (nothing,) = (arm for arm in tried.content["arms"] if arm["name"] == "nothing")
    path = tried.out / filenames.CELLS / "nothing.json"
    losses = json.loads(path.read_text())["losses"]
    path.unlink()
    again = cu.trial(tried.out.parent, judge=tried.out.parents[1] / "judges.jsonl", **OPTIONS)
    assert json.loads(path.read_text())["losses"] == losses
    assert next(arm for arm in again.content["arms"] if arm["name"] == "nothing") == nothing


def test_judges_that_were_held_out_judge(job, tmp_path):
    target = write_rows(tmp_path / "dev.jsonl", judges(seed=9, count=120))
    run = cu.select(**arguments(job, tmp_path / "run", target=target, hold_out="50%"))
    tried = cu.trial(tmp_path / "run", seeds=1, epochs=1)
    assert tried.content["judges"] == {name: len(ids) for name, ids in run.manifest.inputs.judges.items()}


def test_judges_that_stand_in_the_pool_are_left_out(job, tmp_path):
    pool = [
        json.loads(line) for line in (job / "pool.jsonl").read_text().splitlines() if line.startswith('{"id')
    ]
    mixed = [*judges(), *({**row, "subtask": row["source"]} for row in pool[:5])]
    with pytest.warns(cu.ClusterUCBWarning, match="5 of 65 judges also stand in the pool, the first at "):
        tried = cu.trial(job / "done", judge=mixed, out=tmp_path / "trial", seeds=1, epochs=1)
    assert sum(tried.content["judges"].values()) == 60


def refused(job, match, *, run="done", **options):
    with pytest.raises(cu.ClusterUCBError, match=match):
        cu.trial(job / run, **{"judge": job / "judges.jsonl", "out": job / "refused", **OPTIONS, **options})
    assert not (job / "refused").exists()


def test_what_cannot_be_judged_is_refused(job):
    pool = [
        json.loads(line) for line in (job / "pool.jsonl").read_text().splitlines() if line.startswith('{"id')
    ]
    refused(job, r"all 3 judges also stand in the pool", judge=pool[:3])
    refused(job, r"held no target samples out; expected --judge", judge=None)
    refused(
        job,
        r"4 samples of the judges, .* also stand in the target",
        judge=[*judges(seed=9, count=12)[:4], *judges()],
    )
    one = [{**row, "subtask": "lonely"} for row in judges()[:1]]
    refused(job, r"subtask 'lonely' has 1 judge", judge=[*judges()[1:], *one])
    refused(job, r"--arms is 'rsd'; expected some of all, rds, exhaustive.*Did you mean 'rds'", arms="rsd")
    refused(job, r"--seeds is 0", seeds=0)
    refused(job, r"--learning-rate is nan", learning_rate=float("nan"))
    refused(job, r"there is no option 'seed'", seed=3)


@pytest.mark.usefixtures("tried")  # it makes done/trial
def test_what_is_no_finished_selection_is_refused(job, tmp_path):
    refused(job, "holds no run", run="nowhere")
    refused(job, "holds no selection; expected the folder of clusterucb select", run="done/trial")
    run = tmp_path / "run"
    cu.select(**arguments(job, run))
    for name in ("config.yaml", "scores.jsonl"):
        kept = (run / name).read_bytes()
        for damaged in (b"[1", b"\xff\x00", b"3"):
            (run / name).write_bytes(damaged)
            refused(job, rf"{name} is damaged .*: remove it and repeat the run's command", run=run)
        (run / name).write_bytes(kept)
    manifest = read_manifest(run)
    for rule in (-1, "\x1b[2J"):
        manifest.identity.options["--rule"] = rule
        write_manifest(run, manifest)
        refused(job, rf"the options of the run in {run} cannot be used: .*rule is", run=run)
    manifest.identity.options["--rule"] = "round-robin"
    write_manifest(run, manifest)
    changed = write_rows(tmp_path / "pool.jsonl", rows(80, seed=3))
    refused(job, "is a run of another pool, or the files have changed since", run=run, pool=changed)


def test_a_run_on_objects_in_memory_is_tried_with_the_same_objects(job, tmp_path):
    pool = [
        json.loads(line) for line in (job / "pool.jsonl").read_text().splitlines() if line.startswith('{"id')
    ]
    cu.select(**arguments(job, tmp_path / "run", pool=pool))
    refused(job, r"the pool of the run in .* was an object in memory", run=tmp_path / "run")
    tried = cu.trial(tmp_path / "run", pool=pool, judge=job / "judges.jsonl", seeds=1, epochs=1)
    assert tried.content["pool_samples"] == len(pool)


def test_a_loaded_model_is_tried_as_it_was_given(job, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(job / "model")
    given = {"model": model, "tokenizer": AutoTokenizer.from_pretrained(job / "model")}
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    cu.select(**{**arguments(job, tmp_path / "run"), **given})
    refused(job, r"the model of the run in .* was an object in memory", run=tmp_path / "run")
    tried = cu.trial(tmp_path / "run", judge=job / "judges.jsonl", seeds=1, epochs=1, **given)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    alone = cu.trial(job / "done", judge=job / "judges.jsonl", out=tmp_path / "alone", seeds=1, epochs=1)
    assert tried.difference("selection") == pytest.approx(alone.difference("selection"), abs=1e-5)


@pytest.mark.parametrize("names", [("a/run", "b/run"), ("random", "rds")])
def test_runs_with_unclear_names_are_named_by_their_paths(job, tmp_path, names):
    for name in names:
        shutil.copytree(job / "done", tmp_path / name, ignore=shutil.ignore_patterns("trial"))
    folders = [tmp_path / name for name in names]
    given = {"judge": job / "judges.jsonl", "out": tmp_path / "trial", "seeds": 1, "epochs": 1}
    tried = cu.trial([*folders, folders[0]], **given)
    assert [arm["name"] for arm in tried.content["arms"]] == [*map(str, folders), "random", "nothing"]


def test_a_run_that_differentiates_other_weights_is_tried_with_a_fresh_lora(job, tmp_path):
    options = {"parameters": "model.layers.*.self_attn.q_proj", "preconditioner": "sgd"}
    cu.select(**{**arguments(job, tmp_path / "run"), **options})
    tried = cu.trial(tmp_path / "run", judge=job / "judges.jsonl", seeds=1, epochs=1)
    assert tried.difference("nothing")[0] != 0


def test_a_damaged_cell_is_named_with_a_remedy(job, tmp_path):
    asked = {"judge": job / "judges.jsonl", "out": tmp_path / "trial", "seeds": 1, "epochs": 1}
    cu.trial(job / "done", **asked)
    cell = next((tmp_path / "trial" / filenames.CELLS).iterdir())
    cell.write_bytes(cell.read_bytes()[:40])
    with pytest.raises(cu.ClusterUCBError, match=r"is damaged .*: remove it, and it is computed again"):
        cu.trial(job / "done", **asked)
    cell.unlink()
    cu.trial(job / "done", **asked)


def test_a_trial_of_another_selection_does_not_resume_in_the_folder(job, tried):
    with pytest.raises(cu.ClusterUCBError, match="--epochs was 1, now 2"):
        cu.trial(job / "done", judge=job / "judges.jsonl", seeds=2, epochs=2)
