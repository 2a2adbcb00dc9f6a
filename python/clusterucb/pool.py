"""Read pools and targets: sources to samples in canonical order, and the lines that were rejected.

Decisions:
    - One bad line never stops a run. It becomes a `Rejected` with file, line and reason; only a file
      that cannot be read at all, or a pool without one good sample, is an error.
    - Samples are sorted by (content hash, id), and every later index, draw and tie-break refers to that
      order, so the order of lines and files changes nothing. For the same reason the choice among
      duplicates depends on what they hold, never on where they stand.
    - A sample keeps its line's bytes: what is selected is written exactly as it came.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import InputError
from clusterucb.lines import Lines, Origin, Samples
from clusterucb.progress import Advance, Observer, Silent
from clusterucb.sample import Rejected, Sample, beginning, by_kind, told
from clusterucb.shapes import ROLES, Layout, Message, Unreadable
from clusterucb.sources import Line, Source, sources_of

__all__ = [
    "ROLES",
    "Message",
    "Pool",
    "Rejected",
    "Sample",
    "Samples",
    "overlap",
    "read_pool",
    "read_target",
]

_SLOW = 64 << 20  # bytes of a file from which reading it has a bar
_MEGABYTE = 1_000_000
_ORDER = ("content_hash", "subtask", "id", "source", "raw")


@dataclass(frozen=True)
class Pool:
    """What was read.

    Attributes:
        samples: in canonical order.
        rejected: the lines that are not used, in reading order.
        files: the files in reading order.
        shapes: how many rows of each shape each file has.
        unseen: the columns that the layout names and no row has.
    """

    samples: Samples
    rejected: tuple[Rejected, ...]
    files: tuple[str, ...]
    shapes: Mapping[str, Counter[str]]
    unseen: frozenset[str] = frozenset()

    def in_reading_order(self, rejected: Iterable[Rejected]) -> list[Rejected]:
        """Return lines of the pool's files by file, as they were given, and line."""
        order = {file: number for number, file in enumerate(self.files)}
        return sorted(rejected, key=lambda line: (order[line.file], line.line))

    def fingerprint(self) -> str:
        """Return a hex SHA-256 of everything a run depends on; independent of lines' and files' order."""
        return hashlib.sha256(self.samples.digests.tobytes()).hexdigest()


def read_pool(
    given: Any,
    layout: Layout | None = None,
    *,
    strict: bool = False,
    limit: int | None = None,
    observer: Observer | None = None,
) -> Pool:
    """Read a pool.

    Args:
        given: files, folders or rows in memory (`clusterucb.sources.sources_of`).
        layout: how rows are read; by default found from their keys.
        strict: the first line that cannot be used is an error.
        limit: lines to read of every file; by default all.
        observer: who is told how far it got.

    Raises:
        InputError: a file cannot be read, or no line of any file can be used.
    """
    return _read(given, "pool", layout, strict, limit, observer)


def read_target(
    given: Any,
    layout: Layout | None = None,
    *,
    strict: bool = False,
    limit: int | None = None,
    observer: Observer | None = None,
) -> Pool:
    """Read a target; rows without a ``subtask`` are one of their file's name. As `read_pool` else."""
    return _read(given, "target", layout, strict, limit, observer)


def _read(
    given: Any, what: str, layout: Layout | None, strict: bool, limit: int | None, observer: Observer | None
) -> Pool:
    sources = sources_of(given, what)
    files = tuple(source.place for source in sources)
    lines = Lines(layout or Layout())
    shapes: dict[str, Counter[str]] = {}
    rejected: list[Rejected] = []
    for source in sources:
        lines.begin(Origin(source.place, source.name, source.name if what == "target" else None))
        with _progress(source, limit, observer or Silent()) as advance:
            found = islice(source.lines(advance), limit)
            for line in _kept(found, source.place, lines, shapes.setdefault(source.place, Counter())):
                if strict:
                    raise not_usable(line)
                rejected.append(line)
    lines.close()
    rows, duplicates = canonical_order(lines)
    read = Pool(Samples(lines, rows), (), files, shapes, frozenset(lines.unseen))
    rejected = read.in_reading_order([*rejected, *duplicates])
    if strict and rejected:
        raise not_usable(rejected[0])
    if not len(rows):
        raise InputError(
            f"the {what} ({', '.join(files)}) has no usable sample: {_nothing(rejected)}; expected rows with "
            "`messages`, with `prompt` and `completion`, or of another known shape. --columns says which columns stand "
            "for these"
        )
    return replace(read, rejected=tuple(rejected))


