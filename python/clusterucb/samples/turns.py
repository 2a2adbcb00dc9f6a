"""Read the turns of a conversation: roles, contents, calls and thoughts.

Sources: OpenAI's chat format (parts of a content), ShareGPT's ``from`` and ``value``, xtuner's pairs of ``input`` and
``output``. `marks` says which answers are learnt, `harmony` reads channels.

Decisions:
    - Roles are compared without regard to case. `_ROLES` holds the names that data sets use for the three roles.
    - The parts of a content are joined without a separator, as chat templates do.
    - A table may hold a list as JSON text. A field that should be a list of turns is decoded; one that may be a text
      is decoded only if it is a list of turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec
from msgspec.structs import replace

from clusterucb.samples import harmony, tools
from clusterucb.samples.fields import refuse_python, text_of
from clusterucb.samples.marks import MARKS, is_context
from clusterucb.samples.message import NOTHING, ROLES, Call, Message, Unreadable, kind_of
from clusterucb.wording import printable

_ROLES = {
    **{role: role for role in ROLES if role != "tool"},
    "developer": "system",
    "context": "system",
    "human": "user",
    "prompter": "user",
    "instruction": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot", "chatbot", "ai"), "assistant"),
}
_USUAL = ("user", "assistant", "system")
_CALLING = "calling"  # of a turn that is nothing but calls of tools
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"))  # both turns in one object
_CONTENTS = ("content", "value", "text")
_KNOWN = frozenset(
    (
        *("role", "from", "name", "tool_call_id", "id", "type"),
        *(*_CONTENTS, *MARKS, *tools.CALLS, *tools.THOUGHTS),
    )
)


class _EmptyTurn(Exception):
    """Nothing is left of a turn after its unsupported content was dropped."""


@dataclass(frozen=True)
class TurnReader:
    """Reads turns.

    Attributes:
        drop_unsupported: whether to leave out images, tools, their calls and results, and thoughts.
        roles: further names of roles, each with one of `ROLES`.
        marks: whether marks of turns say which answers are learnt; if not, all are.
        used: the row's columns that were read since `begin`.
        unread: the fields of turns that were not read since `begin`, such as ``messages[].loss_mask``.
        tools: the definitions of tools in a turn that was read since `begin`, as a row has them.
    """

    drop_unsupported: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)
    marks: bool = True
    used: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)
    tools: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin another row."""
        self.used.clear()
        self.unread.clear()
        self.tools.clear()

    def turns(self, row: Mapping[str, Any], key: str) -> list[Message]:
        """Return the turns in a field, which is a list of turns, one turn, or one of these as JSON text.

        Raises:
            Unreadable: it is something else, or a turn cannot be used.
        """
        turns = listed(row[key])
        self.used.add(key)
        if isinstance(turns, list) and turns and not self.roles and all(map(_is_usual, turns)):
            return [Message(turn["role"], turn["content"]) for turn in turns]
        if not isinstance(turns, list) or not turns:
            refuse_python(turns, key)
            text = ", which is not JSON" if isinstance(turns, str) and turns.lstrip()[:1] == "[" else ""
            raise Unreadable(f"wrong type: `{key}` is {kind_of(turns)}{text}; expected a list of turns")
        return tools.with_names(_calls_together(harmony.with_thoughts(self._non_empty(turns, key))))

    def text_or_turns(self, row: Mapping[str, Any], key: str, role: str) -> list[Message]:
        """Return the turns in a field, or one turn of ``role`` with the field's text."""
        value = listed(row[key])
        if isinstance(value, list) and not (value and isinstance(value[0], str)):
            return self.turns(row, key)
        self.used.add(key)
        return [Message(role, text_of(row, key))]

    def text(self, value: object, what: str) -> str:
        """Return a content as one text: a string, or parts.

        Args:
            value: the content.
            what: what it is, for messages.

        Raises:
            Unreadable: it is neither, or a part is no text and must not be dropped.
            _EmptyTurn: all parts were dropped.
        """
        if isinstance(value, list):
            return self._joined(value, what)
        if isinstance(value, dict):
            return self._joined([value], what)
        if not isinstance(value, str):
            raise Unreadable(f"wrong type: the content of {what} is {kind_of(value)}; expected a string")
        return value

    def _non_empty(self, turns: list[Any], key: str) -> Iterator[Message]:
        for number, turn in enumerate(turns, start=1):
            for one in _unpaired(turn):
                try:
                    yield self._message(one, number, key)
                except _EmptyTurn:
                    continue

    def _message(self, turn: object, number: int, key: str) -> Message:
        if isinstance(turn, dict) and "from" in turn and turn.get("role") is None:
            turn = {**turn, "role": turn["from"]}
        if not isinstance(turn, dict) or "role" not in turn:
            raise Unreadable(
                f"wrong type: turn {number} of `{key}` is not an object with `role` and `content`"
            )
        role, what = self._role(turn["role"], number), f"turn {number}"
        turn = self._in_openais_form(turn, role)
        channels = harmony.FIELDS if harmony.has_channel(turn) else ()
        self.unread.update(
            f"{key}[].{printable(name):.40}"
            for name, value in turn.items()
            if name not in _KNOWN and name not in channels and value not in NOTHING
        )
        content = next((turn[name] for name in _CONTENTS if turn.get(name) is not None), None)
        self.unread.update(f"{key}[].{name}" for name in self._left_over(turn, role, content))
        if role == _CALLING:
            return self._calling(turn, content, what)
        if role == "tool":
            return self._result(turn, content, what)
        if role == "assistant" and channels and (special := self._on_channel(turn, content, what)):
            return special
        thought = ""
        calls: tuple[Call, ...] = ()
        if role == "assistant" and self.drop_unsupported:
            if not content and any(tools.has(turn, name) for name in (*tools.CALLS, *tools.THOUGHTS)):
                raise _EmptyTurn
        elif role == "assistant":
            calls = tools.calls_of(turn, what)
            thought = tools.thought_of(turn, content if isinstance(content, list) else ())
        if content is None and not calls and turn.get("refusal"):
            raise Unreadable(
                f"wrong type: {what} has no content, but a `refusal`; expected a content. To learn the refusal, write "
                "it there"
            )
        text = "" if content is None and calls else self.text(content, what)
        return Message(role, text, role == "assistant" and self._is_context(turn, what), thought, calls)

    def _left_over(self, turn: Mapping[str, Any], role: str, content: object) -> Iterator[str]:
        """Yield the fields of a turn that say something else than the field of their kind that is read."""
        for name in _CONTENTS:
            if turn.get(name) not in NOTHING and turn[name] != content:
                yield name
        if self.drop_unsupported:
            return
        speaks = role in ("assistant", _CALLING)
        yield from tools.left_over(turn) if speaks else tools.filled(turn)

    def _in_openais_form(self, turn: dict[str, Any], role: str) -> dict[str, Any]:
        """Return a turn of GLM-4's data, with tools in a system turn or a call's ``metadata``, in OpenAI's form."""
        if role == "system" and tools.has(turn, "tools"):
            self.tools.setdefault("tools", turn["tools"])
            turn = {name: value for name, value in turn.items() if name != "tools"}
            if not any(turn.get(name) for name in _CONTENTS):
                raise _EmptyTurn
        if role == "assistant" and turn.get("metadata") and (calls := tools.calls_by_metadata(turn)):
            turn = {name: value for name, value in turn.items() if name != "metadata"}
            turn |= {"content": None, "tool_calls": calls}
        return turn

    def _calling(self, turn: Mapping[str, Any], content: object, what: str) -> Message:
        """Return a turn that is nothing but calls."""
        if self.drop_unsupported:
            raise _EmptyTurn
        thought, calls = tools.thought_of(turn, ()), tools.calls_of(turn, what)
        if not calls:
            inline, content = tools.without_thought(content)
            thought, calls = thought or inline, tools.read_calls(content, what)
        return Message("assistant", "", self._is_context(turn, what), thought, calls, name=_CALLING)

    def _on_channel(self, turn: Mapping[str, Any], content: object, what: str) -> Message | None:
        """Return an assistant's turn that is a thought or a call on a channel of harmony; None for an answer."""
        content = self.text(content, what) if isinstance(content, list) else content
        call = harmony.call_of(turn, content, what)
        if call is None and not harmony.is_thought(turn):
            return None
        if self.drop_unsupported:
            raise _EmptyTurn
        context = self._is_context(turn, what)
        if call is not None:
            return Message("assistant", "", context, tools.thought_of(turn, ()), (call,), name=_CALLING)
        return Message("assistant", "", context, self.text(content, what), name=harmony.THINKING)

    def _is_context(self, turn: Mapping[str, Any], what: str) -> bool:
        return self.marks and is_context(turn, what)

    def _result(self, turn: Mapping[str, Any], content: object, what: str) -> Message:
        """Return the result of a tool."""
        if self.drop_unsupported:
            raise _EmptyTurn
        name, call_id = turn.get("name"), turn.get("tool_call_id")
        return Message(
            "tool",
            self.text(tools.result_text(content), what),
            name=name if isinstance(name, str) else "",
            call_id=call_id if isinstance(call_id, str) else "",
        )

    def _role(self, role: object, number: int) -> str:
        if isinstance(role, str):
            if named := self.roles.get(role) or self._roles_in_lower_case.get(role.lower()):
                return named
            for names, known in ((tools.RESULTS, "tool"), (tools.CALLS, _CALLING)):
                if role.lower() in names:
                    return known
            if role.lower() in _ROLES:
                return _ROLES[role.lower()]
        raise Unreadable(
            f"unknown role: {role!r:.40} in turn {number}; expected {', '.join(ROLES)}. If it has another name for one "
            "of these, give it: --roles NAME=assistant"
        )

    @cached_property
    def _roles_in_lower_case(self) -> dict[str, str]:
        return {name.lower(): role for name, role in self.roles.items()}

    def _joined(self, parts: list[Any], what: str) -> str:
        texts: list[str] = []
        thoughts = False
        for part in parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            kind = part.get("type", "text") if isinstance(part, dict) else None
            if not isinstance(kind, str):
                raise Unreadable(f"wrong type: a part of {what} is not an object with `type` and `text`")
            words = next((part[name] for name in _CONTENTS if isinstance(part.get(name), str)), None)
            if kind in tools.TEXT_PARTS and words is not None:
                texts.append(words)
            elif kind in tools.TEXT_PARTS:
                raise Unreadable(f"wrong type: a part of {what} has no text; expected a string in its `text`")
            elif kind in tools.THOUGHTS:
                thoughts = True
            elif not self.drop_unsupported:
                self._unsupported(f"{what} holds a part of type {kind!r:.40}")
        if parts and not texts and not (thoughts and not self.drop_unsupported):
            raise _EmptyTurn
        return "".join(texts)

    def _unsupported(self, what: str) -> None:
        if self.drop_unsupported:
            raise _EmptyTurn
        raise Unreadable(f"unsupported content: {what}; expected text (--drop-unsupported removes it)")


