"""Test HDBSCAN: it finds the clusters of a pool, and treats noise as the option says."""

from __future__ import annotations

import warnings
from typing import Any

import clusterucb as cu
import numpy as np
import pytest
from clusterucb import plugins
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError
from clusterucb.testing import ClustererSuite

from clusterucb_hdbscan import Hdbscan


class TestHdbscanKeepsTheContract(ClustererSuite):
    @pytest.fixture
    def clusterer(self) -> Hdbscan:
        return Hdbscan()


class TestHdbscanOnASampleKeepsTheContract(ClustererSuite):
    @pytest.fixture
    def clusterer(self) -> Hdbscan:
        return Hdbscan(max_fit=30, min_cluster_size=5, noise="nearest")


def pool_of(features: Any) -> PoolView:
    rows = np.array(features, dtype=np.float32)
    return PoolView({"x": rows}, np.zeros(len(rows), np.int64), np.zeros(len(rows)))


def labels_of(features: Any, seed: int = 0, **options: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        labels = Hdbscan(**options).fit_predict(pool_of(features), np.random.default_rng(seed))
    kept = set(labels.tolist()) - {-1}
    assert kept == set(range(len(kept)))
    return labels


def islands(n_rows: int, n_islands: int = 4, width: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return rows f64[n_rows, width] around distant centres, and the centre of each row, i64[n_rows]."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(n_rows) % n_islands)
    centres = rng.normal(scale=10, size=(n_islands, width))
    return centres[truth] + rng.normal(scale=0.3, size=(n_rows, width)), truth


def islands_and_sea(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return islands followed by rows scattered far apart, and the centre of each row; -1 for scattered rows."""
    rows, truth = islands(300, seed=seed)
    sea = np.random.default_rng(seed + 100).uniform(-60, 60, size=(30, rows.shape[1]))
    return np.concatenate([rows, sea]), np.concatenate([truth, np.full(30, -1)])


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one)) == len(set(other))


# What is found ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_separated_clusters_are_found_without_their_number(seed: int) -> None:
    rows, truth = islands(400, n_islands=3 + seed, seed=seed)
    found = labels_of(rows, min_cluster_size=20, noise="nearest")
    assert same_partition(found, truth)


def test_order_of_rows_does_not_matter() -> None:
    rows, truth = islands_and_sea()
    order = np.random.default_rng(1).permutation(len(rows))
    one, other = labels_of(rows), labels_of(rows[order])
    assert same_partition(one[order], other)
    assert same_partition(one[:300], truth[:300])


@pytest.mark.parametrize("width", [2, 32, 33, 200])
def test_reduction_keeps_the_clusters_whatever_the_width(width: int) -> None:
    rows, truth = islands(200, n_islands=2, width=width, seed=3)
    assert same_partition(labels_of(rows, min_cluster_size=20, noise="nearest"), truth)


def test_directions_kept_are_those_of_largest_spread() -> None:
    rows, truth = islands(200, n_islands=4, width=3)
    with_faint_noise = np.concatenate(
        [rows, np.random.default_rng(5).normal(scale=0.01, size=(200, 60))], axis=1
    )
    found = labels_of(with_faint_noise, n_components=3, min_cluster_size=20, noise="nearest")
    assert same_partition(found, truth)


def test_very_wide_features_are_reduced_at_random_but_reproducibly(monkeypatch: Any) -> None:
    monkeypatch.setattr("clusterucb_hdbscan._EXACT", 50)
    rows, truth = islands(200, width=100)
    found = labels_of(rows, min_cluster_size=20, noise="nearest", seed=3)
    assert same_partition(found, truth)
    np.testing.assert_array_equal(found, labels_of(rows, min_cluster_size=20, noise="nearest", seed=3))


# Noise -----------------------------------------------------------------------------------------------------


def test_noise_may_be_left_to_the_engine() -> None:
    rows, truth = islands_and_sea()
    found = labels_of(rows, noise="arms")
    assert (found[truth == -1] == -1).mean() > 0.9
    assert (found[truth >= 0] >= 0).mean() > 0.9


def test_single_makes_one_cluster_of_all_noise() -> None:
    rows, _ = islands_and_sea()
    noise = labels_of(rows, noise="arms") == -1
    found = labels_of(rows, noise="single")
    assert set(found[noise]) == {found.max()}
    assert (found[~noise] < found.max()).all()


def test_nearest_gives_noise_to_the_closest_centroid() -> None:
    rows, _ = islands_and_sea()
    before, found = labels_of(rows, noise="arms"), labels_of(rows)
    noise = before == -1
    np.testing.assert_array_equal(found[~noise], before[~noise])
    centroids = np.array([rows[before == label].mean(axis=0) for label in range(before.max() + 1)])
    distance = np.linalg.norm(rows[noise][:, None] - centroids, axis=2)
    np.testing.assert_array_equal(found[noise], distance.argmin(axis=1))


@pytest.mark.parametrize("noise", ["arms", "nearest", "single"])
def test_all_noise_is_left_to_the_engine(noise: str) -> None:
    rows = np.random.default_rng(0).uniform(size=(60, 8))
    assert set(labels_of(rows, min_cluster_size=29, noise=noise)) == {-1}


# Extremes --------------------------------------------------------------------------------------------------


def test_one_row_is_one_cluster() -> None:
    assert labels_of([[3.0, 1.0]]).tolist() == [0]


@pytest.mark.parametrize("n_rows", [2, 40])
def test_identical_rows_are_one_cluster(n_rows: int) -> None:
    assert set(labels_of(np.ones((n_rows, 5)))) == {0}


def test_repeated_rows_are_together() -> None:
    rows = np.repeat(np.eye(4) * 5, 25, axis=0)
    found = labels_of(rows, noise="nearest")
    assert same_partition(found, rows.argmax(axis=1))


@pytest.mark.parametrize("n_rows", [2, 3, 4, 9])
@pytest.mark.parametrize("noise", ["arms", "nearest", "single"])
def test_fewer_rows_than_a_cluster_needs_are_noise(n_rows: int, noise: str) -> None:
    rows = np.random.default_rng(0).normal(size=(n_rows, 3))
    assert set(labels_of(rows, min_cluster_size=10, noise=noise)) == {-1}


def test_no_features_are_one_cluster() -> None:
    pool = PoolView({}, np.zeros(6, np.int64), np.zeros(6))
    assert set(Hdbscan().fit_predict(pool, np.random.default_rng(0))) == {0}


# Large pools -----------------------------------------------------------------------------------------------


def test_rows_beyond_the_sample_go_with_their_nearest_neighbour(monkeypatch: Any) -> None:
    monkeypatch.setattr("clusterucb_hdbscan._ENTRIES", 5000)  # many blocks
    rows, truth = islands(1000)
    found = labels_of(rows, max_fit=200, noise="nearest")
    assert same_partition(found, truth)
    np.testing.assert_array_equal(found, labels_of(rows, max_fit=200, noise="nearest"))


def test_cluster_size_is_meant_in_rows_of_the_pool() -> None:
    rows, truth = islands(1000, n_islands=5)  # clusters of 200 rows, about 40 of them in the sample
    assert same_partition(labels_of(rows, max_fit=200, min_cluster_size=120, noise="nearest"), truth)


# Options, installation and use -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_cluster_size": 1}, "hdbscan: min_cluster_size is 1; expected a whole number of at least 2"),
        ({"min_samples": 0}, "hdbscan: min_samples is 0; expected a whole number of at least 1"),
        ({"n_components": 0}, "hdbscan: n_components is 0; expected a whole number of at least 1"),
        ({"max_fit": 2.5}, "hdbscan: max_fit is 2.5; expected a whole number of at least 2"),
        (
            {"noise": "nearst"},
            "hdbscan: noise is 'nearst'; expected one of arms, nearest, single. Did you mean 'nearest'?",
        ),
    ],
)
def test_unusable_hyper_parameter_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Hdbscan(**options)
    assert message in str(caught.value)


def test_clusterer_is_installed_under_its_name() -> None:
    found = plugins.load()
    assert found.make("clusterer", "hdbscan", {"noise": "single", "min_samples": "3"}) == Hdbscan(
        noise="single", min_samples=3
    )
    assert found.table["clusterer", "hdbscan"].provider == "clusterucb-hdbscan"


@pytest.mark.parametrize("noise", ["arms", "nearest", "single"])
def test_search_spends_its_budget_on_the_clusters(noise: str) -> None:
    rows, truth = islands_and_sea()
    scores = np.where(truth == 2, 1.0, 0.0) + np.random.default_rng(0).normal(scale=0.1, size=len(rows))
    found = cu.search(
        rows,
        lambda drawn: scores[drawn],
        clusterer=Hdbscan(noise=noise),
        policy=cu.UCB(),
        budget=100,
        n_select=50,
    )
    assert found.labels.min() == 0
    assert (truth[found.rows] == 2).mean() > 0.95
