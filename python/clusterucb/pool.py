"""Read pools and targets: files to samples in canonical order, and the lines that were rejected.

Decisions:
    - One bad line never stops a run. It becomes a `Rejected` with file, line and reason; only a file
      that cannot be read at all, or a pool without one good sample, is an error.
    - Samples are sorted by (content hash, id), and every later index, draw and tie-break refers to that
      order, so the order of lines and files changes nothing. For the same reason the choice among
      duplicates depends on what they hold, never on where they stand.
    - A sample keeps its line's bytes: what is selected is written exactly as it came.
    - `read_row` is the one place that knows shapes of rows; a new shape is a new branch there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from clusterucb.errors import InputError

ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    """One turn of a conversation; ``role`` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a pool or a target.

    Attributes:
        messages: the conversation, with at least one assistant turn.
        id: the ``id`` column as a string; the content hash without one, or with an empty one.
        source: the ``source`` column; the file's name without its ending, without one.
        subtask: of a target, the ``subtask`` column, or the file's name without one; "" in a pool.
        content_hash: hex SHA-256 of the messages.
        raw: the line as it was read, without its line ending.
        file, line: where it stands (lines count from 1).
    """

    messages: tuple[Message, ...]
    id: str
    source: str
    subtask: str
    content_hash: str
    raw: bytes
    file: str
    line: int


class Rejected(NamedTuple):
    """A line that is not used, and why."""

    file: str
    line: int
    reason: str


class Unreadable(Exception):
    """Why one row cannot be used; becomes the reason of a `Rejected`."""


@dataclass(frozen=True)
class Pool:
    """What was read.

    Attributes:
        samples: in canonical order.
        rejected: the lines that are not used, in reading order.
        files: the files in reading order.
    """

    samples: tuple[Sample, ...]
    rejected: tuple[Rejected, ...]
    files: tuple[str, ...]

    def in_reading_order(self, rejected: Iterable[Rejected]) -> list[Rejected]:
        """Return lines of the pool's files by file, as they were given, and line."""
        order = {file: number for number, file in enumerate(self.files)}
        return sorted(rejected, key=lambda line: (order[line.file], line.line))

    def fingerprint(self) -> str:
        """Return a hex SHA-256 of everything a run depends on; independent of lines' and files' order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(
                msgspec.json.encode((sample.content_hash, sample.id, sample.source, sample.subtask))
            )
            digest.update(hashlib.sha256(sample.raw).digest())
        return digest.hexdigest()


def read_pool(paths: Sequence[str | PathLike[str]]) -> Pool:
    """Read a pool from JSONL files.

    Raises:
        InputError: a file cannot be read, or no line of any file can be used.
    """
    return _read(paths, "pool")


def read_target(paths: Sequence[str | PathLike[str]]) -> Pool:
    """Read a target from JSONL files; without a ``subtask`` column, each file is a subtask of its name.

    Raises:
        InputError: a file cannot be read, or no line of any file can be used.
    """
    return _read(paths, "target")


def overlap(pool: Pool, target: Pool) -> list[Sample]:
    """Return the pool's samples whose content also stands in the target."""
    held_out = {sample.content_hash for sample in target.samples}
    return [sample for sample in pool.samples if sample.content_hash in held_out]


def _read(paths: Sequence[str | PathLike[str]], what: str) -> Pool:
    files = [Path(path) for path in paths]
    if not files:
        raise InputError(f"no {what} file given; expected one or more JSONL files")
    samples: list[Sample] = []
    rejected: list[Rejected] = []
    for file, name in zip(files, _short_names(files), strict=True):
        for number, line in _lines(file):
            try:
                samples.append(
                    read_row(line, str(file), number, source=name, subtask=name if what == "target" else None)
                )
            except Unreadable as error:
                rejected.append(Rejected(str(file), number, str(error)))
    kept, duplicates = canonical_order(samples)
    read = Pool(tuple(kept), (), tuple(map(str, files)))
    rejected = read.in_reading_order([*rejected, *duplicates])
    if not kept:
        first = f" (first: {rejected[0].file}:{rejected[0].line}: {rejected[0].reason})" if rejected else ""
        raise InputError(
            f"the {what} has no usable sample: {len(rejected)} lines read, all rejected{first}; expected "
            "JSON objects with `messages`, or with `prompt` and `completion`, one on each line"
        )
    return replace(read, rejected=tuple(rejected))


