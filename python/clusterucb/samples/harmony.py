"""Read turns with the channels of harmony, the format of gpt-oss.

Decisions:
    - A turn on the channel ``analysis`` is what the model thinks before its next answer or call, and never an answer.
    - A turn to ``functions.NAME`` is a call of that tool, with its arguments as JSON.
    - Other turns on ``commentary``, and turns to the model's own tools (``python``, ``browser.search``), are refused:
      chat templates have no place for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from clusterucb.samples import tools
from clusterucb.samples.message import Call, Message, Unreadable

FIELDS = ("channel", "recipient")
THINKING = "thinking"  # the name of a turn that is nothing but the thoughts before the next turn
_CHANNELS = ("analysis", "commentary", "final")
_NOBODY = ("", "all", "user", "assistant")  # recipients that are no tool


def has_channel(turn: Mapping[str, Any]) -> bool:
    """Return whether a turn has a channel or a recipient of harmony."""
    return turn.get("channel") in _CHANNELS or _function(turn) != ""


def _function(turn: Mapping[str, Any]) -> str:
    """Return the tool that a turn is sent to; "" if it is sent to none."""
    recipient = turn.get("recipient")
    start, _, name = recipient.partition("functions.") if isinstance(recipient, str) else ("", "", "")
    return "" if start else name


def call_of(turn: Mapping[str, Any], content: object, what: str) -> Call | None:
    """Return the call that an assistant's turn is; None if it is none.

    Args:
        turn: a turn with a channel or a recipient.
        content: its content.
        what: what it is, for messages.

    Raises:
        Unreadable: the turn is neither a call of a tool, nor a thought, nor an answer.
    """
    if name := _function(turn):
        given = content if isinstance(content, str | dict) else (content or {})
        (call,) = tools.read_calls({"name": name, "arguments": given}, what)
        return call
    recipient = turn.get("recipient")
    if isinstance(recipient, str) and recipient not in _NOBODY:
        raise Unreadable(
            f"unsupported content: {what} is sent to {recipient!r:.40}; expected `functions.NAME`, a tool of the row. "
            "Templates have no place for the model's own tools: leave the row out"
        )
    if turn["channel"] == "commentary":
        raise Unreadable(
            f"unsupported content: {what} is on the channel 'commentary', but no call; expected a `recipient`, such as "
            "functions.NAME. Remove the turn, or make it a part of the answer"
        )
    return None


def is_thought(turn: Mapping[str, Any]) -> bool:
    """Return whether an assistant's turn that is no call is a thought."""
    return turn.get("channel") == "analysis"


def with_thoughts(messages: Iterable[Message]) -> Iterator[Message]:
    """Yield turns in which thoughts in turns of their own belong to the answer or call that follows them.

    Raises:
        Unreadable: none follows, or it is marked otherwise than its thoughts.
    """
    thoughts: list[Message] = []
    for message in messages:
        if message.name == THINKING:
            thoughts.append(message)
            continue
        yield _joined(thoughts, message) if thoughts else message
        thoughts = []
    if thoughts:
        _joined(thoughts, None)


def _joined(thoughts: list[Message], message: Message | None) -> Message:
    if message is None or message.role != "assistant":
        raise Unreadable(
            "unsupported content: no answer follows a turn on the channel 'analysis'; expected an answer or a call, "
            "because thoughts alone are not learnt. Remove the turn"
        )
    if any(thought.context != message.context for thought in thoughts):
        raise Unreadable(
            "unsupported content: an answer and its turn on the channel 'analysis' have different marks; expected the "
            "same, because both are learnt or not. --learn all or --learn last sets marks aside"
        )
    texts = [thought.thought for thought in thoughts] + ([message.thought] if message.thought else [])
    return replace(message, thought="\n".join(texts))
