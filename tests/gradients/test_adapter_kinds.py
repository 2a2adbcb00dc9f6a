"""Every kind of adapter gives the gradients of one sample at a time, or is refused by name."""

from __future__ import annotations

import json

import pytest

from clusterucb.errors import ModelError
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.model.adapters import load_adapter
from clusterucb.model.base_state import take_off
from clusterucb.model.parameters import ParameterManifest
from helpers.families import gemma3, qwen3_5, tiny
from helpers.gradients import batch_of, batch_of_one, flat_gradients, relative, samples_of
from helpers.models import tiny_gpt2, tiny_llama, with_lora


def exact(model, *, lora_only=False, **options):
    """Return the manifest after comparing per-sample gradients, checked and unchecked, with batches of one."""
    manifest = ParameterManifest.of(model, lora_only=lora_only)
    samples = samples_of(0, [5, 17, 2, 9])
    expected = [batch_of_one(model, manifest, *sample) for sample in samples]
    with PerSampleGradients(model, manifest, **options) as gradients:
        for _ in range(2):  # the first batch is also checked against autograd; both must be right
            flat, _ = flat_gradients(gradients, manifest, batch_of(samples))
            assert max(map(relative, flat, expected)) < 1e-4
    return manifest


@pytest.mark.parametrize(
    ("build", "lora"),
    [
        (tiny_llama, {}),
        (tiny_llama, {"lora_dropout": 0.3, "use_rslora": True, "target_modules": "all-linear"}),
        (lambda: tiny_llama(attention_bias=True), {}),
        (tiny_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ],
)
@pytest.mark.parametrize("options", [{}, {"checkpointing": True}])
def test_dora_is_exact_with_its_magnitudes(build, lora, options):
    model = with_lora(build(), use_dora=True, **lora)
    before = {name: vars(layer).get("forward") for name, layer in model.named_modules()}
    manifest = exact(model, **options)
    magnitudes = [one for one in manifest if one.magnitude]
    assert len(magnitudes) == len(manifest.parameters) / 3
    assert magnitudes[0].name.endswith(".lora_magnitude_vector")
    assert {name: vars(layer).get("forward") for name, layer in model.named_modules()} == before


@pytest.mark.parametrize(
    "more",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": {"embed_tokens": [1, 2]}},
    ],
)
def test_what_is_trained_beside_lora_can_be_left_out(more):
    model = with_lora(tiny_llama(), **more)
    with pytest.raises(ModelError, match="--lora-only"):
        ParameterManifest.of(model)
    manifest = exact(model, lora_only=True)
    assert all(".lora_" in one.name for one in manifest)


@pytest.mark.parametrize(
    ("tied", "more"),
    [
        (False, {}),
        (False, {"use_dora": True, "target_modules": "all-linear"}),
        (False, {"modules_to_save": ["mlp", "norm", "lm_head"], "target_modules": "all-linear"}),
        (False, {"trainable_token_indices": [1, 2]}),
        (True, {"trainable_token_indices": [1, 2]}),
        (True, {"trainable_token_indices": {"embed_tokens": [1], "lm_head": [2]}}),
        (True, {"target_modules": ["q_proj", "embed_tokens"]}),
    ],
)
def test_a_base_is_as_before_when_its_adapters_are_taken_off(tied, more):
    base = tiny_llama(tie_word_embeddings=tied)
    before = [(name, id(layer)) for name, layer in base.named_modules(remove_duplicate=False)]
    lora = with_lora(base, **more)
    lora.add_adapter("other", lora.peft_config["default"])
    assert take_off(lora) is base
    assert [(name, id(layer)) for name, layer in base.named_modules(remove_duplicate=False)] == before


def test_deepseek_s_attention_is_exact():
    for family in ("deepseek_v2", "deepseek_v3"):
        exact(
            with_lora(tiny(family), target_modules=["q_a_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"])
        )


@pytest.mark.parametrize(
    "lora",
    [
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
        {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]},
    ],
)
def test_experts_are_refused_by_name(lora):
    with pytest.raises(ModelError, match=r"LoRA is on experts \(model.layers.0.mlp.experts.*not supported"):
        ParameterManifest.of(with_lora(tiny("qwen3_moe"), **lora))


def test_a_router_is_no_expert():
    model = with_lora(tiny("mixtral"), target_modules=["q_proj"], target_parameters=["gate.weight"])
    with pytest.raises(
        ModelError, match=r"LoRA is on a router \(model.layers.0.mlp.gate.weight\), which chooses"
    ):
        ParameterManifest.of(model)


@pytest.mark.parametrize("build", [gemma3, qwen3_5])
def test_an_adapter_of_a_model_for_images_is_exact_on_the_language_model_alone(build):
    model = with_lora(build().eval(), target_modules=["q_proj", "v_proj", "in_proj_qkv"])
    manifest = exact(model)
    assert all("language_model" in one.name for one in manifest)
    tower = [name for name, weight in model.named_parameters() if weight.requires_grad and "vision" in name]
    assert bool(tower) == (build is gemma3)


def test_a_lora_that_no_text_reaches_is_refused():
    model = with_lora(gemma3(), target_modules=r".*vision_tower.*\.q_proj")
    with pytest.raises(ModelError, match="on layers that no text reaches"):
        ParameterManifest.of(model)


def test_mica_trains_its_a_matrices_alone(tmp_path):
    with_lora(tiny_llama(), init_lora_weights="mica").save_pretrained(tmp_path)
    manifest = exact(load_adapter(tiny_llama(), tmp_path))
    assert all(one.name.endswith(".lora_A") for one in manifest)


def test_an_adapter_initialised_by_eva_is_exact(tmp_path):
    with_lora(tiny_llama()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "eva"}))
    exact(load_adapter(tiny_llama(), tmp_path))
