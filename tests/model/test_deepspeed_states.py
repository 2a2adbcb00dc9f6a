"""Checkpoints of DeepSpeed's ZeRO are joined exactly; incomplete and odd ones are refused, and nothing in them runs."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import pytest
import torch

from clusterucb.errors import ModelError
from clusterucb.model.checkpoint_files import checkpoint_fingerprints, optimizer_file
from clusterucb.model.moments import load_moments
from helpers.moments import asked, assert_moments

sys.path.append(str(Path(__file__).parents[1] / "data"))
import make_deepspeed_states as made

OPTIMIZER = "zero_pp_rank_1_mp_rank_00_optim_states.pt"


def checkpoint(stage, folder=None):
    """Return the folder of a checkpoint, copied into ``folder`` if given."""
    source = made.FOLDER / f"zero{stage}"
    return shutil.copytree(source, folder / "checkpoint") if folder else source


@pytest.mark.parametrize("stage", made.STAGES)
@pytest.mark.parametrize("inner", [False, True])
def test_moments_are_those_of_the_run(stage, inner):
    folder = checkpoint(stage)
    model, manifest = asked(whole=False)
    got = load_moments(folder / made.TAG if inner else folder, model, manifest)
    assert_moments(got, model, manifest)
    assert not got.by_position
    assert got.matched == f"8 parameters matched by name; DeepSpeed ZeRO-{stage}, 2 processes"


def test_the_folder_is_found_and_hashed(tmp_path):
    folder = checkpoint(2, tmp_path)
    assert optimizer_file(folder) == folder / made.TAG
    before = checkpoint_fingerprints([(None, folder / made.TAG)])["optimizer"]
    shutil.copytree(folder / made.TAG, folder / "global_step9")
    (folder / "latest").write_text("global_step9\n")
    assert optimizer_file(folder) == folder / "global_step9"
    state = folder / "global_step9" / OPTIMIZER
    state.write_bytes(state.read_bytes() + b"x")
    assert checkpoint_fingerprints([(None, folder / "global_step9")])["optimizer"] != before


def edit(path, change):
    """Change the content of one of DeepSpeed's files, which become stand-ins in memory."""
    from clusterucb.model.states import safe

    content = safe.load(path, deepspeed=True)
    change(content)
    torch.save({**content, "optimizer_state_dict": without_objects(content["optimizer_state_dict"])}, path)


def without_objects(state):
    from clusterucb.model.states.safe import StandIn

    return {key: value.arguments[0] if key == "zero_stage" else value for key, value in state.items()} | {
        key: None for key, value in state.items() if isinstance(value, StandIn) and key != "zero_stage"
    }


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (3, lambda one: one["optimizer_state_dict"].pop("state"), r"is damaged: it lacks "),
        (
            3,
            lambda one: one["optimizer_state_dict"]["state"][0].pop("exp_avg"),
            r"lacks exp_avg of base_model",
        ),
        (
            3,
            lambda one: one["optimizer_state_dict"]["state"][0].update(exp_avg_sq=torch.ones(50)),
            r"it has \d+ of the \d+ elements of exp_avg_sq of base_model",
        ),
        (
            3,
            lambda one: one["optimizer_state_dict"].clear(),
            r"is damaged: it lacks exp_avg of",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, stage, change, message):
    folder = checkpoint(stage, tmp_path)
    edit(folder / made.TAG / OPTIMIZER, lambda content: change(content["optimizer_state_dict"]))
    with pytest.raises(ModelError, match=message):
        load_moments(folder, *asked(whole=False))


def swapped(first, second):
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def copied(first, second):
    second.write_bytes(first.read_bytes())


@pytest.mark.parametrize("change", [swapped, copied])
def test_files_under_names_of_others_are_found_by_the_weights_in_them(tmp_path, change):
    folder = checkpoint(3, tmp_path)
    paths = sorted((folder / made.TAG).glob("*_optim_states.pt"))
    change(*paths)
    with pytest.raises(
        ModelError,
        match=r"has other values of base_model\S+ than the model: \d+ of \d+ differ\. .* under their own names",
    ):
        load_moments(folder, *asked(whole=False))


