"""Tools, calls, results and thoughts: how rows have them, and what is learnt of them with real chat templates."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from clusterucb.samples.encode import Encoder, Unusable
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.message import TOOLS, Call, Message, Unreadable
from clusterucb.samples.pool import read_pool
from clusterucb.samples.shapes import Layout
from helpers.templates import SHAPES
from helpers.trl_templates import tokenizer

Row = dict[str, Any]
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
DEFINED = Message(TOOLS, json.dumps([{"type": "function", "function": WEATHER}], separators=(",", ":")))
ASKED = Message("user", "Is it raining in Oslo?")
ARGUMENTS = '{"city":"Oslo"}'
CALLED = Message("assistant", "", calls=(Call("weather", ARGUMENTS),))
GOT = Message("tool", "rain: yes", name="weather")
SAID = Message("assistant", "Yes, it rains.")


def read(row: dict[str, Any], **options: Any) -> tuple[Message, ...]:
    layout = Layout(**options)
    return layout.conversation(layout.renamed(row)).messages


def with_ids(name: str) -> list[Message]:
    """Return the conversation with an id of its call."""
    called = Message("assistant", "", calls=(Call("weather", ARGUMENTS, name),))
    return [DEFINED, ASKED, called, Message("tool", "rain: yes", name="weather", call_id=name), SAID]


# ---- how rows have them

OPENAI = [
    {"role": "user", "content": "Is it raining in Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "a1", "content": "rain: yes"},
    {"role": "assistant", "content": "Yes, it rains."},
]
SHAREGPT = [
    {"from": "human", "value": "Is it raining in Oslo?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
    {"from": "observation", "value": "rain: yes"},
    {"from": "gpt", "value": "Yes, it rains."},
]
LISTED = [DEFINED, ASKED, CALLED, GOT, SAID]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": OPENAI, "tools": [{"type": "function", "function": WEATHER}]}, with_ids("a1")),
        ({"messages": json.dumps(OPENAI), "tools": json.dumps([WEATHER])}, with_ids("a1")),
        ({"messages": OPENAI, "functions": [WEATHER]}, with_ids("a1")),
        ({"messages": OPENAI, "tools": "[]"}, with_ids("a1")[1:]),
        ({"prompt": OPENAI[:1], "completion": OPENAI[1:], "tools": [WEATHER]}, with_ids("a1")),
        ({"conversations": SHAREGPT, "tools": json.dumps([WEATHER])}, LISTED),
        (
            {
                "messages": [
                    OPENAI[0],
                    {"role": "tool_call", "content": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                    {"role": "tool_response", "content": "rain: yes"},
                    OPENAI[3],
                ],
                "tools": [WEATHER],
            },
            LISTED,
        ),
        (
            {
                "messages": [
                    OPENAI[0],
                    {
                        "role": "assistant",
                        "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                    },
                    {"role": "function", "name": "weather", "content": "rain: yes"},
                    OPENAI[3],
                ],
                "tools": WEATHER,
            },
            LISTED,
        ),
    ],
    ids=[
        "openai",
        "texts",
        "functions",
        "empty",
        "prompt and completion",
        "sharegpt",
        "ms-swift",
        "function_call",
    ],
)
def test_every_form_of_a_call_is_the_same_conversation(row: dict[str, Any], expected: list[Message]) -> None:
    assert read(row) == tuple(expected)


def test_calls_in_turns_that_follow_each_other_are_one_turn() -> None:
    calls = [
        {"role": "tool_call", "content": json.dumps({"name": "weather", "arguments": {"city": city}})}
        for city in ("Oslo", "Rome")
    ]
    results = [{"role": "tool_response", "content": text} for text in ("rain", "sun")]
    found = read({"messages": [OPENAI[0], *calls, *results, OPENAI[3]]})
    assert [len(message.calls) for message in found] == [0, 2, 0, 0, 0]


def test_results_have_the_names_of_the_calls_with_their_ids() -> None:
    calls = [{"id": name, "function": {"name": name, "arguments": {}}} for name in ("first", "second")]
    results = [{"role": "tool", "tool_call_id": name, "content": "x"} for name in ("second", "first")]
    found = read({"messages": [OPENAI[0], {"role": "assistant", "tool_calls": calls}, *results, OPENAI[3]]})
    assert [message.name for message in found if message.role == "tool"] == ["second", "first"]


def test_a_result_that_is_an_object_is_json() -> None:
    turns = [*OPENAI[:2], {"role": "tool", "content": {"rain": True}}, OPENAI[3]]
    assert read({"messages": turns})[2].content == '{"rain":true}'


def test_calls_that_a_content_spells_out_stay_text() -> None:
    spelt = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    turns = [SHAREGPT[0], {"from": "gpt", "value": spelt}, {"from": "tool", "value": "yes"}, SHAREGPT[3]]
    assert read({"conversations": turns}) == (
        ASKED,
        Message("assistant", spelt),
        Message("tool", "yes"),
        SAID,
    )


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_in_fields(field: str) -> None:
    turns = [OPENAI[0], {"role": "assistant", field: "Oslo is wet.", "content": "Yes."}]
    assert read({"messages": turns})[1] == Message("assistant", "Yes.", thought="Oslo is wet.")
    assert read({"messages": turns}, drop_unsupported=True)[1] == Message("assistant", "Yes.")


@pytest.mark.parametrize("kind", ["thinking", "reasoning"])
@pytest.mark.parametrize("named", [True, False])
def test_thoughts_in_parts(kind: str, named: bool) -> None:
    parts = [{"type": kind, kind if named else "text": "Oslo is wet."}, {"type": "text", "text": "Yes."}]
    found = read({"messages": [OPENAI[0], {"role": "assistant", "content": parts}]})
    assert found[1] == Message("assistant", "Yes.", thought="Oslo is wet.")


def test_tools_in_a_system_turn_and_a_call_named_by_metadata() -> None:
    called = {"role": "assistant", "metadata": "weather", "content": ARGUMENTS}
    turns = [OPENAI[0], called, {"role": "observation", "content": "rain: yes"}, OPENAI[3]]
    for tools in ([{"type": "function", "function": WEATHER}], [WEATHER], json.dumps([WEATHER])):
        system = {"role": "system", "content": "", "tools": tools}
        assert read({"messages": [system, *turns]}) == tuple(LISTED)
        assert read({"messages": [system, *turns], "tools": None}) == tuple(LISTED)
        assert Layout().conversation({"messages": [system, *turns]}).unread == ()
        assert read({"messages": [system, *turns]}, drop_unsupported=True) == (ASKED, SAID)
        spoken = read({"messages": [{**system, "content": "Be brief."}, *turns]})
        assert spoken == (DEFINED, Message("system", "Be brief."), *LISTED[1:])


@pytest.mark.parametrize(
    ("metadata", "content"), [("weather", "Yes."), ("in a hurry", "{}"), ({"a": 1}, "{}")]
)
def test_other_metadata_are_none(metadata: object, content: str) -> None:
    turns = [OPENAI[0], {"role": "assistant", "metadata": metadata, "content": content}]
    assert read({"messages": turns}) == (ASKED, Message("assistant", content))
    assert Layout().conversation({"messages": turns}).unread == ("messages[].metadata",)


def on(channel: str, content: object, **fields: Any) -> Row:
    return {"role": "assistant", "channel": channel, "content": content, **fields}


TO_WEATHER = on("commentary", ARGUMENTS, recipient="functions.weather", content_type="<|constrain|>json")
RESULT = {"role": "tool", "name": "functions.weather", "content": "rain: yes"}


def test_channels_are_thoughts_calls_and_answers() -> None:
    turns = [
        OPENAI[0],
        on("analysis", "Hm."),
        on("analysis", [{"type": "text", "text": "Look."}]),
        TO_WEATHER,
        RESULT,
        on("analysis", "So."),
        on("final", "Yes, it rains."),
    ]
    called = Message("assistant", "", calls=CALLED.calls, thought="Hm.\nLook.")
    answer = Message("assistant", "Yes, it rains.", thought="So.")
    assert read({"messages": turns}) == (ASKED, called, GOT, answer)
    assert read({"messages": turns}, drop_unsupported=True) == (ASKED, SAID)
    conversation = Layout().conversation({"messages": [OPENAI[0], on("final", "a", recipient="all")]})
    assert conversation.unread == ()
    other = Layout().conversation({"messages": [OPENAI[0], on("web", "a", recipient="Ann")]})
    assert set(other.unread) == {"messages[].channel", "messages[].recipient"}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([on("analysis", "Hm.")], "no answer follows a turn on the channel 'analysis'.* Remove the turn"),
        ([on("analysis", "Hm."), OPENAI[0], on("final", "a")], "no answer follows a turn on the channel"),
        (
            [on("commentary", "I look."), on("final", "a")],
            "'commentary', but no call; expected a `recipient`",
        ),
        ([on("analysis", "1 + 1", recipient="python"), on("final", "a")], "turn 2 is sent to 'python'"),
        (
            [on("commentary", "x", recipient="functions.f"), on("final", "a")],
            "`arguments` in turn 2 is a text",
        ),
        ([on("analysis", "Hm.", weight=0), on("final", "a", weight=1)], "different marks.* --learn all"),
    ],
)
def test_channels_that_are_no_answer_are_refused(turns: list[Row], reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read({"messages": [OPENAI[0], *turns]})


def test_thoughts_of_others_are_none() -> None:
    turns = [{**OPENAI[0], "thinking": "?"}, OPENAI[3]]
    assert read({"messages": turns}) == (ASKED, SAID)


def test_what_is_dropped_leaves_the_rest() -> None:
    assert read({"messages": OPENAI, "tools": [WEATHER]}, drop_unsupported=True) == (ASKED, SAID)


def test_a_call_may_be_marked_as_context() -> None:
    turns = [OPENAI[0], {**OPENAI[1], "train": False}, *OPENAI[2:]]
    assert [message.learnt for message in read({"messages": turns})] == [False, False, False, True]


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"tool_calls": [{"function": {"arguments": {}}}]}, "a tool call in turn 2 has no `name`"),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "`arguments` in turn 2 is a list",
        ),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{city}"}}]}, "is a text that is no JSON"),
        ({"tool_calls": "f(x)"}, "not JSON: the tool call in turn 2"),
    ],
)
def test_calls_that_cannot_be_read_are_refused(turn: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(reason)):
        read({"messages": [OPENAI[0], {"role": "assistant", "content": None, **turn}]})


@pytest.mark.parametrize(
    "tools", ["weather", [1], [{"description": "x"}], [{"name": "f", "parameters": "city"}]]
)
def test_definitions_that_cannot_be_read_are_refused(tools: object) -> None:
    with pytest.raises(Unreadable, match="tools"):
        read({"messages": OPENAI, "tools": tools})


# ---- what is learnt of them


def learnt(encoder: Encoder, encoded: Encoded) -> list[str]:
    """Return the stretches of text that are learnt."""
    labels = encoded.labels.astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], labels, [0]]))).reshape(-1, 2)
    return [encoder._tokenizer.decode(encoded.tokens[start:stop]) for start, stop in edges]


THOUGHT = [ASKED, Message("assistant", "Yes.", thought="Oslo is wet.")]
BOTH = [
    DEFINED,
    ASKED,
    Message("assistant", "", thought="Look it up.", calls=(Call("weather", '{"city": "Oslo"}'),)),
    GOT,
    Message("assistant", "Yes.", thought="So."),
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
XML = "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>"
LEARNT = {
    "qwen3": (
        ["<think>\nOslo is wet.\n</think>\n\nYes.<|im_end|>"],
        [f"<think>\nLook it up.\n</think>\n\n{CALL}<|im_end|>", "<think>\nSo.\n</think>\n\nYes.<|im_end|>"],
    ),
    "qwen3_5_think": (
        ["<think>\nOslo is wet.\n</think>\n\nYes.<|im_end|>"],
        [f"<think>\nLook it up.\n</think>\n\n{XML}<|im_end|>", "<think>\nSo.\n</think>\n\nYes.<|im_end|>"],
    ),
    "qwen2_5": (
        ["<think>\nOslo is wet.\n</think>\n\nYes.<|im_end|>"],
        [f"<think>\nLook it up.\n</think>\n\n\n{CALL}<|im_end|>", "<think>\nSo.\n</think>\n\nYes.<|im_end|>"],
    ),
    "llama3_1": (
        ["<think>\nOslo is wet.\n</think>\n\nYes.<|eot_id|>"],
        [
            '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>',
            "<think>\nSo.\n</think>\n\nYes.<|eot_id|>",
        ],
    ),
    "gptoss": (
        [
            "<|channel|>analysis<|message|>Oslo is wet.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
        ],
        [
            ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>',
            "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        ],
    ),
    "glm4moe": (
        ["\n<think>Oslo is wet.</think>\nYes."],
        [
            "\n<think>Look it up.</think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
            "</tool_call>",
            "\n<think>So.</think>\nYes.",
        ],
    ),
    "gemma4_v5": (
        ["<|channel>thought\nOslo is wet.\n<channel|>Yes.<turn|>"],
        [
            '<|channel>thought\nLook it up.\n<channel|><|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>'
            "<|tool_response>",
            "<|channel>thought\nSo.\n<channel|>Yes.<turn|>",
        ],
    ),
    "deepseekv3": (
        ["Yes.<｜end▁of▁sentence｜>"],
        [
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
            '{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
            "Yes.<｜end▁of▁sentence｜>",
        ],
    ),
}


@pytest.mark.parametrize("name", LEARNT)
def test_what_the_model_writes_is_learnt(name: str) -> None:
    encoder = Encoder(tokenizer(name), max_length=1 << 16)
    thought, both = LEARNT[name]
    assert learnt(encoder, encoder(THOUGHT)) == thought
    assert learnt(encoder, encoder(BOTH)) == both
    kept = "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant" if name == "gptoss" else ""
    assert learnt(encoder, encoder(BOTH[:3])) == [kept + both[0]]
    context = [*BOTH[:2], Message("assistant", "", context=True, calls=BOTH[2].calls), *BOTH[3:]]
    assert learnt(encoder, encoder(context)) == both[1:]


def test_mistrals_calls_get_ids_that_its_template_takes() -> None:
    encoder = Encoder(SHAPES["mistral"].tokenizer(), max_length=1 << 16)
    for name in ("", "a1", "abcdefghi"):
        encoded = encoder(with_ids(name))
        own = name if len(name) == 9 else "call00000"
        assert learnt(encoder, encoded) == [
            f'[TOOL_CALLS] [{{"name": "weather", "arguments": {{"city": "Oslo"}}, "id": "{own}"}}]</s>',
            "Yes, it rains.</s>",
        ]
        assert f'"call_id": "{own}"' in encoder._tokenizer.decode(encoded.tokens)


# TRL's templates for training mark what is learnt. A turn's own text is learnt there and here; what the template writes
# before an answer (no thoughts, a channel, a line break) is learnt there alone.
TRAINED = (
    "qwen3",
    "qwen2_5",
    "qwen3_5_think",
    "qwen3_8",
    "glm4moe",
    "lfm2_v2",
    "nemotron_3_nano",
    "gptoss",
    "deepseekv3",
)
BEFORE = re.compile(
    r"(\s|<think>|</think>|<\|start\|>assistant|<\|channel\|>final<\|message\|>|<\|end\|>|<｜Assistant｜>|<｜tool▁outputs▁end｜>)*"
)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("messages", [THOUGHT, BOTH, BOTH[:3], [ASKED, SAID], [*THOUGHT, ASKED, SAID]])
def test_what_is_learnt_is_what_trl_learns(name: str, messages: list[Message]) -> None:
    own = tokenizer(f"{name}_training")
    encoder = Encoder(own, max_length=1 << 16)
    encoded = encoder(messages)
    template = encoder._template
    assert template is not None
    turns, tools = template.tools.turns(template.tools.fitted(messages), completed=name == "gptoss")
    found = own.apply_chat_template(
        turns, tools, chat_template=template.source, return_dict=True, return_assistant_tokens_mask=True
    )
    assert found["input_ids"] == encoded.tokens.tolist()
    theirs = np.array(found["assistant_masks"], bool)
    assert not (encoded.labels & ~theirs).any()
    assert BEFORE.fullmatch(own.decode(encoded.tokens[theirs & ~encoded.labels]))


@pytest.mark.parametrize("name", ["gemma3", "phi3", "llama3"])
def test_a_template_without_a_place_for_calls_says_so(name: str) -> None:
    encoder = Encoder(tokenizer(name), max_length=1 << 16)
    with pytest.raises(Unusable, match="chat template: it has no place for tool calls"):
        encoder(BOTH)
    listed = encoder([DEFINED, ASKED, SAID])
    (note,) = encoder.notes("pool")
    assert note.startswith("1 sample of the pool")
    assert encoder.notes("pool") == []
    assert listed.tokens.tolist() == encoder([ASKED, SAID]).tokens.tolist()


SPELT = [ASKED, Message("assistant", "[weather(city='Oslo')]"), GOT, SAID]


@pytest.mark.parametrize("name", ["gemma3", "phi3", "gptoss", "mistral"])
def test_a_template_without_a_place_for_results_says_so(name: str) -> None:
    own = SHAPES["mistral"].tokenizer() if name == "mistral" else tokenizer(name)
    with pytest.raises(
        Unusable, match=r"^chat template: it has no place for results of tools that no tool call asks"
    ):
        Encoder(own, max_length=1 << 16)(SPELT)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1"])
def test_a_result_of_a_call_that_a_content_spells_out_is_context(name: str) -> None:
    encoder = Encoder(tokenizer(name), max_length=1 << 16)
    first, second = learnt(encoder, encoder(SPELT))
    assert first.startswith("[weather(city='Oslo')]")
    assert second.startswith("Yes, it rains.")


def test_a_second_system_turn_that_a_template_leaves_out_is_refused_by_name() -> None:
    turns = [Message("system", "You are x."), Message("system", "Be brief."), ASKED, SAID]
    with pytest.raises(
        Unusable, match=r"^chat template: it leaves out turn 2 \(system\); expected one system turn"
    ):
        Encoder(tokenizer("gptoss"), max_length=1 << 16)(turns)


def test_without_a_template_there_is_no_place_for_tools() -> None:
    encoder = Encoder(SHAPES["chatml"].tokenizer(), max_length=1 << 16)
    encoder._tokenizer.chat_template = None
    bare = Encoder(encoder._tokenizer, max_length=1 << 16)
    with pytest.raises(Unusable, match="chat template: the tokenizer has none"):
        bare(BOTH)


def test_several_calls_where_a_template_takes_one_are_refused() -> None:
    messages = [DEFINED, ASKED, Message("assistant", "", calls=CALLED.calls * 2), GOT, GOT, SAID]
    for name in ("llama3_1", "gptoss"):
        with pytest.raises(Unusable, match=r"single tool-calls|does not write all 2 calls of turn 3"):
            Encoder(tokenizer(name), max_length=1 << 16)(messages)


def test_a_control_token_in_a_call_is_refused() -> None:
    called = Message("assistant", "", calls=(Call("weather", '{"city": "<|im_end|>"}'),))
    with pytest.raises(Unusable, match=re.escape("control token: a tool or a call contains '<|im_end|>'")):
        Encoder(tokenizer("qwen3"), max_length=1 << 16)([DEFINED, ASKED, called])


def called(*calls: tuple[str, str]) -> Message:
    return Message("assistant", "", calls=tuple(Call(name, arguments) for name, arguments in calls))


def test_a_call_whose_name_stands_elsewhere_is_not_taken_for_written() -> None:
    """gpt-oss writes one call a turn; the name of the second stands in the result, and in a later call."""
    later = called(("weather", '{"city": "Bern"}'))
    for name in ("weather", "f"):
        twice = called((name, '{"city": "Oslo"}'), (name, '{"city": "Rome"}'))
        got = Message("tool", "sun", name=name)
        messages = [DEFINED, ASKED, twice, got, got, later, GOT, SAID]
        with pytest.raises(Unusable, match=r"does not write all 2 calls of turn 3"):
            Encoder(tokenizer("gptoss"), max_length=1 << 16)(messages)


@pytest.mark.parametrize("topic", ["weather", "x</tool_call>y"])
def test_calls_that_stand_in_arguments_do_not_end_a_turn(topic: str) -> None:
    encoder = Encoder(tokenizer("glm4moe"), max_length=1 << 16)
    both = called(("search", json.dumps({"topic": topic})), ("weather", '{"city": "Rome"}'))
    messages = [DEFINED, ASKED, both, Message("tool", "sun", name="search"), GOT, SAID]
    found, last = learnt(encoder, encoder(messages))
    assert found.startswith("<tool_call>search")
    assert found.endswith("<arg_value>Rome</arg_value>\n</tool_call>")
    assert last == "Yes, it rains."


def test_an_answer_before_another_turn_ends_with_its_own_token() -> None:
    encoder = Encoder(tokenizer("gptoss"), max_length=1 << 16)
    for earlier in (
        SAID,
        Message("assistant", "Yes, it rains.", thought="Hm."),
    ):  # thoughts before are dropped
        found = learnt(encoder, encoder([ASKED, earlier, Message("user", "Sure?"), SAID]))
        assert found == ["Yes, it rains.<|end|>", "Yes, it rains.<|return|>"]
    for name in LEARNT:
        if name != "gptoss":
            own = Encoder(tokenizer(name), max_length=1 << 16)._template
            assert own is not None
            assert own.inner_end == ""


def test_results_without_text_do_not_hide_the_end_of_calls() -> None:
    encoder = Encoder(tokenizer("qwen3"), max_length=1 << 16)
    first, last = learnt(encoder, encoder([DEFINED, ASKED, CALLED, Message("tool", ""), SAID]))
    assert first.endswith("</tool_call><|im_end|>")
    assert last == "Yes, it rains.<|im_end|>"


def test_a_result_in_a_users_turn_is_found_by_templates() -> None:
    """Qwen 3 keeps the thoughts before a user's turn that is a result, and drops them before another question."""
    encoder = Encoder(tokenizer("qwen3"), max_length=1 << 16)
    got = Message("user", "<tool_response>\nrain: yes\n</tool_response>")
    messages = [ASKED, Message("assistant", "I look.", thought="Hm."), got, SAID]
    assert learnt(encoder, encoder(messages))[0] == "<think>\nHm.\n</think>\n\nI look.<|im_end|>"


