"""The turns of a conversation: who says what, which tools are called, and what is learnt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

ROLES = ("system", "user", "assistant", "tool")
TEXT = "text"  # the role of a plain text, which is not a conversation
NOTHING: tuple[object, ...] = (None, "", [], {})  # values of fields that hold nothing
TOOLS = "tools"  # the role of the definitions of tools, which come before all turns


class Unreadable(Exception):
    """One row cannot be used. The message is its reason in ``rejected.jsonl``."""


class Call(msgspec.Struct, frozen=True):
    """A call of a tool.

    Attributes:
        name: the tool's name.
        arguments: the arguments as a JSON object, in the order in which they were written.
        id: the call's id; "" if it has none.
    """

    name: str
    arguments: str
    id: str = ""

    @property
    def text(self) -> str:
        """The call as JSON."""
        return f'{{"name": {msgspec.json.encode(self.name).decode()}, "arguments": {self.arguments}}}'


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation, a plain text, or the definitions of tools. It unpacks into role and content.

    Attributes:
        role: one of `ROLES`; `TEXT` for a plain text; `TOOLS` for the definitions of tools.
        content: the text; of tools, a JSON list of their definitions in OpenAI's form.
        context: True for an answer that is not learnt; False for all other turns.
        thought: what an assistant thinks before its answer; "" for nothing.
        calls: the tools that an assistant calls after its content.
        name: the tool whose result a turn of role ``tool`` holds; "" if it is unknown.
        call_id: the id of the call whose result this is; "" if it has none.
    """

    role: str
    content: str
    context: bool = False
    thought: str = ""
    calls: tuple[Call, ...] = ()
    name: str = ""
    call_id: str = ""

    def __iter__(self) -> Iterator[str]:
        """Iterate over role and content."""
        return iter((self.role, self.content))

    @property
    def learnt(self) -> bool:
        """Whether the content is predicted: that of an answer that is not context, and a plain text."""
        return self.role in ("assistant", TEXT) and not self.context

    @property
    def plain(self) -> bool:
        """Whether role and content are all there is."""
        return self.role not in (TOOLS, "tool") and not self.thought and not self.calls

    @property
    def blank(self) -> bool:
        """Whether the turn says nothing and calls nothing."""
        return not self.content.strip() and not self.calls

    @property
    def text(self) -> str:
        """Thought, content and calls as one text."""
        return "\n".join(
            part for part in (self.thought, self.content, *(call.text for call in self.calls)) if part
        )

    def identity(self) -> tuple[Any, ...]:
        """Return everything that makes the turn what it is; for a plain turn, role and content."""
        if self.plain:
            return (self.role, self.content, True) if self.context else (self.role, self.content)
        calls = [(call.name, call.arguments, call.id) for call in self.calls]
        return (*self, self.context, self.thought, calls, self.name, self.call_id)


def kind_of(value: object) -> str:
    """Return the kind of a JSON value in words, such as ``an object`` or ``empty``."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number") if value not in ("", []) else "empty"
