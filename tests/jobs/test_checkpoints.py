"""Several checkpoints, layers by pattern, and memory that runs out, in whole jobs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import clusterucb as cu
from clusterucb.cli import main as cli
from clusterucb.errors import ModelError, OptionError
from clusterucb.gradients.per_sample import PerSampleGradients
from helpers.tiny import interrupt, read_rows, write_job

N = 40


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Return a job's folder with checkpoints: a and b of one training, c and d of others."""
    folder = write_job(tmp_path_factory.mktemp("job"))
    others = {"c": {"lora_rank": 2}, "d": {"lora_targets": "o_proj"}}
    for name, changes in {"a": {}, "b": {"warmup_steps": 8}, **others}.items():
        warming = {"warmup_steps": 3, "lora_targets": "q_proj,v_proj", **changes}
        select(folder, folder / name, batch_size=10, **warming)
    return folder


def select(job, out, **changes):
    options = {"model": job / "model", "out": out, "budget": "100%", "batch_size": 6, **changes}
    return cu.select(job / "pool.jsonl", job / "dev.jsonl", **options)


def scores_of(run):
    return {line["id"]: line["subtasks"]["dev"] for line in read_rows(run / "scores.jsonl")}


def checkpoints(job, *names):
    return [job / name / "adapter" for name in names]


def test_scores_of_several_checkpoints_are_weighted_sums_and_each_costs_a_gradient(job, tmp_path):
    both = select(job, tmp_path / "both", checkpoint=checkpoints(job, "a", "b"), checkpoint_weights="1,3")
    one, other = (
        scores_of(select(job, tmp_path / name, adapter=job / name / "adapter").out) for name in "ab"
    )
    for name, score in scores_of(both.out).items():
        assert score == pytest.approx(0.25 * one[name] + 0.75 * other[name], abs=1e-6)
    assert abs(np.corrcoef(list(one.values()), [other[name] for name in one])[0, 1]) < 0.999
    counted = {name: phase.gradients for name, phase in both.cost.phases.items()}
    assert counted == {"features": 0, "target": 2 * 6, "clusters": 0, "draws": 2 * N}


def test_without_weights_all_count_the_same_and_one_checkpoint_is_an_adapter(job, tmp_path):
    equal = select(job, tmp_path / "equal", checkpoint=checkpoints(job, "a", "b"))
    given = select(job, tmp_path / "given", checkpoint=checkpoints(job, "a", "b"), checkpoint_weights="2,2")
    alone = select(job, tmp_path / "alone", checkpoint=checkpoints(job, "a"))
    adapter = select(job, tmp_path / "adapter", adapter=job / "a" / "adapter")
    for one, other in ((equal, given), (alone, adapter)):
        assert (one.out / "scores.jsonl").read_bytes() == (other.out / "scores.jsonl").read_bytes()


def test_a_run_with_several_checkpoints_that_was_interrupted_goes_on_to_the_same_bytes(
    job, tmp_path, monkeypatch
):
    whole = select(job, tmp_path / "whole", checkpoint=checkpoints(job, "a", "b"))
    interrupt(monkeypatch, (2, 5, 9))
    stopped = 0
    while True:
        try:
            result = select(job, tmp_path / "stopped", checkpoint=checkpoints(job, "a", "b"))
            break
        except KeyboardInterrupt:
            stopped += 1
    assert stopped == 3
    assert (result.out / "scores.jsonl").read_bytes() == (whole.out / "scores.jsonl").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint": ("a", "b"), "checkpoint_weights": "1,3"},
        {"parameters": "model.layers.*.mlp.down_proj,*.o_proj", "preconditioner": "sgd"},
        {"parameters": "*.down_proj", "optimizer": True},
    ],
)
def test_a_store_keeps_what_its_sketches_are_of(job, tmp_path, options):
    given = dict(options)
    if "checkpoint" in given:
        given["checkpoint"] = checkpoints(job, *given["checkpoint"])
    if "optimizer" in given:
        given["optimizer"] = fully_trained(job, tmp_path)[2]
    store = cu.sketch(
        job / "pool.jsonl", model=job / "model", out=tmp_path / "store", sketch_dim=4096, **given
    )
    same = {name: value for name, value in given.items() if name in ("parameters", "preconditioner")}
    estimated = scores_of(select(job, tmp_path / "run", store=store.folder, scorer="sketch", **same).out)
    rescored = scores_of(select(job, tmp_path / "exact", store=store.folder, **same).out)
    exact = scores_of(select(job, tmp_path / "direct", **given).out)
    assert rescored.keys() == exact.keys() == estimated.keys()
    for name, score in exact.items():
        assert rescored[name] == pytest.approx(score, abs=1e-6)
        assert estimated[name] == pytest.approx(score, abs=5 / 4096**0.5)
    assert estimated != exact


