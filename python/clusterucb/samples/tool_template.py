"""Find out how a chat template writes tools, calls and thoughts, and where turns that have some begin and end.

Templates differ in the fields that they read. So made-up conversations are rendered once, and their words are looked
for in the text.

Decisions:
    - Learnt is what the model has to write: everything between the template's prompt for an answer and the token that
      ends the turn, that token included. This holds for turns with calls or thoughts, as in TRL's templates for
      training. The prompt is taken without a ``<think>`` that some templates end it with, because the thoughts of a
      sample begin with it.
    - A template without a field for thoughts gets them as part of the content, as ``<think>...</think>``. If it drops
      them there, they are left out.
    - A template that drops thoughts of earlier turns, or the content of a turn with calls, is followed.
    - If a template has no place for calls, conversations with calls are refused. If it has no place for definitions of
      tools, conversations without calls are rendered without them, and they are counted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise, product
from typing import Any, NamedTuple

import jinja2
import msgspec
import numpy as np
from msgspec.structs import replace

from clusterucb.samples.message import TOOLS, Message
from clusterucb.samples.pieces import Kind, Piece, Unusable
from clusterucb.samples.tools import with_thought
from clusterucb.samples.watch import TooMuch
from clusterucb.wording import counted

# Python errors in a template, such as of an index, refuse one conversation.
REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    TooMuch,
)

Turns = list[dict[str, Any]]
_ABSENT = object()
_DEFINED = {"description": "", "parameters": {"type": "object", "properties": {}}}
_NO_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")  # of the template, as before an answer without calls
_THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
# Words that no template writes.
_ASKED, _SAID, _NAME, _KEY, _VALUE, _RESULT = (
    f"qz{word}qz" for word in ("ask", "say", "tool", "key", "value", "got")
)
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "x",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "x"}}},
    },
}


NO_RESULTS = (
    "chat template: it has no place for results of tools that no tool call asks for; expected the template of a model "
    "for tools, or calls as `tool_calls`"
)


def has_lone_results(messages: Sequence[Message]) -> bool:
    """Return whether a conversation has results of tools, but no calls: a content may spell them out."""
    return any(message.role == "tool" for message in messages) and not any(
        message.calls for message in messages
    )


class Span(NamedTuple):
    """Where a part of a message stands in a text."""

    start: int
    stop: int
    message: int


class _Form(NamedTuple):
    """How a template takes calls.

    Attributes:
        as_text: whether arguments are JSON text, and not an object.
        empty: the content of a turn with calls alone; `_ABSENT` for none.
        end: the token that ends a turn with calls.
        after_result: the text between a result and the answer to it, if the model goes on in the same turn (Gemma 4);
            else "".
    """

    as_text: bool
    empty: object
    end: str
    after_result: str


class ToolTemplate:
    """What a chat template makes of tools, calls and thoughts.

    Args:
        apply: renders turns, with definitions of tools, and perhaps with the prompt for an answer.
        added: the tokenizer's added tokens.

    Attributes:
        without_tools: how many conversations were rendered without their definitions of tools.
    """

    def __init__(self, apply: Callable[[Turns, list[Any] | None, bool], str], added: Sequence[str]) -> None:
        self._apply = apply
        self._added = added
        self.without_tools = 0

    def fitted(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return a conversation that the template can write, with thoughts and tools where it has a place for them.

        Raises:
            Unusable: it has no place for calls.
        """
        if all(message.plain for message in messages):
            return messages
        if self._form is None and any(message.calls for message in messages):
            raise Unusable(
                "chat template: it has no place for tool calls; expected the template of a model for tools"
            )
        if messages[0].role == TOOLS and not self._writes_tools:
            self.without_tools += 1
            messages = messages[1:]
        if self._thought_key is None:
            return [self._inline(message) for message in messages]
        return messages

    def _inline(self, message: Message) -> Message:
        """Return a turn with its thoughts as a part of its content; without them, if the template drops them there."""
        if not message.thought:
            return message
        content = with_thought(message.thought, message.content) if self._keeps_inline else message.content
        return replace(message, content=content, thought="")

    def turns(
        self, messages: Sequence[Message], *, completed: bool = False
    ) -> tuple[Turns, list[Any] | None]:
        """Return turns as templates expect them, and the definitions of tools.

        Args:
            messages: a fitted conversation.
            completed: whether what some templates insist on is added: ids of calls with nine letters and digits
                (Mistral's), and descriptions and parameters of tools (gpt-oss's).
        """
        tools = msgspec.json.decode(messages[0].content) if messages[0].role == TOOLS else None
        if completed and tools:
            tools = [{**tool, "function": {**_DEFINED, **tool["function"]}} for tool in tools]
        ids: dict[str, str] = {}
        turns: Turns = []
        waiting: Iterator[str] = iter(())
        for message in messages:
            if message.role == TOOLS:
                continue
            turn: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.thought and self._thought_key:
                turn[self._thought_key] = message.thought
            if message.calls:
                turn |= self._called(message, ids, completed=completed)
                waiting = iter([call["id"] for call in turn["tool_calls"]])
            if message.role == "tool":
                following = next(waiting, "")
                call_id = ids.get(message.call_id, message.call_id) or following
                beside = {"name": message.name, "tool_call_id": call_id}
                turn |= {key: value for key, value in beside.items() if value}
            turns.append({key: value for key, value in turn.items() if value is not _ABSENT})
        return turns, tools

    def _called(self, message: Message, ids: dict[str, str], *, completed: bool) -> dict[str, Any]:
        """Return the fields of a turn with calls. ``ids`` gets new ids of calls, by those in the data."""
        assert self._form is not None
        calls = []
        for call in message.calls:
            own = call.id
            if completed or not own:
                own = f"call{len(ids):05}"
                ids[call.id or own] = own
            arguments = call.arguments if self._form.as_text else msgspec.json.decode(call.arguments)
            calls.append(
                {"id": own, "type": "function", "function": {"name": call.name, "arguments": arguments}}
            )
        return {"tool_calls": calls, **({} if message.content else {"content": self._form.empty})}

    def pieces(
        self, messages: Sequence[Message], rendered: str, spans: Sequence[Span], ends: Sequence[str]
    ) -> list[Piece]:
        """Return a text in pieces.

        Args:
            messages: a fitted conversation.
            rendered: its text.
            spans: where contents and thoughts stand, in order.
            ends: the tokens that may end a plain answer.

        Raises:
            Unusable: a call is missing, or a turn cannot be told from the template's text.
        """
        kinds = np.zeros(len(rendered), np.uint8)
        cursor = 0
        for at, message in enumerate(messages):
            own = [span for span in spans if span.message == at]
            for span in own:
                kinds[span.start : span.stop] = Kind.ANSWER if message.learnt else Kind.CONTENT
            if message.calls or len(own) > bool(message.content.strip()):
                begin = self._begin(rendered, cursor, own, at)
                if not message.thought and (empty := _NO_THOUGHT.match(rendered, begin)):
                    begin = empty.end()
                stop, closing = self._end(
                    rendered, begin, own, message, at, _following(spans, at, len(messages))
                )
                whole = kinds[begin:stop]
                whole[whole == Kind.TEMPLATE] = Kind.CALL if message.learnt else Kind.TEMPLATE
            elif own:
                stop = own[-1].stop
                blank = len(rendered[stop:]) - len(rendered[stop:].lstrip())
                closing = next((end for end in ends if end and rendered.startswith(end, stop + blank)), "")
                stop += blank if closing else 0
            else:
                continue
            cursor = stop + len(closing)
            if message.learnt:
                kinds[stop:cursor] = Kind.END
        cuts = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(rendered)]
        return [
            Piece(rendered[start:stop], Kind(kinds[start])) for start, stop in pairwise(cuts) if start < stop
        ]

    def _begin(self, rendered: str, cursor: int, own: Sequence[Span], at: int) -> int:
        """Return where a turn begins that the model writes: after the template's prompt for an answer."""
        limit = own[0].start if own else len(rendered)
        if self._prompt:
            place = rendered.find(self._prompt, cursor, limit)
            after = self._form.after_result if self._form else ""
            if place < 0 and after and rendered.startswith(after, cursor):
                return cursor + len(after)
            if place < 0:
                raise Unusable(f"chat template: the beginning of turn {at + 1} cannot be found in its text")
            return place + len(self._prompt)
        found = list(self._tokens(rendered, cursor, limit))[:1]  # that ends the turn before
        begin = found[0][0] + len(found[0][1]) if found else cursor
        return begin + len(rendered[begin:limit]) - len(rendered[begin:limit].lstrip())

    def _end(
        self,
        rendered: str,
        begin: int,
        own: Sequence[Span],
        message: Message,
        at: int,
        following: int | None,
    ) -> tuple[int, str]:
        """Return where the text of a turn ends, and the token that ends the turn.

        ``following`` is where the text of the next turn begins (the largest number after the last turn), or None if the
        next turn has no text. The token that ends calls may stand inside them, so the last one before it counts.
        """
        stop = own[-1].stop if own else begin
        if not message.calls:
            place, token = next(self._tokens(rendered, stop, len(rendered)), (stop, ""))
            return (place, token) if not rendered[stop:place].strip() else (stop, "")
        assert self._form is not None
        if following is None:  # the next turn has no text to be found by: the first end after the calls
            for call in message.calls:
                stop = max(rendered.find(call.name, stop), stop)
            place = rendered.find(self._form.end, stop)
        else:
            place = rendered.rfind(self._form.end, stop, following)
        if place < 0:
            raise Unusable(f"chat template: it does not end the calls of turn {at + 1}")
        return place, self._form.end

    def check_calls(self, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> None:
        """Check that the template writes every call of turns with several.

        Args:
            messages: a fitted conversation.
            render: renders a conversation.

        Raises:
            Unusable: it leaves one out.
        """
        if all(len(message.calls) < 2 for message in messages):
            return
        marked = [
            replace(
                message,
                calls=tuple(
                    replace(call, name=f"Qz7callQ{at}x{n}zQ") for n, call in enumerate(message.calls)
                ),
            )
            for at, message in enumerate(messages)
        ]
        text = render(marked)
        for at, message in enumerate(marked):
            if not all(call.name in text for call in message.calls):
                raise Unusable(
                    f"chat template: it does not write all {counted(len(message.calls), 'call')} of turn {at + 1}"
                )

    def _tokens(self, text: str, start: int, stop: int) -> Iterator[tuple[int, str]]:
        """Yield the added tokens in a part of a text, and where they stand."""
        while True:
            places = ((text.find(token, start, stop), -len(token), token) for token in self._added)
            found = [one for one in places if one[0] >= 0]
            if not found:
                return
            place, _, token = min(found)
            yield place, token
            start = place + len(token)

    @cached_property
    def _prompt(self) -> str:
        """The text that asks the model for an answer; "" if the template has none."""
        asked: Turns = [{"role": "user", "content": _ASKED}]
        before, after = self._tried(asked), self._tried(asked, generation=True)
        if before is None or after is None or not after.startswith(before):
            return ""
        return after[len(before) :].partition("<think>")[0]

    @cached_property
    def _thought_key(self) -> str | None:
        """The field that the template reads thoughts from; None if it writes none."""
        for key in _THOUGHT_KEYS:
            turns = [
                {"role": "user", "content": _ASKED},
                {"role": "assistant", "content": _SAID, key: _VALUE},
            ]
            if _VALUE in (self._tried(turns) or ""):
                return key
        return None

    @cached_property
    def _keeps_inline(self) -> bool:
        """Whether the template keeps thoughts that a content begins with."""
        turns = [
            {"role": "user", "content": _ASKED},
            {"role": "assistant", "content": with_thought(_VALUE, _SAID)},
        ]
        return _VALUE in (self._tried(turns) or "")

    @cached_property
    def _writes_tools(self) -> bool:
        turns = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}]
        return _NAME in (self._tried(turns, tools=True) or "")

    @cached_property
    def _form(self) -> _Form | None:
        """How the template takes calls; None if it has no place for them."""
        asked = {"role": "user", "content": _ASKED}
        beside = {"name": _NAME, "tool_call_id": "call00000"}
        said: Turns = [
            {"role": "tool", "content": _RESULT, **beside},
            {"role": "assistant", "content": _SAID},
        ]
        for as_text, empty in product((False, True), ("", None, _ABSENT)):
            arguments = f'{{"{_KEY}": "{_VALUE}"}}' if as_text else {_KEY: _VALUE}
            call = {
                "id": "call00000",
                "type": "function",
                "function": {"name": _NAME, "arguments": arguments},
            }
            turn: Mapping[str, Any] = {"role": "assistant", "tool_calls": [call]}
            turns: Turns = [asked, {**turn, **({} if empty is _ABSENT else {"content": empty})}]
            text = self._tried([*turns, *said], tools=True) or ""
            written = text[text.rfind(_ASKED) :]
            if all(word in written for word in (_NAME, _VALUE, _RESULT, _SAID)):
                last = self._tried(turns, tools=True) or written.partition(_RESULT)[0]
                tokens = [token for _, token in self._tokens(last, last.rfind(_VALUE), len(last))]
                after = written.partition(_RESULT)[2].partition(_SAID)[0]
                same_turn = self._prompt and self._prompt not in after
                return _Form(as_text, empty, tokens[-1], after if same_turn else "") if tokens else None
        return None

    def _tried(self, turns: Turns, *, tools: bool = False, generation: bool = False) -> str | None:
        try:
            return self._apply(turns, [_TOOL] if tools else None, generation)
        except REFUSALS:
            return None


def _following(spans: Sequence[Span], at: int, n_turns: int) -> int | None:
    """Return where the text of the turn after ``at`` begins; None if it has none."""
    if at + 1 == n_turns:
        return sys.maxsize
    return next((span.start for span in spans if span.message == at + 1), None)
