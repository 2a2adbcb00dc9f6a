"""Test k-means by faiss: nearly as tight as the built-in k-means, reproducible, and silent."""

from __future__ import annotations

from typing import Any

import clusterucb as cu
import faiss
import numpy as np
import pytest
from clusterucb import plugins
from clusterucb.clusterers import KMeans, default_n_clusters
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError
from clusterucb.testing import ClustererSuite

from clusterucb_faiss import FaissKMeans


class TestFaissKMeansKeepsTheContract(ClustererSuite):
    @pytest.fixture
    def clusterer(self) -> FaissKMeans:
        return FaissKMeans()


def pool_of(features: Any) -> PoolView:
    rows = np.array(features, dtype=np.float32)
    return PoolView({"x": rows}, np.zeros(len(rows), np.int64), np.zeros(len(rows)))


def labels_of(features: Any, n_clusters: int | None = None, seed: int = 0, **options: Any) -> np.ndarray:
    return FaissKMeans(n_clusters, **options).fit_predict(pool_of(features), np.random.default_rng(seed))


def directions(n_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return rows f64[n_rows, 5] of random length, each near one of ten directions, and the directions i64[n_rows]."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(n_rows) % 10)
    rows = np.concatenate([np.eye(5), -np.eye(5)])[truth] + rng.normal(scale=0.03, size=(n_rows, 5))
    return rows * rng.uniform(0.5, 2, size=(n_rows, 1)), truth


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one)) == len(set(other))


def cosine(pool: PoolView, labels: np.ndarray) -> float:
    """Return the mean cosine of rows with the mean direction of their cluster."""
    rows = pool.matrix() / np.linalg.norm(pool.matrix(), axis=1, keepdims=True)
    sums = np.array([rows[labels == label].sum(axis=0) for label in range(labels.max() + 1)])
    return float(
        np.einsum("ij,ij->i", rows, (sums / np.linalg.norm(sums, axis=1, keepdims=True))[labels]).mean()
    )


# What is found ---------------------------------------------------------------------------------------------


def test_clusters_are_nearly_as_tight_as_those_of_the_built_in_kmeans() -> None:
    pool = pool_of(np.random.default_rng(0).normal(size=(3000, 16)))
    built_in = cosine(pool, KMeans(40).fit_predict(pool, np.random.default_rng(0)))
    ours = cosine(pool, FaissKMeans(40).fit_predict(pool, np.random.default_rng(0)))
    assert ours > built_in - 0.02


def test_clusters_hold_one_direction_each_whatever_the_rows_lengths() -> None:
    rows, truth = directions(600)
    found = labels_of(rows, 40)  # more clusters than directions, since random seeds would miss some of ten
    assert all(len(set(truth[found == label])) == 1 for label in set(found))


@pytest.mark.parametrize("n_rows", [1, 2, 90, 100, 800])
def test_default_is_that_of_the_built_in_kmeans(n_rows: int) -> None:
    rows = np.random.default_rng(0).normal(size=(n_rows, 8))
    assert len(set(labels_of(rows))) == default_n_clusters(pool_of(rows))


@pytest.mark.parametrize("limit", [1, 4, 256])
def test_every_row_is_with_a_centre_even_beyond_the_sample(limit: int) -> None:
    rows = np.random.default_rng(1).normal(size=(2000, 6))
    found = labels_of(rows, 20, max_points_per_centroid=limit)
    assert found.shape == (2000,)
    assert found.dtype == np.int64
    assert sorted(set(found)) == list(range(found.max() + 1))
    assert found.max() < 20


# Reproducibility -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_and_threads_same_clusters(threads: int) -> None:
    rows = np.random.default_rng(2).normal(size=(6000, 24))
    first = labels_of(rows, 60, seed=3, threads=threads)
    for _ in range(2):
        np.testing.assert_array_equal(labels_of(rows, 60, seed=3, threads=threads), first)
    assert not np.array_equal(labels_of(rows, 60, seed=4, threads=threads), first)


def test_result_does_not_depend_on_the_threads_that_faiss_was_given_elsewhere() -> None:
    rows = np.random.default_rng(2).normal(size=(3000, 24))
    first = labels_of(rows, 50)
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        np.testing.assert_array_equal(labels_of(rows, 50), first)
        assert faiss.omp_get_max_threads() == 3  # restored
    finally:
        faiss.omp_set_num_threads(before)


def test_clear_clusters_do_not_depend_on_the_number_of_threads() -> None:
    rows, _ = directions(3000)
    np.testing.assert_array_equal(labels_of(rows, 40, threads=2), labels_of(rows, 40))


# Extremes --------------------------------------------------------------------------------------------------


def test_one_row_is_one_cluster() -> None:
    assert labels_of([[3.0, 1.0]]).tolist() == [0]
    assert labels_of([[3.0, 1.0]], 5).tolist() == [0]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_identical_rows_are_one_cluster(value: float) -> None:
    assert set(labels_of(np.full((50, 4), value), 7)) == {0}


def test_as_many_clusters_as_distinct_directions_where_those_are_fewer() -> None:
    rows = np.repeat(np.eye(4), [10, 1, 20, 3], axis=0)
    for n_clusters in (4, 5, 30):
        assert same_partition(labels_of(rows, n_clusters), rows.argmax(axis=1))


def test_duplicates_of_many_directions_leave_no_gaps() -> None:
    rows = np.random.default_rng(3).normal(size=(12, 4))[np.arange(600) % 12]
    found = labels_of(rows, 10)
    assert sorted(set(found)) == list(range(found.max() + 1))
    for row in range(12):
        assert len(set(found[row::12])) == 1


def test_no_features_are_one_cluster() -> None:
    pool = PoolView({}, np.zeros(6, np.int64), np.zeros(6))
    assert set(FaissKMeans().fit_predict(pool, np.random.default_rng(0))) == {0}


@pytest.mark.parametrize(("n_rows", "n_clusters"), [(30, 25), (10, 10), (5, 9), (400, 20)])
def test_faiss_prints_nothing(capfd: Any, n_rows: int, n_clusters: int) -> None:
    labels_of(np.random.default_rng(0).normal(size=(n_rows, 3)), n_clusters)
    assert capfd.readouterr() == ("", "")


# Options, installation and use -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "faiss-kmeans: n_clusters is 0; expected a whole number of at least 1"),
        ({"niter": -1}, "faiss-kmeans: niter is -1; expected a whole number of at least 1"),
        ({"threads": 0}, "faiss-kmeans: threads is 0; expected a whole number of at least 1"),
        ({"max_points_per_centroid": 0.5}, "faiss-kmeans: max_points_per_centroid is 0.5; expected"),
    ],
)
def test_unusable_hyper_parameter_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        FaissKMeans(**options)
    assert message in str(caught.value)


def test_clusterer_is_installed_under_its_name() -> None:
    found = plugins.load()
    assert found.make("clusterer", "faiss-kmeans", {"n_clusters": "12"}) == FaissKMeans(12)
    assert found.table["clusterer", "faiss-kmeans"].provider == "clusterucb-faiss"


def test_search_finds_most_of_the_best_rows() -> None:
    rows, truth = directions(1000)
    scores = truth / 5 + np.random.default_rng(0).normal(scale=0.1, size=1000)
    found = cu.search(
        rows, lambda drawn: scores[drawn], clusterer=FaissKMeans(40), policy=cu.UCB(), budget=200, n_select=50
    )
    assert np.isin(np.argsort(-scores)[:50], found.rows).mean() > 0.8
