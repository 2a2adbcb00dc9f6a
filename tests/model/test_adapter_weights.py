"""Every weight of an adapter's file has its place in the model, and the other way round; or the adapter is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from clusterucb.errors import ModelError
from clusterucb.model.adapter_weights import AdapterWeights
from clusterucb.model.adapters import load_adapter
from clusterucb.model.checkpoint_files import FROZEN
from clusterucb.model.vocabulary import has_vocabulary
from helpers.models import tiny_llama, with_lora

QKV = ["q_proj", "k_proj", "v_proj"]


def saved(folder, base=None, **lora):
    with_lora(base or tiny_llama(), **{"target_modules": QKV, **lora}).save_pretrained(folder)
    return folder


def configure(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[[]]", b"5", b"[" * 100_000])
def test_frozen_weights_that_are_not_a_list_of_names_are_refused(tmp_path, content):
    (saved(tmp_path) / FROZEN).write_bytes(content)
    with pytest.raises(
        ModelError, match=f"{FROZEN} is damaged .*expected a list of names of weights. Save the adapter again"
    ):
        load_adapter(tiny_llama(), tmp_path)


def as_bin(folder):
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
@pytest.mark.parametrize("form", [lambda _: None, as_bin], ids=["safetensors", "bin"])
def test_weights_without_a_place_are_refused_by_name(tmp_path, lora, form):
    saved(tmp_path, tiny_llama(num_hidden_layers=4), **lora)
    form(tmp_path)
    load_adapter(tiny_llama(num_hidden_layers=4), tmp_path)
    with pytest.raises(
        ModelError, match=r"has \d+ weights that fit nowhere .* model\.layers\.3\.self_attn\S+_proj"
    ):
        load_adapter(tiny_llama(num_hidden_layers=3), tmp_path)
    configure(tmp_path, target_modules=["q_proj", "v_proj"])
    with pytest.raises(
        ModelError, match=r"that fit nowhere in the model, such as \S+\.k_proj\.lora_A; expected"
    ):
        load_adapter(tiny_llama(num_hidden_layers=4), tmp_path)


@pytest.mark.parametrize(
    "changes", [{"use_dora": False}, {"modules_to_save": None}, {"layers_to_transform": [0, 1]}]
)
def test_a_configuration_that_leaves_weights_out_is_refused(tmp_path, changes):
    model = with_lora(tiny_llama(), target_modules=QKV, use_dora=True, modules_to_save=["lm_head"])
    with torch.no_grad():
        model.get_submodule("base_model.model.lm_head.modules_to_save.default").weight.add_(1)
    model.save_pretrained(tmp_path)
    configure(tmp_path, **changes)
    with pytest.raises(ModelError, match=r"that fit nowhere in the model|changes the base model"):
        load_adapter(tiny_llama(), tmp_path)


@pytest.mark.parametrize(
    "changes", [{"use_dora": True}, {"target_modules": [*QKV, "o_proj"]}, {"modules_to_save": ["lm_head"]}]
)
def test_a_configuration_that_names_more_is_refused(tmp_path, changes):
    saved(tmp_path)
    configure(tmp_path, **changes)
    with pytest.raises(
        ModelError, match=r"lacks \d+ weights? that its configuration names, such as \w+\S+; expected"
    ):
        load_adapter(tiny_llama(), tmp_path)


def test_a_second_checkpoint_is_checked_as_the_first(tmp_path):
    first = saved(tmp_path / "a")
    second = saved(tmp_path / "b", tiny_llama(num_hidden_layers=4))
    model = load_adapter(tiny_llama(), first)
    with pytest.raises(ModelError, match="that fit nowhere"):
        load_adapter(model, second, 1)


@pytest.mark.parametrize("form", [lambda _: None, as_bin], ids=["safetensors", "bin"])
def test_an_adapter_of_another_size_is_refused_in_our_words(tmp_path, form):
    saved(tmp_path)
    form(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_adapter(tiny_llama(hidden_size=48), tmp_path)
    assert "is an adapter of another model: its model.layers.0.self_attn." in str(caught.value)
    assert "takes vectors of 24, and the layer of this model takes vectors of 48" in str(caught.value)
    configure(tmp_path, r=8)
    with pytest.raises(ModelError, match=r"of rank 4, and its adapter_config.json says 8; .*rank_pattern"):
        load_adapter(tiny_llama(), tmp_path)


def test_a_module_of_another_size_is_refused_in_our_words(tmp_path):
    saved(tmp_path, tiny_llama(vocab_size=99), modules_to_save=["lm_head"])
    with pytest.raises(
        ModelError, match=r"has lm_head.weight of shape \(99, 24\), and the model's is of shape \(97, 24"
    ):
        load_adapter(tiny_llama(), tmp_path)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    path = saved(tmp_path) / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file({**weights, name: weights[name] * float("nan")}, path)
    with pytest.raises(
        ModelError, match=r"has numbers in model\.layers\S+ that are not finite; .*earlier checkpoint"
    ):
        load_adapter(tiny_llama(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 100, "half", {"a": 1}, [1]])
@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_damaged_weights_are_refused_and_no_code_is_advised(tmp_path, name, content):
    saved(tmp_path)
    if name.endswith(".bin"):
        as_bin(tmp_path)
    path = tmp_path / name
    if content == "half":
        path.write_bytes(path.read_bytes()[:1000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError) as caught:
        load_adapter(tiny_llama(), tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{path} is damaged (")
    assert text.endswith("expected the weights of a PEFT adapter. Save or download them again")
    assert "weights_only" not in text


def test_both_forms_of_weights_are_read(tmp_path):
    saved(tmp_path)
    weights = AdapterWeights(tmp_path)
    values = weights.read(["model.layers.0.self_attn.q_proj.lora_A", "nothing"])
    assert not has_vocabulary(tmp_path)
    as_bin(tmp_path)
    other = AdapterWeights(tmp_path)
    assert other.shapes == weights.shapes
    assert (
        other.layers()
        == weights.layers()
        == {f"model.layers.{number}.self_attn.{name}" for number in range(3) for name in QKV}
    )
    torch.testing.assert_close(other.read(list(values)), values)
    assert AdapterWeights(tmp_path / "none").shapes == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, r"adapter of type LOHA; expected LORA\. Train a LoRA on this base, or merge"),
        (
            {"alora_invocation_tokens": [1, 2]},
            r"an activated LoRA \(aLoRA\), .* Train without alora_invocation_tokens",
        ),
        (
            {"use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2}},
            r"a BD-LoRA, whose matrices are block-diagonal \(use_bdlora\), which is not supported",
        ),
        ({"init_lora_weights": "olora"}, r"was initialised by 'olora', which changes the base model as well"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path, changes, message):
    saved(tmp_path)
    configure(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        load_adapter(tiny_llama(), tmp_path)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_named(tmp_path, bias):
    saved(tmp_path / "with", tiny_llama(attention_bias=True), bias=bias)
    with pytest.raises(
        ModelError, match=rf"was trained with bias='{bias}': it holds \d+ biases of the base model, such"
    ):
        load_adapter(tiny_llama(attention_bias=True), tmp_path / "with")
    load_adapter(tiny_llama(), saved(tmp_path / "without", bias=bias))  # there is no bias to train
