"""A LoRA goes on the attention and MLP projections of every family, and on nothing else."""

from __future__ import annotations

import re

import pytest
import torch

from clusterucb.errors import ModelError
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.model.adapters import attach_lora, knows_default, lora_targets
from clusterucb.model.base_state import take_off
from clusterucb.model.parameters import ParameterManifest
from clusterucb.model.targets import has_every_token, projections
from helpers.families import tiny
from helpers.gradients import batch_of, batch_of_one, flat_gradients, relative, samples_of
from helpers.models import tiny_llama

ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
SEVEN = ["down_proj", "gate_proj", *ATTENTION[:2], "q_proj", "up_proj", "v_proj"]
FAMILIES = {
    "phi3": ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"],
    "granite": SEVEN,
    "granitemoe": ATTENTION,
    "olmo": SEVEN,
    "olmo2": SEVEN,
    "olmo3": SEVEN,
    "olmoe": ATTENTION,
    "smollm3": SEVEN,
    "glm": ["down_proj", "gate_up_proj", *ATTENTION],
    "glm4": ["down_proj", "gate_up_proj", *ATTENTION],
    "glm4_moe": ATTENTION,
    "qwen2_moe": SEVEN,
    "qwen3_moe": ATTENTION,
    "gpt_oss": ATTENTION,
    "llama4_text": SEVEN,
    "gemma4_text": SEVEN,
    "deepseek_v3": None,
    "mamba": ["in_proj", "x_proj"],
    "cohere2": SEVEN,
    "seed_oss": SEVEN,
    "ernie4_5": SEVEN,
    "phimoe": ATTENTION,
    "afmoe": None,
    "beam": None,
}
OF_PEFT = {"mixtral": ["q_proj", "v_proj"], "llama": ["q_proj", "v_proj"], "qwen3": ["q_proj", "v_proj"]}
OF_PEFT |= {"gemma2": ["q_proj", "v_proj"], "gpt_neox": ["query_key_value"], "opt": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("family", [*FAMILIES, *OF_PEFT])
def test_every_family_has_a_lora_whose_gradients_are_exact(family):
    model = tiny(family)
    assert knows_default(model) == (family in OF_PEFT)
    chosen = lora_targets(model, None)
    expected = {**FAMILIES, **OF_PEFT}[family]
    assert chosen == expected or expected is None
    assert not any("head" in name or name.endswith(("gate", "router")) for name in projections(model))
    lora = attach_lora(model, rank=2, alpha=4, targets=None, seed=0)
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    manifest = ParameterManifest.of(lora)
    samples = samples_of(0, [5, 12, 3])
    expected = [batch_of_one(lora, manifest, *sample) for sample in samples]
    with PerSampleGradients(lora, manifest) as gradients:
        flat, _ = flat_gradients(gradients, manifest, batch_of(samples))
    assert max(map(relative, flat, expected)) < 1e-4
    assert not any("lora" in name for name, _ in take_off(lora).named_modules())


@pytest.mark.parametrize("family", ["afmoe", "beam"])
def test_a_gate_of_attention_is_no_expert_and_is_left_out(family):
    model = tiny(family)
    ends = {name.rpartition(".")[2] for name in lora_targets(model, None)}
    assert ends == {*ATTENTION}
    with pytest.raises(
        ModelError, match=r"PEFT takes gate_proj for projections of experts, .* Leave it out of --lora-"
    ):
        attach_lora(model, rank=2, alpha=4, targets=["q_proj", "gate_proj"], seed=0)


def test_patterns_name_layers():
    model = tiny_llama()
    lora = attach_lora(model, rank=2, alpha=4, targets=["model.layers.[12].*.q_proj", "mlp.up_proj"], seed=0)
    names = {re.sub(r"\.lora_[AB]$", "", one.name) for one in ParameterManifest.of(lora)}
    assert names == {
        *(f"model.layers.{number}.self_attn.q_proj" for number in (1, 2)),
        *(f"model.layers.{number}.mlp.up_proj" for number in range(3)),
    }
    take_off(lora)
    with pytest.raises(ModelError, match=r"got layers.\*.nope; this model's linear layers are"):
        attach_lora(model, rank=2, alpha=4, targets=["q_proj", "layers.*.nope"], seed=0)


def test_the_layer_that_mamba_does_not_call_is_refused_with_a_remedy():
    with pytest.raises(
        ModelError, match=r"out_proj is not possible in mamba.* --lora-targets in_proj,x_proj$"
    ):
        attach_lora(tiny("mamba"), rank=2, alpha=4, targets=["in_proj", "out_proj"], seed=0)


@pytest.mark.parametrize(
    ("shape", "right"),
    [
        ((2, 3, 5), True),
        ((6, 5), True),
        ((2, 1, 3, 5), True),
        ((3, 2, 5), False),
        ((4, 5), False),
        ((), False),
    ],
)
def test_inputs_with_every_token_in_order_are_told_from_others(shape, right):
    assert has_every_token(shape, (2, 3)) is right


def test_a_model_that_fails_on_a_pass_says_so():
    class Odd(type(tiny("phi3"))):
        def forward(self, *arguments, **options):
            raise KeyError("position table")

    model = tiny("phi3")
    model.__class__ = Odd
    with pytest.raises(
        ModelError, match=r"the model fails on a pass of 3 tokens \(KeyError: 'position table'\)"
    ):
        projections(model)
