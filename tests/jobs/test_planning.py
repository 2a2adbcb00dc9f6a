"""A plan counts what the selection will count, and what does not fit is refused with the option that makes it fit."""

from __future__ import annotations

import inspect
import json
import os
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clusterucb as cu
from clusterucb import machine
from clusterucb.cli import main as cli
from clusterucb.engine import large
from clusterucb.errors import OptionError
from clusterucb.gradients import compiled
from clusterucb.gradients import memory_needs as fitting
from clusterucb.gradients.accumulate import Checkpoint
from clusterucb.gradients.memory_needs import Needs, check_memory
from clusterucb.gradients.passes import PaddedBatch
from clusterucb.gradients.peak_memory import peak_bytes
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.jobs.stages import pass_times as estimate
from clusterucb.jobs.stages.pass_layout import Rate, Work
from clusterucb.model.parameters import ParameterManifest
from clusterucb.report.screen import show_plan
from clusterucb.terminal import Terminal
from helpers.encoding import encoded
from helpers.models import tiny_llama, with_lora
from helpers.tiny import write_job

SMALL = {"warmup_steps": 2, "batch_size": 4, "budget": "20%"}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"))


def arguments(job, **options):
    return {
        "pool": job / "pool.jsonl",
        "target": job / "dev.jsonl",
        "model": job / "model",
        **SMALL,
        **options,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preconditioner": "sgd", "batch_tokens": 40, "budget": "3"},
        {"budget": "1h"},
        {"features": cu.Hidden(), "clusterer": cu.Source(), "policy": cu.Random()},
        {"features": cu.Gradient(), "sketch_dim": 256},
        {"parameters": "*.down_proj", "preconditioner": "sgd", "checkpointing": True},
        {"compile": True, "checkpointing": True, "adapter": None},
    ],
)
def test_a_plan_counts_what_the_selection_counts(job, tmp_path, monkeypatch, options):
    monkeypatch.setattr(compiled, "_BACKEND", "aot_eager")
    plan = cu.plan(**arguments(job, **options))
    with (
        pytest.warns(cu.ClusterUCBWarning)
        if "features" in options and options["features"].gradients
        else NONE
    ):
        result = cu.select(**arguments(job, out=tmp_path / "run", **options))
    assert (plan.n_budget, plan.n_select) == (result.outcome.n_budget, result.outcome.n_select)
    assert plan.pool_samples == result.manifest.inputs.pool_samples
    assert plan.target_samples == result.manifest.inputs.target_samples
    for name, phase in result.cost.phases.items():
        planned = plan.cost.phases[name]
        assert (planned.gradients, planned.forward_passes) == (phase.gradients, phase.forward_passes)
        assert planned.seconds > 0 or name == "warm-up" or phase.seconds < 0.1
        if name in ("warm-up", "target", "features"):
            assert planned.tokens == phase.tokens
    assert plan.cost.total == result.cost.total
    assert plan.seconds > plan.cost.seconds > 0
    written = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert 0.2 * written < plan.disk < 5 * written
    assert not plan.misfits()


class _Nothing:
    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


NONE = _Nothing()


def test_with_a_store_the_pool_costs_what_is_scored_exactly(job, tmp_path):
    cu.sketch(job / "pool.jsonl", model=job / "model", out=tmp_path / "store", warmup_steps=2, sketch_dim=256)
    given = {**arguments(job), "store": tmp_path / "store", "warmup_steps": 30}
    plan = cu.plan(**given)
    assert plan.cost.phases["draws"].gradients == plan.n_budget < plan.pool_samples
    assert plan.cost.phases["features"].gradients == 0
    assert "warm-up" not in plan.cost.phases
    free = cu.plan(**given, scorer="sketch")
    assert free.n_budget == free.pool_samples
    assert free.cost.phases["draws"].gradients == 0
    assert free.cost.gradients == free.target_samples


