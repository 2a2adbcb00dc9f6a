"""What a tokenizer's chat template makes of a conversation, character by character.

Which characters are a turn's content is found by rendering the template once with marks in place of the
contents: what stands between the marks is the template's. That is kept for each sequence of roles, then
matched against the real rendering of every conversation. So a template that inserts a system prompt,
merges it into the first user turn or trims contents is understood, and one that rewrites them is noticed.

Decisions:
    - To render growing prefixes of the conversation instead, as many trainers do, costs a pass for every
      turn and is wrong for templates that treat the last turn unlike the others. The template's own
      ``{% generation %}`` marks exist in few templates.
    - The end of turn is the added token that follows the last answer, whitespace aside. In front of
      another turn it could not be told from the token that opens the turn.
    - Templates that take the thinking (``<think>…</think>``) out of an answer are followed: what the
      template leaves is the content.
    - A template that writes today's date gets a fixed one: a run that goes on tomorrow must see the
      tokens of today.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import date
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import jinja2

from clusterucb.errors import ModelError
from clusterucb.samples.shapes import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a template that asks for today's date is told; Llama 3.1's template falls back on the same day.
_TODAY = date(2024, 7, 26)


class Unusable(Exception):
    """Why one sample cannot be encoded; becomes a line of ``rejected.jsonl``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Kind(IntEnum):
    """What a piece of a conversation's text is."""

    TEMPLATE = 0
    CONTENT = 1  # of a system or user turn
    ANSWER = 2  # content of an assistant turn
    END = 3  # the end-of-turn token after an answer
    DROPPED = 4  # in the text that is tokenised, and then taken out again


class Piece(NamedTuple):
    """Characters of one kind."""

    text: str
    kind: Kind


class _Slot(NamedTuple):
    """Where a template writes the content of a message."""

    message: int
    whole: bool  # False: the template takes the thinking out and writes only what follows it


class _Pattern(NamedTuple):
    """A template for one sequence of roles: segments[0] slots[0] segments[1] ... slots[n-1] segments[n]."""

    segments: tuple[str, ...]
    slots: tuple[_Slot, ...]
    end: str  # the end-of-turn token; "" if the template writes none


