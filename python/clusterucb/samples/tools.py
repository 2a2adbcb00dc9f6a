"""Read tools, their calls and their results, and thoughts, in the forms in which data sets have them.

Sources: OpenAI's chat format (``tools``, ``tool_calls``, ``function_call``, turns of role ``tool`` and ``function``),
LLaMA-Factory's ShareGPT form (turns ``function_call`` and ``observation``, ``tools`` as JSON text), ms-swift's turns
``tool_call`` and ``tool_response``, DeepSeek's ``reasoning_content``, GLM-4's ``metadata``.

Decisions:
    - Definitions of tools become those of OpenAI, ``{"type": "function", "function": {...}}``, since templates expect
      them so. A list in a text is decoded, and so are a tool and its ``parameters`` (axolotl's form, in which a table
      gives no tool the parameters of others).
    - The arguments of a call become a JSON object, which templates write in their own way. Arguments that are no object
      are refused.
    - Calls that a content spells out (Hermes writes ``<tool_call>{...}</tool_call>``) stay part of the content.
    - The result of a tool that does not name the tool belongs to the call with its id, or else to the calls before it,
      one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from clusterucb.samples.message import NOTHING, Call, Message, Unreadable, kind_of

RESULTS = ("tool", "function", "observation", "ipython", "tool_response", "tool_result", "tool_results")
CALLS = ("function_call", "tool_call", "tool_calls")  # roles of turns that are calls, and fields
DEFINED = ("tools", "functions")  # columns of a row with the definitions
THOUGHTS = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "thought",
    "reasoning_details",
)  # fields of turns, and types of parts
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_TOOL_NAME = re.compile(r"[\w.-]{1,64}")
_EMPTY = (*NOTHING, "[]", "{}", "null", "None")
TEXT_PARTS = ("text", "input_text", "output_text")
_OF_PARTS = frozenset(("type", "text", "content", "value", "annotations", "cache_control"))


def has(fields: Mapping[str, Any], name: str) -> bool:
    """Return whether a row or a turn has a field with a value."""
    return fields.get(name) not in _EMPTY


def definitions(row: Mapping[str, Any]) -> str:
    """Return the definitions of tools in a row as a JSON list in OpenAI's form; "" if there are none.

    Raises:
        Unreadable: they are no list of objects with names.
    """
    name = next((name for name in DEFINED if has(row, name)), None)
    if name is None:
        return ""
    given = _decoded(row[name], f"`{name}`")
    listed = given if isinstance(given, list) else [given]
    tools = [_wrapped(_decoded(tool, f"`{name}`"), name) for tool in listed]
    if not all(isinstance(tool, dict) and isinstance(_function(tool).get("name"), str) for tool in tools):
        raise Unreadable(
            f"wrong type: `{name}` is no list of objects with `name`; expected definitions of tools"
        )
    return _json(tools)


def _wrapped(tool: object, column: str) -> object:
    """Return a definition in OpenAI's form, with its parts that are JSON text decoded."""
    if not isinstance(tool, dict):
        return tool
    if isinstance(tool.get("function"), str):
        tool = {**tool, "function": _decoded(tool["function"], f"a `function` in `{column}`")}
    elif "function" not in tool and "name" in tool:
        tool = {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
    function = _function(tool)
    if not isinstance(function.get("parameters"), str):
        return tool
    written = function["parameters"]
    decoded = (
        {} if written.strip() in _EMPTY else _decoded(written, f"the `parameters` of a tool in `{column}`")
    )
    return {**tool, "function": {**function, "parameters": decoded}}


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = tool.get("function")
    return inner if isinstance(inner, dict) else {}


def calls_of(turn: Mapping[str, Any], what: str) -> tuple[Call, ...]:
    """Return the calls in the fields of a turn.

    Raises:
        Unreadable: they have no names, or arguments that are no object.
    """
    name = next((name for name in CALLS if has(turn, name) and not _blank(turn[name])), None)
    return () if name is None else read_calls(turn[name], what)


def calls_by_metadata(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the call in a turn whose ``metadata`` is the tool's name and whose content the arguments; [] for none.

    Other data sets have other metadata, so the name has to be one, and the arguments an object.
    """
    name, content = turn["metadata"], turn.get("content")
    if not (isinstance(name, str) and _TOOL_NAME.fullmatch(name.strip()) and isinstance(content, str)):
        return []
    try:
        arguments = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return []
    return [{"name": name.strip(), "arguments": arguments}]


def _blank(value: object) -> bool:
    """Return whether a call is none: every field of it is null, as a table fills it."""
    if isinstance(value, list | dict) and value:
        return all(map(_blank, value.values() if isinstance(value, dict) else value))
    return value is None


def read_calls(value: object, what: str) -> tuple[Call, ...]:
    """Return calls: an object, a list of objects, or one of these as JSON text.

    Raises:
        Unreadable: they have no names, or arguments that are no object.
    """
    given = _decoded(value, f"the tool call in {what}")
    listed = given if isinstance(given, list) else [given]
    return tuple(_call(one, what) for one in listed if not _blank(one))


def _call(given: object, what: str) -> Call:
    outer = given if isinstance(given, dict) else {}
    inner = outer["function"] if isinstance(outer.get("function"), dict) else outer
    if not isinstance(inner.get("name"), str) or not inner["name"]:
        raise Unreadable(
            f"wrong type: a tool call in {what} has no `name`; expected the tool's name and `arguments`"
        )
    written: object = next(
        (inner[key] for key in ("arguments", "parameters") if inner.get(key) is not None), {}
    )
    arguments = {} if written in _EMPTY else _decoded(written, f"`arguments` in {what}")
    if not isinstance(arguments, dict):
        raise Unreadable(f"wrong type: `arguments` in {what} is {kind_of(arguments)}; expected an object")
    return Call(inner["name"], _json(arguments), str(outer.get("id") or ""))


def _decoded(value: object, what: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError) as error:
        if value.lstrip()[:1] in ("[", "{") and "'" in value and '"' not in value.partition("'")[0]:
            notation = " It looks like Python's notation: write it with json.dumps instead of str"
        else:
            notation = ""
        raise Unreadable(
            f"not JSON: {what} is a text that is no JSON; expected an object or a list.{notation}".rstrip(".")
        ) from error


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def result_text(value: object) -> object:
    """Return the content of a tool's result as a text or as parts; other values become JSON text, and null nothing."""
    if value is None or isinstance(value, str):
        return value or ""
    parts = isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") in TEXT_PARTS and part.keys() <= _OF_PARTS
        for part in value
    )
    return value if parts and value else _json(value)


def thought_of(turn: Mapping[str, Any], parts: Iterable[object]) -> str:
    """Return an assistant's thoughts, in fields of its turn or in parts of its content; "" for none."""
    for name in THOUGHTS:
        if text := _thought_text(turn.get(name)):
            return text
    return _thought_text([part for part in parts if isinstance(part, dict) and part.get("type") in THOUGHTS])


def filled(turn: Mapping[str, Any]) -> list[str]:
    """Return the fields of a turn that have thoughts or calls."""
    thoughts = [name for name in THOUGHTS if _thought_text(turn.get(name))]
    return thoughts + [name for name in CALLS if has(turn, name) and not _blank(turn[name])]


def left_over(turn: Mapping[str, Any]) -> list[str]:
    """Return the fields with other thoughts or calls than those that are read."""
    names = filled(turn)
    thoughts = [name for name in names if name in THOUGHTS]
    calls = names[len(thoughts) :]
    return [name for name in thoughts if _thought_text(turn[name]) != _thought_text(turn[thoughts[0]])] + [
        name for name in calls[1:] if turn[name] != turn[calls[0]]
    ]


def _thought_text(value: object) -> str:
    """Return thoughts as one text: a text, or the texts in lists and objects of any form; "" for a blank one."""
    if isinstance(value, str):
        return value if value.strip() else ""
    if isinstance(value, list):
        return "\n".join(text for one in value if (text := _thought_text(one)))
    if isinstance(value, dict):
        names = (*THOUGHTS, "text", "content", "value", "summary")
        return next((text for name in names if (text := _thought_text(value.get(name)))), "")
    return ""


def without_thought(content: object) -> tuple[str, object]:
    """Return the thoughts that a content of calls begins with, as in LLaMA-Factory's data, and the rest."""
    found = _THOUGHT.match(content) if isinstance(content, str) else None
    return (found[1].strip("\n"), str(content)[found.end() :]) if found else ("", content)


def with_thought(thought: str, content: str) -> str:
    """Return a content that begins with thoughts, in the form in which templates look for them there."""
    thought = thought.strip("\n")
    return f"<think>\n{thought}\n</think>\n\n{content}"


def with_names(messages: Sequence[Message]) -> list[Message]:
    """Return turns in which results have the names and ids of the calls that they answer."""
    named: list[Message] = []
    open_calls: list[Call] = []
    for message in messages:
        if message.role != "tool":
            open_calls = [*message.calls] if message.calls else open_calls
            named.append(message)
            continue
        call = next((call for call in open_calls if message.call_id and call.id == message.call_id), None)
        call = call or next(iter(open_calls), None)
        if call in open_calls:
            open_calls.remove(call)
        name, call_id = (call.name, call.id) if call else ("", "")
        if name and message.name != f"functions.{name}":  # as harmony writes it
            name = message.name or name
        named.append(replace(message, name=name or message.name, call_id=message.call_id or call_id))
    return named
