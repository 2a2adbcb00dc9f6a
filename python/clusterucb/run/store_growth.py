"""Decide what is computed for a gradient store: the samples of a pool that it does not hold, and shards that are lost.

Decisions:
    - A shard counts once its samples and its sketches are recorded, in this order. The samples that no shard holds are
      divided into new shards in canonical order. So an interrupted job that is repeated makes the same shards, and
      nothing has to be planned on the disk.
    - Of an interrupted last shard, the samples may be recorded without sketches. If the pool has changed meanwhile and
      lacks one of them, the shard is made anew.
    - A lost file of a finished shard is made again if the pool has the shard's samples; the record of its SHA-256 says
      whether it is the same (`clusterucb.run.kept_files`).
    - Rows of a store of version 0.1 are those of the pool that it was made for, so that pool alone tells their samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import RunError
from clusterucb.run import store_shards
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.store_samples import SHAPES, ShardSamples, places
from clusterucb.run.store_shards import samples_name, samples_of, shard_name
from clusterucb.wording import counted


@dataclass(frozen=True)
class Shard:
    """A shard of a store.

    Attributes:
        number: the shard's number, from 0.
        start: the number of its first row in the store.
        size: m, the number of its rows.
        rows: the pool's row of each, i64[m]; -1 where the pool lacks the sample.
        has_samples, has_sketches: whether the files are there.
    """

    number: int
    start: int
    size: int
    rows: NDArray[np.int64]
    has_samples: bool = True
    has_sketches: bool = True


def shards_for(files: KeptFiles, contents: NDArray[np.uint8], *, first_pool: bool) -> list[Shard]:
    """Return the shards of a store that holds all of a pool: those that are there, and those to compute.

    Args:
        files: the store's files. The records of an interrupted shard that is made anew are dropped.
        contents: u8[N, 32], the content hashes of the pool's samples.
        first_pool: whether the pool is the one that the store began with.

    Raises:
        RunError: a file is damaged, or lost and cannot be made again from this pool; or the store does not know its
            samples, and this is not the pool that it was made for.
    """
    known = [_samples(files, number) for number in range(_n_recorded(files))]
    sketched = [files.find(shard_name(number)) is not None for number in range(len(known))]
    rows = [None if samples is None else places(contents, samples.contents) for samples in known]
    if known and not files.recorded(shard_name(len(known) - 1)):
        last = rows[-1]
        if last is None or (last < 0).any():
            files.forget(samples_name(len(known) - 1))
            rows.pop()
    taken = np.zeros(len(contents), bool)
    for one in rows:
        if one is not None:
            taken[one[one >= 0]] = True
    left = iter(_parts(np.flatnonzero(~taken)))
    shards: list[Shard] = []
    for number, here in enumerate(rows):
        if here is None:
            if not files.recorded(samples_name(number)) and not first_pool:
                raise _untaught(files)
            if (here := next(left, None)) is None:
                raise _lost(files, samples_name(number), "this pool has no further samples")
        elif not sketched[number] and (n_lacking := int((here < 0).sum())):
            raise _lost(files, shard_name(number), f"this pool lacks {counted(n_lacking, 'sample')} of it")
        shards.append(
            _shard(shards, here, has_samples=known[number] is not None, has_sketches=sketched[number])
        )
    for here in left:
        shards.append(_shard(shards, here, has_samples=False, has_sketches=False))
    return shards


def _shard(before: list[Shard], rows: NDArray[np.int64], *, has_samples: bool, has_sketches: bool) -> Shard:
    start = before[-1].start + before[-1].size if before else 0
    return Shard(len(before), start, len(rows), rows, has_samples, has_sketches)


def _parts(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[at : at + store_shards.SHARD] for at in range(0, len(rows), store_shards.SHARD))


def _n_recorded(files: KeptFiles) -> int:
    """Return how many shards have a record."""
    number = 0
    while files.recorded(shard_name(number)) or files.recorded(samples_name(number)):
        number += 1
    return number


def _samples(files: KeptFiles, number: int) -> ShardSamples | None:
    """Return the samples of a shard, or None if they have to be found in the pool."""
    name = samples_name(number)
    arrays = files.arrays(name, SHAPES)
    return None if arrays is None else samples_of(files, name, arrays)


def _lost(files: KeptFiles, name: str, why: str) -> RunError:
    return RunError(
        f"{files.folder / name} of the gradient store was removed, and {why}, so it cannot be made again; restore it, "
        "give a pool with these samples, or start again with --overwrite"
    )


def _untaught(files: KeptFiles) -> RunError:
    return RunError(
        f"{files.folder} holds a gradient store of another pool, made by a version whose stores do not know their "
        "samples; repeat the command once with that pool, and it can grow from then on. Or choose another --out, or "
        "start again with --overwrite"
    )