@pytest.mark.parametrize(
    "turn",
    [
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "T"}]},
                {"type": "text", "text": "a"},
            ]
        },
        {"content": "a", "reasoning_content": [{"type": "text", "text": "T"}]},
        {"content": "a", "thinking": ["T"]},
        {"content": "a", "reasoning": {"text": "T"}},
        {"content": "a", "reasoning_details": [{"type": "reasoning.text", "text": "T"}]},
        {
            "content": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "T"}]},
                {"type": "text", "text": "a"},
            ]
        },
        {"content": [{"type": "reasoning", "reasoning": "", "text": "T"}, {"type": "text", "text": "a"}]},
    ],
)
def test_thoughts_of_every_form(turn: dict[str, Any]) -> None:
    found = read({"messages": [OPENAI[0], {"role": "assistant", **turn}]})
    assert found[1] == Message("assistant", "a", thought="T")


def test_a_call_after_a_text_is_in_the_same_turn() -> None:
    turns = [
        OPENAI[0],
        {"role": "assistant", "content": "I look."},
        {"role": "tool_call", "content": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"role": "tool_response", "content": "rain: yes"},
        OPENAI[3],
    ]
    assert read({"messages": turns}) == (
        ASKED,
        Message("assistant", "I look.", calls=CALLED.calls),
        GOT,
        SAID,
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        (5, "5"),
        ([{"type": "restaurant", "name": "X"}], '[{"type":"restaurant","name":"X"}]'),
        ([{"type": "text", "title": "T", "text": "x"}], '[{"type":"text","title":"T","text":"x"}]'),
        ([{"type": "text", "text": "x"}], "x"),
        ([], "[]"),
    ],
)
def test_results_of_every_form(content: object, text: str) -> None:
    turns = [*OPENAI[:2], {"role": "tool", "content": content}, OPENAI[3]]
    assert read({"messages": turns})[2].content == text


