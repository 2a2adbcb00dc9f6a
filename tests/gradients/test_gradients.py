"""Per-sample gradients equal those of one sample at a time, and leave no trace on the model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import OPTConfig, OPTForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from clusterucb.errors import ModelError
from clusterucb.gradients import compiled
from clusterucb.gradients import per_sample as gradients_module
from clusterucb.gradients.loss import sample_losses
from clusterucb.gradients.peak_memory import peak_bytes
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.model.parameters import ParameterManifest
from helpers.gradients import batch_of, batch_of_one, flat_gradients, relative, samples_of
from helpers.models import VOCABULARY, tiny_gpt2, tiny_llama, tiny_qwen3, with_lora

EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("build", "lora"),
    [
        (tiny_llama, {}),
        (tiny_llama, {"target_modules": EVERY_LINEAR, "use_rslora": True}),
        (tiny_llama, {"target_modules": ["v_proj"], "layers_to_transform": [2], "lora_dropout": 0.5}),
        (tiny_qwen3, {"target_modules": ["k_proj", "down_proj"]}),
    ],
)
def test_equals_a_batch_of_one(build, lora):
    model = with_lora(build(), **lora)
    manifest = ParameterManifest.of(model)
    samples = samples_of(0, [5, 17, 2, 9, 30])
    expected = [batch_of_one(model, manifest, *sample) for sample in samples]
    with PerSampleGradients(model, manifest) as gradients:
        for _ in range(2):  # the first batch is also checked against autograd; both must be right
            flat, losses = flat_gradients(gradients, manifest, batch_of(samples))
            assert max(map(relative, flat, expected)) < 1e-4
    for loss, (ids, labels) in zip(losses, samples, strict=True):
        logits = model(input_ids=ids[None]).logits[0, :-1][labels[1:]]
        assert torch.isclose(loss, cross_entropy(logits, ids[1:][labels[1:]]), rtol=1e-5)


MODEL = with_lora(tiny_llama(7))
MANIFEST = ParameterManifest.of(MODEL)


@given(
    st.integers(0, 2**31),
    st.lists(st.integers(2, 40), min_size=2, max_size=6),
    st.randoms(use_true_random=False),
)
def test_does_not_depend_on_who_shares_the_batch(seed, lengths, random):
    samples = samples_of(seed, lengths)
    with PerSampleGradients(MODEL, MANIFEST) as gradients:
        together, _ = flat_gradients(gradients, MANIFEST, batch_of(samples))
        order = random.sample(range(len(samples)), len(samples))
        for at, (ids, labels) in enumerate(samples):
            alone, _ = flat_gradients(gradients, MANIFEST, batch_of([(ids, labels)]))
            assert relative(together[at], alone[0]) < 1e-4
        shuffled, _ = flat_gradients(gradients, MANIFEST, batch_of([samples[at] for at in order]))
        assert relative(shuffled, together[order]) < 1e-4


def test_hands_on_every_matrix_once_and_leaves_the_model_as_it_was():
    model = with_lora(tiny_llama(), lora_dropout=0.3).train()
    wanted = {name: weight.requires_grad for name, weight in model.named_parameters()}
    manifest = ParameterManifest.of(model)
    offsets = []
    with PerSampleGradients(model, manifest) as gradients:
        assert not model.training
        gradients.backward(batch_of(samples_of(1, [4, 6])), lambda offset, gradient: offsets.append(offset))
    assert sorted(offsets) == [one.offset for one in manifest]
    assert model.training
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == wanted
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failing_sink_leaves_the_model_as_it_was():
    model = with_lora(tiny_llama())
    manifest = ParameterManifest.of(model)

    def sink(offset, gradient):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), PerSampleGradients(model, manifest) as gradients:
        gradients.backward(batch_of(samples_of(1, [4, 6])), sink)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert ParameterManifest.of(model) == manifest


def test_an_untrained_lora_has_no_gradient_of_a():
    model = with_lora(tiny_llama(), trained=False)
    manifest = ParameterManifest.of(model)
    with PerSampleGradients(model, manifest) as gradients:
        flat, _ = flat_gradients(gradients, manifest, batch_of(samples_of(2, [8])))
    for one in manifest:
        piece = flat[0, one.offset : one.offset + one.size]
        assert bool(piece.any()) == one.name.endswith("lora_B")


def test_the_manifest_is_sorted_aligned_and_free_of_peft_names():
    manifest = ParameterManifest.of(with_lora(tiny_llama(), r=3))
    names = [one.name for one in manifest]
    assert names == sorted(names)
    assert names[0] == "model.layers.0.self_attn.q_proj.lora_A"
    end = 0
    for one in manifest:
        assert one.offset % 8 == 0
        assert 0 <= one.offset - end < 8
        end = one.offset + one.size
    assert 0 <= manifest.size - end < 8


def test_the_manifest_does_not_depend_on_the_name_of_the_adapter():
    from peft import LoraConfig, get_peft_model

    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    named = get_peft_model(tiny_llama(), LoraConfig(**options), adapter_name="task")
    plain = get_peft_model(tiny_llama(), LoraConfig(**options))
    assert ParameterManifest.of(named).fingerprint() == ParameterManifest.of(plain).fingerprint()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save.* out with --lora-only"),
        ({"trainable_token_indices": {"embed_tokens": [1, 2]}}, "trainable_token_indices.* --lora-only"),
        ({"bias": "all"}, "expected only the A and B matrices"),
        ({"lora_bias": True}, "a bias of LoRA is not supported"),
        ({"target_modules": ["embed_tokens"]}, "LoRA on embeddings is not supported"),
    ],
)
def test_what_is_not_lora_on_linear_layers_is_refused_by_name(lora, message):
    model = tiny_llama(attention_bias=True)
    with pytest.raises(ModelError, match=message):
        ParameterManifest.of(with_lora(model, **lora))


def test_layers_that_are_no_plain_linear_are_refused_or_right():
    model = with_lora(tiny_gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    manifest = ParameterManifest.of(model)  # Conv1D below, but A and B are linear layers
    samples = samples_of(0, [5, 12])
    expected = [batch_of_one(model, manifest, *sample) for sample in samples]
    with PerSampleGradients(model, manifest) as gradients:
        flat, _ = flat_gradients(gradients, manifest, batch_of(samples))
    assert max(map(relative, flat, expected)) < 1e-4


def test_a_frozen_model_is_refused():
    with pytest.raises(ModelError, match="no trainable LoRA matrix"):
        ParameterManifest.of(with_lora(tiny_llama()).requires_grad_(False))


def test_a_layer_in_two_places_is_refused_by_name():
    model = tiny_llama()
    model.model.layers[1].self_attn = model.model.layers[0].self_attn
    model = with_lora(model)
    with pytest.raises(
        ModelError, match=r"weight of 'model.layers\.0\..*lora_A' is shared with another layer"
    ):
        ParameterManifest.of(model)


def refused(model, message, manifest=None):
    gradients = PerSampleGradients(model, manifest or ParameterManifest.of(model))
    with pytest.raises(ModelError, match=message), gradients:
        gradients.backward(batch_of(samples_of(1, [4, 6])), lambda offset, gradient: None)


def test_a_layer_that_runs_twice_is_refused_by_name():
    model = with_lora(tiny_llama())
    attention = model.get_submodule("base_model.model.model.layers.1.self_attn")
    attention.register_forward_pre_hook(
        lambda module, args, options: (module.q_proj(options["hidden_states"]), None)[1], with_kwargs=True
    )
    refused(model, r"layers\.1\.self_attn\.q_proj\.lora_A runs twice")


def test_lora_on_the_vocabulary_head_is_refused_by_name():
    with pytest.raises(ModelError, match=r"lm_head\.lora_A.* belongs to the vocabulary head"):
        ParameterManifest.of(with_lora(tiny_llama(), target_modules=["lm_head", "q_proj"]))


def test_a_matrix_used_outside_its_layer_is_noticed():
    model = with_lora(tiny_llama())
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    matrix = layer.lora_B["default"].weight
    layer.register_forward_hook(lambda module, args, output: output + matrix.sum() * 0.1)
    with (
        pytest.raises(ModelError, match=r"q_proj\.lora_B do not add up"),
        PerSampleGradients(model, ParameterManifest.of(model)) as gradients,
    ):
        gradients.backward(batch_of(samples_of(1, [4, 6])), lambda offset, gradient: None)


def test_a_model_without_a_vocabulary_head_is_refused():
    with pytest.raises(ModelError, match="no output embeddings"):
        sample_losses(tiny_llama().model, batch_of(samples_of(1, [4, 6])))


def test_a_model_that_sees_the_padding_is_refused():
    from transformers import BertConfig, BertLMHeadModel

    def bert(is_decoder):
        shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
        torch.manual_seed(0)
        model = BertLMHeadModel(
            BertConfig(vocab_size=VOCABULARY, is_decoder=is_decoder, initializer_range=0.3, **shape)
        )
        return with_lora(model, target_modules=["query", "value"])

    samples = samples_of(3, [6, 30])
    for model, causal in ((bert(True), True), (bert(False), False)):
        manifest = ParameterManifest.of(model)
        with PerSampleGradients(model, manifest) as gradients:
            flat_gradients(gradients, manifest, batch_of(samples[:1]))  # no padding, nothing to see
            if causal:
                flat_gradients(gradients, manifest, batch_of(samples))
                continue
            with pytest.raises(
                ModelError, match=r"beside longer samples .*; expected a causal language model"
            ):
                flat_gradients(gradients, manifest, batch_of(samples))


def test_a_batch_costs_one_forward_pass_and_its_checks_another_once():
    model = with_lora(tiny_llama())
    passes = []
    model.register_forward_pre_hook(lambda module, args: passes.append(1))
    manifest = ParameterManifest.of(model)
    with PerSampleGradients(model, manifest) as gradients:
        for lengths, expected in (([8], 1), ([8, 8], 2), ([4, 9], 2), ([4, 9], 1), ([8, 8], 1)):
            passes.clear()
            flat_gradients(gradients, manifest, batch_of(samples_of(1, lengths)))
            assert len(passes) == expected


def every_sample_alone(model, manifest, samples):
    """Return the gradients of each sample by autograd, f32[B, P]."""
    weights = [model.get_parameter(one.torch_name) for one in manifest]
    wanted = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    found = torch.stack([batch_of_one(model, manifest, *sample) for sample in samples])
    for weight, before in zip(weights, wanted, strict=True):
        weight.requires_grad_(before)
        weight.grad = None
    return found


def tiny_moe(**changes):
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**{**shape, **changes})).eval()


def tiny_opt():
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = OPTConfig(vocab_size=VOCABULARY, word_embed_proj_dim=24, init_std=0.3, dropout=0.5, **shape)
    return OPTForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("build", "patterns"),
    [
        (tiny_llama, ["model.layers.*.mlp.down_proj", "*.2.self_attn.[qk]_proj"]),
        (tiny_llama, ["model.layers.*"]),
        (tiny_gpt2, ["transformer.h.*"]),  # Conv1D, whose weights are transposed
        (tiny_opt, ["model.decoder.layers.*.fc[12]"]),  # sees the tokens of a batch in one row
        (tiny_moe, ["*.mlp.shared_expert.down_proj", "*.v_proj"]),
    ],
)
@pytest.mark.parametrize("piece", [1 << 26, 4096])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_of_linear_layers_are_differentiated(monkeypatch, build, patterns, piece, checkpointing):
    monkeypatch.setattr(gradients_module, "_PIECE", piece)
    model = build().requires_grad_(False)
    manifest = ParameterManifest.matching(model, patterns)
    samples = samples_of(0, [5, 17, 2, 9, 30])
    expected = every_sample_alone(model, manifest, samples)
    with PerSampleGradients(model, manifest, checkpointing=checkpointing) as gradients:
        for _ in range(2):
            flat, _ = flat_gradients(gradients, manifest, batch_of(samples))
            assert max(map(relative, flat, expected)) < 1e-4
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_pieces_of_a_matrix_are_as_small_as_they_must_be(monkeypatch):
    monkeypatch.setattr(gradients_module, "_PIECE", 4 * 5 * 24 * 16)
    model = tiny_llama()
    sizes = {}
    with PerSampleGradients(model, ParameterManifest.matching(model, ["*.up_proj"])) as gradients:
        gradients.backward(
            batch_of(samples_of(0, [9] * 5)), lambda at, gradient: sizes.update({at: gradient.shape[1]})
        )
    assert set(sizes.values()) == {16 * 24, 8 * 24}
    assert all(offset % 8 == 0 for offset in sizes)


def test_weights_and_gradients_that_the_caller_has_stay():
    model = tiny_llama()
    manifest = ParameterManifest.matching(model, ["*.q_proj"])
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    with PerSampleGradients(model, manifest) as gradients:
        flat_gradients(gradients, manifest, batch_of(samples_of(1, [4, 9])))
    assert all(weight.requires_grad and bool((weight.grad == 1).all()) for weight in model.parameters())


@pytest.mark.parametrize(
    ("build", "pattern", "message"),
    [
        (
            tiny_llama,
            "model.layers.*.mlp.nope",
            r"matches no linear layer; this model has .*layers\.\*\.mlp\.down_proj",
        ),
        (tiny_llama, "*", "'lm_head' belongs to the vocabulary head"),
        (tiny_moe, "*.experts.*", "matches no linear layer"),  # one tensor of all experts
    ],
)
def test_layers_that_cannot_be_differentiated_are_refused_by_name(build, pattern, message):
    with pytest.raises(ModelError, match=message):
        ParameterManifest.matching(build(), [pattern])


def test_tied_weights_are_refused_by_name():
    model = tiny_llama()
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.gate_proj.weight
    for pattern in ("*.0.mlp.gate_proj", "*.1.mlp.up_proj"):
        with pytest.raises(
            ModelError, match=r"the weight of 'model.layers.\d.mlp.\w+' is shared with another layer"
        ):
            ParameterManifest.matching(model, [pattern])
    assert ParameterManifest.matching(model, ["*.2.mlp.*"]).size == 3 * 24 * 40


def test_layers_of_another_kind_are_refused_by_name():
    class Scaled(torch.nn.Linear):
        pass

    model = tiny_llama()
    model.model.layers[0].mlp.up_proj = Scaled(24, 40, bias=False)
    with pytest.raises(
        ModelError, match=r"'model.layers.0.mlp.up_proj' is a Scaled; expected a linear layer"
    ):
        ParameterManifest.matching(model, ["*.up_proj"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_of_a_model_with_experts_is_right_beside_them_and_refused_on_them(checkpointing):
    model = with_lora(tiny_moe())
    manifest = ParameterManifest.of(model)
    samples = samples_of(0, [5, 17, 2, 9])
    expected = every_sample_alone(model, manifest, samples)
    with PerSampleGradients(model, manifest, checkpointing=checkpointing) as gradients:
        flat, _ = flat_gradients(gradients, manifest, batch_of(samples))
    assert max(map(relative, flat, expected)) < 1e-4
    experts = with_lora(tiny_moe(), target_modules=[], target_parameters=["experts.gate_up_proj"])
    with pytest.raises(ModelError, match=r"LoRA is on experts \(model.layers.0.mlp.experts.gate_up_proj\)"):
        ParameterManifest.of(experts)


class Shuffling(torch.nn.Module):
    """Gives a layer the tokens of a batch in another order, as experts get them."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden):
        flat = hidden.flatten(0, 1)
        order = flat[:, 0].argsort()
        return self.layer(flat[order])[order.argsort()].view(*hidden.shape[:2], -1)


