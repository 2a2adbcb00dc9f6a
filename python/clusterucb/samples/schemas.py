"""Read rows whose fields are nested otherwise than in every other data set, and advise on rows of no known shape.

Sources: OpenAI's preference data (``input``, ``preferred_output``, ``non_preferred_output``), Gemini's tuning data
(``contents`` with ``parts``), SQuAD (``answers`` with a list of texts).

Decisions:
    - A row is read as one of the usual shapes: `nested` says which fields it has, and which columns they are from.
    - Of several answers to a question of SQuAD, which are equally good, the first is learnt.
    - A row is read only if its meaning is plain. A list of texts does not say who speaks, and a text with several
      speakers in it has no turns; for these there is `advice`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from clusterucb.samples.message import NOTHING, Unreadable
from clusterucb.samples.turns import is_turn, listed
from clusterucb.wording import printable

Row = Mapping[str, Any]
Fields = dict[str, tuple[str, Any]]  # fields of a usual shape, each with its column and its value
KEYS = frozenset(("preferred_output", "contents", "answers"))  # the columns of which every such row has one
_FUNCTIONS = ("functionDeclarations", "function_declarations")
_ASKS = re.compile(r"\b(?:user|human)\s*+:", re.IGNORECASE)
_ANSWERS = re.compile(r"\b(?:assistant|gpt|ai)\s*+:", re.IGNORECASE)
_BY_TURNS = '{role: (if .key % 2 == 0 then "user" else "assistant" end), content: .value}'
_OF_SHAPES = ("messages", "conversations", "prompt", "instruction", "question", "query")
_USERS = ("user", "human", "prompter", "instruction")


def nested(row: Row) -> Fields:
    """Return the fields of a usual shape that a row has nested; {} if its fields are not so.

    Raises:
        Unreadable: the row has no answer.
    """
    asked, answers = row.get("input"), row.get("answers")
    if isinstance(asked, dict) and "messages" in asked and row.get("preferred_output"):
        return {
            "messages": ("input", asked["messages"]),
            "chosen": ("preferred_output", row["preferred_output"]),
            "rejected": ("non_preferred_output", row.get("non_preferred_output")),
            "tools": ("input", asked.get("tools")),
        }
    if isinstance(answers, dict) and isinstance(answers.get("text"), list) and row.get("question"):
        if not answers["text"]:
            raise Unreadable("empty answer: `answers` has no text")
        return {"answer": ("answers", answers["text"][0])}
    contents = row.get("contents")
    if isinstance(contents, list) and contents and all(map(_has_parts, contents)):
        return _gemini(row, contents)
    return {}


def _has_parts(turn: object) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("parts"), list)


def _gemini(row: Row, contents: list[dict[str, Any]]) -> Fields:
    fields: Fields = {"messages": ("contents", [one for turn in contents for one in _turns(turn)])}
    for name in ("systemInstruction", "system_instruction"):
        if _has_parts(row.get(name)):
            fields["system"] = (name, row[name]["parts"])
        elif isinstance(row.get(name), str):
            fields["system"] = (name, row[name])
    tools = row.get("tools")
    for name in _FUNCTIONS:
        if isinstance(tools, list) and all(isinstance(tool, dict) and name in tool for tool in tools):
            fields["tools"] = ("tools", [function for tool in tools for function in tool[name]])
    return fields


def _turns(turn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a turn of Gemini's data in OpenAI's form; each result of a function is a turn of its own."""
    calls, parts = [], []
    for part in turn["parts"]:
        names = part if isinstance(part, dict) else {}
        call = names.get("functionCall") or names.get("function_call")
        result = names.get("functionResponse") or names.get("function_response")
        if isinstance(call, dict):
            calls.append({"name": call.get("name"), "arguments": call.get("args")})
        elif isinstance(result, dict):
            yield {"role": "tool", "name": result.get("name"), "content": result.get("response")}
        elif names.get("thought") is True:
            parts.append({"type": "thinking", "thinking": names.get("text")})
        elif "text" in names or not names:
            parts.append(part)
        else:
            parts.append({"type": next(iter(names))})
    rest = {name: value for name, value in turn.items() if name != "parts"}
    if calls or parts:
        content = {"content": parts or None, **({"tool_calls": calls} if calls else {})}
        yield {"role": "user", **rest, **content}


def advice(row: Row) -> str:
    """Return what to do about a row of no known shape; "" if nothing about it says so."""
    if not any(row.values()):
        return ""
    inside = [name for name, value in row.items() if _has_fields(value)]
    if len(inside) > 1 and len(inside) == len(row):
        return ". Each of its values is a row: jq -c '.[]'"
    for name, value in row.items():
        turns = listed(value)
        if isinstance(turns, list) and turns and all(map(is_turn, turns)):
            if "replies" in turns[0]:
                return ". It is a tree of messages: join the messages on each path to an answer as `messages`"
            column, role = _shown(name), turns[-1].get("role", turns[-1].get("from"))
            if str(role).lower() in _USERS:
                return f". `{column}` holds turns without the answer: --columns prompt={column},completion=COLUMN"
            return f". `{column}` holds turns: --columns messages={column}"
    if inside:
        column = _shown(inside[0])
        return f". `{column}` holds the fields of a row: jq -c '.[\"{column}\"]'"
    texts = [name for name, value in row.items() if isinstance(value, str) and value]
    for name in texts:
        asks = None if name in _OF_SHAPES else _ASKS.search(row[name])
        if asks and _ANSWERS.search(row[name], asks.end()):
            column = _shown(name)
            return (
                f". `{column}` is one text with several speakers: split it into `messages`, or learn all of it: "
                f"--columns text={column}"
            )
    if not {*texts} - {"id", "source"}:
        for name, value in row.items():
            if isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value):
                column = _shown(name)
                return (
                    f". `{column}` is a list of texts, which does not say who speaks. If questions and answers take "
                    f"turns: jq -c '.messages = [.[\"{column}\"] | to_entries[] | {_BY_TURNS}]'"
                )
    return ""


def _shown(name: str) -> str:
    return f"{printable(name):.40}"


def _has_fields(value: object) -> bool:
    """Return whether a value is an object with a field of a usual shape that has a value."""
    return isinstance(value, dict) and any(value.get(name) not in NOTHING for name in _OF_SHAPES)
