"""Adapters of every kind select as a batch-1 loop does, or are refused by name; bases stay as they were."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import clusterucb as cu
from clusterucb.errors import ModelError, OptionError
from clusterucb.model.source import ModelSource
from helpers.families import TEXT, gemma3, qwen3_5, tiny
from helpers.models import with_lora
from helpers.tiny import read_rows, rows, write_model, write_rows

QV = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
OPTIONS = {"budget": "100%", "select": 3, "preconditioner": "sgd"}


@pytest.fixture
def job(tmp_path):
    write_model(tmp_path / "model")
    write_rows(tmp_path / "pool.jsonl", rows(12))
    write_rows(tmp_path / "dev.jsonl", rows(4, seed=3))
    return tmp_path


def files(job):
    return {"pool": job / "pool.jsonl", "target": job / "dev.jsonl"}


def scores(out):
    return {row["id"]: row["score"] for row in read_rows(out / "scores.jsonl")}


def base_of(job):
    return AutoModelForCausalLM.from_pretrained(job / "model", dtype=torch.float32)


def test_copied_layers_are_refused_from_a_folder_and_right_in_memory(job):
    lora = with_lora(base_of(job), layer_replication=[[0, 2], [1, 3]])
    lora.save_pretrained(job / "adapter")
    with pytest.raises(
        ModelError, match=r"has layer_replication \[.*, which makes another model of the base"
    ):
        cu.select(**files(job), model=job / "model", adapter=job / "adapter", **OPTIONS)
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    cu.select(**files(job), model=lora, tokenizer=tokenizer, out=job / "run", **OPTIONS)
    # the same model as a folder: four layers with weights of their own, and a plain adapter
    base = base_of(job)
    layers = base.model.layers
    base.model.layers = torch.nn.ModuleList([layers[0], layers[1], layers[1], layers[2]])
    state = {name: value.clone() for name, value in base.state_dict().items()}
    write_model(job / "deep", num_hidden_layers=4)
    deep = AutoModelForCausalLM.from_pretrained(job / "deep")
    deep.load_state_dict(state)
    deep.save_pretrained(job / "deep")
    config = json.loads((job / "adapter" / "adapter_config.json").read_text())
    (job / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "layer_replication": None}))
    cu.select(**files(job), model=job / "deep", adapter=job / "adapter", out=job / "same", **OPTIONS)
    assert scores(job / "run") == pytest.approx(scores(job / "same"), rel=1e-4, abs=1e-6)


def test_an_adapter_that_changes_weights_of_its_base_is_refused_by_their_name(job):
    base = base_of(job)
    lora = with_lora(base)
    with torch.no_grad():
        base.get_input_embeddings().weight.add_(1)
    lora.save_pretrained(job / "adapter", save_embedding_layers=True)
    with pytest.raises(
        ModelError, match=r"changes the base model \(the weight model.embed_tokens.weight is another"
    ):
        cu.select(**files(job), model=job / "model", adapter=job / "adapter", **OPTIONS)


NEW = 2  # tokens that are added to the vocabulary


def resized(job, tied, more):
    """Return a PEFT model with new tokens and its tokenizer; write the base, the adapter and a pool that uses them."""
    if tied:
        write_model(job / "model", tie_word_embeddings=True)
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<new{number}>" for number in range(NEW)]})
    base = base_of(job)
    base.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        base.get_input_embeddings().weight[-NEW:].normal_()
    base.save_pretrained(job / "resized")
    tokenizer.save_pretrained(job / "resized")
    lora = with_lora(base, **more(len(tokenizer)))
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if weight.requires_grad and ".lora_" not in name:
                weight.add_(0.05 * torch.randn_like(weight))
    lora.save_pretrained(job / "adapter")
    tokenizer.save_pretrained(job / "adapter")
    write_rows(job / "pool.jsonl", [{**row, "prompt": f"<new1>{row['prompt']}"} for row in rows(12)])
    return lora, tokenizer


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        lambda _: {},
        lambda _: {"modules_to_save": ["embed_tokens", "lm_head"]},
        lambda _: {"modules_to_save": ["lm_head"]},
        lambda _: {"modules_to_save": ["embed_tokens"]},
        lambda size: {"trainable_token_indices": [5, size - 1]},
        lambda size: {"trainable_token_indices": {"lm_head": [5, size - 1]}},
    ],
    ids=["lora", "both", "head", "embeddings", "tokens", "tokens of the head"],
)
def test_a_resized_vocabulary_comes_with_its_adapter(job, tied, more):
    """The adapter's embeddings take the place of the model's, as in a model that was saved with them."""
    lora, tokenizer = resized(job, tied, more)
    options = {**OPTIONS, "special_tokens": "<new1>", "lora_only": True}
    cu.select(**files(job), model=job / "model", adapter=job / "adapter", out=job / "run", **options)
    cu.select(**files(job), model=job / "resized", adapter=job / "adapter", out=job / "whole", **options)
    assert scores(job / "run") == scores(job / "whole")
    cu.select(**files(job), model=lora, tokenizer=tokenizer, out=job / "memory", **options)
    assert scores(job / "memory") == pytest.approx(scores(job / "run"), abs=1e-6)


def test_features_of_two_vocabularies_are_not_mixed_up(job):
    resized(job, False, lambda _: {})
    options = {**OPTIONS, "special_tokens": "<new1>"}
    cu.select(**files(job), model=job / "model", adapter=job / "adapter", out=job / "run", **options)
    plain = cu.select(**files(job), model=job / "model", out=job / "plain", **OPTIONS, warmup_steps=1)
    assert plain.rows is not None


@pytest.mark.parametrize(
    ("tied", "more", "base", "message"),
    [
        (
            False,
            {"modules_to_save": ["lm_head"]},
            "resized",
            r"no weights of the base model's model\.embed_tokens\.",
        ),
        (
            True,
            {"modules_to_save": ["embed_tokens"]},
            "resized",
            r"no weights of the base model's lm_head\.weight",
        ),
        (
            False,
            {"trainable_token_indices": [5]},
            "resized",
            r"the model embeds \d+ tokens; .*save_embedding_layers",
        ),
        (False, {}, "model", r"the model embeds \d+ tokens; .*save_embedding_layers=True"),
    ],
)
def test_an_adapter_without_the_embeddings_of_its_base_is_refused(job, tied, more, base, message):
    """PEFT does not save them if the base was saved with its new tokens, or if it is told not to."""
    resized(job, tied, lambda _: {})
    tuned = AutoModelForCausalLM.from_pretrained(job / base, dtype=torch.float32)
    with_lora(tuned, **more).save_pretrained(
        job / "adapter", **({} if more else {"save_embedding_layers": False})
    )
    options = {**OPTIONS, "special_tokens": "<new1>", "lora_only": True}
    with pytest.raises(ModelError, match=message):
        cu.select(**files(job), model=job / "model", adapter=job / "adapter", **options)
    if more:
        cu.select(**files(job), model=job / "resized", adapter=job / "adapter", **options)


def test_embeddings_of_the_output_must_come_too(job):
    base = base_of(job)
    base.resize_token_embeddings(base.config.vocab_size + 8)
    with_lora(base).save_pretrained(job / "adapter")
    path = job / "adapter" / "adapter_model.safetensors"
    kept = {name: values for name, values in load_file(path).items() if "lm_head" not in name}
    save_file(kept, path)
    with pytest.raises(
        ModelError, match=r"and no weights of the base model's lm_head\.weight; expected both"
    ):
        cu.select(**files(job), model=job / "model", adapter=job / "adapter", **OPTIONS)


@pytest.mark.parametrize("change", [1, 1e-6])
def test_a_single_value_of_the_base_that_loading_changes_is_found(job, monkeypatch, change):
    with_lora(base_of(job)).save_pretrained(job / "adapter")
    load = PeftModel.from_pretrained

    def changing(model, *arguments, **options):
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight[3, 5] += change
        return load(model, *arguments, **options)

    monkeypatch.setattr(PeftModel, "from_pretrained", changing)
    with pytest.raises(ModelError, match=r"the weight model.layers.1.mlp.down_proj.weight is another one"):
        cu.select(**files(job), model=job / "model", adapter=job / "adapter", **OPTIONS)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base_is_that_of_bitsandbytes(job, bits):
    write_model(job / "model", hidden_size=64, intermediate_size=128)
    given = {**files(job), **OPTIONS, "warmup_steps": 2, "preconditioner": "adam_less"}
    cu.select(**given, model=job / "model", quantize=bits, out=job / "run")
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    if bits == "4bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = AutoModelForCausalLM.from_pretrained(
        job / "model", dtype=torch.float32, quantization_config=config
    )
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    cu.select(**given, model=model, tokenizer=tokenizer, out=job / "memory")
    cu.select(**given, model=job / "model", out=job / "whole")
    assert scores(job / "run") == scores(job / "memory") != scores(job / "whole")
    with pytest.raises(OptionError, match="is given with a loaded model; expected the model's folder"):
        cu.select(**given, model=model, tokenizer=tokenizer, quantize=bits)


def test_quantising_without_bitsandbytes_says_what_to_install(job, monkeypatch):
    monkeypatch.setattr("clusterucb.model.quantized.find_spec", lambda _: None)
    with pytest.raises(OptionError, match="pip install bitsandbytes"):
        cu.select(**files(job), model=job / "model", quantize="4bit", **OPTIONS)


def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    return nullcontext()


@pytest.mark.parametrize(
    "around",
    [
        lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.bfloat16),
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
        torch.inference_mode,
        torch.no_grad,
    ],
    ids=["float64", "bfloat16", "autocast", "device", "inference", "no_grad"],
)
def test_what_a_caller_sets_for_all_of_torch_changes_nothing(job, around):
    given = {
        **files(job),
        "model": job / "model",
        **OPTIONS,
        "warmup_steps": 2,
        "preconditioner": "adam_less",
    }
    cu.select(**given, out=job / "plain")
    before = torch.get_default_dtype()
    try:
        with around():
            inside = torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")
            cu.select(**given, out=job / "inside")
            now = torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")
    finally:
        torch.set_default_dtype(before)
    assert now == inside
    assert scores(job / "inside") == scores(job / "plain")


def test_a_named_adapter_is_found_in_its_folder(job):
    base = base_of(job)
    torch.manual_seed(0)
    lora = get_peft_model(base, LoraConfig(**QV, init_lora_weights=False), adapter_name="task")
    lora.save_pretrained(job / "trained")
    for number, folder in enumerate(("trained", "trained/task")):
        cu.select(
            **files(job), model=job / "model", adapter=job / folder, out=job / f"run{number}", **OPTIONS
        )
    assert scores(job / "run0") == scores(job / "run1")
    (job / "trained" / "other").mkdir()
    (job / "trained" / "other" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds 2 adapters, in other, task; expected one"):
        cu.select(**files(job), model=job / "model", adapter=job / "trained", **OPTIONS)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["mlp", "norm"], "target_modules": "all-linear"},
        {"trainable_token_indices": [1, 2]},
        {"trainable_token_indices": {"embed_tokens": [1, 2]}},
    ],
)
def test_what_is_trained_beside_lora_is_used_alike_from_a_folder_and_in_memory(job, lora, tied):
    if tied:
        write_model(job / "model", tie_word_embeddings=True)
    only = {"lora_only": "use_dora" not in lora}
    model = with_lora(base_of(job), **lora)
    for name, weight in model.named_parameters():
        if "modules_to_save" in name or "trainable_tokens_delta" in name:
            weight.data += 0.05 * torch.randn_like(weight)
    model.save_pretrained(job / "adapter")
    cu.select(**files(job), model=job / "model", adapter=job / "adapter", out=job / "a", **OPTIONS, **only)
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    layers = [name for name, _ in model.named_modules()]
    cu.select(**files(job), model=model, tokenizer=tokenizer, out=job / "b", **OPTIONS, **only)
    assert scores(job / "a") == pytest.approx(scores(job / "b"))
    assert [name for name, _ in model.named_modules()] == layers
    if only["lora_only"]:
        for given in (
            {"model": job / "model", "adapter": job / "adapter"},
            {"model": model, "tokenizer": tokenizer},
        ):
            with pytest.raises(ModelError, match="--lora-only"):
                cu.select(**files(job), **given, **OPTIONS)


@pytest.mark.parametrize("build", [gemma3, qwen3_5])
def test_a_model_for_images_selects_texts_by_its_language_model(job, build):
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    torch.manual_seed(0)
    model = build({**TEXT, "vocab_size": len(tokenizer)})
    model.save_pretrained(job / "vlm")
    tokenizer.save_pretrained(job / "vlm")
    for targets in ({}, {"lora_targets": "q_proj,v_proj"}, {"lora_targets": "all-linear"}):
        cu.select(
            **files(job),
            model=job / "vlm",
            warmup_steps=2,
            out=job / "run",
            overwrite=True,
            **OPTIONS,
            **targets,
        )
        config = json.loads((job / "run" / "adapter" / "adapter_config.json").read_text())
        names = [name for name in config["target_modules"] if "vis" in name]
        assert not names
    with_lora(model).save_pretrained(job / "adapter")  # on the vision tower too, as far as names match
    cu.select(**files(job), model=job / "vlm", adapter=job / "adapter", out=job / "own", **OPTIONS)
    assert len(scores(job / "own")) == 12


def test_the_screen_names_what_a_lora_is_on_and_what_is_left_out(job):
    said = []

    def observer(text, *_):
        said.append(str(text))

    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    tiny("phi3", vocab_size=len(tokenizer)).save_pretrained(job / "phi3")
    tokenizer.save_pretrained(job / "phi3")
    cu.select(**files(job), model=job / "phi3", warmup_steps=2, observer=observer, **OPTIONS)
    assert any(
        text.startswith(
            "LoRA on down_proj, gate_up_proj, o_proj, qkv_proj: the projections that every token reaches"
        )
        for text in said
    )
    with_lora(base_of(job), modules_to_save=["lm_head"]).save_pretrained(job / "adapter")
    given = {"model": job / "model", "adapter": job / "adapter", "lora_only": True}
    cu.select(**files(job), **given, observer=observer, **OPTIONS)
    assert any(text.startswith("Left out of the gradients: 1 weight of the adapter") for text in said)


def test_a_model_that_cannot_be_read_says_what_to_do(job):
    T5ForConditionalGeneration(
        T5Config(vocab_size=300, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(job / "t5")
    with pytest.raises(
        ModelError, match=r"is an encoder-decoder model \(t5\); expected a causal language model"
    ):
        ModelSource(str(job / "t5")).model("auto", "cpu")
    (job / "own").mkdir()
    own = {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}, "model_type": "own"}
    (job / "own" / "config.json").write_text(json.dumps(own))
    with pytest.raises(
        ModelError, match=r"code of its own, which does not run .* allow it with --trust-remote-code"
    ):
        ModelSource(str(job / "own")).model("auto", "cpu")
