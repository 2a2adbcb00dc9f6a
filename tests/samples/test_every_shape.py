"""A conversation in each shape that trainers read is the same conversation, with the same tokens and labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clusterucb.samples.encode import Encoder, Unusable
from clusterucb.samples.message import TOOLS, Call, Message, Unreadable
from clusterucb.samples.shapes import Layout
from clusterucb.samples.tools import with_names
from helpers.templates import SHAPES
from helpers.trl_templates import tokenizer

Row = dict[str, Any]
LONG = 1 << 16
FAMILIES = {
    "ChatML": Encoder(tokenizer("qwen2_5"), max_length=LONG),
    "Llama 3": Encoder(tokenizer("llama3_1"), max_length=LONG),
    "Gemma": Encoder(tokenizer("gemma3"), max_length=LONG),
    "Mistral": Encoder(SHAPES["mistral"].tokenizer(), max_length=LONG),
    "Qwen 3": Encoder(tokenizer("qwen3"), max_length=LONG),
    "harmony": Encoder(tokenizer("gptoss"), max_length=LONG),
    "GLM": Encoder(tokenizer("glm4moe"), max_length=LONG),
    "DeepSeek": Encoder(tokenizer("deepseekv3"), max_length=LONG),
}
WORDS = st.sampled_from(["Hi", "Why?", "It rains.", "2 + 3", "日本", "a\nb", '"', "{", "x y"])
SAID = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
ARGUMENTS = st.dictionaries(
    st.sampled_from(["city", "n", "deep"]),
    st.integers(0, 9) | WORDS | st.lists(st.integers(0, 9), max_size=2),
    max_size=2,
)
DEFINED = {
    "type": "function",
    "function": {"name": "look", "description": "x", "parameters": {"type": "object", "properties": {}}},
}


@st.composite
def conversations(
    draw: st.DrawFn, *, tools: bool = True, marks: bool = True, thoughts: bool = True
) -> list[Message]:
    """A conversation of one to three questions, each with an answer, perhaps after a call and its result."""

    def answer() -> Message:
        context = marks and draw(st.booleans())
        return Message(
            "assistant", draw(SAID), context, draw(SAID) if thoughts and draw(st.booleans()) else ""
        )

    messages = [Message("system", draw(SAID))] if draw(st.booleans()) else []
    called = False
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(SAID)))
        if tools and draw(st.booleans()):
            called = True
            call = Call("look", json.dumps(draw(ARGUMENTS), separators=(",", ":"), ensure_ascii=False))
            messages.append(Message("assistant", "", marks and draw(st.booleans()), calls=(call,)))
            messages.append(Message("tool", draw(SAID)))
        messages.append(answer())
    assume(any(message.learnt for message in messages))
    defined = [Message(TOOLS, json.dumps([DEFINED], separators=(",", ":")))] if called else []
    return [*defined, *with_names(messages)]


def said(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message.role != TOOLS]


def with_tools(messages: list[Message], row: Row, *, as_text: bool = False, bare: bool = False) -> Row:
    if messages[0].role != TOOLS:
        return row
    defined = [DEFINED["function"] if bare else DEFINED]
    return {**row, "tools": json.dumps(defined) if as_text else defined}


def openai_turn(message: Message, *, mark: Callable[[bool], Row], thought: str, as_text: bool) -> Row:
    turn: Row = {"role": message.role, "content": message.content}
    if message.role == "assistant":
        turn |= mark(message.learnt)
        turn |= {thought: message.thought} if message.thought else {}
    if message.calls:
        calls = [
            {
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if as_text else json.loads(call.arguments),
                },
            }
            for call in message.calls
        ]
        turn |= {"content": None, "tool_calls": calls}
    return turn


def openai(messages: list[Message]) -> Row:
    """OpenAI's form, with ``weight``."""
    turns = [
        openai_turn(
            one, mark=lambda learnt: {"weight": int(learnt)}, thought="reasoning_content", as_text=True
        )
        for one in said(messages)
    ]
    return with_tools(messages, {"messages": turns})