def fully_trained(job, folder):
    """Return a model, the optimiser of its full fine-tuning, and the file of its state."""
    model = AutoModelForCausalLM.from_pretrained(job / "model")
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-9)  # its gradients below confirm no order
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight).normal_(generator=generator)
        optimizer.step()
    model.zero_grad()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return model, optimizer, folder / "optimizer.pt"


def test_a_full_fine_tuning_s_optimiser_preconditions_its_layers(job, tmp_path):
    model, optimizer, state = fully_trained(job, tmp_path)
    options = {"parameters": "*.down_proj"}
    read = select(job, tmp_path / "read", optimizer=state, **options)
    plain = select(job, tmp_path / "plain", preconditioner="sgd", **options)
    assert scores_of(read.out) != scores_of(plain.out)
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    lent = select(job, tmp_path / "lent", model=model, tokenizer=tokenizer, optimizer=optimizer, **options)
    given, theirs = scores_of(lent.out), scores_of(read.out)
    assert max(abs(given[name] - theirs[name]) for name in given) < 1e-6
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"checkpoint": "ab", "adapter": "a"},
            OptionError,
            "--adapter and --checkpoint are given; expected only one",
        ),
        ({"checkpoint": "ab", "parameters": "*"}, OptionError, "--checkpoint and --parameters are given"),
        (
            {"checkpoint": "ab", "checkpoint_weights": "1"},
            OptionError,
            "--checkpoint-weights is '1' for 2 checkpoints",
        ),
        ({"checkpoint": "ab", "checkpoint_weights": "1,-1"}, OptionError, "a number above 0 for each"),
        ({"checkpoint": "ab", "checkpoint_weights": "1,x"}, OptionError, "a number above 0 for each"),
        ({"checkpoint_weights": "1"}, OptionError, "--checkpoint-weights is given without --checkpoint"),
        ({"checkpoint": "ac"}, ModelError, "expected checkpoints of one training, with the same LoRA"),
        ({"checkpoint": "ad"}, ModelError, "has a LoRA on o_proj with .*, .* on q_proj, v_proj with"),
        ({"checkpoint": ""}, OptionError, "--checkpoint is given without a folder"),
        ({"checkpoint": "ax"}, ModelError, "there is no .*adapter_config.json"),
        (
            {"parameters": "*.down_proj"},
            OptionError,
            "expected --optimizer with the state of the model's training, or",
        ),
        (
            {"parameters": "*.nope", "preconditioner": "sgd"},
            ModelError,
            "'\\*.nope' matches no linear layer; this model",
        ),
        ({"optimizer": "a"}, OptionError, "--optimizer is given without --adapter or --parameters"),
        ({"autocast": "float8"}, OptionError, "--autocast is 'float8'; expected"),
    ],
)
def test_what_does_not_go_together_is_refused(job, tmp_path, options, error, message):
    for name in ("checkpoint", "adapter", "optimizer"):
        if name in options:
            folders = checkpoints(job, *options[name])
            options = {**options, name: folders if name == "checkpoint" else folders[0]}
    with pytest.raises(error, match=message):
        select(job, tmp_path / "run", **options)


