"""The canonical order of samples, and which of them are duplicates.

Samples are sorted by (content hash, subtask, id, source, bytes), and every later index, draw and tie-break refers to
that order, so the order of lines and files changes nothing. For the same reason the choice among duplicates depends on
what they hold, never on where they stand.

Decisions:
    - Of samples with the same content (and subtask) the first in canonical order is kept. Of samples with the same
      id and different content the one with the smallest content hash is kept.
    - Rows are sorted by the first eight bytes of their content hash. Samples are made, one by one, of those rows alone
      that share these with another, or whose id others with other content have; how many there are does not matter to
      memory, as long as they do not have one content and as many contested ids.
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


def canonical_order(lines: Lines, rejected: RejectedLines) -> NDArray[np.int64]:
    """Return the rows of samples in canonical order without duplicates, i64[N]; add the duplicates to ``rejected``."""
    keys = lines.content_keys
    ids = _Ids(lines)
    order = np.argsort(keys, kind="stable")
    same = _as_before(keys[order])
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
    """Ids that samples with different content have, and who has them.

    Attributes:
        contested: bool[n], which rows have such an id.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        ids, keys = lines.id_keys, lines.content_keys
        order = np.argsort(ids, kind="stable")
        same = _as_before(ids[order])
        rows = order[same | np.roll(same, -1)]
        rows = rows[np.lexsort((keys[rows], ids[rows]))]
        self._ids = np.unique(ids[rows][_as_before(ids[rows]) & ~_as_before(keys[rows])])
        self._owners = np.full(len(self._ids), -1)
        self.contested = np.zeros(len(ids), bool)
        self.contested[rows] = np.isin(ids[rows], self._ids)

    def claim(self, row: int, sample: Sample) -> Sample:
        """Return the sample that has a row's contested id: the row's own, unless another came before it."""
        at = np.searchsorted(self._ids, self._lines.id_keys[row])
        if self._owners[at] < 0:
            self._owners[at] = row
            return sample
        return self._lines.sample(int(self._owners[at]))


def _as_before(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which values are equal to the one before them, bool[n]."""
    return np.concatenate(([False], values[1:] == values[:-1]))[: len(values)]


def _best(lines: Lines, rows: Iterable[int], ids: _Ids) -> tuple[list[tuple[Sample, int]], array[int]]:
    """Return the best sample, and its row, of each content, subtask and id; and which of these each row has.

    All ids that no other content has count as one: whichever is best.
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
    """Return the rows that are kept, in canonical order, and why others like each of ``best`` are not."""
    kept: dict[tuple[str, str], Sample] = {}
    chosen: dict[int, None] = {}
    clashes: dict[int, str] = {}
    for number, (sample, row) in sorted(enumerate(best), key=lambda one: _rank(one[1])):
        if (sample.content_hash, sample.subtask) in kept:
            continue
        if ids.contested[row]:
            owner = ids.claim(row, sample)
            if owner.content_hash != sample.content_hash:
                clashes[number] = (
                    f"same id: {sample.id!r} is also that of {_place(owner)}, with other content"
                )
                continue
        kept[sample.content_hash, sample.subtask] = sample
        chosen[row] = None
    reasons = []
    for number, (sample, _) in enumerate(best):
        first = kept.get((sample.content_hash, sample.subtask))
        reasons.append(f"duplicate of {_place(first)}" if first else clashes[number])
    return chosen, reasons


def _rank(one: tuple[Sample, int]) -> tuple[object, ...]:
    sample, row = one
    return (*(getattr(sample, name) for name in _ORDER), row)


def _place(sample: Sample) -> str:
    return f"{sample.file}:{sample.line}"
