"""Treat large pools, of more than a million rows, in parts, and learn from samples of their rows.

A smaller pool's features are arrays in memory. Those of a large pool may be half-precision numbers that wait on the
disk, and a second copy of them in single precision would not fit into memory.

Decisions:
    - A sample is evenly spaced rows. Canonical order is the order of content hashes, so these are as good as random
      ones, and do not depend on the order of files.
    - A pool of at most a million rows is computed as before there were large ones, to the last bit.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

LARGE = 1_000_000  # a pool with more rows is large
# The most multiplications of a matrix product that OpenBLAS does not divide among threads.
_ONE_THREAD = 1 << 18
_PART = 1 << 15  # rows that are in memory in single precision at a time, in each thread


def is_large(n_rows: int) -> bool:
    """Return whether a pool of ``n_rows`` rows is large."""
    return n_rows > LARGE


def evenly(n_rows: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` evenly spaced rows of ``n_rows``, i64[min(count, n_rows)], in rising order."""
    count = min(count, n_rows)
    return np.arange(count) * n_rows // max(count, 1)


def in_parts(one: Callable[[slice], None], n_rows: int, size: int = _PART) -> None:
    """Call a function, in threads, with slices of at most ``size`` rows that cover all rows.

    Args:
        one: the function. Calls must not depend on each other, so that their order changes nothing.
        n_rows: the number of rows.
        size: the largest number of rows in a slice.
    """
    if n_rows <= size:
        one(slice(0, n_rows))
        return
    with ThreadPoolExecutor() as threads:
        list(threads.map(one, slices(n_rows, size)))


def slices(n_rows: int, size: int = _PART) -> Iterator[slice]:
    """Yield slices of at most ``size`` rows that cover ``n_rows`` rows."""
    return (slice(begin, min(begin + size, n_rows)) for begin in range(0, n_rows, size))


def floats(block: NDArray[np.floating], rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows of a block [N, k] in single precision, f32[m, k]. Of a block that a file maps, forget the pages."""
    found = np.asarray(block[rows], np.float32)
    if isinstance(rows, slice):
        forget(block, rows)
    return found


def forget(block: NDArray[np.floating], rows: slice) -> None:
    """Let the system take back the memory of rows of a block that is a whole file, mapped to be read alone.

    They are read again when they are used again. Otherwise, all rows would stay in memory after they are read once.
    """
    whole = block.base
    if not (isinstance(whole, np.memmap) and whole.mode == "r"):  # others may have changes that no file has
        return
    if whole.offset or whole.nbytes != block.nbytes:
        return
    pages: mmap.mmap = whole._mmap  # type: ignore[attr-defined]
    begin, end, _ = rows.indices(len(block))
    row = block.nbytes // max(len(block), 1)
    first = -(-begin * row // mmap.PAGESIZE) * mmap.PAGESIZE
    if (size := end * row // mmap.PAGESIZE * mmap.PAGESIZE - first) > 0:
        pages.madvise(mmap.MADV_DONTNEED, first, size)


def product(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the matrix product f32[m, n] of f32[m, k] and f32[k, n], computed in the calling thread.

    The functions that `in_parts` calls run in threads. If each of their products started threads of its own, these
    would wait for one another: on two busy cores, a prediction takes seven times as long. A stack of small products
    stays in its thread, because none is large enough to divide.
    """
    (m, k), n = left.shape, right.shape[1]
    step = max(_ONE_THREAD // max(k * n, 1), 1)
    whole = m - m % step
    found = np.empty((m, n), np.float32)
    if whole:
        stack = (-1, step, k)
        np.matmul(left[:whole].reshape(stack), right, out=found[:whole].reshape(-1, step, n))
    if whole < m:
        np.matmul(left[whole:], right, out=found[whole:])
    return found


def by_arm(labels: NDArray[np.int64], priority: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return all rows, sorted by arm and, within an arm, by priority, i64[N]. The lower row wins a tie.

    This is ``np.lexsort((priority, labels))`` in a fraction of the time: whole numbers of 16 bits sort in linear time.

    Args:
        labels: i64[N], the arm of each row, 0 or more.
        priority: f64[N].
    """
    order = np.argsort(priority, kind="stable")
    short = labels.astype(np.uint16) if labels.max(initial=0) <= np.iinfo(np.uint16).max else labels
    short = short[order]
    return order[np.argsort(short, kind="stable")]


def largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the rows of the ``count`` largest values f64[N] and of all that equal the smallest of these, rising.

    A row with NaN may be among them.
    """
    if count >= len(values):
        return np.arange(len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    return np.flatnonzero(~(values < least))
