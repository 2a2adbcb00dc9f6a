"""The files of a PEFT model in memory say what the model is: its numbers, and what of it is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from peft.helpers import rescale_adapter_scale

from clusterucb.errors import ModelError
from clusterucb.model.adapters import load_adapter
from clusterucb.model.moments import load_moments
from clusterucb.model.parameters import ParameterManifest, canonical_name
from clusterucb.model.peft_object import save_adapter, save_state
from helpers.gradients import batch_of_one, relative, samples_of
from helpers.models import tiny_gpt2, tiny_llama, with_lora

PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\..*v_proj": 3}}


def layers(model):
    return [layer for layer in model.modules() if hasattr(layer, "set_scale")]


def scaled(model):
    for number, layer in enumerate(layers(model)):
        layer.set_scale(layer.active_adapters[0], 0.25 + number)


def frozen(part):
    def freeze(model):
        for name, weight in model.named_parameters():
            if part in name:
                weight.requires_grad_(False)

    return freeze


def configured(**changes):
    return lambda model: vars(model.peft_config["default"]).update(changes)


CHANGES = {
    "nothing": lambda _: None,
    "scale": scaled,
    "one scale": lambda model: layers(model)[2].scale_layer(3),
    "configured alpha": configured(lora_alpha=1),
    "configured rank": configured(r=64),
    "configured rslora": configured(use_rslora=True),
    "configured patterns": configured(rank_pattern={"v_proj": 1}, alpha_pattern={"q_proj": 7}),
    "frozen A": frozen("lora_A"),
    "frozen B": frozen("lora_B"),
    "frozen layer": frozen(".layers.0."),
    "frozen magnitudes": frozen("magnitude"),
    "frozen module": frozen("modules_to_save"),
}
KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True, **PATTERNS},
    "dora": {"use_dora": True, **PATTERNS},
    "all": {"target_modules": "all-linear"},
    "mica": {"init_lora_weights": "mica"},
    "module": {"modules_to_save": ["lm_head"]},
}


def trained(model):
    names = [canonical_name(name) for name, weight in model.named_parameters() if weight.requires_grad]
    return sorted(name.replace(".default", "").replace(".task", "") for name in names)


CASES = [
    (kind, change, "default")
    for kind in KINDS
    for change in CHANGES
    if not (kind == "mica" and change == "frozen A")  # then nothing is trained
    and (kind == "dora" or change != "frozen magnitudes")
    and (kind == "module" or change != "frozen module")
]


@pytest.mark.parametrize(
    ("kind", "change", "name"),
    [*CASES, ("dora", "frozen A", "task"), ("module", "frozen module", "task"), ("rslora", "scale", "task")],
)
def test_files_say_what_the_model_in_memory_is(tmp_path, kind, change, name):
    model = with_lora(tiny_llama(), **KINDS[kind])
    if name != "default":
        model.add_adapter(name, copy.deepcopy(model.peft_config["default"]))
        model.set_adapter(name)
    CHANGES[change](model)
    loaded = load_adapter(tiny_llama(), save_adapter(model, tmp_path))
    ids = torch.arange(20)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert trained(loaded) == trained(model)
    manifest = ParameterManifest.of(loaded, lora_only=True)
    (sample,) = samples_of(0, [9])
    own = {canonical_name(key).replace(f".{name}", ""): key for key, _ in model.named_parameters()}
    ours = batch_of_one(loaded, manifest, *sample)
    model.zero_grad()
    of_model = ours.clone()
    batch_of_one(model, ParameterManifest.of(model, lora_only=True), *sample)
    for one in manifest:
        gradient = model.get_parameter(own[canonical_name(one.torch_name)]).grad
        of_model[one.offset : one.offset + one.size] = gradient.flatten()
    assert relative(ours, of_model) < 1e-5


def test_a_scale_for_a_while_counts(tmp_path):
    model = with_lora(tiny_gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    ids = torch.arange(20)[None]
    with rescale_adapter_scale(model, 0.25):
        expected = model(ids).logits
        folder = save_adapter(model, tmp_path)
    torch.testing.assert_close(load_adapter(tiny_gpt2(), folder)(ids).logits, expected)


def test_what_files_cannot_say_is_refused(tmp_path):
    def refused(match, change, **options):
        model = with_lora(tiny_llama(attention_bias=True), **options)
        change(model)
        with pytest.raises(ModelError, match=match):
            save_adapter(model, tmp_path)
        return model

    refused(r"all 12 weights of the adapter are frozen; .*is_trainable=True", frozen("lora_"))
    norms = refused(
        r"7 parameters beside the adapter are trainable, such as \S+norm.weight; .* lora_only=True",
        lambda model: [
            weight.requires_grad_(True) for name, weight in model.named_parameters() if "norm" in name
        ],
    )
    folder = save_adapter(norms, tmp_path / "norms", lora_only=True)
    assert trained(load_adapter(tiny_llama(attention_bias=True), folder)) == sorted(
        name for name in trained(norms) if ".lora_" in name
    )
    for bias in ("all", "lora_only"):
        refused(r"\.bias \(bias='all' and bias='lora_only' train biases\)", lambda _: None, bias=bias)

    def one_other(model):
        model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
        layers(model)[1].set_adapter("other")

    refused(r"the layer model\S+ has the adapters other active, and the model has default", one_other)
    refused("the adapter is disabled", lambda model: model.base_model.disable_adapter_layers())


@pytest.mark.parametrize("change", ["nothing", "frozen A", "frozen B", "frozen layer"])
@pytest.mark.parametrize("named", [True, False])
def test_a_state_is_that_of_the_trained_weights(tmp_path, change, named):
    model = with_lora(tiny_llama())
    CHANGES[change](model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    ids = torch.arange(20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    loaded = load_adapter(tiny_llama(), save_adapter(model, tmp_path))
    manifest = ParameterManifest.of(loaded)
    path = tmp_path / "optimizer.pt"
    if named:
        save_state(optimizer, model, path)
    else:
        torch.save(optimizer.state_dict(), path)
    moments = load_moments(path, loaded, manifest)
    assert len(manifest.parameters) == len(weights)
    for one in manifest:
        kept = optimizer.state[model.get_parameter(one.torch_name)]
        for values, entry in ((moments.m, "exp_avg"), (moments.v, "exp_avg_sq")):
            assert (values[one.offset : one.offset + one.size] == kept[entry].flatten().numpy()).all()