@pytest.mark.parametrize("arguments", [None, "", "{}", {}, "null", [], "[]"])
def test_no_arguments_are_an_empty_object(arguments: object) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    (_, found) = read({"messages": [OPENAI[0], {"role": "assistant", "tool_calls": [call]}]})
    assert found.calls == (Call("f", "{}"),)


def test_calls_whose_fields_are_all_null_are_none() -> None:
    null = {"name": None, "arguments": None}
    turn = {
        "role": "assistant",
        "content": "a",
        "function_call": null,
        "tool_calls": [{"function": null, "id": None}],
    }
    assert read({"messages": [OPENAI[0], turn]})[1] == Message("assistant", "a")
    turn |= {"tool_calls": OPENAI[1]["tool_calls"]}
    assert read({"messages": [OPENAI[0], turn]})[1].calls[0].name == "weather"


@pytest.mark.parametrize(
    "tools",
    [
        json.dumps([json.dumps(WEATHER)]),
        [json.dumps(WEATHER)],
        {"type": "function", **WEATHER},
        [{**WEATHER, "parameters": json.dumps(WEATHER["parameters"])}],
        [{"type": "function", "function": {**WEATHER, "parameters": json.dumps(WEATHER["parameters"])}}],
        [{"type": "function", "function": json.dumps(WEATHER)}],
        json.dumps([json.dumps({**WEATHER, "parameters": json.dumps(WEATHER["parameters"])})]),
    ],
)
def test_definitions_of_every_form(tools: object) -> None:
    assert read({"messages": OPENAI, "tools": tools})[0] == DEFINED
    assert read({"messages": OPENAI, "tools": "None"})[0].role == "user"