def test_a_layer_that_gets_tokens_in_another_order_is_refused():
    model = tiny_llama()
    model.model.layers[0].mlp.gate_proj = Shuffling(model.model.layers[0].mlp.gate_proj)
    refused(
        model,
        "different gradients beside longer samples",
        ParameterManifest.matching(model, ["*.0.mlp.gate_proj.layer"]),
    )


def test_a_layer_that_some_samples_leave_out_is_refused_by_name():
    class Routed(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, hidden):
            if hidden.shape[1] > 12:
                return hidden.new_zeros(*hidden.shape[:2], 40)
            return self.layer(hidden)

    model = tiny_llama()
    model.model.layers[1].mlp.up_proj = Routed(model.model.layers[1].mlp.up_proj)
    manifest = ParameterManifest.matching(model, ["*.gate_proj", "*.1.mlp.up_proj.layer"])
    with PerSampleGradients(model, manifest) as gradients:
        gradients.backward(batch_of(samples_of(1, [9])), lambda *_: None)
        with pytest.raises(
            ModelError, match=r"layers\.1\.mlp\.up_proj\.layer runs for some samples and not for others"
        ):
            gradients.backward(batch_of(samples_of(1, [20])), lambda *_: None)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_runs_uncompiled(in_place):
    model = with_lora(tiny_llama())
    layers = model.get_submodule("base_model.model.model.layers")
    if in_place:
        layers[1].compile(backend="eager")
    else:
        layers[1] = torch.compile(layers[1], backend="eager")
    manifest = ParameterManifest.of(model)
    samples = samples_of(0, [5, 17, 2])
    with torch.no_grad():  # compiled before there are any hooks
        model(input_ids=samples[0][0][None])
    expected = every_sample_alone(model, manifest, samples)
    with PerSampleGradients(model, manifest) as gradients:
        for _ in range(2):
            flat, _ = flat_gradients(gradients, manifest, batch_of(samples))
            assert max(map(relative, flat, expected)) < 1e-4


