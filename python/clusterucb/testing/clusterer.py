"""Test the contract of clusterers.

Decision: the test of the order of rows uses two pools, and a clusterer must pass on one of them. On clusters of equal
rows, k-means finds the same clusters whatever its seeding. On rows whose distances all differ, a hierarchy or a
quantile does. Only a clusterer that looks at the positions of rows fails on both.
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
    """Tests for a clusterer; the subclass has a fixture ``clusterer`` that returns the clusterer."""

    kind: ClassVar[str] = "clusterer"

    # Labels -------------------------------------------------------------------------------------------------

    def test_every_row_has_a_label(self, clusterer: Clusterer) -> None:
        """`fit_predict` returns one label for each row, in the order of the rows."""
        for pool in _ordinary():
            shape = np.shape(_labels(clusterer, pool))
            require(
                shape == (len(pool),),
                f"labels of shape {shape} for {len(pool)} rows",
                f"({len(pool)},)",
                "Return a label for every row; give noise the label -1 instead of leaving it out",
            )

    def test_labels_are_whole_numbers(self, clusterer: Clusterer) -> None:
        """Labels number the clusters, so they are integers."""
        for pool in _ordinary():
            dtype = np.asarray(_labels(clusterer, pool)).dtype
            require(
                dtype.kind in "iu",
                f"labels of {dtype}",
                "int64",
                "Return np.unique(x, return_inverse=True)[1]",
            )

    def test_no_label_is_below_minus_one(self, clusterer: Clusterer) -> None:
        """-1 stands for noise; no other negative label has a meaning."""
        for pool in _ordinary():
            _require_labels_of_clusters(_labels(clusterer, pool), "an ordinary pool")

    def test_labels_have_no_gaps(self, clusterer: Clusterer) -> None:
        """The engine would close gaps, but then cluster 7 of a report would not be cluster 7 of the clusterer."""
        for pool in _ordinary():
            labels = np.unique(np.asarray(_labels(clusterer, pool)).ravel())
            kept = labels[labels >= 0]
            require(
                np.array_equal(kept, np.arange(len(kept))),
                f"labels {kept[:20]}",
                f"every label from 0 to {len(kept) - 1} in use",
                "Renumber the clusters: np.unique(labels, return_inverse=True)[1], with noise kept at -1",
            )

    def test_order_of_rows_does_not_matter(self, clusterer: Clusterer) -> None:
        """The same rows in another order make the same clusters; the numbers of the clusters may differ."""
        faults = []
        for pool in _ordinary():
            labels = np.asarray(_labels(clusterer, pool))
            order = np.random.default_rng(8).permutation(len(pool))
            again = np.asarray(_labels(clusterer, _pools.permuted(pool, order)))
            if labels.shape != (len(pool),) or again.shape != labels.shape:
                return  # the first test reports it
            undone = np.empty_like(again)
            undone[order] = again
            if np.array_equal(_partition(undone), _partition(labels)):
                return
            faults.append(f"clusters {_partition(labels)}, and for the same rows in another order {undone}")
        require(
            False,
            "; ".join(faults),
            "the same clusters in any order, at least if clusters are clear or all distances differ",
            "Use features and columns, not the positions of rows",
        )

    # Randomness and state ------------------------------------------------------------------------------------

    def test_same_rng_gives_the_same_labels(self, clusterer: Clusterer) -> None:
        """A clusterer keeps nothing from an earlier call."""
        unused = copy.deepcopy(clusterer)
        for pool in (*_ordinary(), *_ordinary()):
            first = _labels(copy.deepcopy(unused), pool)
            again = _labels(clusterer, pool)
            require(
                same_bits([first], [again]),
                f"labels {again}, but {first} from the same call of an unused clusterer",
                "the same labels from the same rng",
                "Keep nothing between calls, and draw only from the argument `rng`",
            )

    def test_randomness_comes_from_rng_alone(self, clusterer: Clusterer) -> None:
        """A clusterer does not use np.random or random, and sets no seed of its own."""

        def answer() -> list[NDArray[np.int64]]:
            return [clusterer.fit_predict(pool, np.random.default_rng(7)) for pool in _ordinary()]

        require_no_global_randomness(
            answer, "the argument `rng` (if a library needs a seed: int(rng.integers(2**31)))"
        )

    def test_pool_is_left_as_it_is(self, clusterer: Clusterer) -> None:
        """All strategies of a run share one pool."""
        for pool in _ordinary():
            before = _pools.contents(pool)
            _labels(clusterer, pool)
            after = _pools.contents(pool)
            changed = sorted(name for name in before | after if before.get(name) != after.get(name))
            require(
                not changed,
                f"a change of the pool: {', '.join(changed)}",
                "the pool as it was",
                "Work on copies; pool.matrix() returns a copy",
            )

    def test_hyper_parameters_are_kept(self, clusterer: Clusterer) -> None:
        """A run's manifest records the hyper-parameters."""
        require_description(clusterer, lambda: _labels(clusterer, _pools.spread()))

    # Pools of every shape -------------------------------------------------------------------------------------

    def test_pool_may_have_one_row(self, clusterer: Clusterer) -> None:
        """One row is the smallest pool."""
        _require_labels_of_clusters(_labels(clusterer, _pools.few(1)), "a pool of one row")

    def test_pool_may_have_fewer_rows_than_clusters_are_wanted(self, clusterer: Clusterer) -> None:
        """The number of clusters is an upper limit."""
        for n_rows in (2, 3):
            _require_labels_of_clusters(_labels(clusterer, _pools.few(n_rows)), f"a pool of {n_rows} rows")

    def test_rows_may_be_identical(self, clusterer: Clusterer) -> None:
        """Distances, norms and deviations are then zero, and a division by them gives NaN."""
        with np.errstate(invalid="ignore"):  # the labels show whether NaN did harm
            labels = _labels(clusterer, _pools.identical(12))
        _require_labels_of_clusters(labels, "a pool of identical rows")


def _ordinary() -> tuple[PoolView, ...]:
    """Return a pool of clear clusters and a pool without ties."""
    return _pools.blobs(), _pools.spread()


def _labels(clusterer: Clusterer, pool: PoolView) -> NDArray[np.int64]:
    """Return a clusterer's labels for a pool, always from the same ``rng`` and under the same global seed."""
    with seeded(0):
        return clusterer.fit_predict(pool, np.random.default_rng(7))


def _partition(labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """Renumber clusters in the order of their first rows, so that equal partitions are equal arrays."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _require_labels_of_clusters(labels: NDArray[np.int64], where: str) -> None:
    """Require labels of at least -1; ``where`` is the pool in words."""
    labels = np.asarray(labels).ravel()
    bad = labels[~(labels >= -1)]  # also catches NaN
    require(
        not len(bad),
        f"label {bad[:1]} in {where}",
        "0 or more, or -1 for noise",
        "A huge negative label is a NaN that was converted to an integer: look for a division by zero",
    )
