"""Turn one row of a pool or a target, a line of JSON, into a sample, or say why it is rejected."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import msgspec

from clusterucb.samples.message import Message, Unreadable, kind_of
from clusterucb.samples.shapes import Layout
from clusterucb.samples.turns import is_turn

_LONGEST_NAME = 500  # the largest number of characters of a source or subtask
_START = 200  # the number of characters of a rejected line that are shown
_NOT_A_NUMBER = re.compile(rb"-?(NaN|Infinity)")
_LONE_SURROGATE = re.compile(  # a pair of escapes makes one character; half a pair makes none
    rb"(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F]))|(?:(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a pool or a target.

    Attributes:
        messages: the conversation, with at least one answer that is learnt; or a single `TEXT` message.
        id: the ``id`` column as a string, so that 1 and "1" are the same id. If it is missing or empty, the content
            hash.
        source: the ``source`` column. If it is missing, the file's name without its ending.
        subtask: the ``subtask`` column. If it is missing, the file's name without its ending. Always "" in a pool.
        content_hash: the hex SHA-256 of the messages.
        raw: the line as it was read, without its line ending; for a row of a table, the row as JSON.
        file: the file that the sample is from.
        line: the number of its line, or of its row in a table, counted from 1.
    """

    messages: tuple[Message, ...]
    id: str
    source: str
    subtask: str
    content_hash: str
    raw: bytes
    file: str
    line: int

    @property
    def prompt(self) -> str:
        """The text of all turns that are not learnt; "" for a plain text."""
        return self._text(learnt=False)

    @property
    def answer(self) -> str:
        """The text of the assistant's turns that are learnt; for a plain text, the whole text."""
        return self._text(learnt=True)

    def digest(self) -> bytes:
        """Return the SHA-256 of everything about the sample that a run depends on."""
        names = msgspec.json.encode((self.content_hash, self.id, self.source, self.subtask))
        return hashlib.sha256(names + hashlib.sha256(self.raw).digest()).digest()

    def _text(self, *, learnt: bool) -> str:
        return "\n".join(message.text for message in self.messages if message.learnt is learnt)


class Rejected(NamedTuple):
    """A rejected line.

    Attributes:
        file: the file that the line is in.
        line: the number of the line, counted from 1.
        reason: why the line is rejected: a kind of reason, perhaps followed by a colon and details.
        text: the beginning of the line.
    """

    file: str
    line: int
    reason: str
    text: str = ""

    @property
    def kind(self) -> str:
        """The kind of the reason, without details. Rejected lines are counted by it."""
        return "duplicate" if self.reason.startswith("duplicate of") else self.reason.partition(":")[0]

    @classmethod
    def of(cls, sample: Sample, reason: str) -> Self:
        """Return a sample as a rejected line."""
        return cls(sample.file, sample.line, reason, beginning(sample.raw))


def counts_by_kind(rejected: Iterable[Rejected]) -> dict[str, int]:
    """Return the number of rejected lines for each kind of reason, the most frequent first."""
    return by_frequency(Counter(line.kind for line in rejected))


def by_frequency(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts, the largest first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def kinds_in_words(counts_by_kind: Mapping[str, int]) -> str:
    """Return counts by kind as ``3 not JSON, 2 duplicate``."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts_by_kind.items())


def beginning(line: bytes) -> str:
    """Return the beginning of a line as text, even if its bytes are not valid UTF-8."""
    return line[: 4 * _START].decode("utf-8", "replace")[:_START]


def decode(line: bytes) -> dict[str, Any]:
    """Return the JSON object in a line. A list of turns is the object that has it as its ``messages``.

    Raises:
        Unreadable: the line is neither.
    """
    try:
        row = msgspec.json.decode(line)
    except RecursionError as error:
        raise Unreadable("not JSON: nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreadable(_why(line, str(error))) from error
    if isinstance(row, list) and row and all(map(is_turn, row)):
        return {"messages": row}
    if not isinstance(row, dict):
        raise Unreadable(f"not an object: the line is {kind_of(row)}")
    return row


def sample_of(
    row: Mapping[str, Any],
    line: bytes,
    layout: Layout,
    *,
    file: str,
    number: int,
    source: str,
    subtask: str | None = None,
) -> tuple[str, tuple[str, ...], Sample]:
    """Return the shape of a row, its columns that are not read, and its sample.

    Args:
        row: a row in one of the shapes of `clusterucb.samples.shapes`, optionally with ``id`` (string or whole
            number), ``source`` and ``subtask`` (strings).
        line: the bytes of the row's line.
        layout: how a sample is read from the row.
        file: the file that the row is in.
        number: the number of the row's line.
        source: the source, if the row has no ``source``.
        subtask: the subtask, if the row has no ``subtask``. None in a pool, whose samples have no subtask.

    Raises:
        Unreadable: the row cannot be used. The message is the reason.
    """
    row = layout.renamed(row)
    shape, messages, unread = layout.conversation(row)
    content_hash = _content_hash(messages)
    return (
        shape,
        unread,
        Sample(
            messages=messages,
            id=_identity(row.get("id"), content_hash, layout.ids, source),
            source=_name(row, "source", source),
            subtask="" if subtask is None else _name(row, "subtask", subtask),
            content_hash=content_hash,
            raw=line,
            file=file,
            line=number,
        ),
    )


def _content_hash(messages: Iterable[Message]) -> str:
    """Return the hex SHA-256 of messages. An answer that is context is no longer the same content."""
    fields = [message.identity() for message in messages]
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


def _why(line: bytes, error: str) -> str:
    """Return why a line is unreadable, given msgspec's error.

    The most common reasons are put in plain words. Those are read from the line, because msgspec's own words, and the
    class of its error for bytes that are not UTF-8, change with its version.
    """
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        if wrong.reason != "unexpected end of data":
            return f"not UTF-8: byte 0x{line[wrong.start]:02x}"
        return "not JSON: the line is incomplete"
    return f"not JSON: {_malformed(line, error)}"


def _malformed(line: bytes, error: str) -> str:
    if ("surrogate" in error or "truncated" in error) and (match := _LONE_SURROGATE.search(line)):
        return f"half of a surrogate pair, {match[0].decode()}"
    at = int(error.rpartition("(byte ")[2].rstrip(")")) if "(byte " in error else len(line)
    if line[at : at + 1] == b"\0":
        return f"a NUL byte at {at}"
    if match := _NOT_A_NUMBER.match(line, at):
        return f"{match[0].decode()} is not a JSON number; expected null"
    if "truncated" in error:
        return "the line is incomplete"
    return error.partition(" - at `")[0]


def qualified(name: str, origin: str) -> str:
    """Return an id that is unique in its file, after the name of the file."""
    return f"{origin}:{name}"


def _identity(value: object, content_hash: str, ids: str | None, origin: str) -> str:
    if value is None or value == "" or ids == "content":
        return content_hash
    if isinstance(value, float) and value.is_integer():  # a table with gaps stores whole numbers as floats
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Unreadable(f"wrong type: `id` is {kind_of(value)}; expected a string or a whole number")
    return qualified(str(value), origin) if ids == "file" else str(value)


def _name(row: Mapping[str, Any], key: str, default: str) -> str:
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise Unreadable(f"wrong type: `{key}` is {kind_of(value)}; expected a string")
    if len(value) > _LONGEST_NAME:
        raise Unreadable(f"wrong type: `{key}` has {len(value):,} characters; expected a name")
    return value
