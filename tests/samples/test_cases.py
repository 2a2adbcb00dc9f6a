"""Rows of shapes that public training files have, each with the conversation that trainers make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clusterucb.samples.pool import read_pool
from clusterucb.samples.shapes import Layout


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CASES: dict[str, tuple[dict[str, Any], list[Any], list[tuple[str, str]]]] = {
    "alpaca preference": (
        {},
        [{"instruction": "Translate.", "input": "good day", "chosen": "Bonjour.", "rejected": "Hola."}],
        [("Translate.\n\ngood day", "Bonjour.")],
    ),
    "a list of turns as a row": (
        {},
        [[{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi."}]],
        [("Say hi.", "Hi.")],
    ),
    "lists of turns as rows": (
        {},
        [[{"role": "user", "content": at}, {"role": "assistant", "content": "Hi."}] for at in "xy"],
        [("x", "Hi."), ("y", "Hi.")],
    ),
    "an array of pairs": (
        {},
        [[{"human": "x", "assistant": "Hi."}, {"human": "y", "assistant": "Hi."}]],
        [("x", "Hi."), ("y", "Hi.")],
    ),
    "lists of pairs as rows": (
        {},
        [[{"human": "x", "assistant": "Hi."}], [{"human": "y", "assistant": "Hi."}]],
        [("x", "Hi."), ("y", "Hi.")],
    ),
    "xtuner": (
        {},
        [{"conversation": [{"system": "Be kind.", "input": "Say hi.", "output": "Hi."}]}],
        [("Be kind.\nSay hi.", "Hi.")],
    ),
    "dolly": (
        {},
        [{"instruction": "When?", "context": "In 1931.", "response": "1931.", "category": "qa"}],
        [("When?\n\nIn 1931.", "1931.")],
    ),
    "ms-swift": (
        {},
        [
            {
                "system": "Be brief.",
                "query": "In winter?",
                "response": "Snow.",
                "history": [["Summer?", "Hot."]],
            }
        ],
        [("Be brief.\nSummer?\nIn winter?", "Hot.\nSnow.")],
    ),
    "open orca": (
        {},
        [{"system_prompt": "Be brief.", "question": "2+2?", "response": "4"}],
        [("Be brief.\n2+2?", "4")],
    ),
    "question and answer": ({}, [{"question": "2+2?", "answer": "4"}], [("2+2?", "4")]),
    "parts with value or content": (
        {},
        [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "value": "Greet."}], "loss_weight": 0.0},
                    {"role": "assistant", "content": [{"type": "text", "content": "Hello."}]},
                ]
            }
        ],
        [("Greet.", "Hello.")],
    ),
    "system as parts": (
        {},
        [{"system": [{"type": "text", "text": "Be kind."}], "prompt": "Say hi.", "completion": "Hi."}],
        [("Be kind.\nSay hi.", "Hi.")],
    ),
    "roles in other spellings": (
        {},
        [
            {"messages": [{"role": asked, "content": f"{asked}?"}, {"role": answered, "content": "Yes."}]}
            for asked, answered in (
                ("User", "Chatbot"),
                ("USER", "MODEL"),
                ("prompter", "Assistant"),
                ("Human", "bot"),
            )
        ],
        [(f"{asked}?", "Yes.") for asked in ("User", "USER", "prompter", "Human")],
    ),
    "roles that the user names": (
        {"roles": {"Advisor": "assistant", "Client": "user"}},
        [{"messages": [{"role": "Client", "content": "Sell?"}, {"role": "Advisor", "content": "No."}]}],
        [("Sell?", "No.")],
    ),
    "turns as JSON text": (
        {},
        [
            {
                "messages": json.dumps(
                    [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi."}]
                )
            }
        ],
        [("Say hi.", "Hi.")],
    ),
    "prompt and completion as JSON text": (
        {},
        [
            {
                "prompt": json.dumps([{"role": "user", "content": "Say hi."}]),
                "completion": json.dumps([{"role": "assistant", "content": "Hi."}]),
            }
        ],
        [("Say hi.", "Hi.")],
    ),
    "a text that is JSON": ({}, [{"prompt": '[{"a": 1}]', "completion": "{}"}], [('[{"a": 1}]', "{}")]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_read_as_trainers_read_it(tmp_path: Path, name: str) -> None:
    options, rows, expected = CASES[name]
    pool = read_pool(written(tmp_path, *rows), Layout(**options))
    assert not list(pool.rejected)
    found = [(one.prompt, one.answer) for one in sorted(pool.samples, key=lambda one: one.line)]
    assert found == expected


@pytest.mark.parametrize(
    ("row", "columns", "unread"),
    [
        (
            {"instruction": "q", "context": "c", "response": "a", "category": "x"},
            "prompt=instruction,completion=response",
            {"context", "category"},
        ),
        (
            {"query": "q", "response": "a", "history": [["b", "c"]]},
            "prompt=query,completion=response",
            {"history"},
        ),
        ({"query": "q", "response": "a", "lang": "en", "note": None}, "", {"lang"}),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "source": "s", "id": 1}, "", set()),
        ({"topic": "s", "prompt": "q", "completion": "a", "source": "own"}, "source=topic", {"source"}),
    ],
)
def test_columns_that_are_not_read_are_named(
    tmp_path: Path, row: dict, columns: str, unread: set[str]
) -> None:
    given = dict(pair.split("=") for pair in columns.split(",") if pair)
    pool = read_pool(written(tmp_path, row), Layout(columns=given))
    assert set().union(*pool.unread.values()) == unread


def test_rows_of_a_message_tree_are_no_texts(tmp_path: Path) -> None:
    row = {"message_id": "m1", "parent_id": None, "text": "How tall?", "role": "prompter", "lang": "en"}
    pool = read_pool(written(tmp_path, row, {"text": "a text", "label": False}))
    assert len(pool.samples) == 1
    assert "one message of a tree (`role`, `parent_id`)" in pool.rejected[0].reason


def test_the_numbers_of_samples_and_of_rejected_lines_add_up(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a"}, {"text": "t"}, {}]
    path = written(tmp_path, *rows)
    pool = read_pool(path)
    assert pool.shapes[str(path)] == {"prompt-completion": 1, "text": 1}
    assert sum(pool.shapes[str(path)].values()) + len(pool.rejected) == len(rows)
