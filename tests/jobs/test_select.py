"""The main job as a whole: what is written, what it depends on, and that nothing can lose it."""

from __future__ import annotations

import errno
import inspect
import json
import math
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

import clusterucb as cu
from clusterucb import atomic
from clusterucb.errors import ClusterUCBWarning, InputError, ModelError, OptionError, PluginError, RunError
from clusterucb.jobs.stages import features, influence
from clusterucb.model import source as checkpoint
from clusterucb.run.manifest_file import read_manifest, write_manifest
from helpers.selections import N, arguments, results, write_job
from helpers.tiny import TOPICS, interrupt, read_rows, rows, write_rows

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"))


def valid_lines(path):
    return [line for line in path.read_text().splitlines() if line.startswith("{") and '"id"' in line]


def test_the_best_of_what_was_drawn_are_written_as_they_came(job, tmp_path):
    result = cu.select(**arguments(job, tmp_path / "run"))
    scores = read_rows(result.out / "scores.jsonl")
    assert [line["draw"] for line in scores] == list(range(18))
    assert all(set(line["subtasks"]) == set(TOPICS) for line in scores)
    best: list = []
    for topic in sorted(TOPICS):  # each subtask's best in turn
        left = [line for line in scores if line not in best]
        best.append(max(left, key=lambda line: line["subtasks"][topic]))
    assert result.ids == [line["id"] for line in best]
    assert result.scores.tolist() == [line["score"] for line in best]
    papers = cu.select(**arguments(job, tmp_path / "paper", rule="paper"))
    for line in read_rows(papers.out / "scores.jsonl"):
        assert line["score"] == max(line["subtasks"].values())
    assert sorted(papers.scores, reverse=True) == papers.scores.tolist()
    assert {line["id"] for line in scores if line["selected"]} == set(result.ids)
    written = (result.out / "selected.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["id"] for line in written] == result.ids
    assert set(written) <= set((job / "pool.jsonl").read_bytes().splitlines())
    assert results(result.out) == results(job / "done")


def test_other_rules_decide_what_is_selected(job, tmp_path):
    rules = {"rule": "round-robin", "max_per_source": 2}
    result = cu.select(**arguments(job, tmp_path / "run", budget="40%", select=8, **rules))
    scores = read_rows(result.out / "scores.jsonl")
    fitted = json.loads((result.out / "manifest.json").read_text())["outcome"]["standardized"]
    for line in scores:
        z = [(score - fitted[topic][0]) / fitted[topic][1] for topic, score in line["subtasks"].items()]
        assert line["score"] == pytest.approx(max(z))
    taken, sources = [], {row["id"]: row["source"] for row in read_rows(result.out / "selected.jsonl")}
    assert sorted(sources.values()) == sorted([*TOPICS] * 2)
    for turn in range(
        8
    ):  # each subtask in turn takes its best of what is left, of sources with less than two
        topic = sorted(TOPICS)[turn % len(TOPICS)]
        pool = {row["id"]: row["source"] for row in map(json.loads, valid_lines(job / "pool.jsonl"))}
        left = [
            line
            for line in scores
            if line["id"] not in taken and [pool[one] for one in taken].count(pool[line["id"]]) < 2
        ]
        taken.append(max(left, key=lambda line: line["subtasks"][topic])["id"])
    assert set(taken) == set(result.ids)


def test_a_subtask_counts_by_its_weight(job, tmp_path):
    heavy = sorted(TOPICS)[1]
    options = {
        "select": 6,
        "budget": "40%",
        "policy": cu.Random(),
        "rule": "paper",
        "subtask_weights": {heavy: 1000},
    }
    result = cu.select(**arguments(job, tmp_path / "run", **options))
    for line in read_rows(result.out / "scores.jsonl"):
        own = {topic: score * (1000 if topic == heavy else 1) for topic, score in line["subtasks"].items()}
        assert line["score"] == max(own.values())
    assert sorted(result.scores, reverse=True) == result.scores.tolist()
    with pytest.raises(OptionError, match=f"names '{heavy}x'; expected subtasks .* Did you mean '{heavy}'"):
        cu.select(**arguments(job, tmp_path / "other", subtask_weights={f"{heavy}x": 2}))
    for wrong in ({heavy: 0}, {heavy: "much"}, {heavy: math.inf}):
        with pytest.raises(OptionError, match=f"--subtask-weights has {heavy}=.*; expected a number above 0"):
            cu.select(**arguments(job, tmp_path / "other", subtask_weights=wrong))


def test_every_pass_is_counted(job):
    manifest = json.loads((job / "done" / "manifest.json").read_text())
    cost = manifest["cost"]
    counted = {name: phase["gradients"] for name, phase in cost["phases"].items()}
    assert counted == {"features": 0, "warm-up": 20, "target": 12, "clusters": 0, "draws": 18}
    assert cost["total"] == pytest.approx((20 + 12 + 18) / N)
    assert manifest["outcome"]["n_scored"] == sum(manifest["outcome"]["draws"]) == 18
    assert (manifest["inputs"]["pool_samples"], manifest["inputs"]["pool_rejected"]) == (N, 3)
    assert manifest["outcome"]["n_budget"] == 18


def test_scores_equal_a_loop_over_single_samples(job):
    """An independent computation from the files of the run: plain autograd, full logits, double precision."""
    from peft import PeftModel

    out = job / "done"
    base = AutoModelForCausalLM.from_pretrained(job / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    model = PeftModel.from_pretrained(base, out / "adapter", is_trainable=True).eval()
    state = torch.load(out / "adapter" / "optimizer.pt", weights_only=True)["state"]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    m, v = (
        torch.cat([state[at][key].flatten() for at in range(len(weights))]).double()
        for key in ("exp_avg", "exp_avg_sq")
    )

    def gradient(row):
        turns = [("user", row["prompt"]), ("assistant", row["completion"])]
        text = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns], tokenize=False
        )
        start = text.rindex(row["completion"])
        end = start + len(row["completion"]) + len("<|im_end|>")
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        labels = torch.tensor([a >= start and b <= end for a, b in coded["offset_mapping"]])
        ids = torch.tensor(coded["input_ids"])
        logits = model(input_ids=ids[None]).logits[0, :-1][labels[1:]]
        loss = cross_entropy(logits, ids[1:][labels[1:]])
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)]).double()

    target = read_rows(job / "dev.jsonl")
    directions = {
        topic: torch.stack(
            [g / g.norm() for g in (gradient(row) for row in target if row["subtask"] == topic)]
        ).mean(0)
        for topic in TOPICS
    }
    pool = {row["id"]: row for row in map(json.loads, (job / "pool.jsonl").read_text().splitlines()[:40])}
    compared = 0
    for line in read_rows(out / "scores.jsonl"):
        if line["id"] in pool:
            g = gradient(pool[line["id"]])
            update = (0.9 * m + 0.1 * g) / torch.sqrt(0.999 * v + 0.001 * g * g + 1e-8)
            for topic, direction in directions.items():
                expected = float(update @ direction / update.norm())
                assert line["subtasks"][topic] == pytest.approx(expected, abs=2e-5)
            compared += 1
    assert compared > 3


