"""Read rows of every shape that people write prompts and answers in as conversations.

A row's shape is determined by its own keys, so that a file may mix shapes and the order of its lines changes nothing.
If a row fits several shapes, the first in `SHAPES` is used: a conversation holds more than the text that was made
from it.

Sources: TRL's "dataset formats" (messages, prompt and completion, chosen, text), LLaMA-Factory's data README
(ShareGPT, Alpaca with ``system`` and ``history``) and OpenAI's chat format (parts of a content, tool calls).

Decisions:
    - The parts of a content are joined without a separator, as chat templates do.
    - The ``input`` of an Alpaca row follows its instruction after a blank line.
    - Columns that the user names take precedence over the row's keys. Fields with a value take precedence over empty
      fields, because every row of a table has every column.
    - A row that is marked as a bad answer, or a turn that is not to be learnt, is rejected, and the reason names the
      mark.
    - If a row has a ``text`` and parts of another shape, it is not read as a plain text, because it is more likely
      an incomplete row of the other shape.
    - In preference data, the chosen answer is the sample.
    - A row with content that a text model cannot be given (images, tool calls) is rejected with the content's name,
      because the rest of the row may make no sense without it. `Layout.drop_unsupported` leaves the content out
      instead. Both also apply to a model's thoughts before a turn, which are not part of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from clusterucb.wording import printable

ROLES = ("system", "user", "assistant")
TEXT = "text"  # the role of a plain text, which is not a conversation

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
    """One turn of a conversation, or a plain text. ``role`` is one of `ROLES`, or `TEXT` for a plain text."""

    role: str
    content: str


class _Renamed(dict[str, Any]):
    """A row with additional keys for its named columns. ``own`` is the row as it was read."""

    def __init__(self, own: Row, added: Row) -> None:
        super().__init__(own, **added)
        self.own = own


class Unreadable(Exception):
    """One row cannot be used. The message is its reason in ``rejected.jsonl``."""


class _EmptyTurn(Exception):
    """Nothing is left of a turn after its unsupported content was dropped."""


@dataclass(frozen=True)
class Layout:
    """How a sample is read from a row.

    Attributes:
        shape: one of `SHAPES`, or None to determine the shape from each row's keys.
        columns: maps a field of a shape, ``id``, ``source`` or ``subtask`` to the column that holds it.
        drop_unsupported: whether to leave out images, tool calls and thoughts instead of rejecting their row.
    """

    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    drop_unsupported: bool = False

    def renamed(self, row: Row) -> Row:
        """Return a row with its named columns under the fields' names. A missing or null column changes nothing."""
        added = {name: row[column] for name, column in self.columns.items() if row.get(column) is not None}
        return _Renamed(row, added) if added else row

    def conversation(self, row: Row) -> tuple[str, tuple[Message, ...]]:
        """Return the shape and the turns of a renamed row. At least one turn is an assistant's or a plain text.

        Raises:
            Unreadable: the row holds no such conversation.
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
                        f"unsupported content: the row has {key!r} (--drop-unsupported removes it)"
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
        return _system(row, answer)  # the prompt is part of `chosen`
    if row.get("prompt") is None:
        raise Unreadable("no conversation: `chosen` is only an answer; expected a `prompt` too")
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
_EMPTY: tuple[object, ...] = ("", [])  # the values of a table's empty cells
_NEEDED = tuple(dict.fromkeys(key for shape in SHAPES.values() for key in shape.needs))
# The fields that --columns may name: those of the shapes, and those besides a conversation.
FIELDS = (*_NEEDED, "input", "system", "history", "id", "source", "subtask")


def _shape_of(row: Row, named: Mapping[str, str]) -> str:
    """Return a row's shape. Shapes with a named column come first, and fields with a value before empty ones."""
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
    return list(_non_empty_turns(turns, key, drop))


def _non_empty_turns(turns: list[Any], key: str, drop: bool) -> Iterator[Message]:
    for number, turn in enumerate(turns, start=1):
        try:
            yield _message(turn, number, key, drop)
        except _EmptyTurn:
            continue


def _message(turn: object, number: int, key: str, drop: bool) -> Message:
    if isinstance(turn, dict) and "from" in turn and turn.get("role") is None:
        turn = {**turn, "role": turn["from"], "content": turn.get("value")}
    if not isinstance(turn, dict) or "role" not in turn:
        raise Unreadable(f"wrong type: turn {number} of `{key}` is not an object with `role` and `content`")
    role = turn["role"]
    if isinstance(role, str) and role in _TOOL_ROLES:
        return _unsupported(f"turn {number} is of role {role!r}", drop)
    role = _ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise Unreadable(f"unknown role: {role!r:.40} in turn {number}; expected {', '.join(ROLES)}")
    if turn.get("weight") == 0:
        raise Unreadable(f"unsupported content: turn {number} has weight 0; expected no turn with weight 0")
    extra = next((name for name in (*_TOOL_KEYS, *_THOUGHTS) if turn.get(name)), None)
    if extra and not drop:
        return _unsupported(f"turn {number} {'has' if extra in _THOUGHTS else 'makes'} {extra!r}", drop)
    content = turn.get("content")
    if extra and not content:
        raise _EmptyTurn
    if isinstance(content, list):
        content = _join_parts(content, number, drop)
    if not isinstance(content, str):
        raise Unreadable(f"wrong type: the content of turn {number} is {kind_of(content)}; expected a string")
    return Message(role, content)


def _join_parts(parts: list[Any], number: int, drop: bool) -> str:
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
            raise Unreadable(f"wrong type: a part of turn {number} is not an object with `type` and `text`")
        elif not drop:
            _unsupported(f"turn {number} holds a part of type {part['type']!r:.40}", drop)
    if parts and not texts:
        raise _EmptyTurn
    return "".join(texts)


def _unsupported(what: str, drop: bool) -> Message:
    if drop:
        raise _EmptyTurn
    raise Unreadable(f"unsupported content: {what}; expected text (--drop-unsupported removes it)")


def _either_form(row: Row, key: str, role: str, drop: bool) -> list[Message]:
    """Return a field's turns: its list of turns, or one turn with its text."""
    return _turns(row, key, drop) if isinstance(row[key], list) else [Message(role, _text(row, key))]


def _system(row: Row, messages: list[Message]) -> list[Message]:
    """Return the messages with the row's ``system`` text before them, if it has one and no message is a system turn."""
    if not row.get("system") or any(message.role == "system" for message in messages):
        return messages
    return [Message("system", _text(row, "system")), *messages]


def _history(row: Row) -> Iterator[tuple[str, str]]:
    history = row.get("history") or []
    for pair in history if isinstance(history, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Unreadable("wrong type: `history` is not a list of pairs of question and answer")
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
    """Return the kind of a JSON value in words, such as ``an object`` or ``empty``."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number") if value not in ("", []) else "empty"