def in_tables(rows: list[Row], folder: Path) -> dict[str, Any]:
    """Return rows in every kind of table."""
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "pool.parquet")
    feather.write_feather(table, folder / "pool.arrow", compression="uncompressed")
    dataset = datasets.Dataset.from_list(rows)
    dataset.save_to_disk(folder / "saved")
    return {
        "Parquet": folder / "pool.parquet",
        "Arrow": folder / "pool.arrow",
        "saved": folder / "saved",
        "table": table,
        "frame": pd.DataFrame(rows),
        "Dataset": dataset,
        "shuffled": dataset.shuffle(seed=1),
        "streamed": dataset.to_iterable_dataset(),
    }


def calling(column: str, name: str, given: Row) -> Row:
    """Return a row that asks for the call of a tool, in one of the columns that people have."""
    call = {"function": {"name": name, "arguments": given}}
    said = [{"role": "user", "content": name}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    if column == "answers":
        return {
            "query": name,
            "answers": [{"name": name, "arguments": given}],
            "tools": [{"name": name, "parameters": {key: {"type": "x"} for key in given}}],
        }
    return {column: said[1:], "prompt": name} if column in ("completion", "chosen") else {column: said}


@pytest.mark.parametrize(
    "column", ["messages", "conversations", "conversation", "dialog", "completion", "chosen", "answers"]
)
def test_no_kind_of_table_and_no_column_gives_a_call_the_arguments_of_others(
    tmp_path: Path, column: str
) -> None:
    calls = {"weather": {"city": "Oslo", "near": {"lake": "x"}}, "easter": {"year": 2024}}
    rows = [calling(column, name, given) for name, given in calls.items()]
    layout = Layout(columns={"messages": "dialog"}) if column == "dialog" else None
    for kind, table in in_tables(rows, tmp_path).items():
        found = {
            call.name: json.loads(call.arguments)
            for sample in read_pool(table, layout).samples
            for message in sample.messages
            for call in message.calls
        }
        assert found == calls, kind


def test_nulls_outside_of_turns_and_nulls_in_lines_stay(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{at}", "completion": "a", "about": [{"n": n}]} for at, n in enumerate((1, None))]
    for kind, table in in_tables(rows, tmp_path).items():
        kept = sorted(json.dumps(json.loads(sample.raw)["about"]) for sample in read_pool(table).samples)
        assert kept == ['[{"n": 1}]', '[{"n": null}]'], kind
    (sample,) = read_pool([calling("messages", "f", {"x": None})]).samples
    assert sample.messages[1].calls[0].arguments == '{"x":null}'


def test_a_table_gives_no_call_the_arguments_of_others(tmp_path: Path) -> None:
    rows = []
    for name, given, key in (("weather", {"city": "Oslo"}, "city"), ("easter", {"year": 2024}, "year")):
        call = {"function": {"name": name, "arguments": given}}
        tool = {"name": name, "parameters": {"properties": {key: {"type": "x"}}}}
        turns = [
            {"role": "user", "content": name},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        rows.append({"messages": turns, "tools": [{"type": "function", "function": tool}]})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    found = {
        sample.messages[1].content: sample.messages for sample in read_pool(tmp_path / "pool.parquet").samples
    }
    assert found["weather"][2].calls == (Call("weather", '{"city":"Oslo"}'),)
    assert "year" not in found["weather"][0].content
    assert found["easter"][2].calls == (Call("easter", '{"year":2024}'),)
