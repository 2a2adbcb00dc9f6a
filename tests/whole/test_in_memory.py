"""Jobs on objects in memory: rows, tables, loaded models; and the objects are as before afterwards."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import clusterucb as cu
from clusterucb.errors import ClusterUCBError, InputError, ModelError, OptionError
from helpers.tiny import rows, write_job

SMALL = {"warmup_steps": 2, "batch_size": 4}
POOL, TARGET = rows(40), rows(6, seed=3)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Return a folder with a model, a pool and a target, and what was found with them on disk."""
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def on_disk(job):
    return cu.select(job / "pool.jsonl", job / "dev.jsonl", model=job / "model", out=job / "run", **SMALL)


@pytest.fixture
def tokenizer(job):
    return AutoTokenizer.from_pretrained(job / "model")


@pytest.fixture
def model(job):
    return AutoModelForCausalLM.from_pretrained(job / "model", dtype=torch.float32)


def state(model: torch.nn.Module) -> list[Any]:
    """Return everything about a model that a job could change."""
    found: list[Any] = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, dict):
                found.append((name, key, [(one, id(each)) for one, each in value.items()]))
            else:
                found.append((name, key, value if isinstance(value, bool | int | float | str) else id(value)))
    for name, weight in model.named_parameters():
        found.append(
            (name, weight.requires_grad, weight.grad is None, id(weight), weight.detach().numpy().tobytes())
        )
    return found


# Rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        list,
        pd.DataFrame,
        datasets.Dataset.from_list,
        lambda made: datasets.Dataset.from_list(made).to_iterable_dataset(),
    ],
)
def test_rows_in_memory_give_what_the_same_rows_on_disk_give(job, on_disk, kind) -> None:
    result = cu.select(kind(POOL), kind(TARGET), model=job / "model", **SMALL)
    assert result.ids == on_disk.ids
    assert result.scores.tobytes() == on_disk.scores.tobytes()
    assert result.out is None


def test_a_result_is_written_and_turned_into_tables(job, on_disk, tmp_path: Path) -> None:
    result = cu.select(POOL, TARGET, model=job / "model", **SMALL)
    by_id = {row["id"]: row for row in POOL}
    expected = [by_id[name] for name in result.ids]
    assert result.to_dataset().to_list() == expected
    assert result.to_pandas().to_dict("records") == expected
    result.write(tmp_path / "chosen.jsonl")
    assert [json.loads(line) for line in (tmp_path / "chosen.jsonl").read_text().splitlines()] == expected
    annotated = result.to_pandas(annotate=True)
    assert [one["score"] for one in annotated["clusterucb"]] == result.scores.tolist()
    with pytest.raises(ClusterUCBError, match="cannot write"):
        result.write(tmp_path / "no" / "folder.jsonl")
    assert on_disk.out == job / "run"
    assert "no folder" in repr(result)


@pytest.mark.parametrize(
    ("column", "odd", "even"),
    [
        ("id", int, str),
        ("extra", lambda _: [1], str),
        ("extra", lambda _: {"a": 1}, lambda _: {"a": "b"}),
        ("extra", lambda _: 2**63, lambda _: None),
    ],
)
def test_a_column_of_several_types_is_told(job, column: str, odd, even) -> None:
    pool = [{**row, column: (even, odd)[at % 2](at)} for at, row in enumerate(POOL)]
    result = cu.select(pool, TARGET, model=job / "model", **SMALL, select=8)
    with pytest.raises(
        InputError, match=rf"values in '{column}' that a Dataset has no one type for .* write\(\)"
    ):
        result.to_dataset()
    assert len(result.to_pandas()) == 8


def test_a_dataset_has_the_columns_of_every_row(job) -> None:
    """`Dataset.from_list` has those of the first alone, and says nothing."""
    pool = [{**row, f"only_{number}": number} for number, row in enumerate(POOL)]
    result = cu.select(pool, TARGET, model=job / "model", **SMALL)
    given = {row["id"]: row for row in pool}
    found = result.to_dataset().to_list()
    assert [{name: value for name, value in row.items() if value is not None} for row in found] == [
        given[name] for name in result.ids
    ]


