"""Probes: what changes a model's scores on this machine is found, and named with its remedy."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from clusterucb.errors import ModelError
from clusterucb.gradients.warmup import warm_up
from clusterucb.jobs.doctor import measuring, probes
from clusterucb.jobs.doctor.probes import (
    AGAIN,
    AUTOGRAD,
    BESIDE,
    EAGER,
    FLOAT32,
    GRADIENTS,
    PADDED,
    Probed,
    probe,
)
from clusterucb.model.loaded import LoadedModel
from clusterucb.options.search import Settings
from clusterucb.progress import Silent
from clusterucb.samples.encoded import Encoded
from helpers.models import VOCABULARY, tiny_gpt2, tiny_llama, tiny_qwen3, with_lora
from helpers.tiny import write_model

ALL = [GRADIENTS, AGAIN, BESIDE, PADDED, AUTOGRAD, EAGER]


def probed(model, samples=None, **options):
    """Probe a model in memory, which has no tokenizer."""
    return probe(LoadedModel(model, None), Settings(**options), Silent(), samples)


def findings(model, samples=None, **options):
    return {one.name: one for one in probed(model, samples, **options).findings}


def sample_of(length, first_label=1, seed=0, tokens=None):
    tokens = np.random.default_rng(seed).integers(VOCABULARY, size=length) if tokens is None else tokens
    labels = np.arange(length) >= first_label
    return Encoded(np.asarray(tokens), labels, labels)


class Changed(torch.nn.Module):
    """A layer whose output something else is added to."""

    def __init__(self, layer, change):
        super().__init__()
        self.layer = layer
        self.change = change

    def forward(self, hidden):
        return self.layer(hidden) + self.change(hidden)


def changed(change, **options):
    model = tiny_llama(**options)
    mlp = model.model.layers[1].mlp
    mlp.up_proj = Changed(mlp.up_proj, change)
    return model


def seeing_the_batch(size):
    """Return a model of which a layer adds the mean over the batch."""
    return changed(lambda hidden: hidden.mean(dim=0, keepdim=True).mean() * size)


def noisy():
    return changed(lambda hidden: 1e-3 * torch.randn(()))


def bert():
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertLMHeadModel(BertConfig(vocab_size=VOCABULARY, initializer_range=0.3, **shape))


def with_a_loss_of_its_own():
    model = tiny_llama()
    loss = model.loss_function
    model.loss_function = lambda **options: 2 * loss(**options)
    return model


def with_attention_of_its_own():
    def attend(*args, **options):
        output, weights = sdpa_attention_forward(*args, **options)
        return output * 1.01, weights

    AttentionInterface.register("ours", attend)
    return tiny_llama(attn_implementation="ours")


def running_a_layer_twice():
    model = tiny_llama()
    model.model.layers[1].self_attn.register_forward_pre_hook(
        lambda module, args, options: (module.q_proj(options["hidden_states"]), None)[1], with_kwargs=True
    )
    return model


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (tiny_llama, {}),
        (tiny_qwen3, {"lora_targets": "all-linear", "checkpointing": True}),
        (tiny_gpt2, {"parameters": "transformer.h.*.c_fc", "preconditioner": "sgd"}),
    ],
)
def test_a_sound_model_keeps_every_promise(build, options):
    model = build()
    found = findings(model, **options)
    assert list(found) == ALL
    assert all(one.fine and not one.remedy for one in found.values())
    assert (found[AGAIN].score, found[AGAIN].gradient) == (0, 0)
    assert found[PADDED].score <= 1e-6
    assert 0 < found[EAGER].gradient < 1e-4
    assert found[EAGER].note == "sdpa is in use"


@pytest.mark.parametrize(
    ("build", "name", "said", "remedy", "options"),
    [
        (bert, PADDED, "beside longer samples than alone", "", {"lora_targets": "query,value"}),
        (lambda: seeing_the_batch(10), PADDED, "beside longer samples than alone", "", {}),
        (lambda: seeing_the_batch(1e-2), BESIDE, "", "--batch-tokens 1, which", {}),
        (lambda: seeing_the_batch(1e-2), PADDED, "", "--batch-tokens 1, which", {}),
        (noisy, AGAIN, "", "draws random numbers in evaluation mode", {}),
        (noisy, AUTOGRAD, "", f"that of '{AGAIN}'", {}),
        (noisy, PADDED, "", f"that of '{AGAIN}'", {}),
        (with_a_loss_of_its_own, AUTOGRAD, "", "check the model's own loss", {}),
        (with_attention_of_its_own, EAGER, "ours is in use", "attn_implementation='eager'", {}),
        (running_a_layer_twice, GRADIENTS, "q_proj.lora_A runs twice in a pass", "", {}),
    ],
)
def test_what_breaks_a_promise_is_named_with_its_remedy(build, name, said, remedy, options):
    found = findings(build(), **options)[name]
    assert found.fine is False
    assert said in found.note
    assert (remedy in found.remedy) if remedy else not found.remedy
    if found.score is not None:
        assert found.score > found.promised.score or found.gradient > found.promised.gradient


@pytest.mark.parametrize(
    ("build", "bad", "options"),
    [
        (bert, {PADDED}, {"lora_targets": "query,value"}),
        (lambda: seeing_the_batch(1e-2), {BESIDE, PADDED}, {}),
        (with_a_loss_of_its_own, {AUTOGRAD}, {}),
        (with_attention_of_its_own, {EAGER}, {}),
    ],
)
def test_nothing_else_is_blamed(build, bad, options):
    found = findings(build(), **options)
    assert list(found) == ALL
    assert {name for name, one in found.items() if not one.fine} == bad


@pytest.mark.parametrize(("batch_tokens", "fine"), [(1, True), (3, True), (4, False), (None, False)])
def test_what_passes_change_is_fine_where_no_samples_share_one(batch_tokens, fine):
    found = findings(seeing_the_batch(1e-2), batch_tokens=batch_tokens)
    for name in (BESIDE, PADDED):
        assert found[name].fine is fine
        assert (found[name].note == "every sample has its own pass") is fine
        assert bool(found[name].remedy) is not fine


def broken_weights(dtype=torch.float32):
    model = tiny_llama().to(dtype)
    with torch.no_grad():
        model.model.embed_tokens.weight[VOCABULARY - 1] = torch.nan
    return model


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [(torch.float32, "model's weights for NaN"), (torch.float16, "--dtype float32")],
)
def test_gradients_that_are_not_finite_are_counted_and_left_out(dtype, remedy):
    broken = sample_of(40, tokens=[VOCABULARY - 1] * 40)
    good = [sample_of(length, tokens=np.arange(length) % 50) for length in (10, 20, 30)]
    found = findings(broken_weights(dtype), [*good, broken])
    assert found[GRADIENTS].note == "the gradient is not finite, for 1 of 4 samples"
    assert remedy in found[GRADIENTS].remedy
    assert all(found[name].fine for name in ALL[1:])
    (only,) = findings(broken_weights(dtype), [broken]).values()
    assert only.note == "the gradient is not finite, for 4 of 4 samples"


def test_gradients_of_zero_are_named_with_their_remedy():
    model = tiny_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    (only,) = findings(model).values()
    assert only.note == "the gradient is zero, for 4 of 4 samples"
    assert "--lora-targets, --parameters" in only.remedy


@pytest.mark.parametrize(
    ("dtype", "options", "remedy"),
    [
        ("bfloat16", {}, "--dtype float32"),
        ("float16", {}, "--dtype float32"),
        ("float32", {"autocast": "bfloat16"}, "no --autocast"),
        ("bfloat16", {"autocast": "bfloat16"}, "--dtype float32 and no --autocast"),
    ],
)
@pytest.mark.filterwarnings("error:.*second time:UserWarning")
def test_a_lower_dtype_is_compared_with_float32(monkeypatch, dtype, options, remedy):
    model = tiny_llama().to(getattr(torch, dtype))
    found = findings(model, **options)
    assert list(found) == [*ALL, FLOAT32]
    assert all(one.fine for one in found.values())
    exact = found[FLOAT32]
    assert 1e-6 < exact.score < exact.promised.score
    assert 1e-4 < exact.gradient < exact.promised.gradient
    cosine = float(exact.note.removeprefix("the smallest cosine with the float32 gradient is "))
    assert cosine == pytest.approx(1 - exact.gradient**2 / 2, abs=0.01)
    monkeypatch.setattr(probes, "_PROMISED", dict.fromkeys(probes._PROMISED, measuring.Change(1e-6, 1e-4)))
    strict = findings(model, **options)
    assert (strict[FLOAT32].fine, strict[FLOAT32].remedy) == (False, remedy)
    assert strict[EAGER].remedy == remedy


def test_the_lora_is_random_and_the_same_in_every_dtype(monkeypatch):
    draw, drawn = probes._drawn, []

    def recorded(lora, seed):
        lora = draw(lora, seed)
        drawn.append({name: weight.clone() for name, weight in lora.named_parameters() if ".lora_" in name})
        return lora

    monkeypatch.setattr(probes, "_drawn", recorded)
    probed(tiny_llama().bfloat16())
    rounded, exact = drawn
    assert all(bool(weight.any()) and torch.equal(weight, exact[name]) for name, weight in rounded.items())


def test_in_float32_there_is_nothing_to_compare_with():
    assert FLOAT32 not in findings(tiny_llama())


def test_a_model_that_bfloat16_is_too_coarse_for_is_told():
    found = findings(tiny_llama(initializer_range=1.0, num_hidden_layers=8).bfloat16())
    assert (found[FLOAT32].fine, found[FLOAT32].remedy) == (False, "--dtype float32")


def test_a_copy_that_does_not_fit_is_not_made(monkeypatch):
    monkeypatch.setattr(probes, "available", lambda device: 10**5)
    found = findings(tiny_llama().bfloat16())[FLOAT32]
    assert found.fine is None
    assert found.note == "a float32 copy takes 0.1 MB of memory, 0.1 MB are free"


def test_memory_that_runs_out_leaves_the_other_probes(monkeypatch):
    def backward(*_):
        raise MemoryError

    monkeypatch.setattr(measuring.Autograd, "backward", backward)
    found = findings(tiny_llama())
    assert (found[AUTOGRAD].fine, found[AUTOGRAD].note) == (None, "out of memory")
    assert found[EAGER].fine


def test_eager_attention_is_no_change_where_it_is_in_use_and_none_where_it_cannot_be():
    assert findings(tiny_llama(attn_implementation="eager"))[EAGER].note == "eager is in use"
    model = tiny_llama()
    model.set_attn_implementation = lambda _: None
    found = findings(model)[EAGER]
    assert (found.fine, found.note) == (None, "LlamaForCausalLM cannot change from sdpa to eager")


@pytest.mark.parametrize("build", [tiny_llama, noisy, running_a_layer_twice, lambda: tiny_llama().bfloat16()])
def test_the_model_is_left_as_it_was(build):
    model = build().train()
    model.model.embed_tokens.requires_grad_(False)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = {name: (weight.clone(), weight.requires_grad) for name, weight in model.named_parameters()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    hooks = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
    torch.manual_seed(5)
    with torch.inference_mode():
        probed(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(
        torch.equal(after[name], weight) and after[name].requires_grad is wanted
        for name, (weight, wanted) in before.items()
    )
    assert all(module.training for module in model.modules())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert {name: len(module._forward_pre_hooks) for name, module in model.named_modules()} == hooks
    assert not any(module._forward_hooks for module in model.modules())
    assert bool((model.lm_head.weight.grad == 1).all())
    assert model.config._attn_implementation == "sdpa"


def test_a_loaded_adapter_scores_as_its_preconditioner_says(tmp_path):
    write_model(tmp_path / "model")
    model = with_lora(tiny_llama(vocab_size=VOCABULARY))
    warm_up(
        model, [[sample_of(12, seed=seed)] for seed in range(4)], tmp_path / "adapter", learning_rate=1e-3
    )
    found = probed(tiny_llama(), adapter=tmp_path / "adapter", checkpointing=True)
    assert found.parameters == 3 * (4 * 24 * 2 + 4 * 24 + 4 * 12)
    assert [one.name for one in found.findings] == ALL
    assert all(one.fine for one in found.findings)
    plain = probed(tiny_llama(), adapter=tmp_path / "adapter", preconditioner="sgd")
    assert plain.findings != found.findings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_targets": "nope"}, "LoRA finds no layer"),
        ({"parameters": "nope", "preconditioner": "sgd"}, "matches no linear layer"),
        ({"adapter": "nowhere"}, "holds no adapter_config.json"),
    ],
)
def test_what_cannot_be_loaded_is_an_error(tmp_path, options, message):
    if "adapter" in options:
        options = {"adapter": tmp_path / "nowhere"}
    with pytest.raises(ModelError, match=message):
        probed(tiny_llama(), **options)


def lengths_of(found):
    return found.samples.partition(" tokens")[0]


@pytest.mark.parametrize(
    ("samples", "options", "expected"),
    [
        (None, {}, "4 samples of 12 to 120"),
        (None, {"max_length": 20}, "4 samples of 2 to 20"),
        (None, {"max_length": 2}, "4 samples of 2 to 2"),
        ([sample_of(length, length // 2) for length in range(3, 200)], {}, "4 samples of 3 to 120"),
        ([sample_of(500, 490)], {"max_length": 30}, "4 samples of 3 to 30"),
        ([sample_of(10)], {}, "4 samples of 2 to 10"),
    ],
)
def test_samples_are_short_and_of_rising_lengths(samples, options, expected):
    found = probed(tiny_llama(), samples, **options)
    assert lengths_of(found) == expected
    assert ("of the pool" in found.samples) is (samples is not None)
    assert all(one.fine for one in found.findings)


def test_samples_are_no_longer_than_the_model_has_positions():
    assert lengths_of(probed(tiny_llama(max_position_embeddings=30))) == "4 samples of 3 to 30"


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_folder_is_probed_with_its_chat_template(tmp_path, dtype):
    folder = write_model(tmp_path / "model")
    found = probe(folder, Settings(dtype=dtype), Silent())
    assert found.samples == "4 samples of 12 to 120 tokens, made up"
    assert (found.model, found.device, found.attention) == (str(folder), "cpu", "sdpa")
    assert found.dtype == ("float32" if dtype == "auto" else dtype)
    assert [one.name for one in found.findings] == [*ALL, *([FLOAT32] if dtype == "bfloat16" else [])]
    assert all(one.fine for one in found.findings)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Probed) == found


def test_without_a_tokenizer_any_tokens_do(tmp_path):
    folder = write_model(tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    found = probe(folder, Settings(), Silent())
    assert (
        "of random tokens, because no conversation can be encoded (cannot load the tokenizer" in found.samples
    )
    assert all(one.fine for one in found.findings)


def test_the_same_seed_finds_the_same():
    assert probed(tiny_llama()) == probed(tiny_llama())
    assert probed(tiny_llama()).findings != probed(tiny_llama(), seed=1).findings


def test_a_model_that_is_none_is_refused():
    with pytest.raises(ModelError, match=r"there is no folder '\./nowhere'"):
        probe("./nowhere", Settings(), Silent())