def test_the_order_of_lines_and_files_changes_nothing(job, tmp_path):
    lines = (job / "pool.jsonl").read_bytes().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    (tmp_path / "one.jsonl").write_bytes(b"".join(lines[:30]))
    (tmp_path / "two.jsonl").write_bytes(b"".join(lines[30:]))
    target = (job / "dev.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "dev.jsonl").write_bytes(b"".join(reversed(target)))
    changes = {"pool": [tmp_path / "two.jsonl", tmp_path / "one.jsonl"], "target": tmp_path / "dev.jsonl"}
    result = cu.select(**arguments(job, tmp_path / "run", **changes))
    for name in ("selected.jsonl", "scores.jsonl"):
        assert (result.out / name).read_bytes() == (job / "done" / name).read_bytes()


class _Stop(Exception):
    pass


def test_a_run_that_was_interrupted_goes_on_to_the_same_bytes(job, tmp_path, monkeypatch):
    interrupt(monkeypatch, (1, 2, 4), _Stop)
    stopped = 0
    while True:
        try:
            result = cu.select(**arguments(job, tmp_path / "run"))
            break
        except _Stop:
            stopped += 1
    assert stopped == 3
    assert results(result.out) == results(job / "done")


def test_an_interrupted_run_has_written_the_best_so_far(job, tmp_path, monkeypatch):
    said = []
    options = {"select": 12, "rule": "paper", "observer": lambda *what: said.append(what[0])}
    with monkeypatch.context() as patch:
        interrupt(patch, (2,))
        with pytest.raises(KeyboardInterrupt):
            cu.select(**arguments(job, tmp_path / "run", **options))
    db = sqlite3.connect(tmp_path / "run" / "ledger.sqlite")
    (n_scored,) = db.execute("SELECT count(*) FROM draws WHERE done").fetchone()
    lines = read_rows(tmp_path / "run" / "scores.jsonl")
    assert len(lines) == n_scored > 0
    best = sorted(lines, key=lambda line: -line["score"])[:12]
    selected = [row["id"] for row in read_rows(tmp_path / "run" / "selected.jsonl")]
    assert selected == [line["id"] for line in best]
    assert f"The best {len(best)} of the {n_scored} samples scored so far are in" in said[-1]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["status"], manifest["outcome"]["stopped"]) == ("running", "interrupted")
    resumed = cu.select(**arguments(job, tmp_path / "run", select=12, rule="paper"))
    whole = cu.select(**arguments(job, tmp_path / "whole", select=12, rule="paper"))
    assert results(resumed.out) == results(whole.out)
    assert resumed.outcome.stopped == "budget"
    with monkeypatch.context() as patch:
        interrupt(patch, (0,))
        with pytest.raises(KeyboardInterrupt):  # nothing has been scored
            cu.select(**arguments(job, tmp_path / "at once"))
    assert not (tmp_path / "at once" / "selected.jsonl").exists()


