"""Read a question from the columns of a row: the earlier turns, the system text, and the text that it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from clusterucb.samples.fields import text_of
from clusterucb.samples.message import NOTHING, Message, Unreadable
from clusterucb.samples.turns import TurnReader, is_message, listed

Row = Mapping[str, Any]
ASKED = ("instruction", "query", "question", "prompt", "input", "human", "user")
ANSWERED = ("output", "response", "answer", "completion", "assistant")
_LEADING = ("solution", "completion", "assistant")  # what may lead to an ``answer``, beside it
_GIVEN = ("input", "context")
_AFTER_INSTRUCTION = ("question", "query", *_GIVEN)  # what an instruction may be about


def question_of(row: Row, key: str, reader: TurnReader) -> list[Message]:
    """Return earlier pairs of question and answer, and a question with the text that it is about.

    A question may be a list of turns, whose answers are context, as in a prompt.
    """
    if isinstance(listed(row[key]), list):
        reader.used.update(["history"] if row.get("history") else [])
        return [*_earlier(row, reader), *as_context(reader.turns(row, key))]
    names = _AFTER_INSTRUCTION if key == "instruction" else _GIVEN
    given = [name for name in names if name != key and row.get(name)]
    reader.used.update((key, *given, *(["history"] if row.get("history") else [])))
    parts = [text for name in (key, *given) if (text := text_of(row, name))]
    return [*_earlier(row, reader), Message("user", "\n\n".join(parts))]


def as_context(messages: Sequence[Message]) -> list[Message]:
    """Return turns whose answers are not learnt."""
    return [replace(message, context=message.role == "assistant") for message in messages]


def answered(row: Row) -> str:
    """Return the column of a row's answer.

    Data sets of problems have an ``answer`` that is only the result, beside a text that leads to it. The longer one is
    what trainers are given. An ``answer`` that the user names is the answer.
    """
    name = present(row, ANSWERED)
    if name != "answer" or name in getattr(row, "names", ()):
        return name
    texts = [key for key in (name, *_LEADING) if isinstance(row.get(key), str)]
    return max(texts, key=lambda key: len(row[key].strip()), default=name)


def present(row: Row, names: Sequence[str]) -> str:
    """Return the first of some fields that has a value, or that is there."""
    filled = (name for name in names if row.get(name) not in NOTHING)
    return next(filled, None) or next(name for name in names if row.get(name) is not None)


def with_system(row: Row, messages: list[Message], reader: TurnReader) -> list[Message]:
    """Return the messages with the row's ``system`` text before them, if it has one and no message is a system turn."""
    if not row.get("system") or any(message.role == "system" for message in messages):
        return messages
    reader.used.add("system")
    return [Message("system", reader.text(row["system"], "`system`")), *messages]


def _earlier(row: Row, reader: TurnReader) -> list[Message]:
    """Return the turns of a ``history``, which holds pairs of question and answer, or turns."""
    turns = listed(row.get("history"))
    if isinstance(turns, list) and turns and all(map(is_message, turns)):
        return reader.turns(row, "history")
    return [Message(role, text) for role, text in _history(row)]


def _history(row: Row) -> Iterator[tuple[str, str]]:
    history = row.get("history") or []
    if isinstance(history, str) and history.lstrip()[:1] == "[":
        try:
            history = msgspec.json.decode(history)
        except (msgspec.MsgspecError, RecursionError):
            history = [None]
    for pair in history if isinstance(history, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Unreadable(
                "wrong type: `history` is not a list of pairs of question and answer; expected such pairs, or turns"
            )
        yield "user", pair[0]
        yield "assistant", pair[1]
