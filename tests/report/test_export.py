"""What is written beside the scores: the annotated selection, exports for training tools, the scores as a table."""

from __future__ import annotations

import ast
import glob
import itertools
import json
import re
import sys
import types
import warnings
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from peft import LoraConfig
from rich.console import Console

import clusterucb as cu
from clusterucb import filenames
from clusterucb.engine.loop import Selection
from clusterucb.errors import ClusterUCBWarning, OptionError, RunError
from clusterucb.options.keywords import settings_from
from clusterucb.options.search import SelectSettings
from clusterucb.report import scores_table
from clusterucb.report.annotate import FIELD, annotated
from clusterucb.report.export import TOOLS, export
from clusterucb.report.screen import show
from clusterucb.report.summary import Summary
from clusterucb.samples.encode import Encoder
from clusterucb.samples.message import TOOLS as DEFINITIONS
from clusterucb.samples.message import Call
from clusterucb.samples.pool import Message, Sample
from clusterucb.samples.shapes import Layout
from helpers.tiny import read_rows, rows, write_model, write_rows
from helpers.trl_templates import tokenizer

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "text", "c": "assistant"}
NASTY = [
    "plain",
    "two words",
    'it\'s "quoted"',
    "back\\slash\\n",
    'quote"; raise SystemExit #',
    "'''",
    "colon: {braces} # hash",
    "new\nline: 1",
    "tab\tand\x85\u2028\x7f",
    "${HOME} %s {0}",
    "Größe 漢字 🙂",
    "a[1]*?",
    "- list",
    b"latin-\xe9".decode("utf-8", "surrogateescape"),
]


def sample(letters: str, number: int = 0) -> Sample:
    """Return a sample whose roles are given by their first letters; c is an answer that is context."""
    messages = tuple(
        Message(ROLES[letter], f"{letter}{at}", context=letter == "c") for at, letter in enumerate(letters)
    )
    return Sample(messages, f"id-{number}", "source", "", f"{number:064x}", b"{}", "pool.jsonl", number + 1)


def write(folder: Path, tools: str, *conversations: str, model: str = "org/model", **options):
    samples = [sample(letters, number) for number, letters in enumerate(conversations)]
    settings = settings_from(options, SelectSettings)
    return export(folder, tools.split(","), samples, model=model, settings=settings)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def turns(letters: str) -> list[dict[str, str]]:
    return [{"role": ROLES[letter], "content": f"{letter}{at}"} for at, letter in enumerate(letters)]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# Annotating ---------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just(FIELD), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.text(max_size=5) | st.sampled_from([FIELD, FIELD, "a", '{"', "}", "\\", '\\"', ","])
SPACES = st.text(" \t", max_size=2)


@st.composite
def objects(draw: st.DrawFn) -> tuple[bytes, list]:
    """Return a line of JSON, spaced and escaped at will, with keys that may stand there twice, and its pairs."""
    pairs = draw(st.lists(st.tuples(KEYS, VALUES), max_size=5))
    written = []
    for key, value in pairs:
        ascii_only = draw(st.booleans())
        name = json.dumps(key, ensure_ascii=ascii_only)
        if draw(st.booleans()):
            name = name.replace("u", "\\u0075") if key == FIELD else name
        value_text = json.dumps(
            value, ensure_ascii=ascii_only, separators=draw(st.sampled_from([(",", ":"), (", ", ": ")]))
        )
        written.append(f"{draw(SPACES)}{name}{draw(SPACES)}:{draw(SPACES)}{value_text}{draw(SPACES)}")
    line = f"{draw(SPACES)}{{{','.join(written) or draw(SPACES)}}}{draw(SPACES)}"
    return line.encode(), pairs


def pairs_of(line: bytes) -> list:
    return json.loads(line, object_pairs_hook=lambda pairs: pairs)


@given(objects())
@example((b'{"clusterucb": {"clusterucb": 1}, "clusterucb": [","]}', []))
def test_our_field_is_the_last_and_the_only_one_of_its_name(case: tuple[bytes, list]) -> None:
    line, _ = case
    others = [pair for pair in pairs_of(line) if pair[0] != FIELD]
    assert pairs_of(annotated(line, {"rank": 1})) == [*others, (FIELD, [("rank", 1)])]


@given(objects())
def test_every_other_byte_of_a_line_is_kept(case: tuple[bytes, list]) -> None:
    line, pairs = case
    found = annotated(line, {"rank": 1})
    if pairs and not any(key == FIELD for key, _ in pairs):
        end = line.rindex(b"}")
        assert found == line[:end] + b',"clusterucb":{"rank":1}' + line[end:]
    assert annotated(found, {"rank": 1}) == found


def test_numbers_and_escapes_stay_as_they_were_written() -> None:
    line = rb'{ "a": 1.0, "b": 1E5, "c": 12345678901234567890, "d": "\u00e9\/", "clusterucb": {"x": "}"} , "e": [ ] }'
    kept = rb'{ "a": 1.0, "b": 1E5, "c": 12345678901234567890, "d": "\u00e9\/", "e": [ ] ,"clusterucb":{"rank":2}}'
    assert annotated(line, {"rank": 2}) == kept


def test_a_long_line_is_annotated_like_a_short_one() -> None:
    line = b'{"clusterucb": 1, "text": "' + b'\\"\\\\,{' * 1_000_000 + b'"}'
    assert annotated(line, {}) == b'{ "text"' + line[24:-1] + b',"clusterucb":{}}'


