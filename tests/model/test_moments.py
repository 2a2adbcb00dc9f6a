"""Optimiser states of real libraries are read exactly; what does not fit is refused by parameter, shape and match."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.tensor  # with it, a DTensor can be loaded
from hypothesis import given
from hypothesis import strategies as st
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer

from clusterucb.errors import ModelError
from clusterucb.model.checkpoint_files import missing_state, optimizer_file
from clusterucb.model.moments import decay_groups, load_moments
from clusterucb.model.parameters import ParameterManifest
from helpers.models import tiny_llama, with_lora
from helpers.moments import asked, assert_moments, gradients

sys.path.append(str(Path(__file__).parents[1] / "data"))
import make_optimizer_states as made

MLP = "model.layers.*.mlp.*"
PARTS = (
    r"Expected one file with the whole state .*FSDP's folder with \.metadata .*--optimizer, .*preconditioner"
)


def stepped(model, optimizer):
    """Return the state of an optimiser of the LoRA's parameters after the script's steps."""
    for _ in range(made.STEPS):
        for name, gradient in gradients(whole=False).items():
            model.get_parameter(name).grad = gradient.clone()
        optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("name", [*made.LORA, *made.WHOLE])
def test_files_of_real_libraries_have_the_moments_of_their_runs(name):
    model, manifest = asked(name in made.WHOLE, "model.layers.1.*", MLP)
    got = load_moments(made.FOLDER / name, model, manifest)
    assert_moments(got, model, manifest, decay=made.SETTINGS["weight_decay"] if "adam-" in name else 0.0)


def test_the_script_still_writes_what_is_committed(tmp_path):
    made.write_in_one_process(tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["adam-of-all.pt", "adamw-fused.pt", "trainer.pt"]
    assert {path.name for path in made.FOLDER.iterdir()} == {*made.LORA, *made.WHOLE, *made.IN_PARTS}
    for name in written:
        now, committed = (torch.load(folder / name, weights_only=True) for folder in (tmp_path, made.FOLDER))
        assert [group["params"] for group in now["param_groups"]] == [
            group["params"] for group in committed["param_groups"]
        ]
        torch.testing.assert_close(now["state"], committed["state"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fsdp1-flat.bin",
            r"has exp_avg of shape \(16,\) for base_model\.\S+\.0\.self_attn\.q_proj\.lora_A\.default\.weight, which "
            r"is of shape \(2, 8\) in the model \(matched by position 0 of group 0, in .* trainable ones\): this is",
        ),
        ("fsdp1-sharded.bin", r"holds one process's part of a state \(torch\S+\.ShardedTensor\)"),
        ("fsdp2-sharded.bin", r"has a DTensor as exp_avg of base_model\S+, one process's part of it"),
    ],
)
def test_one_processs_part_is_refused_with_how_to_get_all(name, message):
    with pytest.raises(ModelError, match=rf"{name} {message}.*\. {PARTS}"):
        load_moments(made.FOLDER / name, *asked(whole=False))


@pytest.mark.parametrize(
    ("kind", "options", "decay"),
    [
        (torch.optim.AdamW, {"foreach": True}, 0.0),
        (torch.optim.AdamW, {}, 0.0),
        (torch.optim.Adam, {"fused": True, "weight_decay": 0}, 0.0),
        (torch.optim.Adam, {"foreach": True}, 0.1),
        (torch.optim.Adam, {"decoupled_weight_decay": True}, 0.0),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_variants_of_adam_are_read(tmp_path, kind, options, decay, wrapped):
    model, manifest = asked(whole=False)
    state = stepped(model, kind(made.trainable(model), **{**made.SETTINGS, **options}))
    path = save(tmp_path, {"checkpoint_version": 1, "optimizer": state} if wrapped else state)
    assert_moments(load_moments(path, model, manifest), model, manifest, decay)


def save(folder, content, name="optimizer.pt"):
    torch.save(content, folder / name)
    return folder / name


class Evil:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_nothing_in_a_file_runs(tmp_path, dump, capfd):
    path = tmp_path / "optimizer.pt"
    with path.open("wb") as file:
        dump({"state": Evil(), "param_groups": []}, file)
    with pytest.raises(
        ModelError, match=r"cannot be read as an optimiser state \(.*code from a file is never run"
    ):
        load_moments(path, *asked(whole=False))
    assert "code from a checkpoint ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (
            "trainer_of_ours",
            r"\(it needs trainer_of_ours\.fp16\.Scaler, and code from a file is never run\); expected optimizer\.pt",
        ),
        (
            "deepspeed",
            r"holds a state of DeepSpeed \(deepspeed\.fp16\.Scaler\)\. Expected the folder with the files of all",
        ),
        (
            "megatron",
            r"holds a state of Megatron \(megatron\.fp16\.Scaler\)\. Megatron's states are not supported",
        ),
    ],
)
def test_classes_that_a_file_needs_are_told(tmp_path, monkeypatch, package, message):
    scaler = type("Scaler", (), {"__module__": f"{package}.fp16"})
    for name in (package, f"{package}.fp16"):
        module = types.ModuleType(name)
        module.Scaler = scaler
        monkeypatch.setitem(sys.modules, name, module)
    path = save(tmp_path, {"state": {}, "param_groups": [], "scaler": scaler()})
    with pytest.raises(ModelError, match=message):
        load_moments(path, *asked(whole=False))


OTHERS = [
    (
        torch.optim.SGD,
        {"momentum": 0.9},
        r"is the state of SGD with momentum: for parameter 0 it has momentum_buffer; it keeps no second moment\. "
        r"Use --preconditioner sgd, which needs no state; or .*AdamW, .*--optimizer, and use .* second_moment",
    ),
    (torch.optim.Muon, {}, r"is the state of Muon: .*; it keeps no second moment\. .*sgd.*second_moment"),
    (torch.optim.RAdam, {}, "is the state of RAdam"),
    (torch.optim.NAdam, {}, "is the state of NAdam: .*mu_product"),
    (torch.optim.Adamax, {}, "is the state of Adamax: .*exp_inf"),
    (torch.optim.RMSprop, {}, "is the state of RMSprop or Adadelta: .*square_avg"),
    (torch.optim.Adagrad, {}, "is the state of Adagrad: .*step, sum"),
    (torch.optim.AdamW, {"amsgrad": True}, "is the state of an optimiser with amsgrad=True"),
    (torch.optim.Adam, {"maximize": True}, "is the state of an optimiser with maximize=True"),
]


@pytest.mark.parametrize(("kind", "options", "message"), OTHERS)
def test_other_optimisers_are_refused_by_name(tmp_path, kind, options, message):
    model, manifest = asked(whole=False)
    path = save(tmp_path, stepped(model, kind(made.trainable(model), **options)))
    with pytest.raises(ModelError, match=message):
        load_moments(path, model, manifest)


# What libraries write that are not at hand here, by their sources.
LION = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "params": [0]}  # lion-pytorch, timm


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [LION]},
            "is the state of Lion: for parameter 0 it has exp_avg; it keeps no second moment. Use --preconditioner sgd",
        ),
        (
            {
                "state": {0: {"momentum_buffer": torch.zeros(2)}},
                "param_groups": [{"params": [0], "use_muon": True, "lr": 0.02, "momentum": 0.95}],
            },
            "is the state of Muon: for parameter 0 it has momentum_buffer; it keeps no second moment",
        ),
        (
            {
                "state": {0: {"z": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}},
                "param_groups": [{"params": [0]}],
            },
            "is the state of a schedule-free optimiser: for parameter 0 it has exp_avg_sq, z; expected AdamW's",
        ),
        (
            {"state": {"a": {"max_exp_avg_sq": 0}}},
            "of Adam with amsgrad: for parameter a it has max_exp_avg_sq",
        ),
        (
            {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]},
            "of another optimiser: for parameter 0 it has exp_avg; expected AdamW's exp_avg, exp_avg_sq and step",
        ),
        (
            {"optimizer_state_dict": {"zero_stage": 2, "base_optimizer_state": []}, "ds_version": "0.17"},
            r"holds a state of DeepSpeed \(ds_version\)\. Expected the folder with the files of all .*--optimizer",
        ),
        (
            {"optimizer": {"optimizer": {}, "fp32_from_fp16_params": []}},
            r"holds a state of Megatron \(fp32_from_fp16_params\)\. Megatron's states are not supported: .*sgd",
        ),
        ({"model": {}}, "holds no optimiser state; expected a dict with `state` and `param_groups`"),
        ({"state": {0: {}}}, "holds no optimiser state"),
        ([1], "holds no optimiser state"),
        ({"state": [], "param_groups": []}, "is damaged: `state` or `param_groups`"),
        ({"state": {}, "param_groups": [{}]}, "is damaged"),
        ({"state": {}, "param_groups": 5}, "is damaged"),
        ({"state": {0: 3}, "param_groups": [{"params": [0]}]}, "is damaged"),
        ({"state": {}, "param_groups": [{"params": [0, 0]}]}, "is damaged"),
        ({"state": {}, "param_groups": [{"params": [0.5]}]}, "is damaged"),
        (
            {"state": {}, "param_groups": [{"params": [0], "param_names": ["a", "b"]}]},
            "is damaged: `param_names` does not have torch's format; save it again",
        ),
        ({"state": {}, "param_groups": [{"params": [0], "param_names": 7}]}, "is damaged: `param_names`"),
        ({"state": {}, "param_groups": [{"params": [0], "param_names": [7]}]}, "is damaged: `param_names`"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, content, message):
    with pytest.raises(ModelError, match=message):
        load_moments(save(tmp_path, content), *asked(whole=False))


@pytest.fixture
def plain():
    """Return a model and the AdamW state of one step over its LoRA in one group."""
    model = with_lora(tiny_llama())
    optimizer = torch.optim.AdamW(made.trainable(model))
    sum(weight.sum() for weight in made.trainable(model)).backward()
    optimizer.step()
    model.zero_grad()
    return model, optimizer.state_dict()


FIRST = r"base_model\.model\.model\.layers\.0\.self_attn\.q_proj\.lora_A\.default\.weight"
BY_POSITION = (
    r"\(matched by position 0 of group 0, in the order of model\.named_parameters\(\), trainable ones\)"
)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda one, _: one.update(exp_avg=torch.zeros(3, 3)),
            rf"of shape \(3, 3\) for {FIRST}, which is of shape \(4, 24\) in the model {BY_POSITION}; expected the",
        ),
        (
            lambda one, _: one.update(exp_avg_sq=torch.zeros(4, 24).to_sparse()),
            r"is damaged: exp_avg_sq of parameter 0 is a torch.sparse_coo tensor of torch.float32; expected a dense",
        ),
        (
            lambda one, _: one.update(exp_avg_sq=torch.zeros(4, 24).byte()),
            rf"a tensor of torch.uint8 as exp_avg_sq of {FIRST}",
        ),
        (
            lambda one, _: one.update(exp_avg="x"),
            rf"has str as exp_avg of {FIRST} .*; expected a tensor of floats",
        ),
        (lambda one, _: one.clear(), rf"has no state for {FIRST} {BY_POSITION}; expected AdamW's .*sgd"),
        (lambda one, _: one.update(step="x"), rf"has step 'x' for {FIRST}; expected the state after"),
        (lambda one, _: one.update(step=0), "has step 0 for"),
        (lambda one, _: one.update(step=torch.inf), "has step inf for"),
        (lambda one, _: one.update(step=torch.ones(2)), r"has step tensor\("),
        (lambda one, _: one.update(step=torch.tensor(9.0)), r"different step counts \[1, 9\]"),
        (
            lambda one, _: one["exp_avg"].fill_(torch.nan),
            rf"has moments for {FIRST} that are not finite, .* {BY_POSITION}",
        ),
        (lambda one, _: one["exp_avg_sq"].neg_(), "or negative squares"),
        (lambda _, group: group["params"].pop(), r"has groups of \[11\] parameters; expected \[12\]"),
        (lambda _, group: group.update(betas=(0.9,)), "expected three numbers"),
        (lambda _, group: group.update(eps=None), "expected three numbers"),
        (lambda _, group: group.update(betas=(torch.ones(2), 0.9)), "expected three numbers"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path, plain, spoil, message):
    model, state = plain
    spoil(state["state"][0], state["param_groups"][0])
    with pytest.raises(ModelError, match=message):
        load_moments(save(tmp_path, state), model, ParameterManifest.of(model))


def test_a_moment_that_was_written_over_by_the_other_is_refused(tmp_path, plain):
    model, state = plain
    for one in state["state"].values():
        one["exp_avg"] = one["exp_avg_sq"]
    with pytest.raises(
        ModelError, match=r"the same numbers in exp_avg and exp_avg_sq, .*offload_to_cpu=False"
    ):
        load_moments(save(tmp_path, state), model, ParameterManifest.of(model))


def test_groups_that_differ_are_refused(tmp_path, plain):
    model, _ = plain
    weights = made.trainable(model)
    manifest = ParameterManifest.of(model)
    two = torch.optim.AdamW([{"params": weights[:-1], "eps": 1e-6}, {"params": weights[-1:]}]).state_dict()
    with pytest.raises(ModelError, match="groups with different betas or eps"):
        load_moments(save(tmp_path, two), model, manifest)
    two["param_groups"][0]["eps"] = 1e-8
    with pytest.raises(ModelError, match=r"groups of \[11, 1\] parameters; expected \[12, 0\]"):
        load_moments(save(tmp_path, two), model, manifest)


def test_groups_of_lora_plus_are_matched(tmp_path):
    model, manifest = asked(whole=False)
    settings = {name: value for name, value in made.SETTINGS.items() if name != "lr"}
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=0.0, loraplus_lr_ratio=16, loraplus_weight_decay=0.1, **settings
    )
    got = load_moments(save(tmp_path, stepped(model, optimizer)), model, manifest)
    assert_moments(got, model, manifest)
    assert got.matched == "8 parameters matched by position, in LoRA+'s order, A before B"


def test_groups_are_those_of_the_trainer():
    model = with_lora(tiny_llama(), target_modules=["q_proj", "v_proj"])
    model.base_model.model.model.layers[0].input_layernorm.weight.requires_grad_(True)
    with_decay, without = decay_groups(model)
    assert len(with_decay) == 2 * 2 * 3
    assert without == ["base_model.model.model.layers.0.input_layernorm.weight"]


def test_an_optimiser_of_all_parameters_stepped_just_the_trained_ones(tmp_path):
    model, manifest = asked(whole=False)
    state = torch.load(made.FOLDER / "adam-of-all.pt", weights_only=True)
    frozen, position = next(
        (name, at) for at, (name, weight) in enumerate(model.named_parameters()) if not weight.requires_grad
    )
    state["state"][position] = state["state"][max(state["state"])]
    with pytest.raises(
        ModelError,
        match=rf"has a state for {frozen} \(matched by position {position} of .* frozen ones too\), which is frozen",
    ):
        load_moments(save(tmp_path, state), model, manifest)


@pytest.mark.parametrize("name", made.WHOLE)
def test_what_nobody_asks_for_must_fit_too(tmp_path, name):
    state = torch.load(made.FOLDER / name, weights_only=True)
    model, manifest = asked(True, MLP)
    key = "model.norm.weight" if "fsdp" in name else state["param_groups"][1]["params"][-1]
    how = (
        "by name, model.norm.weight" if "fsdp" in name else "by position 4 of group 1, in the Trainer's order"
    )
    del state["state"][key]["exp_avg"]
    state["state"][key]["exp_avg"] = torch.zeros(9)
    with pytest.raises(
        ModelError,
        match=rf"of shape \(9,\) for model.norm.weight, which is of shape \(8,\) .*\(matched {how}\)",
    ):
        load_moments(save(tmp_path, state), model, manifest)
    del state["state"][key]
    assert_moments(load_moments(save(tmp_path, state), model, manifest), model, manifest)


def test_a_run_may_have_trained_more_than_is_asked_for_but_a_lora_is_matched_exactly(tmp_path):
    state = torch.load(made.FOLDER / "fsdp1.bin", weights_only=True)["state"]  # without settings
    model, manifest = asked(True, MLP)
    state["model.head_of_a_reward.weight"] = dict(state["lm_head.weight"])
    del state["lm_head.weight"]
    got = load_moments(save(tmp_path, {"state": state}), model, manifest)
    assert (got.beta1, got.beta2, got.eps) == (0.9, 0.999, 1e-8)
    del state["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(
        ModelError, match=r"names 20 parameters, but not model.layers.1.mlp.up_proj.weight; expected all 6"
    ):
        load_moments(save(tmp_path, {"state": state}), model, manifest)
    lora = torch.load(made.FOLDER / "fsdp2.bin", weights_only=True)
    lora["param_groups"][0]["params"].append("lm_head.weight")  # given to the optimiser, but frozen
    load_moments(save(tmp_path, lora), *asked(whole=False))
    lora["state"]["lm_head.weight"] = dict(state["model.head_of_a_reward.weight"])
    with pytest.raises(
        ModelError, match=r"names 9 parameters, including lm_head.weight; expected only the 8 that"
    ):
        load_moments(save(tmp_path, lora), *asked(whole=False))


def spelt(name, random):
    """Return another spelling of a name: wrappers anywhere, PEFT's prefix and the adapter's name or not."""
    name = name.removeprefix("base_model.model.") if random.random() < 0.5 else name
    name = name.replace(".default.", random.choice([".default.", ".", ".sft."]))
    parts = name.split(".")
    for _ in range(random.randrange(4)):
        wrapper = random.choice(["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
        parts.insert(random.randrange(len(parts)), wrapper)
    return ".".join(parts)


MODELS = [made.model(whole) for whole in (False, True)]


@given(
    st.randoms(use_true_random=False),
    st.booleans(),
    st.booleans(),
    st.lists(st.sampled_from(["model.layers.0.*", "*.q_proj", MLP]), min_size=1),
)
def test_moments_land_at_their_offsets_however_parameters_are_named(
    tmp_path_factory, random, whole, keyed, patterns
):
    model = MODELS[whole]
    manifest = ParameterManifest.matching(model, patterns) if whole else ParameterManifest.of(model)
    values = {
        name: number * 1000 + torch.arange(weight.numel()).reshape(weight.shape).float()
        for number, (name, weight) in enumerate(model.named_parameters())
        if weight.requires_grad
    }
    names = list(values)
    random.shuffle(names)
    written = [spelt(name, random) for name in names]
    keys = written if keyed else random.sample(range(1000), len(names))
    cut = random.randrange(len(names) + 1)
    groups = [{"params": keys[part], "param_names": written[part]} for part in (slice(cut), slice(cut, None))]
    if keyed:
        for group in groups:
            del group["param_names"]
    state = {
        key: {"step": 2, "exp_avg": values[name], "exp_avg_sq": values[name] + 0.5}
        for key, name in zip(keys, names, strict=True)
    }
    path = save(tmp_path_factory.getbasetemp(), {"state": state, "param_groups": groups}, "property.pt")
    got = load_moments(path, model, manifest)
    for one in manifest:
        segment = slice(one.offset, one.offset + one.size)
        assert np.array_equal(got.m[segment], values[one.torch_name].flatten())
        assert np.array_equal(got.v[segment], values[one.torch_name].flatten() + 0.5)


def test_a_parameter_that_is_named_twice_is_refused(tmp_path, plain):
    model, state = plain
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    state["param_groups"][0]["param_names"] = ["module." + names[1], *names[1:]]
    with pytest.raises(ModelError, match=r"names \S+q_proj.lora_B twice; expected the state of one adapter"):
        load_moments(save(tmp_path, state), model, ParameterManifest.of(model))


def test_a_folders_file_is_the_trainers_or_else_accelerates(tmp_path):
    assert optimizer_file(tmp_path) == tmp_path / "optimizer.pt"
    (tmp_path / "optimizer.bin").touch()
    assert optimizer_file(tmp_path) == tmp_path / "optimizer.bin"
    (tmp_path / "optimizer.pt").touch()
    assert optimizer_file(tmp_path) == tmp_path / "optimizer.pt"
    assert str(missing_state(tmp_path)).endswith(
        f"is a folder; expected a file with the optimiser state, here {tmp_path / 'optimizer.pt'}"
    )


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("optimizer_0/__0_0.distcp", rf"it is split into parts, such as \S+/__0_0.distcp\. {PARTS}"),
        ("optimizer_0_rank1.bin", rf"it is split into parts, such as \S+/optimizer_0_rank1.bin\. {PARTS}"),
        ("global_step5/mp_rank_00_model_states.pt", r"such as \S+/global_step5\. Expected the folder .*sgd"),
        ("model.safetensors", r"; give it with --optimizer, or use --preconditioner sgd, which needs none$"),
    ],
)
@pytest.mark.parametrize("given_folder", [False, True])
def test_a_missing_file_is_told_with_what_is_there(tmp_path, there, message, given_folder):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    path = tmp_path if given_folder else tmp_path / "optimizer.pt"
    with pytest.raises(ModelError, match=rf"there is no optimiser state {path}.*{message}"):
        load_moments(path, *asked(whole=False))


def test_the_optimiser_of_lora_fa_is_refused_by_name(tmp_path):
    model, manifest = asked(whole=False)
    optimizer = create_lorafa_optimizer(model, r=2, lora_alpha=8, lr=1e-3)
    model(input_ids=made.rows(), labels=made.rows()).loss.backward()
    optimizer.step()
    with pytest.raises(
        ModelError, match=r"PEFT's optimiser for LoRA-FA: its moments are those of projected gradients"
    ):
        load_moments(save(tmp_path, optimizer.state_dict()), model, manifest)
