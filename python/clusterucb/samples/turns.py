"""Read the turns of a conversation: roles, contents, and marks that say which answers are learnt.

Sources: OpenAI's chat format (``weight``, parts of a content), axolotl's ``train`` and ``training``, ms-swift's
``loss``, LLaMA-Factory's ``loss_weight``; ShareGPT's ``from`` and ``value``; xtuner's pairs of ``input`` and
``output``.

Decisions:
    - Roles are compared without regard to case. `_ROLES` holds the names that data sets use for the three roles.
    - The parts of a content are joined without a separator, as chat templates do.
    - A mark matters on an assistant's turn alone: other turns are never learnt. An answer that is marked as not to be
      learnt stays in the conversation as context. A fraction is refused, because an answer is learnt or not.
    - A table may hold a list as JSON text. A field that should be a list of turns is decoded; one that may be a text
      is decoded only if it is a list of turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

ROLES = ("system", "user", "assistant")
TEXT = "text"  # the role of a plain text, which is not a conversation

_ROLES = {
    **{role: role for role in ROLES},
    "developer": "system",
    "context": "system",
    "human": "user",
    "prompter": "user",
    "instruction": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot", "chatbot", "ai"), "assistant"),
}
_TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython", "tool_call", "tool_response")
_TOOL_KEYS = ("tool_calls", "function_call")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_LEARNT = ("train", "training", "loss", "loss_weight", "weight")  # 0 or false: context
_SPANS = ("train_detail", "training_detail")  # axolotl's marks of parts of an answer
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"))  # both turns in one object
_TEXT_PARTS = ("text", "input_text", "output_text")
_CONTENTS = ("content", "value", "text")


class Unreadable(Exception):
    """One row cannot be used. The message is its reason in ``rejected.jsonl``."""


class _EmptyTurn(Exception):
    """Nothing is left of a turn after its unsupported content was dropped."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, or a plain text. It unpacks into role and content.

    Attributes:
        role: one of `ROLES`, or `TEXT` for a plain text.
        content: the text.
        context: True for an answer that is not learnt; False for all other turns.
    """

    role: str
    content: str
    context: bool = False

    def __iter__(self) -> Iterator[str]:
        """Iterate over role and content."""
        return iter((self.role, self.content))

    @property
    def learnt(self) -> bool:
        """Whether the content is predicted: that of an answer that is not context, and a plain text."""
        return self.role in ("assistant", TEXT) and not self.context


@dataclass(frozen=True)
class TurnReader:
    """Reads turns.

    Attributes:
        drop_unsupported: whether to leave out images, tool calls and thoughts instead of rejecting their row.
        roles: further names of roles, each with one of `ROLES`.
    """

    drop_unsupported: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)

    def turns(self, row: Mapping[str, Any], key: str) -> list[Message]:
        """Return the turns in a field, which is a list of turns, one turn, or one of these as JSON text.

        Raises:
            Unreadable: it is something else, or a turn cannot be used.
        """
        turns = listed(row[key])
        if not isinstance(turns, list) or not turns:
            text = ", which is not JSON" if isinstance(turns, str) and turns.lstrip()[:1] == "[" else ""
            raise Unreadable(f"wrong type: `{key}` is {kind_of(turns)}{text}; expected a list of turns")
        return list(self._non_empty(turns, key))

    def text_or_turns(self, row: Mapping[str, Any], key: str, role: str) -> list[Message]:
        """Return the turns in a field, or one turn of ``role`` with the field's text."""
        value = listed(row[key])
        if isinstance(value, list):
            return self.turns(row, key)
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
        role = self._role(turn["role"], number)
        extra = next((name for name in (*_TOOL_KEYS, *_THOUGHTS) if turn.get(name)), None)
        if extra and not self.drop_unsupported:
            self._unsupported(f"turn {number} {'has' if extra in _THOUGHTS else 'makes'} {extra!r}")
        content = next((turn[name] for name in _CONTENTS if turn.get(name) is not None), None)
        if extra and not content:
            raise _EmptyTurn
        return Message(
            role, self.text(content, f"turn {number}"), role == "assistant" and _is_context(turn, number)
        )

    def _role(self, role: object, number: int) -> str:
        if isinstance(role, str):
            if role in self.roles:
                return self.roles[role]
            if role.lower() in _TOOL_ROLES:
                self._unsupported(f"turn {number} is of role {role!r}")
            if role.lower() in _ROLES:
                return _ROLES[role.lower()]
        raise Unreadable(
            f"unknown role: {role!r:.40} in turn {number}; expected {', '.join(ROLES)}. If it has another name for one "
            "of these, give it: --roles NAME=assistant"
        )

    def _joined(self, parts: list[Any], what: str) -> str:
        texts = []
        for part in parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            kind = part.get("type", "text") if isinstance(part, dict) else None
            if not isinstance(kind, str):
                raise Unreadable(f"wrong type: a part of {what} is not an object with `type` and `text`")
            words = next((part[name] for name in _CONTENTS if isinstance(part.get(name), str)), None)
            if kind in _TEXT_PARTS and words is not None:
                texts.append(words)
            elif kind in _TEXT_PARTS:
                raise Unreadable(f"wrong type: a part of {what} has no text; expected a string in its `text`")
            elif not self.drop_unsupported:
                self._unsupported(f"{what} holds a part of type {kind!r:.40}")
        if parts and not texts:
            raise _EmptyTurn
        return "".join(texts)

    def _unsupported(self, what: str) -> None:
        if self.drop_unsupported:
            raise _EmptyTurn
        raise Unreadable(f"unsupported content: {what}; expected text (--drop-unsupported removes it)")


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