# Exports: what each tool reads --------------------------------------------------------------------------


def test_llamafactory_gets_the_openai_form_of_its_sharegpt_format(tmp_path: Path) -> None:
    write(tmp_path, "llamafactory", "ua", "suaua", "t")
    folder = tmp_path / "export-llamafactory"
    assert lines(folder / "conversations.jsonl") == [{"messages": turns("ua")}, {"messages": turns("suaua")}]
    assert lines(folder / "text.jsonl") == [{"text": "t0"}]
    assert json.loads((folder / "dataset_info.json").read_text()) == {
        "clusterucb": {
            "file_name": "conversations.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        },
        "clusterucb_text": {"file_name": "text.jsonl", "columns": {"prompt": "text"}},
    }
    for stage, dataset in (("sft", "clusterucb"), ("pt", "clusterucb_text")):
        config = yaml.safe_load((folder / f"{stage}.yaml").read_text())
        assert (config["stage"], config["dataset"], config["dataset_dir"]) == (stage, dataset, str(folder))


@given(st.lists(st.sampled_from("sua"), max_size=6).map("".join).filter(lambda letters: "a" in letters))
def test_llamafactory_gets_what_takes_turns_up_to_the_last_answer(tmp_path_factory, letters: str) -> None:
    folder = tmp_path_factory.mktemp("export")
    kept = re.fullmatch("(s?(?:ua)+)[su]*", letters)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write(folder, "llamafactory", letters, "ua")
    wanted = [kept[1], "ua"] if kept else ["ua"]
    found = lines(folder / "export-llamafactory" / "conversations.jsonl")
    assert found == [{"messages": turns(one)} for one in wanted]
    assert len(said) == (not kept)


def test_what_llamafactory_cannot_read_is_counted(tmp_path: Path) -> None:
    told = "--export llamafactory leaves out 2 of 3 selected samples: it reads only conversations in which questions"
    with pytest.warns(ClusterUCBWarning, match=told):
        write(tmp_path, "llamafactory", "uua", "ua", "aua")


def test_nothing_that_a_tool_can_read_leaves_no_training(tmp_path: Path) -> None:
    with pytest.warns(ClusterUCBWarning):
        (found,) = write(tmp_path, "llamafactory", "uua")
    assert found.trainings == ()
    assert names(tmp_path) == {"export-llamafactory/dataset_info.json"}


def test_axolotl_gets_a_mark_for_each_answer_that_is_context(tmp_path: Path) -> None:
    write(tmp_path, "axolotl", "ucua", "ua")
    folder = tmp_path / "export-axolotl"
    marked = turns("ucua")
    marked[1]["train"] = False
    assert lines(folder / "conversations.jsonl") == [{"messages": marked}, {"messages": turns("ua")}]
    (dataset,) = yaml.safe_load((folder / "axolotl.yaml").read_text())["datasets"]
    assert dataset["message_field_training"] == "train"


def test_tools_without_marks_learn_the_last_answer_alone_or_leave_the_conversation_out(
    tmp_path: Path,
) -> None:
    write(tmp_path, "trl,llamafactory", "ucua", "ua")
    assert lines(tmp_path / "export-trl" / "conversations.jsonl") == [
        {"prompt": turns("ucua")[:3], "completion": turns("ucua")[3:]},
        {"prompt": turns("ua")[:1], "completion": turns("ua")[1:]},
    ]
    assert yaml.safe_load((tmp_path / "export-llamafactory" / "sft.yaml").read_text())["mask_history"] is True
    with pytest.warns(ClusterUCBWarning, match="learn some answers of a conversation and not others"):
        write(tmp_path, "trl,llamafactory", "uauc", "ucua", "uaua")
    for tool in ("trl", "llamafactory"):
        assert lines(tmp_path / f"export-{tool}" / "conversations.jsonl") == [
            {"messages": turns("ua")},
            {"messages": turns("uaua")},
        ]


def test_llamafactory_learns_last_answers_alone_only_if_all_that_it_gets_is_scored_so(tmp_path: Path) -> None:
    with pytest.warns(ClusterUCBWarning, match="leaves out 1 of 2"):
        write(tmp_path, "llamafactory", "ucua", "uaua")
    folder = tmp_path / "export-llamafactory"
    assert "mask_history" not in yaml.safe_load((folder / "sft.yaml").read_text())
    with pytest.warns(ClusterUCBWarning, match="leaves out 1 of 3"):
        write(tmp_path, "llamafactory", "ucua", "ucsua", "ua")
    assert yaml.safe_load((folder / "sft.yaml").read_text())["mask_history"] is True
    with pytest.warns(ClusterUCBWarning, match="leaves out 2 of 5"):
        write(tmp_path, "llamafactory", "ucua", "ucucua", "uaua", "ua", "uaucua")
    assert yaml.safe_load((folder / "sft.yaml").read_text())["mask_history"] is True
    assert len(lines(folder / "conversations.jsonl")) == 3


def test_trl_leaves_out_fewer_conversations(tmp_path: Path) -> None:
    with pytest.warns(
        ClusterUCBWarning, match=r"leaves out 1 of 3 selected samples: it learns either the last answer"
    ):
        write(tmp_path, "trl", "ucua", "uaua", "sucua")
    folder = tmp_path / "export-trl"
    assert [len(line["prompt"]) for line in lines(folder / "conversations.jsonl")] == [3, 4]
    assert "assistant_only_loss" not in (folder / "sft.py").read_text()
    with pytest.warns(ClusterUCBWarning, match=r"leaves out 1 of 3"):
        write(tmp_path, "trl", "ucua", "uaua", "ua")
    assert lines(folder / "conversations.jsonl") == [{"messages": turns("uaua")}, {"messages": turns("ua")}]


def taught(folder: Path, tool: str) -> dict[str, tuple[bool, ...]]:
    """Return which turns of each exported conversation a tool learns, by the conversation's letters."""
    rows = lines(folder / "conversations.jsonl") if (folder / "conversations.jsonl").exists() else []
    found = {}
    for row in rows:
        said = row.get("messages") or [*row["prompt"], *row["completion"]]
        learnt = [turn["role"] == "assistant" and turn.get("train", True) for turn in said]
        if "prompt" in row:
            learnt[: len(row["prompt"])] = [False] * len(row["prompt"])
        if tool == "llamafactory" and yaml.safe_load((folder / "sft.yaml").read_text()).get("mask_history"):
            learnt[:-1] = [False] * (len(learnt) - 1)
        found[" ".join(turn["content"] for turn in said)] = tuple(learnt)
    return found


@given(
    st.lists(
        st.text("suac", min_size=1, max_size=5).filter(lambda letters: "a" in letters),
        max_size=4,
        unique=True,
    )
)
def test_every_tool_learns_the_answers_that_were_scored(tmp_path_factory, conversations: list[str]) -> None:
    folder = tmp_path_factory.mktemp("export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(folder, ",".join(TOOLS), *conversations)
    scored = {
        " ".join(f"{letter}{at}" for at, letter in enumerate(letters)): tuple(one == "a" for one in letters)
        for letters in conversations
    }
    for tool in TOOLS:
        for content, learnt in taught(folder / f"export-{tool}", tool).items():
            assert any(
                f"{whole} ".startswith(f"{content} ")
                and learnt + (False,) * (len(flags) - len(learnt)) == flags
                for whole, flags in scored.items()
            )
        if tool == "axolotl":
            assert len(taught(folder / f"export-{tool}", tool)) == len(conversations)


CALLED = (
    Message(DEFINITIONS, '[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]'),
    Message("user", "u"),
    Message("assistant", "", thought="Hm.", calls=(Call("f", '{"x":1}', "c1"),)),
    Message("tool", "5", name="f", call_id="c1"),
    Message("assistant", "a"),
)


def test_the_column_of_tools_is_named_only_if_some_exported_conversation_has_tools(tmp_path: Path) -> None:
    left_out = Sample((*CALLED[:4], *CALLED[3:]), "id", "source", "", "0" * 64, b"{}", "pool.jsonl", 1)
    with pytest.warns(ClusterUCBWarning):
        export(
            tmp_path,
            ["llamafactory"],
            [left_out, sample("ua")],
            model="m",
            settings=settings_from({}, SelectSettings),
        )
    info = json.loads((tmp_path / "export-llamafactory" / "dataset_info.json").read_text())["clusterucb"]
    assert info["columns"] == {"messages": "messages"}


def test_tools_are_exported_in_the_form_that_each_tool_reads(tmp_path: Path) -> None:
    one = Sample(CALLED, "id", "source", "", "0" * 64, b"{}", "pool.jsonl", 1)
    settings = settings_from({}, SelectSettings)
    export(tmp_path, ["trl", "axolotl", "llamafactory"], [one], model="m", settings=settings)
    found = {tool: lines(tmp_path / f"export-{tool}" / "conversations.jsonl")[0] for tool in TOOLS}
    called = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    said = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [called]},
        {"role": "tool", "content": "5", "name": "f", "tool_call_id": "c1"},
        {"role": "assistant", "content": "a"},
    ]
    assert found["trl"] == {"messages": said, "tools": CALLED[0].content}
    called["function"] = {"name": "f", "arguments": '{"x":1}'}
    defined = {"type": "function", "function": {"name": "f", "parameters": '{"type":"object"}'}}
    assert found["axolotl"] == {"messages": said, "tools": [defined]}
    assert found["llamafactory"] == {
        "messages": [
            {"role": "user", "content": "u"},
            {
                "role": "function_call",
                "content": '<think>\nHm.\n</think>\n\n[{"name": "f", "arguments": {"x":1}}]',
            },
            {"role": "observation", "content": "5"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": CALLED[0].content,
    }
    info = json.loads((tmp_path / "export-llamafactory" / "dataset_info.json").read_text())["clusterucb"]
    assert info["columns"] == {"messages": "messages", "tools": "tools"}
    assert (info["tags"]["function_tag"], info["tags"]["observation_tag"]) == ("function_call", "observation")


def test_what_is_exported_is_read_again_as_the_same_conversation(tmp_path: Path) -> None:
    one = Sample(CALLED, "id", "source", "", "0" * 64, b"{}", "pool.jsonl", 1)
    export(tmp_path, list(TOOLS), [one], model="m", settings=settings_from({}, SelectSettings))
    for tool in TOOLS:
        (row,) = lines(tmp_path / f"export-{tool}" / "conversations.jsonl")
        found = Layout().conversation(row).messages
        kept = (
            [
                replace(message, call_id="", calls=tuple(replace(call, id="") for call in message.calls))
                for message in CALLED
            ]
            if tool == "llamafactory"
            else CALLED
        )
        assert list(found) == list(kept)


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5"])
@pytest.mark.parametrize("thought", ["Hm.", "Hm.\n", "\n\nHm.\n", " Hm. "])
def test_an_exported_thought_has_the_tokens_that_were_scored(tmp_path: Path, name: str, thought: str) -> None:
    encoder = Encoder(tokenizer(name), max_length=1 << 16)
    scored = (Message("user", "u"), Message("assistant", "a", thought=thought))
    one = Sample(scored, "id", "source", "", "0" * 64, b"{}", "pool.jsonl", 1)
    export(tmp_path, list(TOOLS), [one], model="m", settings=settings_from({}, SelectSettings))
    for tool in TOOLS:
        (row,) = lines(tmp_path / f"export-{tool}" / "conversations.jsonl")
        found = encoder(Layout().conversation(row).messages)
        assert found.tokens.tolist() == encoder(scored).tokens.tolist()


def test_trl_gets_prompt_and_completion_while_each_conversation_has_one_answer(tmp_path: Path) -> None:
    write(tmp_path, "trl", "ua", "suua", "t")
    folder = tmp_path / "export-trl"
    assert lines(folder / "conversations.jsonl") == [
        {"prompt": turns("ua")[:1], "completion": turns("ua")[1:]},
        {"prompt": turns("suua")[:3], "completion": turns("suua")[3:]},
    ]
    assert lines(folder / "text.jsonl") == [{"text": "t0"}]
    assert "assistant_only_loss" not in (folder / "sft.py").read_text()


@pytest.mark.parametrize("odd", ["uaua", "a", "uau"])
def test_trl_gets_messages_where_a_conversation_is_more_than_prompt_and_answer(
    tmp_path: Path, odd: str
) -> None:
    write(tmp_path, "trl", "ua", odd)
    folder = tmp_path / "export-trl"
    assert lines(folder / "conversations.jsonl") == [{"messages": turns("ua")}, {"messages": turns(odd)}]
    assert "assistant_only_loss=True" in (folder / "sft.py").read_text()


def test_axolotl_gets_conversations_and_texts_in_one_configuration(tmp_path: Path) -> None:
    write(tmp_path, "axolotl", "suaua", "t", "uua")
    folder = tmp_path / "export-axolotl"
    assert lines(folder / "conversations.jsonl") == [{"messages": turns("suaua")}, {"messages": turns("uua")}]
    assert lines(folder / "text.jsonl") == [{"text": "t0"}]
    assert yaml.safe_load((folder / "axolotl.yaml").read_text())["datasets"] == [
        {
            "path": str(folder / "conversations.jsonl"),
            "ds_type": "json",
            "type": "chat_template",
            "field_messages": "messages",
            "roles_to_train": ["assistant"],
            "train_on_eos": "turn",
        },
        {"path": str(folder / "text.jsonl"), "ds_type": "json", "type": "completion", "field": "text"},
    ]


@pytest.mark.parametrize("alpha", [2.5, 1e-5])  # YAML reads 1e-05 as a text
def test_configurations_hold_the_settings_of_the_run(tmp_path: Path, alpha: float) -> None:
    write(tmp_path, ",".join(TOOLS), "ua", revision="v: 1", max_length=77, lora_rank=5, lora_alpha=alpha)
    llama = yaml.safe_load((tmp_path / "export-llamafactory" / "sft.yaml").read_text())
    axolotl = yaml.safe_load((tmp_path / "export-axolotl" / "axolotl.yaml").read_text())
    trl = run_script(tmp_path / "export-trl" / "sft.py")
    assert [llama[key] for key in ("model_revision", "cutoff_len", "lora_rank", "lora_alpha")] == [
        "v: 1",
        77,
        5,
        alpha,
    ]
    assert [axolotl[key] for key in ("revision_of_model", "sequence_len", "lora_r", "lora_alpha")] == [
        "v: 1",
        77,
        5,
        alpha,
    ]
    assert trl["SFTConfig"]["model_init_kwargs"] == {"revision": "v: 1"}
    assert (trl["SFTConfig"]["max_length"], trl["LoraConfig"]["r"], trl["LoraConfig"]["lora_alpha"]) == (
        77,
        5,
        alpha,
    )


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_no_path_or_model_leads_out_of_its_quotes(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    if glob.has_magic(name):
        write(folder, "trl", "ua", "t", model=name)  # the only tool that can take it
        write(tmp_path, "llamafactory,axolotl", "ua", "t", model=name)
    else:
        write(folder, ",".join(TOOLS), "ua", "t", model=name)
    others = tmp_path if glob.has_magic(name) else folder
    for file in ("export-llamafactory/sft.yaml", "export-llamafactory/pt.yaml"):
        config = yaml.safe_load((others / file).read_text())
        assert (config["dataset_dir"], config["model_name_or_path"]) == (
            str(others / "export-llamafactory"),
            name,
        )
        assert len(config) == 18
    config = yaml.safe_load((others / "export-axolotl" / "axolotl.yaml").read_text())
    assert [one["path"] for one in config["datasets"]] == [
        str(others / "export-axolotl" / file) for file in ("conversations.jsonl", "text.jsonl")
    ]
    assert config["base_model"] == name
    for script, file in (("sft.py", "conversations.jsonl"), ("text.py", "text.jsonl")):
        called = run_script(folder / "export-trl" / script)
        assert glob.glob(called["load_dataset"]["data_files"]) == [str(folder / "export-trl" / file)]
        assert called["SFTTrainer"]["model"] == name
    assert names(folder) <= set(filenames.EXPORT_FILES)


def run_script(path: Path, *, gpu: bool = False) -> dict[str, dict]:
    """Run a script for TRL with libraries that do nothing; return what each of them was called with."""
    called: dict[str, dict] = {}

    def recording(name: str):
        def call(*args, **options):
            called[name] = options
            return types.SimpleNamespace(train=lambda: None, save_model=lambda: None)

        return call

    fakes = {"datasets": ["load_dataset"], "peft": ["LoraConfig"], "trl": ["SFTConfig", "SFTTrainer"]}
    content = path.read_text()
    statements = ast.parse(content).body
    assert [type(one).__name__ for one in statements] == [
        "Expr",
        *["ImportFrom"] * 4,
        "Assign",
        "Expr",
        "Expr",
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module, functions in fakes.items():
            fake = types.SimpleNamespace(**{name: recording(name) for name in functions})
            patch.setitem(sys.modules, module, fake)
        patch.setattr("transformers.utils.is_torch_bf16_gpu_available", lambda: gpu)
        exec(compile(content, path.name, "exec"), {})
    return called


@pytest.mark.parametrize("gpu", [True, False])
def test_all_train_in_bf16_where_there_is_a_gpu_for_it(tmp_path: Path, monkeypatch, gpu: bool) -> None:
    monkeypatch.setattr("transformers.utils.is_torch_bf16_gpu_available", lambda: gpu)
    write(tmp_path, ",".join(TOOLS), "ua")
    llama = (tmp_path / "export-llamafactory" / "sft.yaml").read_text()
    assert yaml.safe_load(llama).get("bf16") == (True if gpu else None)
    assert ("add `bf16: true`" in llama) == (not gpu)
    assert run_script(tmp_path / "export-trl" / "sft.py", gpu=gpu)["SFTConfig"]["bf16"] is gpu
    assert yaml.safe_load((tmp_path / "export-axolotl" / "axolotl.yaml").read_text())["bf16"] == "auto"


def test_what_is_trained_lands_beside_its_configuration(tmp_path: Path) -> None:
    write(tmp_path, ",".join(TOOLS), "ua", "t")
    for tool, of_chats, of_texts in (
        ("llamafactory", "sft.yaml", "pt.yaml"),
        ("trl", "sft.py", "text.py"),
        ("axolotl", "axolotl.yaml", None),
    ):
        folder = tmp_path / f"export-{tool}"
        for file, output in ((of_chats, "trained"), (of_texts, "trained-text")):
            if file and tool == "trl":
                assert run_script(folder / file)["SFTConfig"]["output_dir"] == str(folder / output)
            elif file:
                assert yaml.safe_load((folder / file).read_text())["output_dir"] == str(folder / output)


CONFIGURATIONS = {"llamafactory": "sft.yaml", "trl": "sft.py", "axolotl": "axolotl.yaml"}


def texts(folder: Path) -> list[str]:
    """Return each tool's configuration."""
    return [(folder / f"export-{tool}" / name).read_text() for tool, name in CONFIGURATIONS.items()]


def told(folder: Path) -> list[dict]:
    """Return what each tool is told of the LoRA, perhaps among other things."""
    llama, _, axolotl = texts(folder)
    trl = run_script(folder / "export-trl" / "sft.py")["LoraConfig"]
    return [yaml.safe_load(llama), trl, yaml.safe_load(axolotl)]


def loras(folder: Path) -> list[tuple]:
    """Return rank, alpha and layers of each tool's LoRA."""
    llama, trl, axolotl = told(folder)
    layers = "lora_target_linear" if "lora_target_linear" in axolotl else "lora_target_modules"
    return [
        (llama["lora_rank"], llama["lora_alpha"], llama["lora_target"]),
        (trl["r"], trl["lora_alpha"], trl["target_modules"]),
        (axolotl["lora_r"], axolotl["lora_alpha"], axolotl[layers]),
    ]


@pytest.mark.parametrize("given", ["adapter", "checkpoint", "store"])
def test_the_lora_is_that_of_the_adapter_or_store(tmp_path: Path, given: str) -> None:
    adapter = tmp_path / "adapter"
    LoraConfig(r=3, lora_alpha=7, target_modules=["v_proj", "q_proj"]).save_pretrained(adapter)
    where = {"adapter": adapter, "checkpoint": (adapter, tmp_path / "later"), "store": tmp_path}[given]
    write(tmp_path, ",".join(TOOLS), "ua", **{given: where}, lora_rank=99, lora_targets="k_proj")
    layers = ["q_proj", "v_proj"]
    assert loras(tmp_path) == [(3, 7, "q_proj,v_proj"), (3, 7, layers), (3, 7, layers)]


def test_layers_without_a_lora_are_trained_by_that_of_the_options(tmp_path: Path) -> None:
    own = {"parameters": "*.up_proj", "preconditioner": "sgd", "store": tmp_path}
    write(tmp_path, ",".join(TOOLS), "ua", **own, lora_rank=9, lora_alpha=2, lora_targets="k_proj")
    assert {rank for rank, _, _ in loras(tmp_path)} == {9}


def test_layers_that_are_a_pattern_are_one_where_a_tool_takes_it(tmp_path: Path) -> None:
    pattern = r".*\.(q|v)_proj"
    LoraConfig(r=3, lora_alpha=7, target_modules=pattern).save_pretrained(tmp_path / "adapter")
    write(tmp_path, ",".join(TOOLS), "ua", adapter=tmp_path / "adapter")
    assert loras(tmp_path) == [(3, 7, "all"), (3, 7, pattern), (3, 7, pattern)]
    assert "all linear layers" in (tmp_path / "export-llamafactory" / "sft.yaml").read_text()


def test_layers_that_an_adapter_leaves_to_peft_are_left_to_it_where_a_tool_asks_it(tmp_path: Path) -> None:
    LoraConfig(r=3, lora_alpha=7).save_pretrained(tmp_path / "adapter")
    write(tmp_path, ",".join(TOOLS), "ua", adapter=tmp_path / "adapter")
    assert loras(tmp_path) == [(3, 7, "all"), (3, 7, None), (3, 7, True)]
    kind = "PEFT's choice for the model"
    note = f"# The adapter's layers are {kind}, which {{}} cannot express: it names all linear layers."
    llama, _, axolotl = texts(tmp_path)
    assert note.format("lora_target") in llama
    assert note.format("lora_target_modules") in axolotl


@pytest.mark.parametrize("rslora", [True, False])
def test_how_alpha_scales_is_carried_into_every_tool(tmp_path: Path, rslora: bool) -> None:
    LoraConfig(use_rslora=rslora, target_modules=["q_proj"]).save_pretrained(tmp_path / "adapter")
    write(tmp_path, ",".join(TOOLS), "ua", adapter=tmp_path / "adapter")
    for found, key in zip(told(tmp_path), ("use_rslora", "use_rslora", "peft_use_rslora"), strict=True):
        assert found.get(key) == (True if rslora else None)
    assert not any("Left out" in text for text in texts(tmp_path))


@pytest.mark.parametrize(
    ("of_peft", "of_file", "left_out"),
    [
        ({}, {}, ""),
        ({"task_type": "CAUSAL_LM", "fan_in_fan_out": True, "revision": "r"}, {"inference_mode": True}, ""),
        ({}, {"target_parameters": [], "loftq_config": None, "use_new": False}, ""),
        ({"rank_pattern": {"q_proj": 4}, "use_dora": True}, {}, "rank_pattern, use_dora"),
        (
            {"lora_dropout": 0.05, "bias": "all", "layers_to_transform": [0]},
            {},
            "bias, layers_to_transform, lora_dropout",
        ),
        ({"init_lora_weights": False}, {"use_new": 3, '# x\n"""': 1}, "init_lora_weights, use_new"),
    ],
)
def test_what_is_left_out_of_an_adapters_configuration_is_told(
    tmp_path: Path, of_peft: dict, of_file: dict, left_out: str
) -> None:
    LoraConfig(r=3, target_modules=["q_proj"], **of_peft).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | of_file))
    write(tmp_path, ",".join(TOOLS), "uaua", adapter=tmp_path / "adapter")
    note = f"Left out of the adapter's configuration: {left_out}. Add what the training needs.\n"
    for text in texts(tmp_path):
        assert (note in text) == ("Left out" in text) == bool(left_out)
    assert len(told(tmp_path)) == 3  # all of them can be read


@pytest.mark.parametrize("given", [None, "all-linear"])
def test_a_fresh_lora_is_on_all_linear_layers_by_default(tmp_path: Path, given: str | None) -> None:
    write(tmp_path, ",".join(TOOLS), "ua", lora_targets=given)
    assert loras(tmp_path) == [(8, 16, "all"), (8, 16, "all-linear"), (8, 16, True)]


def test_a_fresh_lora_is_on_the_layers_of_the_options(tmp_path: Path) -> None:
    write(tmp_path, ",".join(TOOLS), "ua", lora_targets="v_proj, q_proj")
    assert [layers for *_, layers in loras(tmp_path)] == ["q_proj,v_proj", *[["q_proj", "v_proj"]] * 2]


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?"])
def test_a_folder_that_a_tool_takes_for_a_pattern_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    told = r"--export llamafactory,axolotl is not written: .*read \[, \* and \? as a pattern.*another --out"
    with pytest.warns(ClusterUCBWarning, match=told):
        found = write(tmp_path / name, ",".join(TOOLS), "ua")
    assert [one.folder.name for one in found] == ["export-trl"]
    assert {path.name for path in (tmp_path / name).iterdir()} == {"export-trl"}
    pattern = run_script(found[0].folder / "sft.py")["load_dataset"]["data_files"]
    rows = datasets.load_dataset("json", data_files=pattern, split="train", cache_dir=str(tmp_path / "hf"))
    assert len(rows) == 1


def test_an_export_that_cannot_be_written_again_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a", ",".join(TOOLS), "ua", "t")
    theirs = tmp_path / "a" / "export-axolotl" / "trained"
    theirs.write_text("hours of work")
    run = (tmp_path / "a").rename(tmp_path / "a[1]")
    with pytest.warns(ClusterUCBWarning) as said:
        write(run, "llamafactory", "ua")
    reason = r": in a path such as .*a\[1\], these tools read .*: choose another --out"
    for what, one in zip(
        ("--export llamafactory is not written", "the earlier export for axolotl is removed"),
        said,
        strict=True,
    ):
        assert re.fullmatch(what + reason, str(one.message))
    assert names(run) == {"export-axolotl/trained", "export-trl/conversations.jsonl", "export-trl/sft.py"}


def test_a_model_folder_is_given_by_its_absolute_path(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    (found,) = write(Path("."), "axolotl", "ua", model="model")
    config = yaml.safe_load((found.folder / "axolotl.yaml").read_text())
    assert config["base_model"] == str(tmp_path / "model")
    assert config["datasets"][0]["path"] == str(tmp_path / "export-axolotl" / "conversations.jsonl")


def test_content_decides_about_no_name_and_stays_one_line(tmp_path: Path) -> None:
    content = '../../x\n{"a": 1}\r\u2028\x85\x00</s>${HOME}'
    odd = Sample(
        (Message("user", content), Message("assistant", content)),
        "../id",
        "../source",
        "",
        "0",
        b"",
        "../f",
        1,
    )
    settings = SelectSettings(export=",".join(TOOLS))
    export(tmp_path, settings.tools, [odd], model="m", settings=settings)
    assert names(tmp_path) <= set(filenames.EXPORT_FILES)
    for tool in TOOLS:
        (line,) = lines(tmp_path / f"export-{tool}" / "conversations.jsonl")
        contents = [turn["content"] for turn in itertools.chain(*line.values())]
        assert contents == [content, content]


# Exports: in a run --------------------------------------------------------------------------------------


def test_an_export_follows_the_selection_and_other_peoples_files_stay(tmp_path: Path) -> None:
    write(tmp_path, "trl", "ua", "t")
    theirs = tmp_path / "export-trl" / "trained-sft" / "adapter_model.safetensors"
    theirs.parent.mkdir()
    theirs.write_text("hours of work")
    found = write(tmp_path, "axolotl", "t")
    assert [one.folder.name for one in found] == ["export-trl", "export-axolotl"]
    of_trl = {"text.jsonl", "text.py", "trained-sft/adapter_model.safetensors"}
    assert names(tmp_path / "export-trl") == of_trl
    assert names(tmp_path / "export-axolotl") == {"text.jsonl", "axolotl.yaml"}


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "export-trl").write_text("")
    with pytest.raises(
        RunError, match=r"cannot create .*export-trl: File exists; move or delete the file there"
    ):
        write(tmp_path, "trl", "ua")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "trl,axolotll",
            r"--export is 'trl,axolotll'; expected some of llamafactory, trl, axolotl.*Did you mean 'axolotl'",
        ),
        ("", r"--export is ''; expected some of"),
        (["unsloth"], r"--export is 'unsloth'; expected some of"),
        (3, r"export is 3; expected a string"),
    ],
)
def test_a_tool_that_is_none_is_refused(given: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        settings_from({"export": given}, SelectSettings)


@pytest.mark.parametrize("given", ["trl, axolotl", ["trl", "axolotl"], ("trl", "axolotl")])
def test_tools_are_given_as_a_list_or_with_commas(given: object) -> None:
    assert settings_from({"export": given}, SelectSettings).tools == ["trl", "axolotl"]


@pytest.mark.parametrize("given", [None, []])
def test_no_tool_is_no_export(given: object) -> None:
    assert settings_from({"export": given}, SelectSettings).tools == []


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> dict:
    """Return the arguments of a finished run over rows of several shapes."""
    folder = tmp_path_factory.mktemp("job")
    pool = rows(40)
    pool[1] = {
        "messages": [*turns("su"), {"role": "assistant", "content": "It is red and bright."}],
        FIELD: {"old": 1},
    }
    pool[2] = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "It is blue."}]}
    pool[3] = {"instruction": "do", "input": "this", "output": "It is grey."}
    pool[4] = {"text": "It is red and bright."}
    pool[5] = {"prompt": "q", "chosen": "It is green.", "rejected": "no"}
    arguments = {
        "pool": write_rows(folder / "pool.jsonl", pool),
        "target": write_rows(
            folder / "dev.jsonl", [{**row, "subtask": row["source"]} for row in rows(8, seed=9)]
        ),
        "model": write_model(folder / "model"),
        "out": folder / "out",
        "budget": 38,
        "select": 30,
        "warmup_steps": 3,
    }
    cu.select(**arguments)
    return arguments


