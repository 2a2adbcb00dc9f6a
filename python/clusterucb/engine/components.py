"""Reduce blocks of features to their principal components, for distances of every row to some.

Decisions:
    - A block is projected to its first principal components, so that the distances of a million rows to the inducing
      points take seconds. Ten times as many components change the recall by at most .02.
    - In a large pool, a block has fewer components; its mean, its components and its scale are those of a sample of its
      rows; and the features are read once, in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.large import evenly, floats, in_parts, is_large, product

MAX_DIM = 64  # the largest number of components of a block
LARGE_DIM = 16  # of a block of a large pool
SPREAD = 8192  # rows from which principal components are computed
_SAMPLE = 1 << 15  # rows of a large pool from which mean and scale are computed
_SPARE, _ROUNDS = 16, 6  # extra directions and rounds of the subspace iteration

Floats = NDArray[np.float32]


def said(blocks: Sequence[NDArray[np.floating]]) -> list[Floats]:
    """Return the non-constant blocks, projected to their principal components and scaled, each f32[N, k + 2].

    Two random rows have a mean squared distance of 1 in each block. The last two columns are the squared norms of the
    rows, and ones.
    """
    return [found for block in blocks if (found := _said(block)) is not None]


def _said(block: NDArray[np.floating]) -> Floats | None:
    if is_large(len(block)):
        projection = Projection.of(block, distances=True)
        return projection.all_rows(block, n_more=2) if projection.scale else None
    scaled = _scaled(_reduced(np.asarray(block, np.float32)))
    return _with_squares(scaled) if scaled.any() else None


@dataclass(frozen=True)
class Projection:
    """How the rows of a block of a large pool are reduced.

    Attributes:
        mean: f32[k], which is subtracted first.
        directions: f32[k, m], the principal directions; None if there are few columns, which stay as they are.
        scale: the factor of all numbers; 0 if all rows are equal.
    """

    mean: Floats
    directions: Floats | None
    scale: float

    @classmethod
    def of(cls, block: NDArray[np.floating], *, distances: bool) -> Projection:
        """Return the projection of a block, computed from evenly spaced rows.

        Args:
            block: the block, [N, k].
            distances: whether two random rows get a mean squared distance of 1. If not, rows get a mean norm of 1.
        """
        some = floats(block, evenly(len(block), _SAMPLE))
        mean = some.mean(axis=0, dtype=np.float64).astype(np.float32)
        found = cls(mean, None, 1.0)
        if block.shape[1] > LARGE_DIM:
            found = cls(mean, principal(some[evenly(len(some), SPREAD)])[1][:, :LARGE_DIM].copy(), 1.0)
        norms = squares(found(some)).astype(np.float64)
        size = np.sqrt(2 * norms.mean()) if distances else np.sqrt(norms).mean()
        return cls(found.mean, found.directions, float(1 / size) if size > 0 else 0.0)

    def __call__(self, rows: Floats) -> Floats:
        """Return the reduced rows f32[n, m] of rows f32[n, k]."""
        centred = rows - self.mean
        reduced = centred if self.directions is None else product(centred, self.directions)
        found: Floats = reduced * np.float32(self.scale)
        return found

    @property
    def width(self) -> int:
        """m, the number of columns of a reduced row."""
        return len(self.mean) if self.directions is None else self.directions.shape[1]

    def all_rows(self, block: NDArray[np.floating], *, n_more: int = 0) -> Floats:
        """Return all rows of a block, reduced, f32[N, m + n_more], while some of them are read at a time.

        Args:
            block: the block, [N, k].
            n_more: 2 for two more columns: the rows' squared norms, and ones.
        """
        found = np.empty((len(block), self.width + n_more), np.float32)

        def one(here: slice) -> None:
            reduced = self(floats(block, here))
            found[here, : self.width] = reduced
            if n_more:
                found[here, -2], found[here, -1] = squares(reduced), 1

        in_parts(one, len(block))
        return found


def joined(blocks: Sequence[NDArray[np.floating]]) -> Floats:
    """Return the blocks of a large pool side by side, each centred, projected and scaled to mean norm 1, f32[N, m].

    Args:
        blocks: at least one block, each [N, k].
    """
    parts = [Projection.of(block, distances=False) for block in blocks]
    ends = np.cumsum([part.width for part in parts]).tolist()
    found = np.empty((len(blocks[0]), ends[-1]), np.float32)

    def one(here: slice) -> None:
        for part, block, end in zip(parts, blocks, ends, strict=True):
            found[here, end - part.width : end] = part(floats(block, here))

    in_parts(one, len(found))
    return found


def squares(vectors: Floats) -> Floats:
    """Return the squared norms f32[m] of vectors f32[m, k]."""
    found: Floats = np.einsum("ij,ij->i", vectors, vectors)
    return found


def principal(some: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean f32[k] of rows f32[n, k] and at most `MAX_DIM` of their principal directions, f32[k, m].

    The method is subspace iteration (Halko, Martinsson and Tropp 2011): an exact solution would take minutes for
    sketches of 8192 dimensions.
    """
    mean = some.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = some - mean
    guess = np.random.default_rng(0).normal(size=(some.shape[1], MAX_DIM + _SPARE)).astype(np.float32)
    for _ in range(_ROUNDS):
        guess = np.linalg.qr(centred.T @ (centred @ guess))[0]
    _, sizes, turned = np.linalg.svd(centred @ guess, full_matrices=False)
    kept = np.flatnonzero(sizes > 1e-3 * sizes[0])[:MAX_DIM]
    directions: NDArray[np.float32] = guess @ turned[kept].T
    return mean, directions


def _reduced(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a block, centred and projected to at most `MAX_DIM` principal components."""
    mean = block.mean(axis=0, dtype=np.float64).astype(np.float32)
    if block.shape[1] <= MAX_DIM:
        centred: NDArray[np.float32] = block - mean
        return centred
    directions = principal(block[:: -(-len(block) // SPREAD)])[1]
    found: NDArray[np.float32] = block @ directions - mean @ directions
    return found


def _with_squares(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a block with two more columns: the squared norms of its rows, and ones."""
    own = squares(block)
    return np.column_stack([block, own, np.ones_like(own)])


def _scaled(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale a centred block so that two random rows have a mean squared distance of 1."""
    mean = 2 * float(np.mean(np.einsum("ij,ij->i", block, block), dtype=np.float64))
    scale: np.float32 = np.float32(1 / np.sqrt(mean)) if mean > 0 else np.float32(1)
    return block * scale
