"""Shapes of rows: every way in which people write a prompt and an answer gives the same conversation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.samples.message import Message, Unreadable
from clusterucb.samples.shapes import FIELDS, SHAPES, Layout

ASKED, ANSWERED = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TURNS = (("user", "q"), ("assistant", "a"))


def turns(row: dict[str, Any], **options: Any) -> tuple[tuple[str, str], ...]:
    layout = Layout(**options)
    return plain(layout.conversation(layout.renamed(row)).messages)


def plain(messages: Iterable[Message]) -> tuple[tuple[str, ...], ...]:
    """Return messages as tuples of role and content, and "context" for an answer that is not learnt."""
    return tuple((*message, *(["context"] if message.context else [])) for message in messages)


ALIKE = [
    ("messages", {"messages": [ASKED, ANSWERED]}),
    ("messages", {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
    (
        "messages",
        {"messages": [{**ASKED, "content": [{"type": "text", "text": "q"}]}, ANSWERED], "tools": []},
    ),
    ("messages", {"messages": [{**ASKED, "content": ["q"]}, {**ANSWERED, "tool_calls": None}]}),
    ("messages", {"messages": [{**ASKED, "thinking": None}, {**ANSWERED, "reasoning_content": ""}]}),
    ("conversations", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
    ("conversations", {"conversations": [ASKED, ANSWERED], "text": "rendered"}),
    ("prompt-completion", {"prompt": "q", "completion": "a"}),
    ("prompt-completion", {"prompt": [ASKED], "completion": [ANSWERED], "messages": None}),
    ("alpaca", {"instruction": "q", "input": "", "output": "a", "text": "rendered"}),
    ("alpaca", {"instruction": "", "input": "q", "output": "a", "history": [], "system": ""}),
    ("chosen", {"prompt": "q", "chosen": "a", "rejected": "b"}),
    ("chosen", {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [ANSWERED]}),
    ("chosen", {"prompt": "q", "chosen": [ASKED, ANSWERED], "rejected": [ASKED]}),
    ("chosen", {"prompt": "q", "chosen": [ANSWERED]}),
]


@pytest.mark.parametrize(
    ("shape", "row"), ALIKE, ids=[f"{shape}-{at}" for at, (shape, _) in enumerate(ALIKE)]
)
def test_every_shape_is_found_and_gives_the_same_conversation(shape: str, row: dict) -> None:
    found, messages, _ = Layout().conversation(Layout().renamed(row))
    assert found == shape
    assert plain(messages) == TURNS
    if None not in row.values():
        assert Layout(shape).conversation(Layout().renamed(row))[:2] == (shape, messages)


def test_an_input_follows_its_instruction_after_a_blank_line() -> None:
    row = {
        "instruction": "Translate.",
        "input": "Haus",
        "output": "house",
        "system": "Be brief.",
        "history": [["1", "2"]],
    }
    assert turns(row) == (
        ("system", "Be brief."),
        ("user", "1"),
        ("assistant", "2"),
        ("user", "Translate.\n\nHaus"),
        ("assistant", "house"),
    )


def test_a_system_text_of_the_row_comes_first_unless_there_is_one() -> None:
    own = {"role": "system", "content": "own"}
    assert turns({"messages": [ASKED, ANSWERED], "system": "row"}) == (("system", "row"), *TURNS)
    assert turns({"messages": [own, ASKED, ANSWERED], "system": "row"}) == (("system", "own"), *TURNS)
    assert turns({"messages": [{"role": "developer", "content": "d"}, ANSWERED]}) == (
        ("system", "d"),
        ("assistant", "a"),
    )


def test_plain_text_is_a_sample_of_its_own_kind() -> None:
    shape, messages, unread = Layout().conversation({"text": "once upon", "meta": 1, "label": False})
    assert (shape, plain(messages), unread) == ("text", (("text", "once upon"),), ("meta", "label"))


def test_a_richer_shape_is_preferred_and_format_decides_otherwise() -> None:
    row = {
        "messages": [ASKED, ANSWERED],
        "prompt": "other",
        "chosen": [ASKED, {**ANSWERED, "content": "c"}],
        "text": "t",
    }
    assert Layout().conversation(row)[0] == "messages"
    assert turns(row, shape="chosen")[-1] == ("assistant", "c")
    assert turns(row, shape="text") == (("text", "t"),)
    with pytest.raises(
        Unreadable, match=r"no conversation: `completion` is missing, which prompt-completion needs; its keys"
    ):
        turns(row, shape="prompt-completion")
    with pytest.raises(
        Unreadable, match=r"^no conversation: `instruction` and `output` are missing, which alpaca"
    ):
        turns(row, shape="alpaca")


def test_columns_stand_for_others() -> None:
    layout = Layout(columns={"prompt": "question", "completion": "answer", "source": "topic"})
    row = layout.renamed({"question": "q", "answer": "a", "topic": "maths", "prompt": "no"})
    shape, messages, unread = layout.conversation(row)
    assert (shape, plain(messages), unread) == ("prompt-completion", TURNS, ("prompt",))
    assert row["source"] == "maths"
    for same in ({"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a", "question": None}):
        assert layout.renamed(same) is same
    row = layout.renamed({"question": None, "prompt": "q", "answer": "a"})
    assert plain(layout.conversation(row).messages) == TURNS


@pytest.mark.parametrize("own", [{"question": "q", "text": "t"}, {"prompt": None, "question": "q"}])
def test_the_keys_of_a_row_are_said_to_be_its_own(own: dict) -> None:
    layout = Layout(columns={"prompt": "question"})
    with pytest.raises(Unreadable) as refused:
        layout.conversation(layout.renamed(own))
    assert str(refused.value).endswith("; its keys are " + ", ".join(f"`{key}`" for key in own))


def test_columns_that_are_named_decide_before_a_richer_shape() -> None:
    row = {"messages": [ASKED, ANSWERED], "question": "other", "answer": "b"}
    layout = Layout(columns={"prompt": "question", "completion": "answer"})
    shape, messages, unread = layout.conversation(layout.renamed(row))
    assert (shape, unread) == ("prompt-completion", ("messages",))
    assert plain(messages) == (("user", "other"), ("assistant", "b"))


def test_an_empty_field_of_a_table_is_no_field() -> None:
    assert turns({"messages": "", "conversations": [], "prompt": "q", "completion": "a"}) == TURNS
    assert turns({"prompt": "", "completion": "a"}) == (("user", ""), ("assistant", "a"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "completion": "a", "label": False}, r"the row is marked as a bad answer"),
        ({"messages": [ASKED, {**ANSWERED, "weight": 0.5}]}, r"turn 2 has weight 0.5; expected 0 or 1"),
        ({"messages": [ASKED, {**ANSWERED, "loss": "no"}]}, r"turn 2 has loss 'no'; expected 0 or 1"),
        (
            {"messages": [ASKED, {**ANSWERED, "train_detail": [{"begin_offset": 0}]}]},
            r"turn 2 marks parts of the answer \('train_detail'\)",
        ),
    ],
)
def test_what_is_not_to_be_learnt_is_refused_by_name(row: dict, reason: str) -> None:
    with pytest.raises(Unreadable, match=f"^unsupported content: {reason}"):
        turns(row)


def test_what_tables_and_tools_write_for_nothing_is_nothing() -> None:
    merged = [
        {"role": None, "content": None, "from": "human", "value": "q"},
        {"from": "gpt", "value": "a", "role": None},
    ]
    assert turns({"messages": merged, "tools": "[]", "label": True}) == TURNS


def test_unsupported_parts_and_turns_are_left_out_on_request() -> None:
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "x.png"}, {"type": "text", "text": "q"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
            {"role": "tool", "content": "5"},
            {"role": "user", "content": [{"type": "input_audio"}]},
            {"role": "assistant", "content": "a", "function_call": {"name": "g"}},
        ],
        "tools": [{"name": "f"}],
    }
    assert turns(row, drop_unsupported=True) == TURNS
    with pytest.raises(Unreadable, match=r"^unsupported content: turn 1 holds a part of type 'image'"):
        turns(row)


@pytest.mark.parametrize("key", [f"{kind}{s}" for kind in ("image", "video", "audio") for s in ("", "s")])
def test_a_row_with_images_or_sounds_is_refused_by_the_name_of_the_column(key: str) -> None:
    row = {"conversations": [ASKED, ANSWERED], key: "x.mp4" if not key.endswith("s") else ["x.mp4"]}
    with pytest.raises(Unreadable, match=rf"^unsupported content: the row has '{key}' \(--drop-unsupported"):
        turns(row)
    assert turns(row, drop_unsupported=True) == turns({**row, key: None}) == TURNS


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_what_a_model_thought_is_left_out_on_request(key: str) -> None:
    row = {"conversations": [ASKED, {"from": "gpt", "value": "", key: "Hm."}, {**ANSWERED, key: "Well."}]}
    assert turns(row, drop_unsupported=True) == TURNS


def test_nothing_left_after_leaving_out_is_no_answer() -> None:
    row = {"messages": [ASKED, {"role": "assistant", "tool_calls": [{}]}]}
    with pytest.raises(Unreadable, match="no assistant turn"):
        turns(row, drop_unsupported=True)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["user", "gpt", "tool", "system", "analysis", "functions.f", "{}", "[{'role': 1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("role", "from", "content", "value", "type", "text", "tool_calls", "name", "arguments"),
                    *("channel", "recipient", "metadata", "tools", "reasoning", "refusal", "weight", "parts"),
                ]
            ),
            inner,
        )
    ),
    max_leaves=8,
)


BESIDE = (
    "tools",
    "solution",
    "rejected_messages",
    "rejected_response",
    "contents",
    "preferred_output",
    "label",
)
KINDS = (
    "empty answer",
    "not JSON",
    "no conversation",
    "no assistant turn",
    "no answer to learn",
    "unknown role",
    "unsupported content",
    "wrong type",
)


@given(
    row=st.dictionaries(st.sampled_from([*FIELDS, *BESIDE]), anything, max_size=5),
    shape=st.sampled_from([None, *SHAPES]),
    drop=st.booleans(),
)
def test_whatever_a_row_holds_it_is_a_conversation_or_refused(
    row: dict, shape: str | None, drop: bool
) -> None:
    kind = None
    try:
        layout = Layout(shape, drop_unsupported=drop)
        found, messages, unread = layout.conversation(layout.renamed(row))
    except Unreadable as error:
        kind = str(error).partition(":")[0]
    if kind is not None:
        assert kind in KINDS
        return
    assert found in SHAPES
    assert any(message.learnt for message in messages)
    assert all(isinstance(text, str) for _, text in messages)
    assert set(unread) <= row.keys()