def _is_context(turn: Mapping[str, Any], number: int) -> bool:
    """Return whether an answer is marked as not to be learnt.

    Raises:
        Unreadable: a mark is no yes or no, or marks a part of the answer.
    """
    for name in _SPANS:
        if turn.get(name):
            raise Unreadable(
                f"unsupported content: turn {number} marks parts of the answer ({name!r}); expected a mark of the "
                "whole answer"
            )
    context = False
    for name in (*_LEARNT, "masked"):
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise Unreadable(
                f"unsupported content: turn {number} has {name} {value!r:.40}; expected 0 or 1 (false or true), "
                "because an answer is learnt or not"
            )
        context = context or bool(value) == (name == "masked")
    return context


def listed(value: object) -> object:
    """Return a list of turns that is written as JSON text, or that is a single turn, as a list; else the value."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            decoded = msgspec.json.decode(value)
        except (msgspec.MsgspecError, RecursionError):
            return value
        turns = decoded if isinstance(decoded, list) else [decoded]
        return turns if turns and all(map(is_turn, turns)) else value
    return [value] if is_turn(value) else value


def is_turn(value: object) -> bool:
    """Return whether a JSON value looks like a turn, or like a question with its answer."""
    return is_message(value) or len(_unpaired(value)) > 1


def is_message(value: object) -> bool:
    """Return whether a JSON value looks like a turn: a role and a content, but no parent, as a row of a tree has."""
    return (
        isinstance(value, dict)
        and ("role" in value or "from" in value)
        and any(name in value for name in (*_CONTENTS, *_TOOL_KEYS))
        and "parent_id" not in value
    )


def text_of(row: Mapping[str, Any], key: str) -> str:
    """Return a field's text.

    Raises:
        Unreadable: it is not a string.
    """
    if not isinstance(row[key], str):
        raise Unreadable(f"wrong type: `{key}` is {kind_of(row[key])}; expected a string")
    return str(row[key])


def kind_of(value: object) -> str:
    """Return the kind of a JSON value in words, such as ``an object`` or ``empty``."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number") if value not in ("", []) else "empty"
