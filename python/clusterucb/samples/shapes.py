"""Shapes of rows: what people call a prompt and an answer, as one conversation.

A row's shape is found from its own keys, row by row, so that a file may mix shapes and the order of its
lines changes nothing. Where a row fits several, the first in `SHAPES` is meant: a conversation says more than
the text that was made of it.

Sources: TRL's "dataset formats" (messages, prompt and completion, chosen, text), LLaMA-Factory's data README
(ShareGPT, Alpaca with ``system`` and ``history``) and OpenAI's chat format (parts of a content, tool calls).

Decisions:
    - Parts of a content are put together without anything between them, as chat templates do.
    - An ``input`` of an Alpaca row follows its instruction after a blank line.
    - Columns that are named decide before the row's keys, and a field that says something before an empty one: of
      a table, every row has every column.
    - A row that is marked as a bad answer, or a turn that is not to be learnt, is refused by name.
    - A ``text`` beside parts of another shape is not taken for a plain text: the row is rather an incomplete one.
    - Of preference data the chosen answer is the sample.
    - What a model without eyes and tools cannot be given (images, tool calls) is refused by name, since the rest
      of the row may make no sense without it; `Layout.drop_unsupported` takes it out instead. So is what a model
      thought before a turn, which is no part of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from clusterucb.wording import printable

ROLES = ("system", "user", "assistant")
TEXT = "text"  # the role of a text that is no conversation

_ALIASES = {
    "human": "user",
    "developer": "system",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
_TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython", "tool_call", "tool_response")
_TOOL_KEYS = ("tool_calls", "function_call")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_ROW_EXTRAS = ("tools", "functions", "images", "videos", "audios", "image", "audio")

Row = Mapping[str, Any]


class Message(NamedTuple):
    """One turn of a conversation; ``role`` is one of `ROLES`, or `TEXT` for a text that is none."""

    role: str
    content: str


class _Renamed(dict[str, Any]):
    """A row with more names than its own."""

    def __init__(self, own: Row, found: Row) -> None:
        super().__init__(own, **found)
        self.own = own


class Unreadable(Exception):
    """Why one row cannot be used; becomes the reason of a line in ``rejected.jsonl``."""


class _Nothing(Exception):
    """A turn of which nothing is left once what is not supported has been dropped."""


@dataclass(frozen=True)
class Layout:
    """How rows are read.

    Attributes:
        shape: one of `SHAPES`; None: found from each row's keys.
        columns: a field of a shape, or ``id``, ``source`` or ``subtask`` -> the column that stands for it.
        drop_unsupported: leave out images, tool calls and thoughts instead of refusing their row.
    """

    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    drop_unsupported: bool = False

    def renamed(self, row: Row) -> Row:
        """Return a row under the names that shapes know; a column that is missing or null changes nothing."""
        found = {name: row[column] for name, column in self.columns.items() if row.get(column) is not None}
        return _Renamed(row, found) if found else row

    def conversation(self, row: Row) -> tuple[str, tuple[Message, ...]]:
        """Return a renamed row's shape and its turns, of which at least one is an assistant's or a text.

        Raises:
            Unreadable: it has none.
        """
        shape = self.shape or _shape_of(row, self.columns)
        missing = [key for key in SHAPES[shape].needs if row.get(key) is None]
        if missing:
            raise Unreadable(
                f"no conversation: {_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing, which {shape} "
                f"needs{_keys(row)}"
            )
        if not self.drop_unsupported:
            for key in _ROW_EXTRAS:
                if row.get(key) and row[key] not in ("[]", "{}", "null"):
                    raise Unreadable(
                        f"unsupported content: the row has {key!r} (--drop-unsupported ignores it)"
                    )
        if row.get("label") is False:
            raise Unreadable("unsupported content: the row is marked as a bad answer (`label` is false)")
        messages = tuple(SHAPES[shape].read(row, self.drop_unsupported))
        if not any(message.role in ("assistant", TEXT) for message in messages):
            raise Unreadable("no assistant turn")
        return shape, messages


def _messages(row: Row, drop: bool) -> list[Message]:
    return _system(row, _turns(row, "messages", drop))


def _conversations(row: Row, drop: bool) -> list[Message]:
    return _system(row, _turns(row, "conversations", drop))


def _prompt_completion(row: Row, drop: bool) -> list[Message]:
    return _system(
        row, [*_either_form(row, "prompt", "user", drop), *_either_form(row, "completion", "assistant", drop)]
    )


def _alpaca(row: Row, drop: bool) -> list[Message]:  # noqa: ARG001
    asked = _text(row, "instruction")
    given = _text(row, "input") if row.get("input") else ""
    past = [Message(role, text) for role, text in _history(row)]
    question = f"{asked}\n\n{given}" if asked and given else asked or given
    return _system(row, [*past, Message("user", question), Message("assistant", _text(row, "output"))])


def _chosen(row: Row, drop: bool) -> list[Message]:
    answer = _either_form(row, "chosen", "assistant", drop)
    if any(message.role == "user" for message in answer):
        return _system(row, answer)  # the prompt is part of it
    if row.get("prompt") is None:
        raise Unreadable("no conversation: `chosen` is an answer alone; expected a `prompt` beside it")
    return _system(row, [*_either_form(row, "prompt", "user", drop), *answer])


def _plain(row: Row, drop: bool) -> list[Message]:  # noqa: ARG001
    return [Message(TEXT, _text(row, "text"))]


@dataclass(frozen=True)
class _Shape:
    needs: tuple[str, ...]
    read: Callable[[Row, bool], list[Message]]


SHAPES: dict[str, _Shape] = {
    "messages": _Shape(("messages",), _messages),
    "conversations": _Shape(("conversations",), _conversations),
    "prompt-completion": _Shape(("prompt", "completion"), _prompt_completion),
    "alpaca": _Shape(("instruction", "output"), _alpaca),
    "chosen": _Shape(("chosen",), _chosen),
    "text": _Shape(("text",), _plain),
}
_EMPTY: tuple[object, ...] = ("", [])  # what a table has where a row has nothing
_NEEDED = tuple(dict.fromkeys(key for shape in SHAPES.values() for key in shape.needs))
# What --columns may name: the fields of the shapes, and what stands beside a conversation.
FIELDS = (*_NEEDED, "input", "system", "history", "id", "source", "subtask")


def _shape_of(row: Row, named: Mapping[str, str]) -> str:
    """Return a row's shape: one with a field among the named columns before others, one that says something first."""
    present = {key for key in _NEEDED if row.get(key) is not None}
    shapes = (
        sorted(SHAPES, key=lambda name: named.keys().isdisjoint(SHAPES[name].needs))
        if named
        else list(SHAPES)
    )
    for keys in ({key for key in present if row[key] not in _EMPTY}, present):
        for name in shapes:
            if keys.issuperset(SHAPES[name].needs) and (
                name != "text" or name in named or present == {"text"}
            ):
                return name
    raise Unreadable(
        f"no conversation: expected `messages`, `conversations`, `prompt` and `completion`, `instruction` and "
        f"`output`, `chosen` or `text`{_keys(row)}"
    )


