"""Rows of every shape, made of known names and odd values, through the reader, a chat template and the labels."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from clusterucb.samples.encode import Encoder
from clusterucb.samples.pieces import Unusable
from clusterucb.samples.pool import read_pool
from clusterucb.samples.shapes import FIELDS, Layout
from clusterucb.samples.shapes import SHAPES as ROWS
from helpers.templates import SHAPES, sentencepiece
from whole.adversary.harnesses.choices import Choices
from whole.adversary.harnesses.judged import check, outcome

_TEMPLATES = (*SHAPES, "plain", "sentencepiece")
_LENGTHS = (4096, 2, 3, 16, 100)
_TEXTS = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "contents",
    "answers",
    "history",
)
_COLUMNS = (
    *FIELDS,
    *(
        "query",
        "response",
        "conversation",
        "system_prompt",
        "preferred_output",
        "non_preferred_output",
        "contents",
    ),
    *("systemInstruction", "functions", "images", "label", "kto_tag", "parent_id", "role", "clusterucb"),
)
_ROLES = (
    *("user", "assistant", "system", "tool", "human", "gpt", "developer", "tool_call", "function_call"),
    *("observation", "Assistant", "model", "function", "ipython", "context"),
)
_FIELDS = (
    *(
        "content",
        "value",
        "text",
        "name",
        "tool_call_id",
        "tool_calls",
        "function_call",
        "thinking",
        "parts",
        "tools",
    ),
    *(
        "reasoning_content",
        "channel",
        "recipient",
        "weight",
        "train",
        "loss_mask",
        "masked",
        "refusal",
        "metadata",
    ),
    *("train_detail", "input", "output", "human", "assistant", "user", "from", "role", "type", "id"),
)
_PARTS = (
    "text",
    "image_url",
    "thinking",
    "tool_call",
    "input_text",
    "output_text",
    "tool_use",
    "tool_result",
    "audio",
)
_CHANNELS = ("analysis", "commentary", "final", "functions.look", "browser", "all")


@cache
def _encoder(template: str, length: int, parsed: bool) -> Encoder:
    if template == "sentencepiece":
        tokenizer = sentencepiece(SHAPES["llama-2"])
    else:
        tokenizer = SHAPES["chatml" if template == "plain" else template].tokenizer()
    if template == "plain":
        tokenizer.chat_template = None
    special = [str(token) for token in tokenizer.added_tokens_decoder.values()][:1] if parsed else []
    return Encoder(tokenizer, max_length=length, parsed=special)


def _call(choices: Choices) -> Any:
    if not choices.below(6):
        return choices.value()
    arguments = (choices.value(2), json.dumps(choices.value(2)), choices.text())[choices.below(3)]
    function = {"name": choices.text(), choices.one_of(("arguments", "parameters", "args")): arguments}
    return {"id": choices.text(), "type": "function", "function": function} if choices.flag() else function


def _content(choices: Choices) -> Any:
    kind = choices.below(8)
    if kind < 4:
        return choices.text()
    if kind == 4:
        return choices.value()
    parts = []
    for _ in range(choices.below(4)):
        name = choices.one_of(_PARTS)
        part = {"type": name, choices.one_of(("text", name, "content")): choices.text()}
        parts.append(part if choices.below(5) else choices.value())
    return parts


def _field(choices: Choices, name: str) -> Any:
    """Return a value for a field of a turn: often one of the kind that the field's name promises."""
    if name in ("tool_calls", "tools", "functions"):
        return [_call(choices) for _ in range(choices.below(3))]
    if name == "function_call":
        return _call(choices)
    if name in ("channel", "recipient"):
        return choices.one_of(_CHANNELS)
    if name in ("role", "from"):
        return choices.one_of(_ROLES)
    if name in ("content", "value", "text", "parts", "thinking"):
        return _content(choices)
    return choices.value()


def _turn(choices: Choices) -> Any:
    if not choices.below(12):
        return choices.value()
    turn = {choices.one_of(("role", "from")): choices.one_of(_ROLES)}
    for _ in range(1 + choices.below(4)):
        name = choices.one_of(_FIELDS)
        turn[name] = _field(choices, name)
    return turn


def _column(choices: Choices, name: str) -> Any:
    """Return a value for a column of a row."""
    kind = choices.below(8)
    if name in ("tools", "functions") or kind == 7:
        value = [_call(choices) for _ in range(choices.below(3))]
        return json.dumps(value) if choices.flag() else value
    if name in _TEXTS and kind > 1:
        turns = [_turn(choices) for _ in range(choices.below(6))]
        if kind == 2:
            return json.dumps(turns)
        return {"messages": turns, "text": turns, "role": "model", "parts": turns} if kind == 3 else turns
    return choices.text() if kind > 1 else choices.value()


def _row(choices: Choices) -> Any:
    row: Any = {}
    for name in choices.one_of([shape.needs for shape in ROWS.values()]):
        row[name[0]] = _column(choices, name[0])
    for _ in range(choices.below(4)):
        name = choices.one_of(_COLUMNS)
        row[name] = _column(choices, name)
    return row if choices.below(16) else choices.value()


def _layout(choices: Choices) -> Layout:
    if choices.below(3):
        return Layout()
    columns = {choices.one_of(FIELDS): choices.one_of(_COLUMNS) for _ in range(choices.below(3))}
    return Layout(
        shape=choices.one_of((None, *ROWS)),
        columns=columns,
        drop_unsupported=choices.flag(),
        learn=choices.one_of((None, "all", "last")),
        roles={choices.text(): choices.one_of(("system", "user", "assistant"))} if choices.flag() else {},
        ids=choices.one_of((None, "content", "file")),
    )


def case(data: bytes) -> str:
    """Read rows in memory, encode their conversations, and check what the encoder promises."""
    choices = Choices(data)
    encoder = _encoder(choices.one_of(_TEMPLATES), choices.one_of(_LENGTHS), choices.flag())
    layout = _layout(choices)
    rows = [_row(choices) for _ in range(1 + choices.below(3))]

    def use() -> None:
        pool = read_pool(rows, layout)
        for line in pool.rejected:
            check(line.reason and line.kind, f"a rejected line lacks a reason: {line}")
        conversations = [sample.messages for sample in pool.samples]
        together = encoder.batch(conversations)
        for messages, encoded in zip(conversations, together, strict=True):
            if isinstance(encoded, Unusable):
                check(str(encoded), "a sample is refused without a reason")
                continue
            check(len(encoded.tokens) == len(encoded.labels) == len(encoded.content), "lengths differ")
            check(2 <= len(encoded) <= encoder.max_length, f"a sample has {len(encoded)} tokens")
            check(encoded.n_labels and not encoded.labels[0], "nothing, or the first token, is predicted")
            alone = encoder(messages)
            check((alone.tokens == encoded.tokens).all(), "a sample depends on its batch")
            check((alone.labels == encoded.labels).all(), "labels depend on the batch")
        encoder.notes("pool")

    return outcome(use)
