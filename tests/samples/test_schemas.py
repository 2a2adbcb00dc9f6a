"""Rows with nested fields, turns in columns and lists, fields that are no texts: read, or refused with what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import InputError
from clusterucb.samples.message import TOOLS, Call, Message, Unreadable
from clusterucb.samples.pool import read_pool
from clusterucb.samples.shapes import Conversation, Layout

Row = dict[str, Any]
ASKED, ANSWERED = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
Q, A = Message("user", "q"), Message("assistant", "a")
TOOL = {"name": "f", "parameters": {"type": "object"}}
DEFINED = Message(TOOLS, json.dumps([{"type": "function", "function": TOOL}], separators=(",", ":")))


def read(row: Row, **options: Any) -> Conversation:
    layout = Layout(**options)
    return layout.conversation(layout.renamed(row))


def reason(row: Row, **options: Any) -> str:
    with pytest.raises(Unreadable) as refused:
        read(row, **options)
    return str(refused.value)


def said(text: str) -> list[Row]:
    return [{"text": text}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {
                "input": {"messages": [ASKED], "tools": [TOOL], "parallel_tool_calls": True},
                "preferred_output": [ANSWERED],
                "non_preferred_output": [{"role": "assistant", "content": "b"}],
            },
            [DEFINED, Q, A],
        ),
        (
            {
                "systemInstruction": {"role": "system", "parts": said("s")},
                "contents": [{"role": "user", "parts": said("q")}, {"role": "model", "parts": said("a")}],
            },
            [Message("system", "s"), Q, A],
        ),
        (
            {
                "system_instruction": "s",
                "tools": [{"functionDeclarations": [TOOL]}],
                "contents": [
                    {"parts": said("q")},
                    {
                        "role": "model",
                        "parts": [
                            {"text": "t", "thought": True},
                            {"functionCall": {"name": "f", "args": {"x": 1}}},
                        ],
                    },
                    {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"y": 2}}}]},
                    {"role": "model", "parts": said("a")},
                ],
            },
            [
                DEFINED,
                Message("system", "s"),
                Q,
                Message("assistant", "", thought="t", calls=(Call("f", '{"x":1}'),)),
                Message("tool", '{"y":2}', name="f"),
                A,
            ],
        ),
        (
            {"context": "c", "question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}},
            [Message("user", "q\n\nc"), A],
        ),
    ],
)
def test_nested_fields_are_read(row: Row, expected: list[Message]) -> None:
    found = read(json.loads(json.dumps(row)))
    assert list(found.messages) == expected
    assert found.unread == ()


def test_what_gemini_cannot_be_given_as_text_is_refused_by_name() -> None:
    image = {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "x"}}, {"text": "q"}]}
    row = {"contents": [image, {"role": "model", "parts": said("a")}]}
    assert "turn 1 holds a part of type 'inlineData'" in reason(row)
    assert list(read(row, drop_unsupported=True).messages) == [Q, A]


def test_a_question_without_answers_is_refused() -> None:
    row = {"question": "q", "answers": {"text": [], "answer_start": []}}
    assert reason(row) == "empty answer: `answers` has no text"


def test_columns_that_the_user_names_are_not_taken_apart() -> None:
    row = {"question": "q", "answers": "a", "contents": [{"role": "user", "parts": said("x")}]}
    assert read(row, columns={"answer": "answers"}).messages == (Q, A)


TEXTS = st.text(max_size=3) | st.none()
SCRAPS = st.recursive(
    TEXTS | st.booleans() | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "text",
                    "parts",
                    "functionCall",
                    "functionResponse",
                    "name",
                    "args",
                    "role",
                    "thought",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "input",
                "preferred_output",
                "contents",
                "answers",
                "question",
                "tools",
                "systemInstruction",
                "data",
            ]
        ),
        SCRAPS,
        max_size=5,
    )
)
def test_whatever_nested_fields_hold_the_row_is_read_or_refused(row: Row) -> None:
    try:
        found = read(row)
    except Unreadable:
        return
    assert any(message.learnt for message in found.messages)


# ---- turns in columns, and in place of a question


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    "turns",
    [
        {"role": ["user", "assistant"], "content": ["q", "a"]},
        {"from": ["human", "gpt"], "value": ["q", "a"]},
        {
            "role": ["user", "assistant"],
            "content": ["q", "a"],
            "tool_calls": [None, None],
            "train": [None, True],
        },
    ],
)
def test_turns_whose_fields_are_lists(turns: Row, as_text: bool) -> None:
    assert read({"messages": json.dumps(turns) if as_text else turns}).messages == (Q, A)


def test_lists_of_different_lengths_are_no_turns() -> None:
    assert reason({"messages": {"role": ["user"], "content": ["q", "a"]}}).startswith("unknown role")


EARLIER = [ASKED, {"role": "assistant", "content": "b"}, {"role": "user", "content": "r"}]
CONTEXT = (Q, Message("assistant", "b", context=True), Message("user", "r"))


@pytest.mark.parametrize("asked", ["prompt", "input", "query", "question", "instruction"])
@pytest.mark.parametrize("answered", ["output", "response", "answer"])
def test_a_question_may_be_a_list_of_turns(asked: str, answered: str) -> None:
    assert read({asked: EARLIER, answered: "a"}).messages == (*CONTEXT, A)
    assert read({asked: json.dumps(EARLIER), answered: "a"}).messages == (*CONTEXT, A)
    assert read({asked: ASKED, answered: "a", "system_prompt": "s"}).messages == (
        Message("system", "s"),
        Q,
        A,
    )
    before = read({asked: [EARLIER[2]], answered: "a", "history": [["q", "b"]]}).messages
    assert before == (Q, Message("assistant", "b"), Message("user", "r"), A)


# ---- advice


def choosing(jq: str, row: Row) -> Row:
    """Return a row after the command of a message."""
    (program,) = re.findall(r"jq -c '(.*)'", jq)
    if not shutil.which("jq"):
        pytest.skip("jq is not here")
    run = subprocess.run(
        ["jq", "-c", program], input=json.dumps(row), capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[0])


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ({"question": "q", "answer": 1, "choices": ["b", "a"]}, "number of a choice: jq"),
        (
            {"question": "q", "answer": {"aliases": ["x"], "value": "a"}},
            "If its field `value` is the text: jq",
        ),
        ({"instruction": "q", "output": ["a"]}, "If each of its texts will do, take one: jq"),
        ({"prompt": "q", "completion": ["a", "b"]}, "take one: jq"),
        ({"0": {"prompt": "q", "completion": "a"}, "1": {"prompt": "r", "completion": "b"}}, "is a row: jq"),
        ({"row_idx": 0, "row": {"prompt": "q", "completion": "a"}}, "`row` holds the fields of a row: jq"),
        ({"id": "1", "data": ["q", "a"]}, "a list of texts, which does not say who speaks"),
    ],
)
def test_the_command_in_a_reason_makes_the_row_readable(row: Row, advice: str) -> None:
    found = reason(row)
    assert advice in found
    assert read(choosing(found, row)).messages == (Q, A)


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ({"question": "q", "answer": 4}, "If the number is the text: jq -c '.answer |= tostring'"),
        ({"question": "q", "answer": True}, "expected a string, such as yes or no"),
        ({"id": "x", "items": [ASKED, ANSWERED]}, "`items` holds turns: --columns messages=items"),
        ({"talk": [ASKED], "gold": "a"}, "without the answer: --columns prompt=talk,completion=COLUMN"),
        ({"chat": "USER: q\n\n\nASSISTANT: a"}, "one text with several speakers: split it into `messages`"),
        ({"prompt": {"role": "prompter", "text": "q", "replies": []}}, "It is a tree of messages: join"),
        ({"messages": [ASKED]}, "--columns prompt=messages,completion=COLUMN"),
        (
            {"messages": [{"role": "assistant", "content": None, "refusal": "No."}]},
            "has no content, but a `refusal`",
        ),
    ],
)
def test_a_reason_says_what_to_do(row: Row, advice: str) -> None:
    assert advice in reason(row)


def test_a_reason_names_the_columns_of_the_row() -> None:
    row = {"Q": "q", "the answer": 4}
    found = reason(row, columns={"question": "Q", "answer": "the answer"})
    assert found.startswith("wrong type: `the answer` is a number")
    assert choosing(found, row)["the answer"] == "4"


def test_names_are_said_to_have_other_names_only_if_nothing_better_is_known(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    for row, other in (({"inputs": "q", "targets": "a"}, True), ({"items": [ASKED, ANSWERED]}, False)):
        path.write_text(json.dumps(row))
        with pytest.raises(InputError) as refused:
            read_pool(path)
        assert ("If the columns have other names" in str(refused.value)) is other


PYTHON = str([ASKED, ANSWERED])


@pytest.mark.parametrize(
    "row",
    [
        {"messages": PYTHON},
        {"prompt": str([ASKED]), "completion": "a"},
        {"prompt": str([ASKED]), "response": "a"},
    ],
)
def test_turns_in_pythons_notation_are_refused_by_name(row: Row) -> None:
    found = reason(row)
    assert "in Python's notation, in a text; expected JSON" in found
    assert "map(ast.literal_eval).map(json.dumps)" in found


def test_a_text_may_be_in_pythons_notation() -> None:
    assert read({"text": PYTHON}).messages == (Message("text", PYTHON),)


def test_a_call_in_pythons_notation_is_refused_by_name() -> None:
    turn = {"role": "tool_call", "content": str({"name": "f", "arguments": {}})}
    assert "It looks like Python's notation: write it with json.dumps" in reason({"messages": [ASKED, turn]})
