"""Render a conversation with a tokenizer's chat template, and tell contents from the template's own text.

The template is first rendered with a mark in place of each content. The text between the marks is the template's own.
This pattern is kept for each sequence of roles and matched against the real rendering of every conversation. Templates
may therefore insert a system prompt, merge it into the first user turn or trim contents. A template that rewrites
contents is detected.

Decisions:
    - Many trainers render growing prefixes of the conversation instead. That costs one rendering for every turn, and
      it is wrong for templates that treat the last turn differently from the others. Few templates have
      ``{% generation %}`` marks of their own.
    - The end-of-turn token is the added token that follows the last answer, ignoring whitespace. Before another turn,
      another token counts only if it ends a user's turn as well; it could not be distinguished otherwise from the token
      that opens that turn.
    - Some templates remove the thinking (``<think>…</think>``) from an answer. The content is then what the
      template keeps.
    - A template that writes today's date gets a fixed date, so that a run that is resumed tomorrow sees the same
      tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from msgspec.structs import replace

from clusterucb.errors import ModelError
from clusterucb.samples.message import TOOLS, Message
from clusterucb.samples.pieces import Kind, Piece, Unusable
from clusterucb.samples.tool_template import NO_RESULTS, REFUSALS, Span, ToolTemplate, Turns, has_lone_results
from clusterucb.samples.watch import TooMuch, limited

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SECONDS = 10  # the longest time that a template may take
_PATIENCE = 3  # conversations that may take longer
_MARKS = re.compile(r"Qz7(?:content|thoughts?)Q\d+zQ")
_RESULT = ("<tool_response>", "</tool_response>")
# The date given to templates that ask for today's. It is the date that Llama 3.1's template falls back on.
_TODAY = date(2024, 7, 26)


class _Slot(NamedTuple):
    """A place where a template writes the content of a message."""

    message: int
    whole: bool  # False: the template removes the thinking and writes only the text after it
    thought: bool = False  # the place is that of the message's thoughts


class _Pattern(NamedTuple):
    """The form of a template for one sequence of roles: segments[0] slots[0] segments[1] ... slots[n-1] segments[n]."""

    segments: tuple[str, ...]
    slots: tuple[_Slot, ...]
    end: str  # the end-of-turn token; "" if the template writes none


class ChatTemplate:
    """A tokenizer's chat template. It turns a conversation that ends with an answer into text.

    Args:
        tokenizer: a tokenizer with a chat template.

    Raises:
        ModelError: the tokenizer has several chat templates, and none is its default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        try:
            source = str(tokenizer.get_chat_template())
        except ValueError as error:
            raise ModelError(
                f"the tokenizer has several chat templates, but no default one ({error}); expected one "
                "named `default`. Rename the template to use"
            ) from error
        self.source = _with_fixed_date(source)
        self._tokenizer = tokenizer
        self._added = [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()]
        self._too_much = 0
        self._patterns: dict[tuple[tuple[str, str], ...], _Pattern] = {}
        self.tools = ToolTemplate(self._apply, self._added)

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[str | Unusable]:
        """Return the text of each conversation; the reason in place of one that the template refuses.

        Raises:
            ModelError: the template is not valid.
        """
        plain = [messages for messages in conversations if _is_plain(messages)]
        try:
            texts: Iterator[str | Unusable] = iter(self._applied([_turns(messages) for messages in plain]))
        except REFUSALS:  # find out which it is
            texts = iter([self._rendered_alone(messages) for messages in plain])
        return [
            next(texts) if _is_plain(messages) else self._rendered_alone(messages)
            for messages in conversations
        ]

    def _rendered_alone(self, messages: Sequence[Message]) -> str | Unusable:
        try:
            return self._render(messages)
        except Unusable as error:
            return error

    def pieces(self, messages: Sequence[Message], rendered: str) -> tuple[list[Piece], str]:
        """Return the text of a conversation in pieces, and the end-of-turn token ("" if there is none).

        Raises:
            Unusable: the template refuses the conversation, rewrites its contents, or leaves calls out.
            ModelError: the template is not valid Jinja.
        """
        pattern = self._pattern(messages)
        spans = _located(messages, rendered, pattern)
        if not _is_plain(messages):
            end = self._pattern([Message("user", "?"), Message("assistant", ".")]).end
            self.tools.check_calls(messages, self._render)
            return self.tools.pieces(messages, rendered, spans, (end, self.inner_end)), end
        pieces = [Piece(pattern.segments[0], Kind.TEMPLATE)]
        for span, segment in zip(spans, pattern.segments[1:], strict=True):
            content, turn = rendered[span.start : span.stop], messages[span.message]
            kind = Kind.ANSWER if turn.learnt else Kind.CONTENT
            # Blank if, for example, the template removes the thinking and nothing follows it.
            blank = not content.strip()
            pieces.append(Piece(content, Kind.TEMPLATE if blank else kind))
            ends = (pattern.end, self.inner_end) if turn.learnt and not blank else ()
            pieces.extend(_split_end(segment, ends))
        return pieces, pattern.end

    def _pattern(self, messages: Sequence[Message]) -> _Pattern:
        if not _is_plain(messages):
            return self._find_pattern([_marked(message, at) for at, message in enumerate(messages)])
        marks = [_marked_content(message, at) for at, message in enumerate(messages)]
        key = tuple((message.role, mark) for message, mark in zip(messages, marks, strict=True))
        if key not in self._patterns:
            self._patterns[key] = self._find_pattern([Message(*turn) for turn in key])
        return self._patterns[key]

    def _find_pattern(self, marked: Sequence[Message]) -> _Pattern:
        rendered = self._render(marked)
        marks = _marks_in(rendered)
        places: list[tuple[int, int, _Slot]] = []
        for at, message in enumerate(marked):
            for thought, mark in ((True, message.thought), (False, message.content)):
                if not mark.strip() or message.role == TOOLS:
                    continue
                forms = (
                    (_starts(text, rendered, marks), text, _Slot(at, whole, thought))
                    for whole in ((True,) if thought else (True, False))
                    for text in _variants(mark, whole)
                )
                starts, text, slot = next((form for form in forms if form[0]), ([], "", _Slot(at, True)))
                times = len(starts)
                if not times and (thought or message.calls):  # the template leaves it out
                    continue
                if not times and message.role == "system" and at:
                    raise Unusable(
                        f"chat template: it leaves out turn {at + 1} (system); expected one system turn, the first"
                    )
                if not times and has_lone_results(marked[at : at + 1]):
                    raise Unusable(NO_RESULTS)
                if times != 1:
                    raise Unusable(
                        f"chat template: it writes turn {at + 1} ({message.role}) {times} times; expected once"
                    )
                places.append((starts[0], starts[0] + len(text), slot))
        places.sort()
        ends = [0, *(end for _, end, _ in places)]
        begins = [*(start for start, _, _ in places), len(rendered)]
        segments = tuple(rendered[end:start] for end, start in zip(ends, begins, strict=True))
        slots = tuple(slot for _, _, slot in places)
        after = segments[-1] if slots and slots[-1].message == len(marked) - 1 else ""
        return _Pattern(segments, slots, self._first_token(after))

    @cached_property
    def inner_end(self) -> str:
        """The token that ends an answer before another turn, if another one ends the last answer; else "".

        It ends the turn of a user, too (gpt-oss's ``<|end|>``). A token that opens the next turn does not.
        """
        turns = [Message(role, _mark(at, False)) for at, role in enumerate(("user", "assistant") * 2)]
        try:
            pattern = self._find_pattern(turns)
        except (Unusable, ModelError):
            return ""
        if len(pattern.slots) != len(turns):
            return ""
        asked, answered = map(self._first_token, pattern.segments[1:3])
        return asked if asked == answered != pattern.end else ""

    def _first_token(self, text: str) -> str:
        """Return the added token that a text begins with, ignoring whitespace; "" if there is none."""
        start = text.lstrip()
        return max((token for token in self._added if start.startswith(token)), key=len, default="")

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            if _is_plain(messages):
                (text,) = self._applied([_turns(messages)])
            else:
                text = self._with_tools(messages)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"the tokenizer's chat template is not valid Jinja: {error.message} (line {error.lineno}); "
                "expected valid Jinja. Correct `chat_template` in its tokenizer_config.json"
            ) from error
        except TooMuch as error:
            self._too_much += 1
            if self._too_much >= _PATIENCE:
                raise ModelError(
                    f"the tokenizer's chat template takes more than {_SECONDS} s or 1 GB for a conversation, "
                    f"{_PATIENCE} times; expected milliseconds. It may loop: correct it, or give another one with "
                    "--chat-template"
                ) from error
            raise Unusable(f"chat template: it takes more than {_SECONDS} s or 1 GB") from error
        except REFUSALS as error:
            if has_lone_results(messages):
                raise Unusable(NO_RESULTS) from error
            reason = str(error) or type(error).__name__
            raise Unusable(f"chat template: it refuses the conversation: {reason}") from error
        return text

    def _with_tools(self, messages: Sequence[Message]) -> str:
        try:
            return self._apply(*self.tools.turns(messages), False)
        except REFUSALS:  # perhaps something is missing
            turns, tools = self.tools.turns(messages, completed=True)
            try:
                return self._apply(turns, tools, False)
            except REFUSALS:
                pass
            raise

    def _apply(self, turns: Turns, tools: list[Any] | None, generation: bool) -> str:
        with limited(_SECONDS):
            text = str(
                self._tokenizer.apply_chat_template(
                    turns, tools, chat_template=self.source, tokenize=False, add_generation_prompt=generation
                )
            )
        text.encode()  # refuses half of a surrogate pair
        return text

    def _applied(self, turns: list[list[dict[str, str]]]) -> list[str]:
        with limited(_SECONDS):
            texts = list(
                self._tokenizer.apply_chat_template(turns, chat_template=self.source, tokenize=False)
            )
        for text in texts:
            text.encode()
        return texts


