"""The tokenizer and the template that samples are encoded with: the model's, the adapter's, or those that are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import clusterucb as cu
from clusterucb.errors import ClusterUCBWarning, ModelError, OptionError, RunError
from helpers.tiny import read_rows, rows, write_model, write_rows

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)
OPTIONS = {"budget": "100%", "select": 3, "preconditioner": "sgd"}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_rows(tmp_path / "pool.jsonl", rows(12))
    write_rows(tmp_path / "dev.jsonl", rows(4, seed=3))
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    lora = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, weight in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    lora.save_pretrained(tmp_path / "adapter")
    return tmp_path


def select(job: Path, name: str = "run", **options):
    out = job / name
    given = {"model": job / "model", "adapter": job / "adapter", **OPTIONS, **options}
    found = cu.select(job / "pool.jsonl", job / "dev.jsonl", out=out, **given)
    return found, {row["id"]: row["score"] for row in read_rows(out / "scores.jsonl")}


def with_template(job: Path, folder: Path, template: str | None = TEMPLATE):
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def encoding(job: Path, name: str = "run") -> str:
    return json.loads((job / name / "manifest.json").read_text())["identity"]["contents"]["encoding"]


def test_the_tokenizer_of_the_adapter_comes_before_the_models(job: Path, capsys) -> None:
    _, before = select(job, "before")
    with_template(job, job / "adapter")
    _, found = select(job)
    _, expected = select(
        job, "expected", model=with_template(job, shutil.copytree(job / "model", job / "other"))
    )
    assert found == expected != before
    assert encoding(job) == encoding(job, "expected") != encoding(job, "before")


def test_a_template_alone_in_the_adapters_folder_is_used(job: Path) -> None:
    (job / "adapter" / "chat_template.jinja").write_text(TEMPLATE)
    _, found = select(job)
    (job / "adapter" / "chat_template.jinja").unlink()
    (job / "template.jinja").write_text(TEMPLATE)
    _, expected = select(job, "expected", chat_template=job / "template.jinja")
    assert found == expected
    assert encoding(job) == encoding(job, "expected")


def test_a_tokenizer_without_a_template_takes_the_models_template(job: Path) -> None:
    _, expected = select(job, "expected")
    with_template(job, job / "adapter", None)
    assert select(job)[1] == expected


def test_a_named_tokenizer_and_template_come_before_the_adapters(job: Path) -> None:
    _, expected = select(job, "expected")
    with_template(job, job / "adapter")
    assert select(job, tokenizer=job / "model")[1] == expected
    template = AutoTokenizer.from_pretrained(job / "model").chat_template
    (job / "template.jinja").write_text(template)
    assert select(job, "again", chat_template=job / "template.jinja")[1] == expected


def test_the_same_tokenizer_in_the_adapters_folder_changes_nothing(job: Path) -> None:
    _, expected = select(job)
    AutoTokenizer.from_pretrained(job / "model").save_pretrained(job / "adapter")
    assert select(job)[1] == expected  # the same run, which is shown again


def test_a_run_with_another_template_is_not_resumed(job: Path) -> None:
    select(job)
    (job / "template.jinja").write_text(TEMPLATE)
    with pytest.raises(RunError, match="the tokenizer or chat template has changed"):
        select(job, chat_template=job / "template.jinja", budget="50%")


def test_checkpoints_with_different_templates_are_refused(job: Path) -> None:
    shutil.copytree(job / "adapter", job / "second")
    (job / "second" / "chat_template.jinja").write_text(TEMPLATE)
    given = {"adapter": None, "checkpoint": [job / "adapter", job / "second"]}
    with pytest.raises(ModelError, match="different tokenizers or chat templates"):
        select(job, **given)
    assert len(select(job, **given, tokenizer=job / "model")[1]) == 12  # the remedy that the message names


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"tokenizer": "nowhere/at/all"}, "tokenizer"),
        ({"chat_template": "nowhere.jinja"}, "cannot read the chat template nowhere.jinja: No such file"),
        ({"special_tokens": "<nope>"}, "--special-tokens names '<nope>', which is no token of its own"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(job: Path, option: dict, message: str) -> None:
    with pytest.raises((OptionError, ModelError), match=message):
        select(job, **option)
    assert not (job / "run").exists()


def test_special_tokens_in_texts_are_counted_and_read_as_tokens_on_request(job: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<ctx>", "</ctx>"]})
    tokenizer.save_pretrained(job / "model")
    base = AutoModelForCausalLM.from_pretrained(job / "model", dtype=torch.float32)
    base.resize_token_embeddings(len(tokenizer))
    base.save_pretrained(job / "model")
    spelt = [
        {**row, "prompt": f"<ctx>{row['prompt']}</ctx>" if at < 5 else row["prompt"]}
        for at, row in enumerate(rows(12))
    ]
    write_rows(job / "pool.jsonl", spelt)
    options = {"adapter": None, "warmup_steps": 1}
    with pytest.warns(ClusterUCBWarning, match="spell special tokens, which are read as text: .*<ctx> in 5"):
        _, as_text = select(job, "text", **options)
    _, as_tokens = select(job, "tokens", **options, special_tokens=["<ctx>", "</ctx>"])
    changed = {name for name in as_text if as_text[name] != as_tokens[name]}
    assert {row["id"] for row in spelt[:5]} <= changed
    assert encoding(job, "text") != encoding(job, "tokens")
