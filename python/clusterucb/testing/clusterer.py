"""What every clusterer has to keep to.

Decision: whether the order of rows matters is judged on two pools, and passing on one is enough. On clusters of rows
that are all alike, k-means finds the same whatever its seeding; where all distances differ, a hierarchy or a
quantile does. Only what looks at positions fails on both.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.poolview import PoolView
from clusterucb.testing import _pools
from clusterucb.testing._checks import (
    require,
    require_description,
    require_no_global_randomness,
    same_bits,
    seeded,
)


class ClustererSuite:
    """Tests of a clusterer; a subclass has a fixture ``clusterer`` that returns it."""

    kind: ClassVar[str] = "clusterer"

    # Labels -------------------------------------------------------------------------------------------------

    def test_every_row_has_a_label(self, clusterer: Clusterer) -> None:
        """One for each row, in their order."""
        for pool in _ordinary():
            shape = np.shape(_labels(clusterer, pool))
            require(
                shape == (len(pool),),
                f"labels of shape {shape} for {len(pool)} rows",
                f"({len(pool)},)",
                "Return one label for each row; leave none out: -1 stands for noise",
            )

    def test_labels_are_whole_numbers(self, clusterer: Clusterer) -> None:
        """Labels are numbers of clusters."""
        for pool in _ordinary():
            dtype = np.asarray(_labels(clusterer, pool)).dtype
            require(
                dtype.kind in "iu",
                f"labels of {dtype}",
                "int64",
                "Return np.unique(x, return_inverse=True)[1]",
            )

    def test_no_label_is_below_minus_one(self, clusterer: Clusterer) -> None:
        """There is only one kind of noise."""
        for pool in _ordinary():
            _require_labels_of_clusters(_labels(clusterer, pool), "an ordinary pool")

    def test_labels_have_no_gaps(self, clusterer: Clusterer) -> None:
        """The engine closes them, but then cluster 7 of a report is not the clusterer's own."""
        for pool in _ordinary():
            labels = np.unique(np.asarray(_labels(clusterer, pool)).ravel())
            kept = labels[labels >= 0]
            require(
                np.array_equal(kept, np.arange(len(kept))),
                f"labels {kept[:20]}",
                f"0 to {len(kept) - 1}, each of them used",
                "Renumber them: np.unique(labels, return_inverse=True)[1], with noise kept at -1",
            )

    def test_order_of_rows_does_not_matter(self, clusterer: Clusterer) -> None:
        """The same rows in another order make the same clusters, whatever their numbers."""
        faults = []
        for pool in _ordinary():
            labels = np.asarray(_labels(clusterer, pool))
            order = np.random.default_rng(8).permutation(len(pool))
            again = np.asarray(_labels(clusterer, _pools.permuted(pool, order)))
            if labels.shape != (len(pool),) or again.shape != labels.shape:
                return  # the first test says so
            undone = np.empty_like(again)
            undone[order] = again
            if np.array_equal(_partition(undone), _partition(labels)):
                return
            faults.append(f"clusters {_partition(labels)} and, of the same rows in another order, {undone}")
        require(
            False,
            "; ".join(faults),
            "the same clusters in any order, at least where clusters are clear or all distances differ",
            "Look at features and columns, not at positions of rows",
        )

    # Randomness and state ------------------------------------------------------------------------------------

    def test_same_rng_gives_the_same_labels(self, clusterer: Clusterer) -> None:
        """Nothing is left of an earlier call."""
        unused = copy.deepcopy(clusterer)
        for pool in (*_ordinary(), *_ordinary()):
            first = _labels(copy.deepcopy(unused), pool)
            again = _labels(clusterer, pool)
            require(
                same_bits([first], [again]),
                f"labels {again} where the same call of an unused clusterer gave {first}",
                "the same labels from the same rng",
                "Keep nothing between calls, and draw from the `rng` that is given",
            )

    def test_randomness_comes_from_rng_alone(self, clusterer: Clusterer) -> None:
        """No np.random, no random, no seed of its own making."""

        def answer() -> list[NDArray[np.int64]]:
            return [clusterer.fit_predict(pool, np.random.default_rng(7)) for pool in _ordinary()]

        require_no_global_randomness(
            answer, "the argument `rng` (a library that wants a seed: int(rng.integers(2**31)))"
        )

    def test_pool_is_left_as_it_is(self, clusterer: Clusterer) -> None:
        """A pool serves every strategy of a run."""
        for pool in _ordinary():
            before = _pools.contents(pool)
            _labels(clusterer, pool)
            after = _pools.contents(pool)
            changed = sorted(name for name in before | after if before.get(name) != after.get(name))
            require(
                not changed,
                f"another {', '.join(changed)} in the pool",
                "the pool as it was",
                "Work on copies; pool.matrix() is one",
            )

    def test_hyper_parameters_are_kept(self, clusterer: Clusterer) -> None:
        """The manifest of a run records them."""
        require_description(clusterer, lambda: _labels(clusterer, _pools.spread()))

    # Pools of every shape -------------------------------------------------------------------------------------

    def test_pool_may_have_one_row(self, clusterer: Clusterer) -> None:
        """The smallest pool there is."""
        _require_labels_of_clusters(_labels(clusterer, _pools.few(1)), "a pool of one row")

    def test_pool_may_have_fewer_rows_than_clusters_are_wanted(self, clusterer: Clusterer) -> None:
        """A number of clusters is an upper limit."""
        for n_rows in (2, 3):
            _require_labels_of_clusters(_labels(clusterer, _pools.few(n_rows)), f"a pool of {n_rows} rows")

    def test_rows_may_be_identical(self, clusterer: Clusterer) -> None:
        """Then distances, norms and deviations are zero, and what is divided by them is NaN."""
        with np.errstate(invalid="ignore"):  # what comes of it is judged by the labels
            labels = _labels(clusterer, _pools.identical(12))
        _require_labels_of_clusters(labels, "a pool of identical rows")


def _ordinary() -> tuple[PoolView, ...]:
    return _pools.blobs(), _pools.spread()


def _labels(clusterer: Clusterer, pool: PoolView) -> NDArray[np.int64]:
    with seeded(0):
        return clusterer.fit_predict(pool, np.random.default_rng(7))


def _partition(labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """Renumber clusters by where they first occur, so that equal partitions are equal arrays."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _require_labels_of_clusters(found: NDArray[np.int64], where: str) -> None:
    labels = np.asarray(found).ravel()
    bad = labels[~(labels >= -1)]  # NaN, too
    require(
        not len(bad),
        f"label {bad[:1]} in {where}",
        "0 or more, or -1 for noise",
        "A huge negative number is a NaN that became an index: look for a division by zero",
    )