def axolotl(messages: list[Message]) -> Row:
    """axolotl's marks, and objects as arguments."""
    turns = [
        openai_turn(one, mark=lambda learnt: {"train": learnt}, thought="thinking", as_text=False)
        for one in said(messages)
    ]
    return with_tools(messages, {"conversations": turns}, as_text=True)


def parts(messages: list[Message]) -> Row:
    """Contents in parts, thoughts among them, in a JSON text."""
    turns = []
    for message in said(messages):
        turn = openai_turn(message, mark=lambda learnt: {"loss": learnt}, thought="reasoning", as_text=True)
        thought = turn.pop("reasoning", None)
        if turn["content"] is not None:
            turn["content"] = [
                *([{"type": "thinking", "thinking": thought}] if thought else []),
                {"type": "text", "text": turn["content"]},
            ]
        turns.append(turn)
    return with_tools(messages, {"messages": json.dumps(turns)}, as_text=True)


def sharegpt(messages: list[Message]) -> Row:
    """LLaMA-Factory's ShareGPT form, with ``loss_weight``."""
    turns = []
    for message in said(messages):
        names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
        turn: Row = {"from": names[message.role], "value": message.content}
        if message.calls:
            turn = {
                "from": "function_call",
                "value": json.dumps([json.loads(call.text) for call in message.calls]),
            }
        if message.role == "assistant":
            turn |= {"loss_weight": int(message.learnt)} | (
                {"reasoning": message.thought} if message.thought else {}
            )
        turns.append(turn)
    return with_tools(messages, {"conversations": turns}, as_text=True, bare=True)


def swift(messages: list[Message]) -> Row:
    """ms-swift's turns, with ``loss``."""
    turns = []
    for message in said(messages):
        names = {"tool": "tool_response"}
        turn: Row = {"role": names.get(message.role, message.role), "content": message.content}
        if message.calls:
            turn = {"role": "tool_call", "content": message.calls[0].text}
        if message.role == "assistant":
            turn |= {"loss": message.learnt} | (
                {"reasoning_content": message.thought} if message.thought else {}
            )
        turns.append(turn)
    return with_tools(messages, {"messages": turns})


def channels(messages: list[Message]) -> Row:
    """Harmony's channels: a thought, a call and an answer are turns of their own."""
    turns: list[Row] = []
    for message in said(messages):
        turn: Row = {"role": message.role, "content": message.content}
        if message.role == "assistant":
            turn |= {"channel": "final", "train": message.learnt}
        if message.thought:
            turns.append({**turn, "channel": "analysis", "content": message.thought})
        for call in message.calls:
            turn |= {
                "channel": "commentary",
                "recipient": f"functions.{call.name}",
                "content": call.arguments,
            }
        if message.role == "tool":
            turn |= {"name": f"functions.{message.name}", "channel": "commentary", "recipient": "assistant"}
        turns.append(turn)
    return with_tools(messages, {"messages": turns})


@pytest.mark.parametrize("shaped", [openai, axolotl, parts, sharegpt, swift, channels])
@given(messages=conversations())
def test_turns_are_the_same_in_every_shape(
    shaped: Callable[[list[Message]], Row], messages: list[Message]
) -> None:
    row = json.loads(json.dumps(shaped(messages)))
    assert list(Layout().conversation(row).messages) == messages


def history(messages: list[Message]) -> list[list[str]]:
    turns = [one for one in said(messages) if one.role != "system"][:-2]
    return [
        [asked.content, answered.content] for asked, answered in zip(turns[::2], turns[1::2], strict=True)
    ]


def system(messages: list[Message]) -> Row:
    return {"system": messages[0].content} if messages[0].role == "system" else {}


def alpaca(messages: list[Message]) -> Row:
    """Alpaca's columns, with a history."""
    return {
        "instruction": messages[-2].content,
        "output": messages[-1].content,
        "history": history(messages),
        **system(messages),
    }


def pair(messages: list[Message]) -> Row:
    """ms-swift's columns."""
    return {
        "query": messages[-2].content,
        "response": messages[-1].content,
        "history": history(messages),
        **system(messages),
    }


