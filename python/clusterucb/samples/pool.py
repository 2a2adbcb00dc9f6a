"""Read pools and targets into samples in canonical order, and list the lines that are rejected.

Decisions:
    - A bad line never stops a run. It becomes a `Rejected` with file, line and reason. Only a file that cannot be
      read, or a pool without a single usable sample, is an error.
    - The order of lines and files changes nothing (`clusterucb.samples.canonical`).
    - A sample keeps the bytes of its line, so that a selected sample is written exactly as it was read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import InputError
from clusterucb.progress import Advance, Observer, Silent
from clusterucb.samples.canonical import canonical_order
from clusterucb.samples.lines import Lines, Origin, Samples
from clusterucb.samples.message import ROLES, Message, Unreadable
from clusterucb.samples.rejected import RejectedLines
from clusterucb.samples.sample import Rejected, Sample, beginning, counts_by_kind, kinds_in_words
from clusterucb.samples.shapes import NO_SHAPE, Layout
from clusterucb.samples.sources import RowSource, sources_of
from clusterucb.samples.tables import Line
from clusterucb.wording import counted

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

_SLOW = 64 << 20  # bytes; reading a file of at least this size shows progress
_MEGABYTE = 1_000_000
_LISTED = 3  # the largest number of files that a message names


@dataclass(frozen=True)
class Pool:
    """The samples of a pool or a target, and the lines that were rejected.

    Attributes:
        samples: the samples in canonical order, without duplicates.
        content_keys: u64[N], the first eight bytes of the samples' content hashes.
        rejected: the rejected lines in reading order.
        files: the files in reading order.
        shapes: the number of samples of each shape, for each file.
        unseen: the columns that the layout names and that no row has.
        unread: the columns with values that nothing is read from, for each file.
        fingerprint: hex SHA-256 of everything about the samples that a run depends on. The order of lines and files
            does not change it.
    """

    samples: Samples
    content_keys: NDArray[np.uint64]
    rejected: RejectedLines
    files: tuple[str, ...]
    shapes: Mapping[str, Counter[str]]
    unseen: frozenset[str] = frozenset()
    unread: Mapping[str, frozenset[str]] = field(default_factory=dict)
    fingerprint: str = ""


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
        given: files, folders or rows in memory (`clusterucb.samples.sources.sources_of`).
        layout: how a sample is read from a row. By default, each row's keys decide.
        strict: raise an error at the first line that cannot be used.
        limit: the largest number of lines to read from each file. By default, all.
        observer: the observer of the progress. By default, none.

    Raises:
        InputError: a file cannot be read, no line of any file can be used, or (if ``strict``) a line cannot be used.
        OptionError: ``given`` holds no rows.
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
    """Read a target. A row without a ``subtask`` gets its file's name as subtask. Otherwise the same as `read_pool`."""
    return _read(given, "target", layout, strict, limit, observer)


def _read(
    given: Any, what: str, layout: Layout | None, strict: bool, limit: int | None, observer: Observer | None
) -> Pool:
    sources = sources_of(given, what)
    files = tuple(source.place for source in sources)
    layout = layout or Layout()
    lines, rejected = Lines(layout), RejectedLines(files)
    unread: dict[str, frozenset[str]] = {}
    for source in sources:
        lines.begin(Origin(source.place, source.name, source.name if what == "target" else None))
        with _progress(source, limit, observer or Silent()) as advance:
            numbered = islice(source.lines(advance), limit)
            for line in _keep(numbered, source.place, lines):
                if strict:
                    raise not_usable(line)
                rejected.add(line)
        unread[source.place] = unread.get(source.place, frozenset()) | lines.unread
    lines.close()
    rows = canonical_order(lines, rejected, qualify=layout.ids is None)
    if strict and rejected:
        raise not_usable(rejected[0])
    if not len(rows):
        raise InputError(f"the {what} ({_listed(files)}) has {_why_unusable(lines, rejected, layout)}")
    shapes, keys = lines.shapes(rows), lines.content_keys[rows]
    fingerprint = lines.forget_hashes(rows)
    return Pool(
        Samples(lines, rows), keys, rejected, files, shapes, frozenset(lines.unseen), unread, fingerprint
    )


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - _LISTED:,} more" if len(files) > _LISTED else ""
    return ", ".join(files[:_LISTED]) + more


def _why_unusable(lines: Lines, rejected: RejectedLines, layout: Layout) -> str:
    """Return why no line can be used, and what to do about it."""
    if not rejected:
        return "no lines; expected at least one"
    first, kinds = rejected[0], counts_by_kind(rejected)
    if "no conversation" not in kinds:
        advice = ""
    elif lines.unseen:
        advice = f". --columns names {', '.join(sorted(lines.unseen))}, which no row has"
    elif layout.shape:
        advice = f". --format {layout.shape} accepts only rows of that shape; leave it out"
    elif not first.reason.startswith(NO_SHAPE) or ". " in first.reason[len(NO_SHAPE) :]:
        advice = ""  # the reason has some
    else:
        advice = ". If the columns have other names, give them: --columns prompt=question,completion=answer"
    read = f"{counted(len(rejected), 'line')} ({kinds_in_words(kinds)})"
    return f"no usable sample in {read}; the first is {first.file}:{first.line}: {first.reason}{advice}"


def overlap(pool: Pool, target: Pool) -> list[Sample]:
    """Return the pool's samples whose content is also in the target."""
    held_out = {sample.content_hash for sample in target.samples}
    likely = np.isin(pool.content_keys, target.content_keys)
    return [sample for sample in pool.samples.take(np.flatnonzero(likely)) if sample.content_hash in held_out]


def _keep(numbered: Iterable[Line], place: str, lines: Lines) -> Iterator[Rejected]:
    """Keep the usable lines of a place in ``lines``; yield the others as rejected lines."""
    for number, line in numbered:
        try:
            if isinstance(line, Unreadable):
                raise line
            lines.read(line, number)
        except Unreadable as error:
            text = "" if isinstance(line, Unreadable) else beginning(line)
            yield Rejected(place, number, str(error), text)


@contextmanager
def _progress(source: RowSource, limit: int | None, observer: Observer) -> Iterator[Advance]:
    """Show progress while a large file is read. Yields a function, to be called with each number of bytes read."""
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
    """Return the error that ``strict`` raises for a rejected line."""
    return InputError(
        f"{line.file}:{line.line}: {line.reason}; correct the line, or leave out --strict to skip it"
    )