def _nothing(rejected: Sequence[Rejected]) -> str:
    """Return why no line can be used."""
    if not rejected:
        return "no lines"
    first = rejected[0]
    return (
        f"{len(rejected)} lines read, all rejected ({told(by_kind(rejected))}; first: {first.file}:{first.line}: "
        f"{first.reason})"
    )


def overlap(pool: Pool, target: Pool) -> list[Sample]:
    """Return the pool's samples whose content also stands in the target."""
    held_out = {sample.content_hash for sample in target.samples}
    likely = np.isin(pool.samples.content_keys, target.samples.content_keys)
    return [sample for sample in pool.samples.take(np.flatnonzero(likely)) if sample.content_hash in held_out]


def _kept(found: Iterable[Line], place: str, lines: Lines, shapes: Counter[str]) -> Iterator[Rejected]:
    """Keep the lines that are found in a place; yield those that cannot be used."""
    for number, line in found:
        try:
            if isinstance(line, Unreadable):
                raise line
            shape, _ = lines.read(line, number)
            shapes[shape] += 1
        except Unreadable as error:
            text = "" if isinstance(line, Unreadable) else beginning(line)
            yield Rejected(place, number, str(error), text)


@contextmanager
def _progress(source: Source, limit: int | None, observer: Observer) -> Iterator[Advance]:
    """Show how much of a large file has been read."""
    if source.size < _SLOW or limit is not None:
        yield lambda _: None
        return
    read = 0
    with observer.count(f"Reading {source.place}", source.size // _MEGABYTE, unit="MB") as shown:

        def advance(n_bytes: int) -> None:
            nonlocal read
            before, read = read, read + n_bytes
            if step := read // _MEGABYTE - before // _MEGABYTE:
                shown(step)

        yield advance


def not_usable(line: Rejected) -> InputError:
    """Return the error that ``strict`` makes of a line."""
    return InputError(
        f"{line.file}:{line.line}: {line.reason}; mend the line, or leave --strict away to go on without it"
    )


def canonical_order(lines: Lines) -> tuple[NDArray[np.int64], list[Rejected]]:
    """Return the rows of samples in canonical order without duplicates, i64[N], and the duplicates as rejected lines.

    Of samples with the same content (and subtask) the first in canonical order is kept. Of samples
    with the same id and different content the one with the smallest content hash is kept.

    Rows are sorted by the first eight bytes of their content hash; only samples that share these, or their id, with
    another are looked at one by one.
    """
    keys = lines.content_keys
    order = np.argsort(keys, kind="stable")
    same = np.concatenate(([False], np.diff(keys[order]) == 0))
    ids = np.sort(lines.id_keys)
    shared_id = np.isin(lines.id_keys, ids[1:][ids[1:] == ids[:-1]])[order]
    doubtful = np.flatnonzero(same | np.roll(same, -1) | shared_id)
    kept = np.ones(len(order), bool)
    rejected: list[Rejected] = []
    by_id: dict[str, tuple[str, str]] = {}
    for group in np.split(doubtful, np.flatnonzero(~same[doubtful])[1:]):
        rows = order[group].tolist()
        alike = sorted(
            zip(map(lines.sample, rows), rows, strict=True),
            key=lambda one: (*(getattr(one[0], name) for name in _ORDER), one[1]),
        )
        order[group] = [row for _, row in alike]
        last: Sample | None = None
        for at, (sample, _) in zip(group.tolist(), alike, strict=True):
            content, place = by_id.get(sample.id, ("", ""))
            if last and (last.content_hash, last.subtask) == (sample.content_hash, sample.subtask):
                reason = f"duplicate of {last.file}:{last.line}"
            elif content and content != sample.content_hash:
                reason = f"same id: {sample.id!r} is also that of {place}, with other content"
            else:
                by_id[sample.id] = sample.content_hash, f"{sample.file}:{sample.line}"
                last = sample
                continue
            rejected.append(Rejected.of(sample, reason))
            kept[at] = False
    return order[kept], rejected
