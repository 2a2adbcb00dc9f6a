"""Define what all tools share: a training's description, a tool's interface, and how values become text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from clusterucb.report.export.lora import Lora
from clusterucb.samples.message import TOOLS, Message

WRITTEN_BY = "Written by clusterucb. Every selection overwrites this file: copy it before you change it."

Conversation = Sequence[Message]
Row = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """The values that go into a tool's configurations.

    Attributes:
        folder: the export's folder, absolute.
        model: a hub id, or the absolute path of the model's folder.
        revision: the hub id's branch, tag or commit; None for the default branch.
        max_length: the largest number of tokens of a sample.
        lora: the LoRA that is trained.
        conversations: whether there are conversations.
        texts: whether there are plain texts.
        last: whether of each exported conversation only the last answer is learnt, as `Tool.last` decided.
        context: whether some answer of an exported conversation is context, and not learnt.
        tools: whether some exported conversation has tools, calls or their results.
        tokenizer: the tokenizer's folder or hub id, if it is not the model's.
        trusted: whether code of the model's repository may run.
        reselection: the call that selects anew (`clusterucb.report.export.reselection`), or None.
    """

    folder: Path
    model: str
    revision: str | None
    max_length: int
    lora: Lora
    conversations: bool
    texts: bool
    last: bool
    context: bool
    tools: bool
    tokenizer: str | None
    trusted: bool
    reselection: str | None


@dataclass(frozen=True)
class Tool:
    """How to write a selection for one tool.

    Attributes:
        reads: turns a conversation into its line; gets the conversation, and what `last` returned. Returns None if
            the tool cannot read the conversation, or would learn other answers than those that were scored.
        files: returns the text of every file but the samples, by name.
        program: the command that takes a configuration's path.
        globs: whether the tool reads a path as a pattern, too.
        cannot: what the tool cannot read, for the message that counts what is left out.
        last: whether the tool is told to learn only the last answer of every conversation, given all of them.
    """

    reads: Callable[[Conversation, bool], Row | None]
    files: Callable[[Training], dict[str, str]]
    program: str
    globs: bool
    cannot: str
    last: Callable[[Sequence[Conversation]], bool]


def learns_last_alone(conversation: Conversation) -> bool:
    """Return whether a conversation ends with the only answer that is learnt, after at least one other turn."""
    learnt = [message.learnt for message in conversation]
    return len(learnt) > 1 and learnt.index(True) == len(learnt) - 1


def up_to_last_learnt(conversation: Conversation) -> Conversation:
    """Return a conversation without the turns after the last answer that is learnt: nothing is learnt from them."""
    return conversation[: max(at for at, message in enumerate(conversation, start=1) if message.learnt)]


def turns(conversation: Conversation, *, as_text: bool = False) -> list[Row]:
    """Return the turns of a conversation in OpenAI's form, with thoughts as ``reasoning_content``.

    Args:
        conversation: the turns, perhaps after definitions of tools, which are left out.
        as_text: whether the arguments of calls are JSON text, and not objects.
    """
    return [_turn(message, as_text) for message in conversation if message.role != TOOLS]


def _turn(message: Message, as_text: bool) -> Row:
    turn: Row = {"role": message.role, "content": message.content}
    beside = {
        "reasoning_content": message.thought,
        "tool_calls": [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if as_text else msgspec.json.decode(call.arguments),
                },
            }
            for call in message.calls
        ],
        "name": message.name,
        "tool_call_id": message.call_id,
    }
    return turn | {name: value for name, value in beside.items() if value}


def defined_tools(conversation: Conversation) -> str:
    """Return the definitions of a conversation's tools, a JSON list; "" if there are none."""
    return conversation[0].content if conversation[0].role == TOOLS else ""


def has_tools(conversation: Conversation) -> bool:
    """Return whether a conversation has tools, calls or their results."""
    return any(message.calls or message.role in ("tool", TOOLS) for message in conversation)


def has_context(conversation: Conversation) -> bool:
    """Return whether an answer of a conversation is context, and not learnt."""
    return any(message.context for message in conversation)


def output_folder(training: Training, *, text: bool) -> str:
    """Return the folder that a training writes its results to; ``text`` says whether it trains on plain texts alone."""
    return str(training.folder / ("trained-text" if text else "trained"))


def yaml_text(values: Row, notes: Sequence[str] = ()) -> str:
    """Return a YAML file with the notes as comments and the values that are not None."""
    import yaml  # type: ignore[import-untyped]

    given = {key: value for key, value in values.items() if value is not None}
    comments = "".join(f"# {note}\n" for note in (WRITTEN_BY, *notes))
    content: str = yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=math.inf)
    return comments + content