def _is_plain(messages: Iterable[Message]) -> bool:
    return all(message.plain for message in messages)


def _marked(message: Message, at: int) -> Message:
    """Return a turn with marks in place of content and thoughts; the template's text depends on calls, which stay."""
    if message.role == TOOLS or not (message.content.strip() or message.thought):
        return message
    return replace(
        message,
        content=_marked_content(message, at),
        thought=_marker("thoughts", at) if message.thought else "",
    )


def _located(messages: Sequence[Message], rendered: str, pattern: _Pattern) -> list[Span]:
    """Return where contents and thoughts stand in the text of a conversation.

    Raises:
        Unusable: the template refuses the conversation, or rewrites its contents.
    """
    if not rendered.startswith(pattern.segments[0]):
        raise Unusable("chat template: it begins with text that depends on the content of the turns")
    position = len(pattern.segments[0])
    spans = []
    for slot, segment in zip(pattern.slots, pattern.segments[1:], strict=True):
        turn = messages[slot.message]
        variants = _variants(turn.thought if slot.thought else turn.content, slot.whole)
        if turn.role == "tool":
            variants += [json.dumps(turn.content, ensure_ascii=escaped)[1:-1] for escaped in (False, True)]
        content = _content_at(rendered, position, segment, variants)
        if content is None:
            raise Unusable(
                f"chat template: it rewrites turn {slot.message + 1} ({turn.role}), so the content "
                "cannot be separated from the template's text"
            )
        spans.append(Span(position, position + len(content), slot.message))
        position += len(content) + len(segment)
    if position != len(rendered):
        raise Unusable("chat template: it ends with text that depends on the content of the turns")
    return spans


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _with_fixed_date(source: str) -> str:
    """Return a template with a macro of its own in place of transformers' ``strftime_now``, if it asks for the date."""
    if "strftime_now" not in source:
        return source
    formats = re.findall(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')""", source)
    dates = json.dumps({text: _TODAY.strftime(text) for pair in formats for text in pair if text})
    day = f"{{{{ {dates} .get(format, '{_TODAY}') }}}}"
    return f"{{%- macro strftime_now(format) -%}}{day}{{%- endmacro -%}}{source}"


def _mark(message: int, thinks: bool) -> str:
    """Return the text that replaces a message's content while the template's own text is found."""
    mark = _marker("content", message)
    # No template writes so many line breaks. If they come before the mark, they belong to the content.
    return f"<think>\n{_marker('thought', message)}\n</think>\n\n\n\n\n{mark}" if thinks else mark


def _marker(kind: str, number: int) -> str:
    """Return a text that no template changes; `_MARKS` finds it."""
    return f"Qz7{kind}Q{number}zQ"


def _marks_in(rendered: str) -> dict[str, list[int]]:
    """Return where each mark stands in a text. To look for one mark after the other would read the text for each."""
    found: dict[str, list[int]] = {}
    for match in _MARKS.finditer(rendered):
        found.setdefault(match[0], []).append(match.start())
    return found


def _starts(text: str, rendered: str, marks: dict[str, list[int]]) -> list[int]:
    """Return where a text that holds a mark begins in a rendering, given where its marks stand."""
    *_, mark = _MARKS.finditer(text)
    begins = (at - mark.start() for at in marks.get(mark[0], ()))
    return [begin for begin in begins if begin >= 0 and rendered.startswith(text, begin)]


def _marked_content(message: Message, at: int) -> str:
    """Return the mark of a message's content; a blank content stays, because a template may leave out a blank turn.

    Templates look for a result of a tool in a user's turn, so its tags stay, too.
    """
    content = message.content
    if not content.strip():
        return content
    mark = _mark(at, "</think>" in content)
    inside = content.startswith(_RESULT[0]) and content.endswith(_RESULT[1]) and message.role != "assistant"
    return f"{_RESULT[0]}{mark}{_RESULT[1]}" if inside else mark


def _variants(content: str, whole: bool) -> list[str]:
    """Return the texts that a template may write for a content, the longest first.

    A template may write the whole content, where the whitespace around the thinking is kept or is that of Qwen 3's
    template; or it may write only the text after the thinking. It may trim any of these.
    """
    thought, end, reply = content.rpartition("</think>")
    texts = {content} if whole else {reply} if end else set()
    if whole and end:
        thought = thought.partition("</think>")[0].rpartition("<think>")[2].strip("\n")
        reply = reply.lstrip("\n")
        texts.add(f"<think>\n{thought}\n</think>\n\n{reply}")
    trimmed = {
        trim(text, characters)
        for text in texts
        for trim in (str.strip, str.lstrip, str.rstrip)
        for characters in (None, "\n")
    }
    return sorted(texts | trimmed, key=lambda text: (-len(text), text))


def _content_at(rendered: str, position: int, segment: str, variants: Iterable[str]) -> str | None:
    """Return the first of ``variants`` that is at ``position`` and followed by the template's segment, or None."""
    return next((text for text in variants if rendered.startswith(text + segment, position)), None)


def _split_end(segment: str, ends: Iterable[str]) -> list[Piece]:
    """Return the template's text after a turn in pieces, with the end-of-turn token as a piece of its own."""
    blank = len(segment) - len(segment.lstrip())
    end = next((end for end in ends if end and segment.startswith(end, blank)), "")
    if not end:
        return [Piece(segment, Kind.TEMPLATE)]
    return [
        Piece(segment[:blank], Kind.TEMPLATE),
        Piece(end, Kind.END),
        Piece(segment[blank + len(end) :], Kind.TEMPLATE),
    ]