def _turns(row: Row, key: str, drop: bool) -> list[Message]:
    turns = row[key]
    if not isinstance(turns, list) or not turns:
        raise Unreadable(f"wrong type: `{key}` is {kind_of(turns)}; expected a list of turns")
    return list(_kept(turns, key, drop))


def _kept(turns: list[Any], key: str, drop: bool) -> Iterator[Message]:
    for number, turn in enumerate(turns, start=1):
        try:
            yield _message(turn, number, key, drop)
        except _Nothing:
            continue


def _message(turn: object, number: int, key: str, drop: bool) -> Message:
    if isinstance(turn, dict) and "from" in turn and turn.get("role") is None:
        turn = {**turn, "role": turn["from"], "content": turn.get("value")}
    if not isinstance(turn, dict) or "role" not in turn:
        raise Unreadable(f"wrong type: turn {number} of `{key}` is no object with `role` and `content`")
    role = turn["role"]
    if isinstance(role, str) and role in _TOOL_ROLES:
        return _unsupported(f"turn {number} is of role {role!r}", drop)
    role = _ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise Unreadable(f"unknown role: {role!r:.40} in turn {number}; expected {', '.join(ROLES)}")
    if turn.get("weight") == 0:
        raise Unreadable(f"unsupported content: turn {number} has weight 0; expected answers that all count")
    beside = next((name for name in (*_TOOL_KEYS, *_THOUGHTS) if turn.get(name)), None)
    if beside and not drop:
        return _unsupported(f"turn {number} {'has' if beside in _THOUGHTS else 'makes'} {beside!r}", drop)
    content = turn.get("content")
    if beside and not content:
        raise _Nothing
    if isinstance(content, list):
        content = _joined(content, number, drop)
    if not isinstance(content, str):
        raise Unreadable(f"wrong type: the content of turn {number} is {kind_of(content)}; expected a string")
    return Message(role, content)


def _joined(parts: list[Any], number: int, drop: bool) -> str:
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif (
            isinstance(part, dict)
            and part.get("type", "text") == "text"
            and isinstance(part.get("text"), str)
        ):
            texts.append(part["text"])
        elif not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise Unreadable(f"wrong type: a part of turn {number} is no object with `type` and `text`")
        elif not drop:
            _unsupported(f"turn {number} holds a part of type {part['type']!r:.40}", drop)
    if parts and not texts:
        raise _Nothing
    return "".join(texts)


def _unsupported(what: str, drop: bool) -> Message:
    if drop:
        raise _Nothing
    raise Unreadable(f"unsupported content: {what}; expected text (--drop-unsupported leaves it out)")


def _either_form(row: Row, key: str, role: str, drop: bool) -> list[Message]:
    """Return a field that is a list of turns, or the text of one."""
    return _turns(row, key, drop) if isinstance(row[key], list) else [Message(role, _text(row, key))]


def _system(row: Row, messages: list[Message]) -> list[Message]:
    """Return a conversation that begins with the row's ``system`` text, where it has one and they have none."""
    if not row.get("system") or any(message.role == "system" for message in messages):
        return messages
    return [Message("system", _text(row, "system")), *messages]


def _history(row: Row) -> Iterator[tuple[str, str]]:
    history = row.get("history") or []
    for pair in history if isinstance(history, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Unreadable("wrong type: `history` is no list of pairs of question and answer")
        yield "user", pair[0]
        yield "assistant", pair[1]


def _text(row: Row, key: str) -> str:
    if not isinstance(row[key], str):
        raise Unreadable(f"wrong type: `{key}` is {kind_of(row[key])}; expected a string")
    return str(row[key])


def _listed(names: list[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _keys(row: Row) -> str:
    keys = list(row.own if isinstance(row, _Renamed) else row)
    names = [f"`{printable(key):.40}`" for key in keys[:8]]
    return (
        f"; its keys are {', '.join(names)}{', ...' if len(keys) > 8 else ''}"
        if names
        else "; it has no keys"
    )


def kind_of(value: object) -> str:
    """Return what a JSON value is, in a reader's words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number") if value not in ("", []) else "empty"