def shown(result: cu.Result) -> str:
    """Return what the screen says of a result."""
    screen = Console(width=300)
    with screen.capture() as captured:
        show(Summary.of(result), screen)
    return captured.get()


def found_in(folder: Path) -> dict[str, bytes]:
    """Return what a run found, by file: everything but how long it took and how it was asked for."""
    timed = {"manifest.json", "config.yaml", "report.html", "lock"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in timed and not path.name.startswith("ledger")
    }


def test_a_finished_run_given_again_with_output_options_changes_nothing_else(job: dict) -> None:
    before = found_in(job["out"])
    result = cu.select(**job, export=["trl", "axolotl"], scores_parquet=True)
    after = found_in(job["out"])
    written = {"scores.parquet", "export-trl/sft.py", "export-axolotl/conversations.jsonl"}
    assert written <= after.keys() - before.keys() <= {"scores.parquet", *filenames.EXPORT_FILES}
    assert {name: after[name] for name in before} == before
    files = result.to_json()["files"]
    assert {"scores.parquet", "export-trl", "export-axolotl"} <= files.keys()
    assert files["export-trl"] == str(job["out"] / "export-trl")
    conversations = lines(job["out"] / "export-trl" / "conversations.jsonl")
    kinds = [sample for sample in result.samples if sample.messages[0].role != "text"]
    assert [line["prompt"] + line["completion"] for line in conversations] == [
        [{"role": role, "content": content} for role, content in one.messages] for one in kinds
    ]
    said = shown(result)
    for name in ("selected.jsonl", "scores.parquet", "export-trl", "export-axolotl"):
        assert f"Written to {job['out'] / name}" in said
    assert f"to train: axolotl train {job['out'] / 'export-axolotl' / 'axolotl.yaml'}" in said


