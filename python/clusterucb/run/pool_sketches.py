"""Give a pool the sketches that a gradient store holds of its samples, in the pool's order.

The store may hold samples that the pool lacks, in another order, and lack some of the pool's: the pool is covered in
part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.draws import RowScores
from clusterucb.kernels import ops
from clusterucb.kernels.projection import Sketch
from clusterucb.run.gradient_store import GradientStore
from clusterucb.run.store_shards import SHARD
from clusterucb.run.store_types import Sketches
from clusterucb.wording import counted


class PoolSketches:
    """The sketches of a pool's N samples that a gradient store holds.

    Args:
        store: the store.
        places: i64[N], the store's row of each sample; -1 where the store does not hold it (`GradientStore.places`).

    Attributes:
        store: the store.
        covered: bool[N]. True where the store holds the sample, also if its gradient failed.
    """

    def __init__(self, store: GradientStore, places: NDArray[np.int64]) -> None:
        self.store = store
        self.covered: NDArray[np.bool_] = places >= 0
        self._places = places

    def __len__(self) -> int:
        """Return N."""
        return len(self._places)

    @property
    def sketch(self) -> Sketch:
        """The projection of the sketches."""
        return self.store.sketch

    @property
    def n_uncovered(self) -> int:
        """The number of samples that the store does not hold."""
        return len(self) - int(np.count_nonzero(self.covered))

    @property
    def fingerprint(self) -> str:
        """A hex SHA-256 of everything that affected the sketches and, if some are missing, of which are there."""
        if not self.n_uncovered:
            return self.store.fingerprint
        there = np.packbits(self.covered).tobytes()
        return hashlib.sha256(self.store.fingerprint.encode() + there).hexdigest()

    def described(self) -> str:
        """Return how much of the pool the store covers, as a sentence."""
        n_covered, said = len(self) - self.n_uncovered, f"The gradient store {self.store.folder} covers"
        if not self.n_uncovered:
            return f"{said} {'all of ' if n_covered > 1 else ''}{counted(n_covered, 'sample')}"
        return f"{said} {n_covered:,} of {counted(len(self), 'sample')}; {self.n_uncovered:,} are not covered"

    def rows(self, rows: range) -> Sketches:
        """Return the sketches of consecutive samples, f16[m, d] or f32[m, d]; NaN where there is none."""
        return self.store.kept.rows(self._places[rows.start : rows.stop])

    def each(self) -> Iterator[Sketches]:
        """Yield the sketches of all samples in order, at most `SHARD` of them at a time; NaN where there is none."""
        starts = range(0, len(self), SHARD)
        return (self.rows(range(start, min(start + SHARD, len(self)))) for start in starts)

    def scores(
        self, targets: NDArray[np.float32], advance: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float64]:
        """Return the estimated scores f64[N, S] of all samples; NaN where there is no sketch.

        Args:
            targets: f32[S, d], the finished sketches of the directions.
            advance: a function that is called with each number of samples done.
        """
        found = np.full((len(self), len(targets)), np.nan)
        shards, mine = self.store.kept, np.flatnonzero(self.covered)
        mine = mine[np.argsort(self._places[mine], kind="stable")]
        bounds = np.searchsorted(self._places[mine], shards.starts)
        for number, (start, end) in enumerate(pairwise(bounds.tolist())):
            here = mine[start:end]
            if len(here):
                sketches = shards.sketches(number, self._places[here] - shards.starts[number])
                found[here] = ops.sketch_products(sketches, targets)
                advance(len(here))
        return found

    @cached_property
    def failures(self) -> dict[int, str]:
        """Why samples that the store holds have no sketch, by their number in the pool."""
        stored = self.store.failures()
        if not stored:
            return {}
        return {row: stored[place] for row, place in enumerate(self._places.tolist()) if place in stored}


class StoredScores:
    """Scores pool samples by a store's sketches. The first call computes all these scores at once.

    Args:
        sketches: the pool's sketches.
        targets: f32[S, d], the finished sketches of the directions.
        others: scores the samples that the store does not hold; None if there are none.
        advance: a function that is called with each number of samples done.
    """

    def __init__(
        self,
        sketches: PoolSketches,
        targets: NDArray[np.float32],
        others: Callable[[NDArray[np.int64]], RowScores] | None = None,
        *,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._sketches = sketches
        self._targets = targets
        self._others = others
        self._advance = advance

    def __call__(self, rows: NDArray[np.int64]) -> RowScores:
        """Return the scores f64[m, S] of rows i64[m], and why rows have none."""
        scores, failures = self._all[rows], self._sketches.failures
        lacking = np.flatnonzero(~self._sketches.covered[rows])
        self._advance(len(rows) - len(lacking))
        if self._others is not None and len(lacking):
            found = self._others(rows[lacking])
            scores[lacking] = found.values
            failures = {**failures, **found.failures}
        return RowScores(scores, failures)

    @cached_property
    def _all(self) -> NDArray[np.float64]:
        return self._sketches.scores(self._targets)