def test_nothing_is_left_behind_without_a_folder(
    job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cu.select(POOL, TARGET, model=job / "model", **SMALL)
    assert list(tmp_path.iterdir()) == []


# Scores alone ---------------------------------------------------------------------------------------------


def test_scores_come_in_the_order_of_the_rows(job, on_disk) -> None:
    bad = {"prompt": "no answer"}
    scores = cu.score([*POOL[:5], bad, *POOL[5:]], TARGET, model=job / "model", **SMALL_WITHOUT_BATCHES)
    assert scores.ids == [row["id"] for row in POOL]
    assert scores.lines.tolist() == [*range(1, 6), *range(7, 42)]
    assert scores.values.shape == (40, 1)
    assert [(line.line, line.kind) for line in scores.rejected] == [(6, "no conversation")]
    found = dict(zip(on_disk.ids, on_disk.scores.tolist(), strict=True))
    of_all = dict(zip(scores.ids, scores.values[:, 0].tolist(), strict=True))
    assert {name: of_all[name] for name in found} == pytest.approx(found, rel=1e-6)
    table = scores.to_pandas()
    assert table.columns.tolist() == ["id", "file", "line", "target"]
    assert table["target"].to_numpy().tobytes() == scores.values[:, 0].tobytes()


SMALL_WITHOUT_BATCHES = {"warmup_steps": 2}


def test_scores_are_kept_in_a_folder(job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = {"model": job / "model", "out": tmp_path / "scores", **SMALL_WITHOUT_BATCHES}
    first = cu.score(POOL, TARGET, **again)
    monkeypatch.setattr(
        "clusterucb.gradients.session.load_base", None
    )  # nothing is computed, so no model is needed
    second = cu.score(POOL, TARGET, **again)
    assert first.values.tobytes() == second.values.tobytes()
    assert repr(second) == "<Scores: 40 samples, subtasks target>"


# Models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_a_loaded_model_gives_what_its_folder_gives_and_is_as_before(
    job, on_disk, model, tokenizer, training
) -> None:
    model.train(training)
    model.model.layers[0].requires_grad_(False)
    handle = model.model.layers[1].register_forward_hook(lambda *_: None)
    tokenizer.padding_side = "left"
    tokenizer("a b", max_length=9, truncation=True)
    before, backend = state(model), tokenizer.backend_tokenizer.to_str()
    result = cu.select(POOL, TARGET, model=model, tokenizer=tokenizer, **SMALL)
    assert result.ids == on_disk.ids
    assert result.scores.tobytes() == on_disk.scores.tobytes()
    assert state(model) == before
    assert tokenizer.backend_tokenizer.to_str() == backend
    handle.remove()


def test_a_model_is_as_before_after_a_failure(model, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(model)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("clusterucb.gradients.accumulate.Accumulator.__call__", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        cu.select(POOL, TARGET, model=model, tokenizer=tokenizer, **SMALL)
    assert state(model) == before


def trained(model, steps: int = 2) -> tuple[PeftModel, torch.optim.Optimizer]:
    """Return a model with a LoRA that has been trained for a few steps, and its optimiser."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    lora = get_peft_model(model, config)
    named = [(name, one) for name, one in lora.named_parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(named, lr=1e-2)
    for seed in range(steps):
        ids = torch.randint(5, 50, (2, 12), generator=torch.Generator().manual_seed(seed))
        lora(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return lora, optimizer


def test_the_lora_of_a_loaded_model_is_the_checkpoint(job, model, tokenizer, tmp_path: Path) -> None:
    lora, optimizer = trained(model)
    before = state(lora)
    result = cu.select(POOL, TARGET, model=lora, tokenizer=tokenizer, optimizer=optimizer, batch_size=4)
    assert state(lora) == before
    lora.save_pretrained(tmp_path / "adapter")
    torch.save(optimizer.state_dict(), tmp_path / "adapter" / "optimizer.pt")
    same = cu.select(POOL, TARGET, model=job / "model", adapter=tmp_path / "adapter", batch_size=4)
    assert result.ids == same.ids
    assert result.scores.tobytes() == same.scores.tobytes()


def test_gradients_are_computed_whatever_is_switched_off_and_random_numbers_stay(
    job, on_disk, model, tokenizer
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        result = cu.select(POOL, TARGET, model=model, tokenizer=tokenizer, **SMALL)
    assert torch.rand(3).tolist() == expected.tolist()
    with torch.inference_mode():
        again = cu.select(POOL, TARGET, model=job / "model", **SMALL)
    assert result.scores.tobytes() == again.scores.tobytes() == on_disk.scores.tobytes()


def test_an_adapter_that_changes_the_base_model_is_right_or_refused(
    job, model, tokenizer, tmp_path: Path
) -> None:
    def scores(lora) -> np.ndarray:
        return cu.score(POOL, TARGET, model=lora, tokenizer=tokenizer, preconditioner="sgd").values

    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    lora = get_peft_model(model, LoraConfig(**config, init_lora_weights="pissa"))
    before = state(lora)
    first = scores(lora)
    assert state(lora) == before
    assert scores(lora).tobytes() == first.tobytes()
    plain = AutoModelForCausalLM.from_pretrained(job / "model", dtype=torch.float32)
    plain.load_state_dict(lora.unload().state_dict())
    same = get_peft_model(plain, LoraConfig(**config))
    weights = {name: value for name, value in before_weights(before).items() if "lora_" in name}
    with torch.no_grad():
        for name, parameter in same.named_parameters():
            if name in weights:
                parameter.copy_(
                    torch.frombuffer(bytearray(weights[name]), dtype=torch.float32).view_as(parameter)
                )
    assert scores(same).tobytes() == first.tobytes()
    fresh = AutoModelForCausalLM.from_pretrained(job / "model", dtype=torch.float32)
    get_peft_model(fresh, LoraConfig(**config, init_lora_weights="pissa")).save_pretrained(tmp_path / "pissa")
    with pytest.raises(ModelError, match="was initialised by 'pissa', which changes the base model as well"):
        cu.score(POOL, TARGET, model=job / "model", adapter=tmp_path / "pissa", preconditioner="sgd")


def before_weights(found: list[Any]) -> dict[str, bytes]:
    return {entry[0]: entry[4] for entry in found if len(entry) == 5}


def test_a_run_on_objects_is_taken_up_again(model, tokenizer, tmp_path: Path) -> None:
    lora, optimizer = trained(model)
    arguments = {
        "model": lora,
        "tokenizer": tokenizer,
        "optimizer": optimizer,
        "batch_size": 4,
        "out": tmp_path / "run",
    }
    first = cu.select(POOL, TARGET, budget="10%", **arguments)
    more = cu.select(POOL, TARGET, budget="20%", **arguments)
    assert (
        more.selection.drawn_rows[: first.selection.n_scored].tolist() == first.selection.drawn_rows.tolist()
    )
    with torch.no_grad():
        next(one for one in lora.parameters() if one.requires_grad).add_(1)
    with pytest.raises(cu.ClusterUCBError, match="the adapter content has changed"):
        cu.select(POOL, TARGET, budget="30%", **arguments)


def test_what_does_not_fit_is_refused(job, model, tokenizer, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, **arguments: Any) -> None:
        with pytest.raises(error, match=match):
            cu.select(POOL, TARGET, **{"tokenizer": tokenizer, **arguments, **SMALL})

    refused(OptionError, "model is 5; expected the path of a model's folder", model=5)
    refused(OptionError, "given without its tokenizer; expected tokenizer=", model=model, tokenizer=None)
    refused(
        OptionError, "given with the path of a model; expected the path of a tokenizer", model=job / "model"
    )
    refused(
        OptionError,
        "dtype is 'bfloat16', but the given model's dtype is float32; expected auto or float32",
        model=model,
        dtype="bfloat16",
    )
    refused(
        OptionError,
        "device is 'cuda', but the given model's device is cpu; expected auto or cpu",
        model=model,
        device="cuda",
    )
    stranger = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    refused(
        OptionError, "an optimizer is given with a model that has no adapter", model=model, optimizer=stranger
    )
    lora, optimizer = trained(model)
    refused(
        OptionError,
        r"model is a PeftModelForCausalLM that torch.compile made; .*Give the model that you compiled",
        model=torch.compile(lora),
    )
    refused(ModelError, "1 parameters of the optimizer are not in the model", model=lora, optimizer=stranger)
    refused(OptionError, "adapter is given with a model that has an adapter", model=lora, adapter=tmp_path)
    lora.merge_adapter()
    refused(
        ModelError,
        "the adapter is merged into the model; expected model.unmerge",
        model=lora,
        optimizer=optimizer,
    )
    with pytest.raises(OptionError, match="out is 5; expected the path of a folder"):
        cu.select(POOL, TARGET, model=job / "model", out=5)
    with pytest.raises(OptionError, match="out is None; expected the path of a folder"):
        cu.sketch(POOL, model=job / "model", out=None)


def test_errors_name_objects_and_no_file_that_is_gone(model, tokenizer) -> None:
    def said(lora: Any, **arguments: Any) -> str:
        with pytest.raises(ModelError) as caught:
            cu.score(POOL, TARGET, model=lora, tokenizer=tokenizer, warmup_steps=2, **arguments)
        return str(caught.value)

    ia3 = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    ia3_model = get_peft_model(copy.deepcopy(model), ia3)
    text = said(ia3_model, preconditioner="sgd")
    assert text.startswith(
        "the model's adapter is an adapter of type IA3; expected LORA. Train a LoRA on this base"
    )
    lora = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([one for one in lora.parameters() if one.requires_grad])
    text = said(lora, optimizer=optimizer)
    assert text.startswith(
        "the optimizer has no state for base_model.model.model.layers.0.self_attn.q_proj.lora_A"
    )
    assert text.endswith("Give it after at least one step of AdamW or Adam, or use preconditioner='sgd'")
    weights = [one for one in lora.parameters() if one.requires_grad]
    muon = torch.optim.Muon(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    muon.step()
    text = said(lora, optimizer=muon)
    assert text.startswith("the optimizer is the state of Muon: for parameter ")
    assert text.endswith("give that optimizer, and use preconditioner='second_moment'")


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"policy": "UCB"}, "Did you mean 'ucb'?"),
        ({"policy": "ucb[beta"}, "policy 'ucb[beta' cannot be read; expected name, or name[key=value,...]"),
        ({"policy": "ucb[beta]"}, "policy 'ucb[beta]' cannot be read; expected name, or name[key=value,...]"),
        (
            {"policy": "ucb[beta=1,beta=2]"},
            "policy 'ucb[beta=1,beta=2]': beta is given twice; expected it once",
        ),
        ({"policy": "ucb[gamma=1]"}, "policy ucb has no option 'gamma'; its options: beta."),
        ({"policy": cu.Random}, "Did you mean policy=clusterucb.Random()?"),
        ({"policy": cu.Hidden}, "derived from clusterucb.Policy, or the name of an installed one"),
    ],
)
def test_what_names_no_strategy_is_answered_with_what_does(options, meant: str) -> None:
    with pytest.raises(OptionError) as caught:
        cu.select(POOL, TARGET, model="m", **options)
    assert str(caught.value).endswith(meant)


@pytest.mark.parametrize(("library", "method"), [("pandas", "to_pandas"), ("datasets", "to_dataset")])
def test_a_library_that_is_missing_is_named_with_its_extra(
    job, monkeypatch, library: str, method: str
) -> None:
    result = cu.select(POOL, TARGET, model=job / "model", **SMALL)
    assert getattr(result, method)() is not None
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        OptionError, match=rf"{method}\(\) needs {library}, .*pip install 'clusterucb\[{library}\]'"
    ):
        getattr(result, method)()


def test_a_strategy_may_be_named_as_on_the_command_line(job) -> None:
    named = cu.select(
        POOL, TARGET, model=job / "model", policy="ucb[beta=0.5]", clusterer="kmeans[n_clusters=3]",
        features="embedding+lexical[dim=16]", **SMALL,
    )  # fmt: skip
    made = cu.select(
        POOL, TARGET, model=job / "model", policy=cu.UCB(beta=0.5), clusterer=cu.KMeans(n_clusters=3),
        features=cu.features.Concatenation((cu.Embedding(), cu.Lexical(dim=16))), **SMALL,
    )  # fmt: skip
    assert named.ids == made.ids
    assert named.manifest.identity.options == made.manifest.identity.options


def test_no_library_warns_about_what_we_do_not_use(job) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        cu.select(POOL, TARGET, model=job / "model", **SMALL)


def test_the_signature_names_everything() -> None:
    names = list(inspect.signature(cu.select).parameters)
    assert names[:6] == ["pool", "target", "model", "tokenizer", "out", "features"]
    assert {"budget", "columns", "adapter"} <= set(names)
    assert "tokenizer" in inspect.signature(cu.compare).parameters


# Surroundings ---------------------------------------------------------------------------------------------


def test_a_running_event_loop_does_not_matter(job, on_disk) -> None:
    async def within() -> cu.Result:
        here = asyncio.create_task(asyncio.sleep(0))
        result = cu.select(POOL, TARGET, model=job / "model", **SMALL)
        await here
        there = await asyncio.to_thread(cu.select, POOL, TARGET, model=job / "model", **SMALL)
        assert there.scores.tobytes() == result.scores.tobytes()
        return result

    assert asyncio.run(within()).ids == on_disk.ids


def test_a_function_is_told_of_progress(job) -> None:
    seen: list[tuple[str, int, int]] = []
    cu.select(POOL, TARGET, model=job / "model", observer=lambda *event: seen.append(event), **SMALL)
    scoring = [(done, total) for text, done, total in seen if text == "Scoring"]
    assert scoring[0] == (0, 8)
    assert scoring[-1] == (8, 8)
    assert [done for done, _ in scoring] == sorted(done for done, _ in scoring)
    assert ("Reading the pool and the target", 0, 0) in seen


def test_a_notebook_sees_a_table_and_no_code_of_the_pool(job) -> None:
    evil = [{**row, "prompt": f"<script>alert({at})</script> {row['prompt']}"} for at, row in enumerate(POOL)]
    result = cu.select(evil, TARGET, model=job / "model", **SMALL)
    page = result._repr_html_()
    assert "<table" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert f"{result.scores[0]:+.4f}" in page
    assert np.isfinite(result.scores).all()