def test_the_command_line_and_the_configuration_name_several_checkpoints(job, tmp_path, monkeypatch):
    monkeypatch.chdir(job)
    command = [
        "select",
        "pool.jsonl",
        "--target",
        "dev.jsonl",
        "--model",
        "model",
        "--quiet",
        "--budget",
        "20%",
    ]
    given = ["--checkpoint", "a/adapter", "--checkpoint", "b/adapter", "--checkpoint-weights", "1,3"]
    assert cli.run([*command, *given, "--out", str(tmp_path / "one")]) == 0
    again = [
        "select",
        "--config",
        str(tmp_path / "one" / "config.yaml"),
        "--quiet",
        "--out",
        str(tmp_path / "two"),
    ]
    assert cli.run(again) == 0
    one, two = ((tmp_path / name / "scores.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
    assert (
        cli.run([*command, "--adapter", "a/adapter", "--out", str(tmp_path / "one")]) == 2
    )  # another run's folder


@pytest.fixture
def small_memory(monkeypatch):
    """Let passes of more than 160 tokens run out of memory, after the first few."""
    backward, made = PerSampleGradients.backward, []

    def failing(self, batch, sink):
        made.append(batch.ids.numel())
        if len(made) > 8 and batch.ids.numel() > 160:
            raise torch.OutOfMemoryError("no")
        return backward(self, batch, sink)

    monkeypatch.setattr(PerSampleGradients, "backward", failing)
    return made


def test_a_run_goes_on_when_memory_runs_out_and_says_so(job, tmp_path, small_memory, capsys):
    plain = scores_of(job / "a")
    steps = []
    options = {"adapter": job / "a" / "adapter", "batch_size": 10}
    result = select(job, tmp_path / "run", observer=lambda text, done, total: steps.append(text), **options)
    scores = scores_of(result.out)
    assert len(scores) == N
    assert max(abs(scores[name] - plain[name]) for name in plain) < 1e-6
    assert any("Out of memory: from now on, passes have at most" in text for text in steps)
    limits = result.manifest.passes.limits
    assert limits
    assert [one.tokens for one in limits] == sorted((one.tokens for one in limits), reverse=True)


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_run_that_ran_out_of_memory_and_was_interrupted_goes_on_to_the_same_bytes(
    job, tmp_path, small_memory, monkeypatch, names
):
    options = {"checkpoint": checkpoints(job, *names), "batch_size": 10}
    whole = select(job, tmp_path / "whole", **options)
    assert whole.manifest.passes.limits
    small_memory.clear()
    interrupt(monkeypatch, (9,))
    with pytest.raises(KeyboardInterrupt):
        select(job, tmp_path / "stopped", **options)
    monkeypatch.undo()  # there is memory enough now, and the passes are those of before all the same
    resumed = select(job, tmp_path / "stopped", **options)
    known = {(one.call, one.done, one.tokens) for one in whole.manifest.passes.limits}
    assert {(one.call, one.done, one.tokens) for one in resumed.manifest.passes.limits} <= known
    assert (resumed.out / "scores.jsonl").read_bytes() == (whole.out / "scores.jsonl").read_bytes()


@pytest.mark.parametrize("options", [{"checkpointing": True}, {"autocast": "bfloat16"}])
def test_a_warm_up_is_the_same_with_less_memory_and_nearly_so_under_autocast(job, tmp_path, options):
    select(job, tmp_path / "run", budget="10%", warmup_steps=3, lora_targets="q_proj,v_proj", **options)
    got, plain = (
        load_file(run / "adapter" / "adapter_model.safetensors") for run in (tmp_path / "run", job / "a")
    )
    differences = [float((got[name] - plain[name]).norm() / plain[name].norm()) for name in plain]
    assert max(differences) < (1e-5 if "checkpointing" in options else 0.2)
    assert max(differences) > 0 or "checkpointing" in options


def test_memory_that_runs_out_in_the_warm_up_is_an_error_that_says_so(job, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr("clusterucb.gradients.fine_tuning.sample_losses", fail)
    with pytest.raises(
        ModelError, match=r"too small for a training step of 4 samples of up to \d+ tokens; expected"
    ):
        select(job, tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()


def test_memory_that_runs_out_at_once_is_an_error_and_no_bug(job, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(PerSampleGradients, "backward", fail)
    monkeypatch.chdir(job)
    files = ["pool.jsonl", "--target", "dev.jsonl", "--model", "model"]
    for command in (["select", *files, "--out", str(tmp_path / "run")], ["plan", *files]):
        assert cli.run([*command, "--quiet"]) == 2
        assert "memory is too small for the gradient of one sample" in capsys.readouterr().err


def test_features_are_the_base_model_s_whatever_was_computed_before(job, tmp_path):
    both = {"features": cu.Concatenation([cu.Gradient(), cu.Hidden()]), "adapter": job / "a" / "adapter"}
    with pytest.warns(cu.ClusterUCBWarning, match="saves nothing for"):
        joined = select(job, tmp_path / "joined", **both)
    alone = select(job, tmp_path / "alone", features=cu.Hidden(), adapter=job / "a" / "adapter")
    blocks = [
        {
            name: block
            for path in sorted(run.out.glob("features-*.safetensors"))
            for name, block in load_file(path).items()
        }
        for run in (joined, alone)
    ]
    for name, block in blocks[1].items():
        (same,) = (other for spelt, other in blocks[0].items() if spelt.endswith(name))
        assert torch.equal(same, block)


def test_a_store_that_is_refused_leaves_nothing_in_its_way(job, tmp_path):
    options = {"model": job / "model", "out": tmp_path / "store", "sketch_dim": 256}
    with pytest.raises(ModelError, match="with the same LoRA"):
        cu.sketch(job / "pool.jsonl", checkpoint=checkpoints(job, "a", "c"), **options)
    assert not list((tmp_path / "store").glob("adapter*"))


def test_only_our_own_folders_are_removed(job, tmp_path):
    mine = tmp_path / "run" / "adapter-of-mine"
    select(job, tmp_path / "run", budget="10%", adapter=job / "a" / "adapter")
    mine.mkdir()
    select(job, tmp_path / "run", budget="10%", adapter=job / "b" / "adapter", overwrite=True)
    assert mine.is_dir()


@pytest.mark.parametrize("options", [{"select": "30%"}, {"max_length": 2000}])
def test_a_plan_refuses_what_a_selection_refuses(job, tmp_path, options):
    whole = {"model": job / "model", "budget": "20%", **options}
    errors = []
    for make in (cu.plan, cu.select):
        try:
            make(job / "pool.jsonl", job / "dev.jsonl", out=tmp_path / "run", warmup_steps=1, **whole)
            errors.append(None)
        except OptionError as error:
            errors.append(str(error))
    assert errors[0] == errors[1]
    assert (errors[0] is None) == ("select" not in options)


def test_an_optimiser_of_all_parameters_fits_every_checkpoint(job, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(job / "model")
    folders = []
    for number in range(2):
        lora = PeftModel.from_pretrained(model, job / "ab"[number] / "adapter", is_trainable=True)
        optimizer = torch.optim.AdamW(lora.named_parameters(), lr=1e-9)  # frozen ones, too
        for _ in range(2):
            for weight in lora.parameters():
                weight.grad = torch.ones_like(weight) if weight.requires_grad else None
            optimizer.step()
        folders.append(tmp_path / str(number))
        lora.save_pretrained(folders[-1])
        torch.save(optimizer.state_dict(), folders[-1] / "optimizer.pt")
        model = lora.unload()
    result = select(job, tmp_path / "run", budget="10%", checkpoint=folders)
    assert result.selection.n_scored == N // 10
