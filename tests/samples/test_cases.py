"""Rows of shapes that public training files have, each with the conversation that trainers make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clusterucb.samples.message import Unreadable
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
    "roles that the user names, in another case": (
        {"roles": {"Advisor": "assistant", "client": "user"}},
        [{"messages": [{"role": "CLIENT", "content": "Sell?"}, {"role": "advisor", "content": "No."}]}],
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


@pytest.mark.parametrize(
    ("row", "prompt", "answer", "unread"),
    [
        ({"instruction": "Be exact.", "question": "2+2?", "answer": "4"}, "Be exact.\n\n2+2?", "4", ()),
        ({"prompt": "p", "question": "q", "answer": "a"}, "q", "a", ("prompt",)),
        ({"question": "q", "response": "long", "answer": "42"}, "q", "long", ("answer",)),
        ({"question": "q", "answer": "42", "output": "O"}, "q", "O", ("answer",)),
        ({"question": "q", "input": "I", "context": "C", "answer": "a"}, "q\n\nI\n\nC", "a", ()),
        ({"prompt": "p", "input": "I", "chosen": "a", "rejected": "b"}, "p\n\nI", "a", ()),
        ({"prompt": "p", "instruction": "I", "chosen": "a", "rejected": "b"}, "p", "a", ("instruction",)),
        ({"system": "S", "question": "q", "chosen": "a", "rejected": "b"}, "S\nq", "a", ()),
        ({"query": "q", "tools": "[]", "answers": "I cannot."}, "q", "I cannot.", ()),
        ({"instruction": "q", "output": "a", "history": '[["h", "g"]]'}, "h\nq", "g\na", ()),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a", "function_calls": "f(x=1)", "trust": None},
                ],
                "system": "",
            },
            "q",
            "a",
            ("messages[].function_calls",),
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "s", "tool_choice": [{"name": "f"}]},
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ],
                "system": "other",
            },
            "s\nq",
            "a",
            ("system", "messages[].tool_choice"),
        ),
    ],
)
def test_what_a_row_holds_is_read_or_named(
    row: dict[str, Any], prompt: str, answer: str, unread: tuple[str, ...]
) -> None:
    layout = Layout()
    found = layout.conversation(layout.renamed(row))
    for learnt, text in ((False, prompt), (True, answer)):
        assert "\n".join(one.content for one in found.messages if one.learnt is learnt) == text
    assert found.unread == unread


def turns(text: str) -> list[dict[str, str]]:
    """Return turns: ``S`` is of the system, ``q...`` of the user, others of the assistant."""
    roles = {"S": "system", "q": "user"}
    return [{"role": roles.get(word[0], "assistant"), "content": word} for word in text.split()]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "expected"),
    [
        ("q1", "a1 q2 a2", "b1 q2 b2", "q1 | a1 q2 | a2"),
        ("S q1", "q1 a1", "q1 b1", "S q1 | | a1"),
        ("q1", "q1 a1", "q1 b1", "q1 | | a1"),
        ("q", "a1 q2 a2", "b1 q2 b2", "q | a1 q2 | a2"),
        ("q1 a1", "q2 a2", "q2 b2", "q1 | a1 q2 | a2"),
        ("S q1 a1", "q2 a2", "q2 b2", "S q1 | a1 q2 | a2"),
        ("q2", "a1 q2 a2", "a1 q2 b2", "a1 q2 | | a2"),
        ("S q1", "S q1 a1", "S q1 b1", "S q1 | | a1"),
    ],
)
def test_a_prompt_beside_a_chosen_conversation_is_lost_in_no_case(
    prompt: str, chosen: str, rejected: str, expected: str
) -> None:
    row = {"prompt": turns(prompt), "chosen": turns(chosen), "rejected": turns(rejected)}
    found = Layout().conversation(row).messages
    assert [one.content for one in found] == expected.replace("| ", "").split()
    assert found[-1].learnt


@pytest.mark.parametrize("label", [False, 0, "False", "false", "0"])
def test_a_bad_answer_is_refused_however_its_label_is_spelt(label: object) -> None:
    good = {"prompt": "q", "completion": "a"}
    with pytest.raises(Unreadable, match="marked as a bad answer"):
        Layout().conversation({**good, "label": label})
    with pytest.raises(Unreadable, match=r"bad answer \(`kto_tag` is false\)"):
        Layout().conversation({**good, "kto_tag": False})
    with pytest.raises(
        Unreadable, match=r"marked as a bad answer.* If `label` is a class, rename the column"
    ):
        Layout().conversation({"prompt": "q", "response": "a", "label": label})
    for fine in (True, 1, "True", None):
        for row in (good, {"prompt": "q", "response": "a"}):
            found = Layout().conversation({**row, "label": fine})
            assert found.messages[-1].learnt
            assert found.unread == ()


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"text": "t", "label": False}, ("label",)),
        ({"text": "t", "label": "toxic", "kto_tag": False, "rejected": "x", "tools": [{}]}, None),
        ({"instruction": "q", "output": "a", "label": 0}, ("label",)),
        ({"instruction": "q", "output": "a", "label": "toxic"}, ("label",)),
        ({"instruction": "q", "output": "a", "label": True}, ()),
        ({"instruction": "q", "output": "a", "rejected": "b"}, ("rejected",)),
        ({"prompt": "q", "completion": "a", "label": 3}, ("label",)),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "label": "x"}, ("label",)),
    ],
)
def test_a_class_and_an_answer_that_is_not_read_are_named(row: dict, unread: tuple[str, ...] | None) -> None:
    layout = Layout("text" if unread is None else None)
    assert layout.conversation(row).unread == (tuple(row)[1:] if unread is None else unread)


@pytest.mark.parametrize(
    ("fields", "unread"),
    [
        ({"reasoning_content": "t", "reasoning": "t"}, ()),
        ({"reasoning_content": "t", "reasoning": "u"}, ("reasoning",)),
        ({"reasoning": "t", "reasoning_details": [{"type": "reasoning.text", "text": "t"}]}, ()),
        ({"value": "a"}, ()),
        ({"value": "b", "text": ""}, ("value",)),
        ({"refusal": "no"}, ("refusal",)),
        ({"refusal": None}, ()),
        ({"tool_calls": [{"name": "f"}], "function_call": {"name": "g"}}, ("tool_calls",)),
    ],
)
def test_fields_of_turns_that_say_something_else_are_named(fields: dict, unread: tuple[str, ...]) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **fields}]}
    names = Layout().conversation(row).unread
    assert set(names) == {f"messages[].{name}" for name in unread}
    asked = {"messages": [{"role": "user", "content": "q", "thinking": "t"}, {"from": "gpt", "value": "a"}]}
    assert Layout().conversation(asked).unread == ("messages[].thinking",)
    assert Layout(drop_unsupported=True).conversation(asked).unread == ()