class ChatTemplate:
    """A tokenizer's chat template; turns a conversation that ends with an answer into text.

    Args:
        tokenizer: has a chat template.

    Raises:
        ModelError: it has several, and none is the default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        try:
            source = str(tokenizer.get_chat_template())
        except ValueError as error:
            raise ModelError(
                f"the tokenizer has several chat templates and none is its default ({error}); expected one "
                "named `default`. Rename the one to use"
            ) from error
        self.source = _with_fixed_date(source)
        self._tokenizer = tokenizer
        self._added = [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()]
        self._patterns: dict[tuple[tuple[str, str], ...], _Pattern] = {}

    def __call__(self, messages: Sequence[Message]) -> tuple[list[Piece], str]:
        """Return the text of a conversation in pieces, and the end-of-turn token ("" if there is none).

        Raises:
            Unusable: the template refuses it, or rewrites what it says.
            ModelError: the template is not valid.
        """
        pattern = self._pattern(messages)
        rendered = self._render(messages)
        pieces = [Piece(pattern.segments[0], Kind.TEMPLATE)]
        position = len(pattern.segments[0])
        if not rendered.startswith(pattern.segments[0]):
            raise Unusable("chat template: it begins with text that depends on what the turns say")
        for slot, segment in zip(pattern.slots, pattern.segments[1:], strict=True):
            turn = messages[slot.message]
            content = _written(rendered, position, segment, _variants(turn.content, slot.whole))
            if content is None:
                raise Unusable(
                    f"chat template: it rewrites turn {slot.message + 1} ({turn.role}), so its content "
                    "cannot be told from the template's text"
                )
            position += len(content) + len(segment)
            is_answer = turn.role == "assistant"
            kind = Kind.ANSWER if is_answer else Kind.CONTENT
            blank = not content.strip()  # as when nothing follows the thinking that a template takes out
            pieces.append(Piece(content, Kind.TEMPLATE if blank else kind))
            pieces.extend(_split_end(segment, pattern.end if is_answer and not blank else ""))
        if position != len(rendered):
            raise Unusable("chat template: it ends with text that depends on what the turns say")
        return pieces, pattern.end

    def _pattern(self, messages: Sequence[Message]) -> _Pattern:
        # Blank contents stand for themselves: templates may leave out a turn that says nothing.
        marks = [
            _mark(at, "</think>" in message.content) if message.content.strip() else message.content
            for at, message in enumerate(messages)
        ]
        key = tuple((message.role, mark) for message, mark in zip(messages, marks, strict=True))
        if key not in self._patterns:
            self._patterns[key] = self._find_pattern([Message(*turn) for turn in key])
        return self._patterns[key]

    def _find_pattern(self, marked: Sequence[Message]) -> _Pattern:
        rendered = self._render(marked)
        found: list[tuple[int, int, _Slot]] = []
        for at, (role, mark) in enumerate(marked):
            if not mark.strip():
                continue
            forms = [(text, _Slot(at, whole)) for whole in (True, False) for text in _variants(mark, whole)]
            text, slot = next(((text, slot) for text, slot in forms if text in rendered), forms[0])
            if (times := rendered.count(text)) != 1:
                raise Unusable(
                    f"chat template: it writes turn {at + 1} ({role}) {times} times; expected once"
                )
            start = rendered.index(text)
            found.append((start, start + len(text), slot))
        found.sort()
        ends = [0, *(end for _, end, _ in found)]
        starts = [*(start for start, _, _ in found), len(rendered)]
        segments = tuple(rendered[end:start] for end, start in zip(ends, starts, strict=True))
        slots = tuple(slot for _, _, slot in found)
        after = segments[-1].lstrip() if slots and slots[-1].message == len(marked) - 1 else ""
        end_of_turn = max((token for token in self._added if after.startswith(token)), key=len, default="")
        return _Pattern(segments, slots, end_of_turn)

    def _render(self, messages: Iterable[Message]) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(self._tokenizer.apply_chat_template(turns, chat_template=self.source, tokenize=False))
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"the tokenizer's chat template is not valid Jinja: {error.message} (line {error.lineno}); "
                "expected one that is. Correct `chat_template` in its tokenizer_config.json"
            ) from error
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise Unusable(f"chat template: it refuses the conversation: {error}") from error


def _with_fixed_date(source: str) -> str:
    """Return a template that asks for the date with a macro in place of transformers' ``strftime_now``."""
    if "strftime_now" not in source:
        return source
    formats = re.findall(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')""", source)
    dates = json.dumps({text: _TODAY.strftime(text) for pair in formats for text in pair if text})
    day = f"{{{{ {dates} .get(format, '{_TODAY}') }}}}"
    return f"{{%- macro strftime_now(format) -%}}{day}{{%- endmacro -%}}{source}"


def _mark(message: int, thinks: bool) -> str:
    """Return what stands for a message's content when a template's own text is looked for."""
    mark = f"Qz7contentQ{message}zQ"
    # So many line breaks stand in no template: those before the mark are the content's if they are there.
    return f"<think>\nQz7thoughtQ{message}zQ\n</think>\n\n\n\n\n{mark}" if thinks else mark


def _variants(content: str, whole: bool) -> list[str]:
    """Return what a template may write for a content, the longest first.

    Either the whole content, with the space around its thinking as it is or as Qwen 3's template sets
    it; or only what follows the thinking. In every case trimmed or not.
    """
    thought, end, reply = content.rpartition("</think>")
    found = {content} if whole else {reply} if end else set()
    if whole and end:
        thought = thought.partition("</think>")[0].rpartition("<think>")[2].strip("\n")
        reply = reply.lstrip("\n")
        found.add(f"<think>\n{thought}\n</think>\n\n{reply}")
    trimmed = {
        trim(text, characters)
        for text in found
        for trim in (str.strip, str.lstrip, str.rstrip)
        for characters in (None, "\n")
    }
    return sorted(found | trimmed, key=lambda text: (-len(text), text))


def _written(rendered: str, position: int, segment: str, variants: Iterable[str]) -> str | None:
    """Return the first of ``variants`` that stands at ``position``, with the template's segment after it."""
    return next((text for text in variants if rendered.startswith(text + segment, position)), None)


def _split_end(segment: str, end: str) -> list[Piece]:
    """Return the template's text after a turn, the end-of-turn token apart."""
    blank = len(segment) - len(segment.lstrip())
    if not end or not segment.startswith(end, blank):
        return [Piece(segment, Kind.TEMPLATE)]
    return [
        Piece(segment[:blank], Kind.TEMPLATE),
        Piece(end, Kind.END),
        Piece(segment[blank + len(end) :], Kind.TEMPLATE),
    ]