def peak_of(model, manifest, batch, **options):
    """Return the most bytes that a pass takes after the first, which is checked."""
    with PerSampleGradients(model, manifest, **options) as gradients:
        gradients.backward(batch, lambda *_: None)
        return peak_bytes(lambda: gradients.backward(batch, lambda *_: None))


def test_checkpointing_takes_less_memory():
    model = with_lora(tiny_llama(num_hidden_layers=8))
    batch, manifest = batch_of(samples_of(0, [40] * 4)), ParameterManifest.of(model)
    assert peak_of(model, manifest, batch, checkpointing=True) < peak_of(model, manifest, batch) / 3


def plain_training(model, ids, labels):
    """Train as users of transformers do: all logits, gradients of all LoRA matrices."""
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()


@pytest.mark.parametrize("lora", [{"target_modules": EVERY_LINEAR}, {}])
def test_a_pass_takes_less_memory_than_plain_training(lora):
    model = with_lora(tiny_llama(num_hidden_layers=8), **lora)
    batch = batch_of(samples_of(0, [40] * 4))
    ours = peak_of(model, ParameterManifest.of(model), batch)
    assert ours <= peak_bytes(lambda: plain_training(model, batch.ids, batch.ids))


def test_memory_for_gradients_does_not_grow_with_their_number():
    batch = batch_of(samples_of(0, [3] * 8))
    peaks = []
    for n_layers in (4, 8):
        model = tiny_llama(num_hidden_layers=n_layers, hidden_size=96, intermediate_size=384)
        peaks.append(peak_of(model, ParameterManifest.matching(model, ["*.down_proj"]), batch))
    of_one_matrix = len(batch.lengths) * 96 * 384 * 4
    assert peaks[0] > of_one_matrix
    assert peaks[1] - peaks[0] < of_one_matrix  # of four more, and what the forward pass keeps of four layers