def _short_names(files: Sequence[Path]) -> list[str]:
    """Return each file's name without its ending, or its path where two names would be the same."""
    stems = [file.stem for file in files]
    return [stem if stems.count(stem) == 1 else str(file) for stem, file in zip(stems, files, strict=True)]


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, bytes without line ending) of every line that is not blank."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark
                line = line.rstrip(b"\r\n")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; expected a JSONL file") from error


def read_row(line: bytes, file: str, number: int, *, source: str, subtask: str | None = None) -> Sample:
    """Return the sample that one line holds.

    Args:
        line: a JSON object with ``messages``, or with ``prompt`` and ``completion``; optionally
            ``id`` (string or whole number), ``source`` and ``subtask`` (strings).
        file, number: where the line stands.
        source: the source of a row without one.
        subtask: the subtask of a row without one; None in a pool, whose rows have no subtask.

    Raises:
        Unreadable: the line cannot be used; the message is the reason.
    """
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise Unreadable(f"not a JSON object but {_kind(row)}")
    messages = _messages(row)
    content_hash = hashlib.sha256(msgspec.json.encode(messages)).hexdigest()
    return Sample(
        messages=messages,
        id=_identity(row.get("id"), content_hash),
        source=_name(row, "source", source),
        subtask="" if subtask is None else _name(row, "subtask", subtask),
        content_hash=content_hash,
        raw=line,
        file=file,
        line=number,
    )


def _messages(row: dict[str, Any]) -> tuple[Message, ...]:
    if "messages" in row:
        turns = row["messages"]
        if not isinstance(turns, list) or not turns:
            raise Unreadable(f"`messages` is {_kind(turns)}; expected a list of turns")
        messages = tuple(_message(turn, number) for number, turn in enumerate(turns, start=1))
    elif "prompt" in row and "completion" in row:
        messages = (_text(row, "prompt", "user"), _text(row, "completion", "assistant"))
    else:
        keys = ", ".join(f"`{key}`" for key in list(row)[:8]) or "none"
        raise Unreadable(f"neither `messages` nor `prompt` and `completion` among its keys ({keys})")
    if not any(message.role == "assistant" for message in messages):
        raise Unreadable("no assistant turn")
    return messages


def _text(row: dict[str, Any], key: str, role: str) -> Message:
    if not isinstance(row[key], str):
        raise Unreadable(f"`{key}` is {_kind(row[key])}; expected a string")
    return Message(role, row[key])


def _message(turn: object, number: int) -> Message:
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        raise Unreadable(f"turn {number} of `messages` is not an object with `role` and `content`")
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        raise Unreadable(f"turn {number} has role {role!r:.40}; expected {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise Unreadable(f"the content of turn {number} is {_kind(content)}; expected a string")
    return Message(role, content)


def _identity(value: object, content_hash: str) -> str:
    if value is None or value == "":
        return content_hash
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Unreadable(f"`id` is {_kind(value)}; expected a string or a whole number")
    return str(value)


def _name(row: dict[str, Any], key: str, default: str) -> str:
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise Unreadable(f"`{key}` is {_kind(value)}; expected a string")
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number"}
    if value is None:
        return "null"
    return names.get(type(value), "a number") if value != "" and value != [] else "empty"


def canonical_order(samples: Iterable[Sample]) -> tuple[list[Sample], list[Rejected]]:
    """Return samples in canonical order without duplicates, and the duplicates as rejected lines.

    Of samples with the same content (and subtask) the first in canonical order is kept. Of samples
    with the same id and different content the one with the smallest content hash is kept.
    """
    ordered = sorted(
        samples, key=lambda s: (s.content_hash, s.subtask, s.id, s.source, s.raw)
    )  # equal in all of these: the same line twice, so the one read first stays
    kept: list[Sample] = []
    rejected: list[Rejected] = []
    by_id: dict[str, Sample] = {}
    for sample in ordered:
        last = kept[-1] if kept else None
        if last and (last.content_hash, last.subtask) == (sample.content_hash, sample.subtask):
            rejected.append(Rejected(sample.file, sample.line, f"duplicate of {last.file}:{last.line}"))
        elif (other := by_id.get(sample.id)) and other.content_hash != sample.content_hash:
            rejected.append(
                Rejected(
                    sample.file,
                    sample.line,
                    f"id {sample.id!r} is also that of {other.file}:{other.line}, with other content",
                )
            )
        else:
            by_id[sample.id] = sample
            kept.append(sample)
    return kept, rejected