@pytest.mark.parametrize("shaped", [alpaca, pair])
@given(messages=conversations(tools=False, marks=False, thoughts=False))
def test_columns_are_the_same_in_every_shape(
    shaped: Callable[[list[Message]], Row], messages: list[Message]
) -> None:
    assert list(Layout().conversation(shaped(messages)).messages) == messages


def turns_of(messages: list[Message]) -> list[Row]:
    return [{"role": one.role, "content": one.content} for one in messages]


def prompt_completion(messages: list[Message]) -> Row:
    return {"prompt": turns_of(messages[:-1]), "completion": turns_of(messages[-1:])}


def preference(messages: list[Message]) -> Row:
    """Preference data with an implicit prompt."""
    bad = [*turns_of(messages[:-1]), {"role": "assistant", "content": "bad answer"}]
    return {"chosen": turns_of(messages), "rejected": bad}


def pairwise(messages: list[Message]) -> Row:
    """LLaMA-Factory's preference data."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    said_before = [{"from": names[one.role], "value": one.content} for one in messages[:-1]]
    answer = {"from": "gpt", "value": messages[-1].content}
    return {
        "conversations": said_before,
        "chosen": answer,
        "rejected": {"from": "gpt", "value": "bad answer"},
    }


@pytest.mark.parametrize("shaped", [prompt_completion, preference, pairwise])
@given(messages=conversations(tools=False, marks=False, thoughts=False))
def test_of_prompts_and_preferences_the_last_answer_is_learnt(
    shaped: Callable[[list[Message]], Row], messages: list[Message]
) -> None:
    context = [Message(one.role, one.content, one.role == "assistant") for one in messages[:-1]]
    assert list(Layout().conversation(shaped(messages)).messages) == [*context, messages[-1]]


@pytest.mark.parametrize("family", FAMILIES)
@given(messages=conversations())
def test_every_answer_is_labelled_and_nothing_else(family: str, messages: list[Message]) -> None:
    """Labels are the contents, thoughts and calls of answers that are learnt. Context and questions have none."""
    encoder = FAMILIES[family]
    try:
        encoded = encoder(messages)
    except Unusable as error:
        assert "chat template" in error.reason  # noqa: PT017  (the templates refuse system turns, calls, or their order)
        assume(False)
    decode = encoder._tokenizer.decode
    learnt = decode(encoded.tokens[encoded.labels])
    last = max(at for at, message in enumerate(messages) if message.learnt)
    for message in messages[: last + 1]:
        if message.learnt:
            assert message.content in learnt
            assert all(call.name in learnt for call in message.calls)
    labelled = encoder([*messages[:last], messages[last]])
    assert labelled.tokens.tolist() == encoded.tokens.tolist()
    assert labelled.labels.tolist() == encoded.labels.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@given(messages=conversations())
def test_a_mark_changes_labels_and_no_token(family: str, messages: list[Message]) -> None:
    """With all answers before it as context, the last answer keeps its labels, and no other token has one."""
    encoder = FAMILIES[family]
    last = max(at for at, message in enumerate(messages) if message.learnt)
    marked = [
        Message(
            one.role, one.content, one.role == "assistant" and at != last, one.thought, one.calls, one.name
        )
        for at, one in enumerate(messages)
    ]
    try:
        whole, alone = encoder(messages), encoder(marked)
    except Unusable:
        assume(False)
    assert whole.tokens.tolist() == alone.tokens.tolist()
    assert not (alone.labels & ~whole.labels).any()
    first = int(alone.labels.argmax())
    assert whole.labels[first:].tolist() == alone.labels[first:].tolist()


@given(messages=conversations())
def test_the_families_take_most_conversations(messages: list[Message]) -> None:
    """Every conversation is taken by one of the families at least; a family refuses, and never breaks."""
    found = []
    for encoder in FAMILIES.values():
        try:
            found.append(len(encoder(messages)))
        except Unusable:
            continue
    assert found


def test_a_row_of_no_shape_is_refused() -> None:
    with pytest.raises(Unreadable):
        Layout().conversation({"tools": [DEFINED]})