def _is_usual(turn: object) -> bool:
    """Return whether a turn is what most are: a known role and a text, and nothing else. Such turns need no reading."""
    return (
        type(turn) is dict
        and len(turn) == 2
        and turn.get("role") in _USUAL
        and type(turn.get("content")) is str
    )


def _calls_together(messages: Iterator[Message]) -> list[Message]:
    """Return turns in which calls in turns of their own belong to the assistant's turn before them, if there is one."""
    together: list[Message] = []
    for message in messages:
        before = together[-1] if together else None
        if message.name != _CALLING:
            together.append(message)
        elif (
            before
            and before.role == "assistant"
            and before.context == message.context
            and not message.thought
        ):
            together[-1] = replace(before, calls=(*before.calls, *message.calls))
        else:
            together.append(replace(message, name=""))
    return together


def _unpaired(turn: object) -> list[Any]:
    """Return an object that holds a question and its answer as two turns, perhaps after a system turn."""
    if isinstance(turn, dict) and turn.get("role") is None and turn.get("from") is None:
        for asked, answered in _PAIRS:
            if isinstance(turn.get(asked), str) and isinstance(turn.get(answered), str):
                system = [{"role": "system", "content": turn["system"]}] if turn.get("system") else []
                marks = {
                    name: value for name, value in turn.items() if name not in (asked, answered, "system")
                }
                question = [{"role": "user", "content": turn[asked]}] if turn[asked] else []
                return [*system, *question, {**marks, "role": "assistant", "content": turn[answered]}]
    return [turn]


def listed(value: object) -> object:
    """Return turns as a list that are written as JSON text, as a single turn, or as columns; else the value."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            decoded = msgspec.json.decode(value)
        except (msgspec.MsgspecError, RecursionError):
            return value
        turns = decoded if isinstance(decoded, list) else listed(decoded)
        return turns if isinstance(turns, list) and turns and all(map(is_turn, turns)) else value
    if isinstance(value, dict) and is_turn(value):
        return _transposed(value) or [value]
    return value


def _transposed(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Return turns whose fields are lists, as ``datasets`` stores a sequence of objects; [] if they are no lists."""
    lengths = {len(value) if isinstance(value, list) else -1 for value in columns.values()}
    if len(lengths) != 1 or lengths == {-1}:
        return []
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def is_turn(value: object) -> bool:
    """Return whether a JSON value looks like a turn, or like a question with its answer."""
    return is_message(value) or len(_unpaired(value)) > 1


def is_message(value: object) -> bool:
    """Return whether a JSON value looks like a turn: a role and a content, but no parent, as a row of a tree has."""
    return (
        isinstance(value, dict)
        and ("role" in value or "from" in value)
        and any(name in value for name in (*_CONTENTS, *tools.CALLS))
        and "parent_id" not in value
    )