def test_features_of_a_large_pool_are_half_as_large_on_the_disk(job, monkeypatch):
    options = arguments(job, budget="5", select=2, features=cu.Embedding(), clusterer=cu.KMeans(n_clusters=2))
    small = cu.plan(**options)
    monkeypatch.setattr(large, "LARGE", small.pool_samples - 1)
    half = cu.plan(**options)
    width, rest = divmod(small.disk - half.disk, 2 * small.pool_samples)
    assert width > 0
    assert not rest
    assert half.disk > 0


def test_nothing_is_kept(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    before = sorted(job.rglob("*"))
    cu.plan(**arguments(job, out=tmp_path / "run"))
    assert sorted(job.rglob("*")) == before
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


def test_its_options_are_those_of_select(capsys):
    ours, theirs = (inspect.signature(function).parameters for function in (cu.plan, cu.select))
    assert set(theirs) - set(ours) == {"overwrite"}
    assert set(ours) < set(theirs)
    helps = []
    for command in ("plan", "select"):
        assert cli.run([command, "--help"]) == 0
        helps.append({word.rstrip(",") for word in capsys.readouterr().out.split() if word.startswith("--")})
    assert helps[0] == helps[1]


def test_the_command_shows_time_cost_and_room(job, capsys, monkeypatch):
    monkeypatch.chdir(job)
    command = ["plan", "pool.jsonl", "--target", "dev.jsonl", "--model", "model", "--warmup-steps", "2"]
    assert cli.run(command) == 0
    out = capsys.readouterr().out
    assert "Scoring 8 samples of 40 to select 2 takes about" in out
    for line in ("warm-up", "draws", "total", "memory", "disk for the run", "disk for temporary files"):
        assert line in out
    monkeypatch.setattr(estimate, "free_disk", lambda place: 10)
    assert cli.run([*command, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    phases = found["cost"]["phases"]
    assert found["seconds"] == pytest.approx(found["set_up"] + sum(one["seconds"] for one in phases.values()))
    assert [line.partition(":")[0] for line in found["misfits"]] == [
        "Not enough disk for the run",
        "Not enough disk for temporary files",
    ]


@pytest.mark.parametrize(
    ("free", "checkpointing", "remedy"),
    [
        (1500, False, None),
        (1100, False, "Use --batch-tokens 70$"),
        (790, False, "Use --checkpointing$"),
        (790, True, r"Use --max-length \d+$"),
        (250, True, "Use a smaller --lora-rank, fewer --lora-targets"),
    ],
)
def test_the_remedy_makes_it_fit(monkeypatch, free, checkpointing, remedy):
    monkeypatch.setattr(fitting, "available", lambda device: -(-free * 100 // 95))
    needed = Needs(directions=200, moments=200, target=0, a_pass=1000, tokens=100, longest=50)
    if remedy is None:
        check_memory(needed, "cpu", checkpointing=checkpointing)
        return
    with pytest.raises(OptionError, match=remedy) as error:
        check_memory(needed, "cpu", checkpointing=checkpointing)
    assert "kB of memory beside the model" in str(error.value)


def test_a_disk_without_room_is_refused(job, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "free_disk", lambda folder: 100)
    with pytest.raises(
        OptionError, match=r"the adapter need .* of disk space in .*run; 0\.1 kB are free there\. Give"
    ):
        cu.select(**arguments(job, out=tmp_path / "run"))


def test_what_lies_on_the_disk_needs_no_room(job, tmp_path, monkeypatch):
    out = tmp_path / "run"
    cu.select(**arguments(job, out=out))
    monkeypatch.setattr(fitting, "free_disk", lambda folder: 100)
    grown = cu.select(**arguments(job, out=out, budget="40%"))
    assert grown.selection.n_scored > 0


def test_a_pass_takes_what_memory_allows_and_at_least_a_sample():
    needed = Needs(directions=1500, moments=1000, target=500, a_pass=500, tokens=100, longest=50)
    assert (
        fitting.tokens_that_fit(needed, 10_000) == 512
    )  # 1000 of them would take 5000 of the 80 % of 10 000
    assert fitting.tokens_that_fit(needed, 4_000) == 50
    assert fitting.tokens_that_fit(needed, 10**12) == 1 << 16


def test_select_refuses_what_does_not_fit_before_anything_is_written(job, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "available", lambda device: 2_000_000)
    with pytest.raises(
        OptionError, match=r"^gradients need .* MB are free\. Use --batch-tokens \d+$"
    ) as error:
        cu.select(**arguments(job, out=tmp_path / "run"))
    tokens = int(str(error.value).rpartition(" ")[2])
    assert not list((tmp_path / "run").glob("adapter"))
    with pytest.raises(OptionError, match="gradients need"):
        cu.plan(**arguments(job))
    cu.select(**arguments(job, out=tmp_path / "run", batch_tokens=tokens))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_of_a_pass_is_worked_out_from_smaller_ones(attention, checkpointing):
    model = with_lora(tiny_llama(num_hidden_layers=6))
    model.base_model.model.set_attn_implementation(attention)
    manifest = ParameterManifest.of(model)
    checkpoint = Checkpoint(PerSampleGradients(model, manifest, checkpointing=checkpointing), manifest.size)
    samples = encoded(1, [200, 190, 150, 120])
    expected = fitting.pass_bytes(checkpoint, samples, "cpu")
    batch = PaddedBatch.of(samples)
    with checkpoint.gradients as gradients:
        gradients.backward(batch, lambda *_: None)
        true = peak_bytes(lambda: gradients.backward(batch, lambda *_: None))
    assert expected == pytest.approx(true, rel=0.15)


def test_a_container_s_limit_is_the_memory(tmp_path, monkeypatch):
    total, free = machine.memory()
    assert total >= free > 0
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory()[0] >= total
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\nfile 300000\n")
    assert machine.memory() == (1_000_000, 600_000)


def test_passes_are_laid_out_as_they_will_be():
    lengths = np.array([5, 9, 3])
    work = Work.of([[np.array([0, 1]), np.array([2])], []], lengths, times=2.0)
    assert (work.passes, work.tokens, work.widest) == (4.0, 2.0 * (2 * 9 + 3), 2)


@given(
    calls=st.lists(st.lists(st.integers(1, 500), min_size=1, max_size=9), max_size=5),
    workers=st.integers(1, 12),
    constant=st.floats(0.001, 1),
)
def test_workers_share_the_passes_of_a_call(calls, workers, constant):
    rate, work = Rate(constant, 0.01), Work([np.array(call) for call in calls], times=3.0)
    whole, shared = rate.seconds(work), rate.seconds(work, workers)
    one = [[constant + 0.01 * tokens for tokens in call] for call in calls]
    least = 3 * sum(max(max(call), sum(call) / workers) for call in one)
    assert rate.seconds(work, 1) == pytest.approx(whole)
    assert 0.999 * least <= shared <= 2 * least + 1e-9  # list scheduling takes at most twice the least time
    useful = rate.useful([work])
    assert 1 <= useful <= max(work.widest, 1)
    assert rate.seconds(work, useful) <= 1.05 * rate.seconds(work, 100) + 1e-9


def test_a_plan_counts_the_workers(job, capsys):
    alone, plan = (cu.plan(**arguments(job, batch_tokens=64, **more)) for more in ({}, {"workers": 2}))
    assert alone.workers is None
    assert plan.workers.number == 2
    assert plan.memory >= 2 * plan.workers.memory > alone.memory
    assert 0 < plan.workers.sent < 10**6
    assert 1 <= plan.workers.useful <= (os.cpu_count() or 1)
    assert torch.get_num_threads() == 1
    show_plan(plan, Terminal())
    assert re.search(r"2 workers: .* of memory each; .* of samples are sent", capsys.readouterr().out)