def test_a_model_without_layers_to_run_again_is_refused_with_checkpointing():
    model = with_lora(tiny_llama())
    model.base_model.model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match="has no layers that can run again"):
        PerSampleGradients(model, ParameterManifest((), 0), checkpointing=True).__enter__()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_under_autocast_gradients_are_those_of_autocast(checkpointing):
    model = with_lora(tiny_llama())
    manifest = ParameterManifest.of(model)
    samples = samples_of(0, [12, 17, 20])
    exact = every_sample_alone(model, manifest, samples)
    with torch.autocast("cpu", torch.bfloat16):
        expected = every_sample_alone(model, manifest, samples)
    options = {"autocast": torch.bfloat16, "checkpointing": checkpointing}
    with PerSampleGradients(model, manifest, **options) as gradients:
        flat, losses = flat_gradients(gradients, manifest, batch_of(samples))
    assert losses.dtype == torch.float32
    for got, rounded, true in zip(flat, expected, exact, strict=True):
        assert 1e-4 < relative(got, true) < 0.1
        assert relative(got, true) < 1.5 * relative(rounded, true)


def test_one_adapter_of_several_is_differentiated():
    model = with_lora(tiny_llama())
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    manifest = ParameterManifest.of(model)
    assert all(".other." in one.torch_name for one in manifest)
    samples = samples_of(0, [5, 9])
    expected = every_sample_alone(model, manifest, samples)
    model.set_adapter("default")
    with PerSampleGradients(model, manifest, adapter="other") as gradients:
        flat, _ = flat_gradients(gradients, manifest, batch_of(samples))
    assert max(map(relative, flat, expected)) < 1e-4