def test_a_text_is_shown_like_an_answer(tmp_path: Path, job: dict) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"It is red {number}."} for number in range(8)])
    result = cu.select(**{**job, "pool": texts, "out": tmp_path / "run", "budget": 8, "select": 1})
    assert "It is red" in shown(result)


def test_annotated_lines_say_what_was_found_of_them(job: dict) -> None:
    plain = (job["out"] / "selected.jsonl").read_bytes()
    result = cu.select(**job, annotate=True)
    assert f"selected.jsonl (each line with a field {FIELD})" in shown(result)
    scores = {row["id"]: row for row in read_rows(job["out"] / "scores.jsonl")}
    found = (job["out"] / "selected.jsonl").read_bytes().splitlines()
    for rank, (line, before) in enumerate(zip(found, plain.splitlines(), strict=True), start=1):
        field = json.loads(line)[FIELD]
        recorded = scores[field["id"]]
        wanted = {"id": result.ids[rank - 1], "score": result.scores[rank - 1], "rank": rank}
        assert field == {**wanted, **{key: recorded[key] for key in ("subtasks", "cluster", "draw")}}
        assert recorded["score"] == field["score"]
        if FIELD.encode() not in before:
            assert line.startswith(before[:-1])
    assert "each line with" not in shown(cu.select(**job))
    assert (job["out"] / "selected.jsonl").read_bytes() == plain