def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_bytes(job, tmp_path):
    done = subprocess.run(
        [sys.executable, HELPERS / "killing.py", job, tmp_path / "run"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) >= 20
    assert results(tmp_path / "run") == results(job / "done")


@pytest.fixture
def run(job, tmp_path):
    """Return a copy of the finished run."""
    return shutil.copytree(job / "done", tmp_path / "run")


@pytest.fixture
def no_model(monkeypatch):
    def load(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(checkpoint.ModelSource, "model", load)


def test_a_finished_run_is_shown_again_without_a_model(job, run, no_model):
    before = results(run)
    result = cu.select(**arguments(job, run))
    assert results(run) == before
    assert len(result) == len(result.ids) == len(result.scores) == len(result.samples) == 4


def test_another_number_to_select_needs_no_model(job, run, no_model):
    before = cu.select(**arguments(job, run))
    result = cu.select(**arguments(job, run, select=10))
    assert result.ids[:4] == before.ids
    assert len((run / "selected.jsonl").read_text().splitlines()) == len(result.ids) == 10


def test_a_larger_budget_goes_on_where_the_smaller_ended(job, run):
    before = read_rows(run / "scores.jsonl")
    result = cu.select(**arguments(job, run, budget="40%"))
    after = read_rows(run / "scores.jsonl")
    assert len(after) == result.selection.n_scored == 36
    for old, new in zip(before, after, strict=False):
        assert {**old, "selected": None} == {**new, "selected": None}
    assert result.scores[0] >= before[0]["score"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["search"]["cold_start"] == 0.05  # a quarter of the budget that it began with


def test_it_stops_when_enough_is_found_and_goes_on_for_more(job, tmp_path, monkeypatch):
    write_rows(tmp_path / "pool.jsonl", rows(240))
    options = {"pool": tmp_path / "pool.jsonl", "budget": "100%", "select": "10%", "cold_start": 0.15}
    clusters = {"clusterer": cu.KMeans(n_clusters=8)}

    def selected(out, until, **changes):
        return cu.select(
            **{**arguments(job, tmp_path / out), **options, **clusters, "until": until, **changes}
        )

    some = selected("run", "recall=50%")
    outcome = some.manifest.outcome
    assert outcome.stopped == some.selection.stopped == "recall"
    assert 0.5 <= outcome.recall["estimate"] <= outcome.recall["high"] <= 1
    assert outcome.recall["low"] <= outcome.recall["estimate"]
    assert outcome.recall["confidence"] == 0.9
    first = results(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(influence, "Scorer", None)  # nothing is scored
        again = selected("run", "recall=50%")
    assert again.selection.n_scored == some.selection.n_scored
    assert results(tmp_path / "run") == first
    more = selected("run", "recall=0.8")
    assert some.selection.n_scored < more.selection.n_scored < 240
    assert more.outcome.recall["estimate"] >= 0.8
    interrupt(monkeypatch, {7})
    with pytest.raises(KeyboardInterrupt):
        selected("cut", "recall=0.8")
    monkeypatch.undo()
    whole = selected("whole", "recall=0.8")
    assert selected("cut", "recall=0.8").selection.n_scored == whole.selection.n_scored
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_tokens_end_what_finds_too_little(job, tmp_path):
    found = cu.select(**arguments(job, tmp_path / "run", budget="400tok", select=2, until="recall=1"))
    assert found.outcome.stopped == "budget"


def test_a_budget_of_tokens_is_kept_and_goes_on(job, tmp_path, monkeypatch):
    shown = []
    options = {"budget": "2ktok", "select": 3, "observer": lambda *what: shown.append(what)}
    whole = cu.select(**arguments(job, tmp_path / "whole", **options))
    db = sqlite3.connect(tmp_path / "whole" / "ledger.sqlite")
    (spent,) = db.execute("SELECT sum(tokens) FROM draws").fetchone()
    assert whole.cost.phases["draws"].tokens == spent <= 2000
    assert whole.outcome.stopped == "budget"
    counted = [what for what in shown if what[0] == "Scoring"]
    assert counted[0] == ("Scoring", 0, 2000)
    assert counted[-1] == ("Scoring", spent, 2000)
    with monkeypatch.context() as patch:
        interrupt(patch, (1, 2), _Stop)
        for _ in range(2):
            with pytest.raises(_Stop):
                cu.select(**arguments(job, tmp_path / "run", **options))
        cu.select(**arguments(job, tmp_path / "run", **options))
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    larger = cu.select(**arguments(job, tmp_path / "run", **{**options, "budget": "3ktok"}))
    assert 2000 < larger.cost.phases["draws"].tokens <= 3000
    with pytest.raises(RunError, match="--budget was 3ktok, now 2500tok"):
        cu.select(**arguments(job, tmp_path / "run", **{**options, "budget": "2500tok"}))


def test_a_finished_run_by_time_or_tokens_draws_nothing_more(job, tmp_path, monkeypatch):
    for budget in ("2ktok", "1h"):
        out = tmp_path / budget
        first = cu.select(**arguments(job, out, budget=budget))
        with monkeypatch.context() as patch:
            interrupt(patch, range(99), AssertionError("a pass was made"))
            again = cu.select(**arguments(job, out, budget=budget, select=2))
        assert again.selection.n_scored == first.selection.n_scored
        assert again.ids == first.ids[:2]


def test_a_time_that_is_long_enough_scores_the_whole_pool(job, tmp_path):
    result = cu.select(**arguments(job, tmp_path / "run", budget="1h"))
    assert result.selection.n_scored == N
    assert result.outcome.stopped == "exhausted"
    assert result.outcome.n_budget == N
    with pytest.raises(
        OptionError, match=r"expected at most the budget, --budget 0\.0001s, which is about 1"
    ):
        cu.select(**arguments(job, tmp_path / "short", budget="0.0001s"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "--seed was 0, now 1"),
        ({"budget": "10%"}, "--budget was 20%, now 10%"),
        ({"max_length": 64}, "--max-length was 1024, now 64"),
        (
            {"policy": cu.UCB(beta=2.0)},
            r"--policy was Surrogate\(kappa=0.25, batches=20\), now UCB\(beta=2.0\)",
        ),
        ({"clusterer": cu.Source()}, r"--clusterer was KMeans\(.*\), now Source\(column='source'\)"),
        ({"preconditioner": "sgd"}, "--preconditioner was adam_less, now sgd"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_is_lost(job, run, changes, message):
    before = results(run)
    with pytest.raises(RunError, match=message):
        cu.select(**arguments(job, run, **changes))
    assert results(run) == before


def test_other_content_is_refused(job, run, tmp_path):
    shutil.copy(job / "pool.jsonl", tmp_path / "pool.jsonl")
    with (tmp_path / "pool.jsonl").open("a") as file:
        file.write('{"prompt": "one more", "completion": "yes"}\n')
    with pytest.raises(RunError, match="the pool content has changed"):
        cu.select(**arguments(job, run, pool=tmp_path / "pool.jsonl"))


def test_other_versions_are_warned_of(job, run):
    manifest = read_manifest(run)
    manifest.versions["torch"] = "1.0"
    write_manifest(run, manifest)
    with pytest.warns(ClusterUCBWarning, match=r"started with other versions \(torch 1.0\)"):
        cu.select(**arguments(job, run))


def test_labels_of_a_faulty_clusterer_are_refused_by_its_name_and_not_kept(job, tmp_path):
    class Gap(cu.Clusterer):
        def fit_predict(self, pool, rng):
            return np.zeros(len(pool) - 1, np.int64)

    with pytest.raises(PluginError, match=r"Gap.fit_predict: got int64 of shape \(89,\)"):
        cu.select(**arguments(job, tmp_path / "run", clusterer=Gap()))
    assert not (tmp_path / "run" / "labels.safetensors").exists()


def test_overwrite_begins_anew(job, run):
    result = cu.select(**arguments(job, run, seed=1, overwrite=True))
    fresh = cu.select(**arguments(job, run.parent / "fresh", seed=1))
    assert results(result.out) == results(fresh.out) != results(job / "done")


def test_a_run_that_failed_before_it_computed_anything_takes_other_settings(job, tmp_path):
    with pytest.raises(OptionError, match=r"--select 50% is 45 of 90 samples; expected at most the budget"):
        cu.select(**arguments(job, tmp_path / "run", select="50%"))
    cu.select(**arguments(job, tmp_path / "run", seed=1, budget="6%", policy=cu.Random()))


def test_the_adapter_of_a_run_repeats_its_scores(job, tmp_path):
    changes = {"adapter": job / "done" / "adapter", "warmup_steps": 30}
    result = cu.select(**arguments(job, tmp_path / "run", **changes))
    assert results(result.out) == results(job / "done")
    assert "warm-up" not in result.cost.phases


def test_an_adapter_without_its_optimiser_needs_sgd(job, tmp_path):
    adapter = shutil.copytree(job / "done" / "adapter", tmp_path / "adapter")
    (adapter / "optimizer.pt").rename(tmp_path / "moments.pt")
    with pytest.raises(ModelError, match=r"no optimiser state .* --optimizer, or use --preconditioner sgd"):
        cu.select(**arguments(job, tmp_path / "run", adapter=adapter))
    cu.select(**arguments(job, tmp_path / "sgd", adapter=adapter, preconditioner="sgd"))
    result = cu.select(**arguments(job, tmp_path / "run", adapter=adapter, optimizer=tmp_path / "moments.pt"))
    assert results(result.out) == results(job / "done")


def test_rejected_lines_say_where_and_why(job):
    rejected = read_rows(job / "done" / "rejected.jsonl")
    assert [line["line"] for line in rejected] == [41, 42, 43]
    assert all(line["file"] == str(job / "pool.jsonl") for line in rejected)
    reasons = [line["reason"] for line in rejected]
    assert reasons[0].startswith("no conversation: expected `messages`")
    assert reasons[1].startswith("not JSON")
    assert reasons[2] == "empty answer"
    assert [line["text"] for line in rejected] == (job / "pool.jsonl").read_text().splitlines()[40:43]
    manifest = json.loads((job / "done" / "manifest.json").read_text())
    assert manifest["inputs"]["rejected"] == {"empty answer": 1, "no conversation": 1, "not JSON": 1}


def test_a_sample_without_a_finite_gradient_is_listed_and_counted(job, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(job / "model")
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    (token,) = tokenizer.encode("~", add_special_tokens=False)
    model.get_input_embeddings().weight.data[token] = torch.nan
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    made = rows(12)
    write_rows(tmp_path / "pool.jsonl", [*made, {"id": "bad", "prompt": "~", "completion": "What?"}])
    changes = {"pool": tmp_path / "pool.jsonl", "model": tmp_path / "model", "budget": "100%", "select": 5}

    class Zeros(cu.Feature):
        def compute(self, batch):
            return {"zero": np.zeros((len(batch.samples), 1), np.float32)}

    adapter = job / "done" / "adapter"
    result = cu.select(**arguments(job, tmp_path / "run", features=Zeros(), adapter=adapter, **changes))
    assert read_rows(result.out / "rejected.jsonl")[-1] == {
        "file": str(tmp_path / "pool.jsonl"),
        "line": 13,
        "reason": "the gradient is not finite",
        "text": (tmp_path / "pool.jsonl").read_text().splitlines()[12],
    }
    assert result.selection.n_scored == result.cost.phases["draws"].gradients == 13
    assert len(read_rows(result.out / "scores.jsonl")) == 12
    assert result.outcome.n_failed == 1


def test_the_ledger_holds_every_draw(job):
    with sqlite3.connect(job / "done" / "ledger.sqlite") as ledger:
        ledger.row_factory = sqlite3.Row
        draws = ledger.execute("SELECT * FROM draws ORDER BY draw").fetchall()
    assert len(draws) == 18
    assert {draw["phase"] for draw in draws} == {"cold", "policy"}
    for draw, line in zip(draws, read_rows(job / "done" / "scores.jsonl"), strict=True):
        assert draw["done"] == 1
        assert np.frombuffer(draw["scores"]).tolist() == [line["subtasks"][name] for name in sorted(TOPICS)]


def test_pool_samples_that_stand_in_the_target_are_warned_of(job, tmp_path):
    row = read_rows(job / "dev.jsonl")[0]
    write_rows(
        tmp_path / "pool.jsonl", [*rows(20), {"prompt": row["prompt"], "completion": row["completion"]}]
    )
    with pytest.warns(
        ClusterUCBWarning, match=r"in both the pool and the target: 1, the first is .*pool.jsonl:21"
    ):
        cu.select(**arguments(job, tmp_path / "run", pool=tmp_path / "pool.jsonl"))


def test_a_budget_beyond_the_pool_exhausts_it(job, tmp_path):
    write_rows(tmp_path / "pool.jsonl", rows(8))
    result = cu.select(**arguments(job, tmp_path / "run", pool=tmp_path / "pool.jsonl", budget=50, select=3))
    assert result.selection.n_scored == 8
    assert result.outcome.stopped == "exhausted"


def test_features_in_several_files_are_those_of_one(job, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_SHARD", 37)
    result = cu.select(**arguments(job, tmp_path / "run"))
    assert len(list(result.out.glob("features-*.safetensors"))) == 3
    assert results(result.out) == results(job / "done")


@pytest.mark.parametrize(
    "strategies",
    [
        {"policy": cu.UCB1(), "rule": "mean"},
        {"policy": cu.ThresholdHard(q=0.1), "clusterer": cu.Source()},
        {"policy": cu.ThresholdNormal(), "clusterer": cu.KMeans(n_clusters=3), "preconditioner": "adam"},
        {"policy": cu.Random(), "preconditioner": "second_moment"},
    ],
)
def test_strategies_can_be_swapped(job, tmp_path, strategies):
    adapter = job / "done" / "adapter"
    result = cu.select(**arguments(job, tmp_path / "run", adapter=adapter, **strategies))
    assert result.selection.n_scored == 18
    if strategies.get("rule") == "mean":
        for line in read_rows(result.out / "scores.jsonl"):
            assert line["score"] == pytest.approx(np.mean(list(line["subtasks"].values())))
    if isinstance(strategies.get("clusterer"), cu.Source):
        assert len(result.selection.draws) == len(TOPICS)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"policy": 3}, OptionError, r"policy is 3; expected an object .* clusterucb.Policy"),
        ({"policy": "ucbb"}, OptionError, r"there is no policy 'ucbb'; installed: .* Did you mean 'ucb'"),
        ({"clusterer": cu.UCB()}, OptionError, "clusterer is UCB"),
        ({"bugdet": "10%"}, OptionError, "there is no option 'bugdet'; .*Did you mean 'budget'"),
        ({"seed": "x"}, OptionError, "seed is 'x'; expected a whole number"),
        ({"seed": True}, OptionError, "seed is True; expected a whole number"),
        ({"seed": -1}, OptionError, "--seed is -1; expected a whole number of at least 0"),
        ({"cold_start": 2}, OptionError, "--cold-start is 2; expected a share between 0 and 1"),
        ({"lora_alpha": 0.0}, OptionError, "--lora-alpha is 0.0; expected a number above 0"),
        ({"budget": 0.2}, OptionError, "--budget is '0.2'; .*Write 20%"),
        ({"rule": "median"}, OptionError, "--rule is 'median'; expected one of round-robin, paper, mean"),
        ({"dtype": "float8"}, OptionError, "--dtype is 'float8'; expected one of auto, float32"),
        ({"optimizer": "x.pt"}, OptionError, "--optimizer is given without --adapter"),
        ({"pool": []}, InputError, "the pool is empty"),
        ({"pool": "nowhere.jsonl"}, InputError, "cannot read nowhere.jsonl"),
        ({"target": ["a.jsonl", "b.jsonl"]}, InputError, "cannot read a.jsonl"),
        ({"lora_targets": "wings"}, ModelError, "got wings; this model's linear layers are"),
    ],
)
def test_what_cannot_be_used_is_refused(job, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        cu.select(**arguments(job, tmp_path / "run", **changes))


def test_python_has_the_options_of_the_command_line():
    from dataclasses import fields

    from clusterucb.options.search import Settings

    parameters = inspect.signature(cu.select).parameters
    for field in fields(Settings):
        assert parameters[field.name].default == field.default
    assert {"pool", "target", "model", "out", "features", "clusterer", "policy", "overwrite"} <= set(
        parameters
    )


# A refused command costs nothing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 1}, "at most the budget"),
        ({"lora_targets": "nope"}, "got nope; this model's linear layers are"),
        ({"lora_targets": "q_proj,lm_head"}, "belongs to the vocabulary head"),
    ],
)
def test_overwrite_removes_nothing_before_the_new_run_is_accepted(job, tmp_path, changes, message):
    shutil.copytree(job / "done", tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises((OptionError, ModelError), match=message):
        cu.select(**arguments(job, tmp_path / "run", overwrite=True, **changes))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_refused_budget_or_selection_leaves_the_run_as_it_was(job, tmp_path):
    shutil.copytree(job / "done", tmp_path / "run")
    for changes in ({"budget": "60%", "select": "90%"}, {"select": "90%"}):
        with pytest.raises(OptionError, match="at most the budget"):
            cu.select(**arguments(job, tmp_path / "run", **changes))
    cu.select(**arguments(job, tmp_path / "run"))
    assert results(tmp_path / "run") == results(job / "done")


@pytest.mark.parametrize("targets", ["nope", "q_proj,nope", "lm_head", "embed_tokens"])
def test_a_misspelt_layer_does_not_block_the_folder(job, tmp_path, targets):
    with pytest.raises(ModelError):
        cu.select(**arguments(job, tmp_path / "run", lora_targets=targets))
    cu.select(**arguments(job, tmp_path / "run"))
    assert results(tmp_path / "run") == results(job / "done")


class _Faulty:
    """Plugins whose methods fail or return what they must not."""

    class Raises(cu.IndexPolicy):
        def index(self, arms, rng):
            raise ZeroDivisionError("oh\nno")

    class Ragged(cu.Policy):
        def ask(self, n, available, rng):
            return [[1], [2, 3]]

    class Clusters(cu.Clusterer):
        def fit_predict(self, pool, rng):
            return pool.columns["nope"]

    class Short(cu.Feature):
        def compute(self, batch):
            return {"x": np.zeros((2, 1))}

    class Nothing(cu.Feature):
        def compute(self, batch):
            return None

    class Nan(cu.Feature):
        def compute(self, batch):
            return {"x": np.full((len(batch.samples), 1), np.nan)}


class _OneNan(cu.Feature):
    """The lengths of the answers, but for one sample."""

    def compute(self, batch):
        lengths = np.array([[float(one.n_labels)] for one in batch.encoded])
        lengths[[sample.line == 8 for sample in batch.samples]] = np.nan
        return {"x": lengths}


def test_a_feature_that_is_not_finite_costs_no_run(job, tmp_path):
    message = r"_OneNan\.compute: 1 row of block 'x' is not finite, the first of .*pool.jsonl:8;"
    with pytest.warns(ClusterUCBWarning, match=message):
        cu.select(**arguments(job, tmp_path / "run", features=_OneNan(), budget="100%"))
    assert len(read_rows(tmp_path / "run" / "scores.jsonl")) == N


@pytest.mark.parametrize("value", [None, 1e300, 10**400])
def test_a_vector_that_is_not_finite_counts_as_the_mean(job, tmp_path, value):
    lines = [{**row, "v": [float(at), 1.0]} for at, row in enumerate(rows(N))]
    lines[3]["v"][0] = value
    write_rows(tmp_path / "pool.jsonl", lines)
    given = arguments(job, tmp_path / "run", features=cu.Column("v"), pool=tmp_path / "pool.jsonl")
    with pytest.warns(
        ClusterUCBWarning, match=r"1 row of block 'column' is not finite, the first of .*pool.jsonl:4;"
    ):
        cu.select(**given)


@pytest.mark.parametrize(
    ("strategies", "message"),
    [
        (
            {"policy": _Faulty.Raises()},
            r"Raises\.ask failed: ZeroDivisionError: oh no\. This is a fault of the plugin",
        ),
        ({"policy": _Faulty.Ragged()}, r"Ragged\.ask returned \[\[1\], \[2, 3\]\]; expected 4 distinct"),
        ({"clusterer": _Faulty.Clusters()}, r"Clusters\.fit_predict failed: KeyError: 'nope'"),
        (
            {"features": _Faulty.Short()},
            rf"Short\.compute: block 'x' .* shape \(2, 1\); expected .*f32\[{N}, k\]",
        ),
        ({"features": _Faulty.Nothing()}, r"Nothing\.compute returned None; expected a dict"),
        ({"features": _Faulty.Nan()}, r"Nan\.compute: block 'x' is not finite"),
    ],
)
def test_a_plugins_fault_names_the_plugin_and_is_saved_nowhere(job, tmp_path, strategies, message):
    with pytest.raises(PluginError, match=message):
        cu.select(**arguments(job, tmp_path / "run", **strategies))
    if "features" in strategies:
        assert not list((tmp_path / "run").glob("features-*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": None}, "pool is of type NoneType; expected paths, a list of dicts"),
        ({"target": 3}, "target is of type int; expected paths, a list of dicts"),
        ({"target": None}, "target is None; expected the path of a file, or rows"),
        ({"pool": {"prompt": "a"}}, "pool is of type dict; expected paths"),
        ({"out": None, "export": "trl"}, "export is given without out; expected out, the folder"),
        ({"out": ""}, "out is ''; expected the path of a folder"),
        ({"model": ""}, "model is ''; expected a path, a hub id or a loaded model"),
        ({"policy": 0}, "policy is 0; expected an object of a class derived from"),
        ({"clusterer": np.zeros(N, int)}, "clusterer is array.*; expected an object of a class derived from"),
        ({"device": "meta"}, "--device is 'meta', which cannot be used"),
    ],
)
def test_wrong_types_are_refused_in_the_users_words(job, tmp_path, changes, message):
    with pytest.raises(OptionError, match=message):
        cu.select(**{**arguments(job, tmp_path / "run"), **changes})


def test_numbers_of_numpy_are_numbers(job, tmp_path):
    numbers = {"seed": np.int64(0), "batch_size": np.int32(4), "cold_start": np.float64(0.05)}
    cu.select(**arguments(job, tmp_path / "run", **numbers))
    assert results(tmp_path / "run") == results(job / "done")


def test_a_result_fits_a_line(job):
    result = cu.select(**arguments(job, "done"))
    assert repr(result).startswith("<Result: 4 of 90 samples selected, 18 scored, cost ")
    assert "\n" not in repr(result) + repr(result.selection)
    assert len(repr(result.selection)) < 100


def test_a_finished_run_is_shown_where_nothing_can_be_written(job, tmp_path, monkeypatch):
    shutil.copytree(job / "done", tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    first = cu.select(**arguments(job, tmp_path / "run"))
    access = os.access

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    for owner, name in ((atomic, "_create"), (Path, "mkdir"), (Path, "unlink"), (Path, "replace")):
        monkeypatch.setattr(owner, name, refuse)
    shown = cu.select(**arguments(job, tmp_path / "run"))
    assert (shown.ids, shown.scores.tolist()) == (first.ids, first.scores.tolist())
    with pytest.raises(RunError, match="cannot be written, and these options ask for more"):
        cu.select(**arguments(job, tmp_path / "run", budget="90%"))
    with pytest.raises(RunError, match=r"other settings: --seed was 0, now 1"):
        cu.select(**arguments(job, tmp_path / "run", seed=1))
    monkeypatch.undo()
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {path.name for path in before} == {path.name for path in after}
