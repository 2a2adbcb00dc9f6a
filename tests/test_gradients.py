"""Per-sample gradients equal those of one sample at a time, and leave no trace on the model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from clusterucb.encode import Encoded
from clusterucb.errors import ModelError
from clusterucb.gradients import PerSampleGradients
from clusterucb.loss import sample_losses
from clusterucb.parameters import ParameterManifest
from clusterucb.passes import Batch
from models import VOCABULARY, tiny_gpt2, tiny_llama, tiny_qwen3, with_lora

EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def samples_of(seed, lengths):
    """Return (tokens, labels) of each length, with labels in random places."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for length in lengths:
        labels = torch.rand(length, generator=generator) < 0.5
        labels[0], labels[-1] = False, True
        samples.append((torch.randint(VOCABULARY, (length,), generator=generator), labels))
    return samples


def batch_of(samples):
    return Batch.of([Encoded(ids.numpy(), labels.numpy(), ~labels.numpy()) for ids, labels in samples])


def batch_of_one(model, manifest, ids, labels):
    """Return one sample's gradient in the flat space, by autograd on full logits with an attention mask."""
    model.zero_grad()
    logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]
    cross_entropy(logits[:-1].float()[labels[1:]], ids[1:][labels[1:]]).backward()
    flat = torch.zeros(manifest.size)
    for one in manifest:
        flat[one.offset : one.offset + one.size] = model.get_parameter(one.torch_name).grad.flatten()
    return flat


def flat_gradients(gradients, manifest, batch):
    flat = torch.zeros(len(batch.lengths), manifest.size)

    def sink(offset, gradient):
        flat[:, offset : offset + gradient.shape[1]] += gradient

    return flat, gradients.backward(batch, sink)


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


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
        ({"use_dora": True}, "DoRA is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"bias": "all"}, "expected nothing but the A and B matrices"),
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
    with pytest.raises(ModelError, match=r"weight of 'model.layers\.0\..*lora_A' is another layer's as well"):
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
    with pytest.raises(ModelError, match=r"lm_head\.lora_A.* is of the vocabulary head"):
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
            with pytest.raises(ModelError, match=r"beside longer ones .*; expected a causal language model"):
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