@pytest.mark.parametrize("stage", made.STAGES)
def test_the_state_of_another_step_is_refused_and_rounded_weights_are_not(stage):
    model, manifest = asked(whole=False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
    assert load_moments(checkpoint(stage), model, manifest).m.any()
    with torch.no_grad():
        next(weight for weight in model.parameters() if weight.requires_grad)[0, 0] += 0.1
    with pytest.raises(ModelError, match=r"the model: 1 of 16 differ"):
        load_moments(checkpoint(stage), model, manifest)


@pytest.mark.parametrize("stage", made.STAGES)
def test_a_missing_process_and_missing_shapes_are_told(tmp_path, stage):
    folder = checkpoint(stage, tmp_path)
    (folder / made.TAG / OPTIMIZER).rename(tmp_path / OPTIMIZER)
    with pytest.raises(
        ModelError, match=r"has 1 file \*_optim_states.pt, of a training with 2 processes; expected"
    ):
        load_moments(folder, *asked(whole=False))
    (tmp_path / OPTIMIZER).rename(folder / made.TAG / OPTIMIZER)
    for file in (folder / made.TAG).glob("*_model_states.pt"):
        file.unlink()
    with pytest.raises(ModelError, match=r"has no \*_model_states.pt, which has the parameters' shapes"):
        load_moments(folder, *asked(whole=False))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "half", [1], {"a": 1}])
def test_a_file_that_is_none_of_deepspeeds_is_refused(tmp_path, content):
    folder = checkpoint(2, tmp_path)
    path = folder / made.TAG / OPTIMIZER
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "half":
        path.write_bytes(path.read_bytes()[:2000])
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=r"expected the files of all processes of one DeepSpeed checkpoint"):
        load_moments(folder, *asked(whole=False))


class Evil:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_nothing_in_a_file_runs(tmp_path, capfd, monkeypatch):
    folder = checkpoint(2, tmp_path)
    torch.save({"optimizer_state_dict": {"loss_scaler": Evil()}}, folder / made.TAG / OPTIMIZER)
    with pytest.raises(ModelError, match=r"it needs \S*print, and code from a file is never run"):
        load_moments(folder, *asked(whole=False))
    module = types.ModuleType("deepspeed.evil")
    module.run = lambda *_: print("code from a checkpoint ran")
    module.run.__module__, module.run.__qualname__ = "deepspeed.evil", "run"
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.evil", module)
    monkeypatch.setattr(Evil, "__reduce__", lambda self: (module.run, ()))
    torch.save({"optimizer_state_dict": {"loss_scaler": Evil()}}, folder / made.TAG / OPTIMIZER)
    with pytest.raises(ModelError):
        load_moments(folder, *asked(whole=False))
    assert "code from a checkpoint ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"momentum_buffer": torch.ones(56)}, r"SGD or Muon: .* no second moment"),
        ({"exp_avg": torch.ones(56)}, r"Lion: .* no second moment"),
        (
            {"exp_avg_sq_row": torch.ones(2), "exp_avg_sq_col": torch.ones(8)},
            r"a state of Adafactor in parts",
        ),
    ],
)
def test_other_optimisers_are_refused_by_name(tmp_path, entries, message):
    folder = checkpoint(3, tmp_path)

    def change(content):
        base = content["optimizer_state_dict"]["optimizer_state_dict"]
        base["state"] = {0: {"step": 1, **entries}}
        if "exp_avg" in entries:
            base["param_groups"][0].pop("eps")

    for rank in range(2):
        edit(folder / made.TAG / OPTIMIZER.replace("rank_1", f"rank_{rank}"), change)
    with pytest.raises(ModelError, match=message):
        load_moments(folder, *asked(whole=False))