def test_the_table_holds_the_rows_of_scores_jsonl(job: dict) -> None:
    result = cu.select(**job, scores_parquet=True)
    path = job["out"] / "scores.parquet"
    first, table = path.read_bytes(), pq.read_table(path).to_pylist()
    pool = {sample.id: sample for sample in result.samples}
    assert len(table) == 38
    for row, line in zip(table, read_rows(job["out"] / "scores.jsonl"), strict=True):
        subtasks = {
            name.removeprefix("score_"): row.pop(name) for name in list(row) if name.startswith("score_")
        }
        place = {key: row.pop(key) for key in ("source", "file", "line")}
        assert {**row, "subtasks": subtasks} == line
        if row["selected"]:
            chosen = pool[row["id"]]
            assert place == {"source": chosen.source, "file": chosen.file, "line": chosen.line}
    cu.select(**job)
    assert path.read_bytes() == first


def test_a_larger_selection_brings_exports_and_table_up_to_date(job: dict, tmp_path: Path) -> None:
    arguments = {**job, "out": tmp_path / "run"}
    cu.select(**arguments, export="axolotl", scores_parquet=True)
    cu.select(**{**arguments, "select": 35})
    folder = tmp_path / "run"
    exported = (folder / "export-axolotl").glob("*.jsonl")
    assert sum(len(lines(path)) for path in exported) == 35
    assert sum(pq.read_table(folder / "scores.parquet")["selected"].to_pylist()) == 35
    theirs = folder / "export-axolotl" / "trained"
    theirs.write_text("hours of work")
    cu.select(**arguments, overwrite=True)
    assert [path.name for path in (folder / "export-axolotl").iterdir()] == ["trained"]
    assert not (folder / "scores.parquet").exists()


