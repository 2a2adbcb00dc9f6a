"""Put samples into canonical order and leave out duplicates.

Samples are sorted by (content hash, subtask, id, source, bytes). Every later index, draw and tie-break refers to that
order, so the order of lines and files changes nothing. For the same reason, the choice among duplicates depends on
their content and never on their place in the files.

Decisions:
    - Among samples with the same content (and subtask), the first in canonical order is kept. Among samples with the
      same id and different contents, the sample with the smallest content hash is kept.
    - Files that are numbered from 0 share ids that mean nothing to each other. So if samples of several files have the
      same id and different contents, the name of the file comes before the id.
    - Rows are sorted by the first eight bytes of their content hash. A sample is decoded only if its row shares these
      bytes with another row, or if its id is contested (samples with other content have it too). Samples are decoded
      one at a time, so memory does not grow with their number. The exception is many samples with the same content
      and as many contested ids.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clusterucb.samples.lines import Lines
from clusterucb.samples.rejected import RejectedLines
from clusterucb.samples.sample import Sample

_ORDER = ("content_hash", "subtask", "id", "source", "raw")


def canonical_order(lines: Lines, rejected: RejectedLines, *, qualify: bool = True) -> NDArray[np.int64]:
    """Return the rows in canonical order without duplicates, i64[N], and add the duplicates to ``rejected``.

    Args:
        lines: the lines, closed.
        rejected: gets the duplicates.
        qualify: whether an id that several files have is told apart by the files' names.
    """
    keys = lines.content_keys
    ids = _Ids(lines)
    if qualify and len(shared := ids.shared_by_files()):
        lines.qualify(shared)
        ids = _Ids(lines)
    order = np.argsort(keys, kind="stable")
    same = _equal_to_previous(keys[order])
    doubtful = np.flatnonzero(same | np.roll(same, -1) | ids.contested[order])
    kept = np.ones(len(order), bool)
    for start, end in pairwise(np.append(np.flatnonzero(~same[doubtful]), len(doubtful))):
        group = doubtful[start:end]
        rows = order[group]
        best, number_of = _best(lines, map(int, rows), ids)
        chosen, reasons = _choose(best, ids)
        for row, number in zip(map(int, rows), number_of, strict=True):
            if row not in chosen:
                rejected.add(lines.rejected(row, reasons[number]))
        order[group[: len(chosen)]] = list(chosen)
        kept[group[len(chosen) :]] = False
    return order[kept]


class _Ids:
    """The contested ids, which samples with different contents have, and the row that owns each of them.

    Attributes:
        contested: bool[n]. True where the row has a contested id.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        ids, keys = lines.id_keys, lines.content_keys
        order = np.argsort(ids, kind="stable")
        same = _equal_to_previous(ids[order])
        rows = order[same | np.roll(same, -1)]
        rows = rows[np.lexsort((keys[rows], ids[rows]))]
        self._ids = np.unique(ids[rows][_equal_to_previous(ids[rows]) & ~_equal_to_previous(keys[rows])])
        self._owners = np.full(len(self._ids), -1)
        self.contested = np.zeros(len(ids), bool)
        self.contested[rows] = np.isin(ids[rows], self._ids)

    def shared_by_files(self) -> NDArray[np.int64]:
        """Return the rows with a contested id that several files have, i64[k]."""
        rows = np.flatnonzero(self.contested)
        ids, origins = self._lines.id_keys[rows], self._lines.origins(rows)
        first, of_row = np.unique(ids, return_index=True, return_inverse=True)[1:]
        several = np.zeros(len(first), bool)
        np.logical_or.at(several, of_row, origins != origins[first[of_row]])
        return rows[several[of_row]]

    def claim(self, row: int, sample: Sample) -> Sample:
        """Return the owner of a row's contested id. The first row that claims an id becomes its owner."""
        at = np.searchsorted(self._ids, self._lines.id_keys[row])
        if self._owners[at] < 0:
            self._owners[at] = row
            return sample
        return self._lines.sample(int(self._owners[at]))


def _equal_to_previous(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return whether each value equals the value before it, bool[n]."""
    return np.concatenate(([False], values[1:] == values[:-1]))[: len(values)]


def _best(lines: Lines, rows: Iterable[int], ids: _Ids) -> tuple[list[tuple[Sample, int]], array[int]]:
    """Return the best (sample, row) of each (content, subtask, id), and for each row the number of its best sample.

    All ids that are not contested count as the same id, since any of them may be kept.
    """
    best: list[tuple[Sample, int]] = []
    numbers: dict[tuple[str, str, str], int] = {}
    number_of = array("Q")
    for row in rows:
        sample = lines.sample(row)
        names = (sample.content_hash, sample.subtask, sample.id if ids.contested[row] else "")
        number = numbers.setdefault(names, len(best))
        number_of.append(number)
        if number == len(best):
            best.append((sample, row))
        else:
            best[number] = min(best[number], (sample, row), key=_rank)
    return best, number_of


def _choose(best: Sequence[tuple[Sample, int]], ids: _Ids) -> tuple[dict[int, None], list[str]]:
    """Return the rows to keep, in canonical order, and for each of ``best`` why rows like it are rejected."""
    kept: dict[tuple[str, str], Sample] = {}
    chosen: dict[int, None] = {}
    clashes: dict[int, str] = {}
    for number, (sample, row) in sorted(enumerate(best), key=lambda numbered: _rank(numbered[1])):
        if (sample.content_hash, sample.subtask) in kept:
            continue
        if ids.contested[row]:
            owner = ids.claim(row, sample)
            if owner.content_hash != sample.content_hash:
                clashes[number] = (
                    f"same id: {sample.id!r} is also the id of {_place(owner)}, with other content"
                )
                continue
        kept[sample.content_hash, sample.subtask] = sample
        chosen[row] = None
    reasons = []
    for number, (sample, _) in enumerate(best):
        first = kept.get((sample.content_hash, sample.subtask))
        reasons.append(f"duplicate of {_place(first)}" if first else clashes[number])
    return chosen, reasons


def _rank(candidate: tuple[Sample, int]) -> tuple[object, ...]:
    sample, row = candidate
    return (*(getattr(sample, name) for name in _ORDER), row)


def _place(sample: Sample) -> str:
    return f"{sample.file}:{sample.line}"
