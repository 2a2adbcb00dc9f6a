"""One row of a pool or a target: a line of JSON as a sample, or the reason why it is none."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import msgspec

from clusterucb.samples.shapes import TEXT, Layout, Message, Unreadable, kind_of

_LONGEST_NAME = 500  # characters of a source or subtask
_START = 200  # characters of a rejected line that are shown
_NOT_A_NUMBER = re.compile(rb"-?(NaN|Infinity)")
_LONE_SURROGATE = re.compile(  # two escapes make one character; half of a pair makes none
    rb"(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F]))|(?:(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a pool or a target.

    Attributes:
        messages: the conversation, with at least one assistant turn; or one `TEXT`.
        id: the ``id`` column as a string, so that 1 and "1" are the same; the content hash without one, or with an
            empty one.
        source: the ``source`` column; the file's name without its ending, without one.
        subtask: of a target, the ``subtask`` column, or the file's name without one; "" in a pool.
        content_hash: hex SHA-256 of the messages.
        raw: the line as it was read, without its line ending; of a table, the row as JSON.
        file, line: where it stands (lines, or rows of a table, count from 1).
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
        """The text of all turns but the assistant's; "" of a plain text."""
        return self._text(answer=False)

    @property
    def answer(self) -> str:
        """The text of the assistant's turns; a plain text as a whole."""
        return self._text(answer=True)

    def digest(self) -> bytes:
        """Return the SHA-256 of everything about the sample that a run depends on."""
        names = msgspec.json.encode((self.content_hash, self.id, self.source, self.subtask))
        return hashlib.sha256(names + hashlib.sha256(self.raw).digest()).digest()

    def _text(self, *, answer: bool) -> str:
        return "\n".join(text for role, text in self.messages if (role in ("assistant", TEXT)) is answer)


class Rejected(NamedTuple):
    """A line that is not used, and why; ``text`` is how it begins."""

    file: str
    line: int
    reason: str
    text: str = ""

    @property
    def kind(self) -> str:
        """The reason without its details, for counting."""
        return "duplicate" if self.reason.startswith("duplicate of") else self.reason.partition(":")[0]

    @classmethod
    def of(cls, sample: Sample, reason: str) -> Self:
        """Return a sample as a line that is not used."""
        return cls(sample.file, sample.line, reason, beginning(sample.raw))


def by_kind(rejected: Iterable[Rejected]) -> dict[str, int]:
    """Return how many lines were rejected for which kind of reason, the most frequent first."""
    return by_frequency(Counter(line.kind for line in rejected))


def by_frequency(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts, the largest first."""
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def told(by_kind: Mapping[str, int]) -> str:
    """Return counts by kind as ``3 not JSON, 2 duplicate``."""
    return ", ".join(f"{count:,} {kind}" for kind, count in by_kind.items())


def beginning(line: bytes) -> str:
    """Return how a line begins, as text whatever its bytes are."""
    return line[: 4 * _START].decode("utf-8", "replace")[:_START]


def decode(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line.

    Raises:
        Unreadable: it holds none.
    """
    try:
        row = msgspec.json.decode(line)
    except RecursionError as error:
        raise Unreadable("not JSON: nested too deeply") from error
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8: byte 0x{error.object[error.start]:02x}") from error
    except msgspec.MsgspecError as error:
        raise Unreadable(f"not JSON: {_why(line, str(error))}") from error
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
) -> tuple[str, Sample]:
    """Return the shape and the sample of a row.

    Args:
        row: in one of the shapes of `clusterucb.samples.shapes`; optionally with ``id`` (string or whole
            number), ``source`` and ``subtask`` (strings).
        line: its bytes.
        layout: how it is read.
        file, number: where it stands.
        source: the source of a row without one.
        subtask: the subtask of a row without one; None in a pool, whose rows have no subtask.

    Raises:
        Unreadable: it cannot be used; the message is the reason.
    """
    row = layout.renamed(row)
    shape, messages = layout.conversation(row)
    content_hash = hashlib.sha256(msgspec.json.encode(messages)).hexdigest()
    return shape, Sample(
        messages=messages,
        id=_identity(row.get("id"), content_hash),
        source=_name(row, "source", source),
        subtask="" if subtask is None else _name(row, "subtask", subtask),
        content_hash=content_hash,
        raw=line,
        file=file,
        line=number,
    )


def _why(line: bytes, said: str) -> str:
    """Return why a line is not JSON, the commonest reasons in plain words."""
    if ("surrogate" in said or "truncated" in said) and (found := _LONE_SURROGATE.search(line)):
        return f"half of a surrogate pair, {found[0].decode()}"
    at = int(said.rpartition("(byte ")[2].rstrip(")")) if "(byte " in said else len(line)
    if line[at : at + 1] == b"\0":
        return f"a NUL byte at {at}"
    if found := _NOT_A_NUMBER.match(line, at):
        return f"{found[0].decode()} is no number of JSON; expected null"
    if "truncated" in said:
        return "the line breaks off"
    return said.partition(" - at `")[0]


def _identity(value: object, content_hash: str) -> str:
    if value is None or value == "":
        return content_hash
    if isinstance(value, float) and value.is_integer():  # a table with gaps holds whole numbers so
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Unreadable(f"wrong type: `id` is {kind_of(value)}; expected a string or a whole number")
    return str(value)


def _name(row: Mapping[str, Any], key: str, default: str) -> str:
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise Unreadable(f"wrong type: `{key}` is {kind_of(value)}; expected a string")
    if len(value) > _LONGEST_NAME:
        raise Unreadable(f"wrong type: `{key}` has {len(value):,} characters; expected a name")
    return value