@pytest.mark.parametrize(("lora", "n_compiled"), [({}, 3 * 3), ({"target_modules": EVERY_LINEAR}, 2 * 3)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_parts_between_differentiated_layers_are_compiled(monkeypatch, lora, n_compiled, checkpointing):
    monkeypatch.setattr(compiled, "_BACKEND", "aot_eager")
    model = with_lora(tiny_llama(), **lora)
    manifest = ParameterManifest.of(model)
    samples = samples_of(0, [5, 17, 2, 9])
    expected = every_sample_alone(model, manifest, samples)
    gradients = PerSampleGradients(model, manifest, compiling=True, checkpointing=checkpointing)
    for _ in range(2):
        with gradients:
            assert sum(one._compiled_call_impl is not None for one in model.modules()) == n_compiled
            for batch in (batch_of(samples), batch_of(samples[1:2])):
                flat, _ = flat_gradients(gradients, manifest, batch)
                assert max(map(relative, flat, expected if len(flat) > 1 else expected[1:2])) < 1e-4
        assert not any(one._compiled_call_impl for one in model.modules())


def test_a_model_that_is_compiled_already_is_not_compiled_again():
    model = with_lora(tiny_llama())
    model.get_submodule("base_model.model.model.layers")[1].compile(backend="eager")
    with pytest.raises(ModelError, match="is compiled already; expected a plain model with --compile"):
        PerSampleGradients(model, ParameterManifest.of(model), compiling=True).__enter__()
    assert not any(module._forward_hooks for module in model.modules())