# The table ----------------------------------------------------------------------------------------------


def test_draws_that_failed_are_no_rows_and_parts_of_the_table_do_not_show(
    tmp_path: Path, monkeypatch
) -> None:
    n, subtasks = 20, ["id", "Größe", "a.b", "", "a\"b'"]
    rng = np.random.default_rng(0)
    drawn = rng.permutation(n)
    scores = rng.normal(size=(n, len(subtasks)))
    rewards = scores.max(axis=1)
    rewards[[2, 9]] = np.nan
    selection = Selection(
        rows=drawn[[0, 5]],
        scores=rewards[[0, 5]],
        drawn_rows=drawn,
        drawn_scores=rewards,
        subtask_scores=scores,
        drawn_probability=np.full(n, np.nan),
        n_scored=n,
        draws=np.array([n]),
        labels=np.arange(n) % 3,
        stopped="budget",
    )
    samples = [sample("ua", number) for number in range(n)]
    tables = []
    for size in (3, 1000):
        monkeypatch.setattr(scores_table, "_ROWS", size)
        scores_table.write_scores(tmp_path / f"{size}.parquet", selection, samples, subtasks)
        tables.append(pq.read_table(tmp_path / f"{size}.parquet"))
    assert pq.ParquetFile(tmp_path / "3.parquet").num_row_groups == 6
    assert tables[0].equals(tables[1])
    good = [draw for draw in range(n) if draw not in (2, 9)]
    assert tables[0].to_pydict() == {
        "id": [f"id-{drawn[draw]}" for draw in good],
        "source": ["source"] * 18,
        "file": ["pool.jsonl"] * 18,
        "line": [drawn[draw] + 1 for draw in good],
        "score": rewards[good].tolist(),
        **{f"score_{name}": scores[good, column].tolist() for column, name in enumerate(subtasks)},
        "cluster": [int(drawn[draw]) % 3 for draw in good],
        "draw": good,
        "selected": [draw in (0, 5) for draw in good],
    }
    assert names(tmp_path) == {"3.parquet", "1000.parquet"}
