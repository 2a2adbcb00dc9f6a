"""Spherical k-means and the clusters of a column."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.clusterers import KMeans, Source, default_n_clusters
from clusterucb.clusterers.kmeans import Tree
from clusterucb.engine import large
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError


def pool_of(features: Any, **columns: Any) -> PoolView:
    features = np.array(features, dtype=np.float32)
    n_rows = len(features)
    arrays = {name: np.array(column) for name, column in columns.items()}
    return PoolView({"x": features}, np.zeros(n_rows, np.int64), np.zeros(n_rows), columns=arrays)


def kmeans(features: Any, n_clusters: int | None = None, seed: int = 0) -> np.ndarray:
    return KMeans(n_clusters=n_clusters).fit_predict(pool_of(features), np.random.default_rng(seed))


def directions(n_directions: int, n_rows: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows f32[N, 2 * n_directions] of random length around orthogonal axes, and the axis of each."""
    rng = np.random.default_rng(seed)
    axis = rng.permutation(np.arange(n_rows) % n_directions)
    # An axis and its opposite: the mean stays near zero, so centring changes no direction much.
    sign = np.where(rng.random(n_rows) < 0.5, 1, -1)
    rows = np.zeros((n_rows, n_directions))
    rows[np.arange(n_rows), axis] = sign
    rows += rng.normal(scale=noise, size=rows.shape)
    return rows * rng.uniform(0.5, 2, size=(n_rows, 1)), axis * 2 + (sign > 0)


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one)) == len(set(other))


@given(
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from(["normal", "grid", "equal", "zeros", "half zeros"]),
    st.integers(0, 100),
)
def test_labels_have_no_gaps_and_at_most_k_values(
    n_rows: int, width: int, n_clusters: int, kind: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = {
        "normal": rng.normal(size=(n_rows, width)),
        "grid": rng.integers(-1, 2, size=(n_rows, width)) * 1.0,
        "equal": np.ones((n_rows, width)),
        "zeros": np.zeros((n_rows, width)),
        "half zeros": rng.normal(size=(n_rows, width)) * (np.arange(n_rows) % 2)[:, None],
    }[kind]
    labels = kmeans(rows, n_clusters, seed)
    assert labels.shape == (n_rows,)
    assert labels.dtype.kind == "i"
    found = sorted(set(labels.tolist()))
    assert found == list(range(len(found)))
    assert len(found) <= min(n_clusters, n_rows)
    if kind in ("equal", "zeros"):
        assert found == [0]


@given(st.integers(3, 60), st.data())
def test_as_many_clusters_as_asked_for_where_the_rows_differ(n_rows: int, data: st.DataObject) -> None:
    n_clusters = data.draw(st.integers(1, n_rows))
    angle = np.arange(n_rows) * 2 * np.pi / n_rows  # rows around a circle: all directions differ
    labels = kmeans(np.c_[np.cos(angle), np.sin(angle)], n_clusters, data.draw(st.integers(0, 5)))
    assert len(set(labels)) == n_clusters


@pytest.mark.parametrize(
    ("n_rows", "budget", "n_clusters"),
    [(1, 1, 1), (3, 2, 1), (90, 20, 6), (90, 0, 30), (800, 160, 53), (800, 800, 112), (800, 0, 112)],
)
def test_default_is_a_third_of_the_budget_and_bounded(n_rows: int, budget: int, n_clusters: int) -> None:
    rows = np.random.default_rng(0).normal(size=(n_rows, 8)).astype(np.float32)
    pool = replace(pool_of(rows), budget=budget)
    assert default_n_clusters(pool) == n_clusters
    assert len(set(KMeans().fit_predict(pool, np.random.default_rng(0)))) == n_clusters


@pytest.mark.parametrize("seed", range(5))
def test_separated_directions_are_found_whatever_the_rows_lengths(seed: int) -> None:
    rows, axis = directions(5, 400, noise=0.03, seed=seed)
    found = [kmeans(rows, 10, s) for s in range(5)]
    # k-means may stop in a local optimum from one seeding; it finds the truth from most.
    assert sum(same_partition(labels, axis) for labels in found) >= 3


def test_same_seed_same_clusters() -> None:
    rows = np.random.default_rng(1).normal(size=(300, 6))
    np.testing.assert_array_equal(kmeans(rows, 12, seed=3), kmeans(rows, 12, seed=3))
    assert not np.array_equal(kmeans(rows, 12, seed=3), kmeans(rows, 12, seed=4))


def test_clusters_do_not_follow_the_order_of_rows() -> None:
    rows, axis = directions(2, 200, noise=0.01, seed=0)
    order = np.random.default_rng(0).permutation(200)
    assert same_partition(kmeans(rows, 4), axis)
    assert same_partition(kmeans(rows[order], 4), axis[order])


def test_empty_cluster_moves_to_the_rows_that_fit_worst() -> None:
    rows = np.repeat(np.eye(3), [2000, 2000, 3], axis=0)  # seeding looks at 192 rows, hardly at the last
    for seed in range(5):
        assert same_partition(kmeans(rows, 3, seed), rows.argmax(axis=1))


def test_every_row_is_with_its_nearest_centre() -> None:
    rows = np.random.default_rng(2).normal(size=(500, 4)).astype(np.float32)
    pool = pool_of(rows)
    labels = KMeans(n_clusters=7, max_iter=500).fit_predict(pool, np.random.default_rng(0))
    unit = pool.matrix() / np.linalg.norm(pool.matrix(), axis=1, keepdims=True)
    centres = np.array([unit[labels == label].sum(axis=0) for label in range(7)])
    cosine = unit @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    own = cosine[np.arange(500), labels]
    np.testing.assert_allclose(own, cosine.max(axis=1), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "kmeans: n_clusters is 0; expected a whole number of at least 1"),
        ({"n_clusters": -3}, "kmeans: n_clusters is -3; expected a whole number of at least 1"),
        ({"max_iter": 0}, "kmeans: max_iter is 0; expected a whole number of at least 1"),
    ],
)
def test_unusable_hyper_parameter_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        KMeans(**options)
    assert message in str(caught.value)


def test_source_makes_a_cluster_of_every_value() -> None:
    pool = pool_of(np.zeros((5, 1)), source=["b", "a", "b", "c", "a"], tokens=[3, 1, 3, 3, 2])
    rng = np.random.default_rng(0)
    assert Source().fit_predict(pool, rng).tolist() == [1, 0, 1, 2, 0]
    assert Source(column="tokens").fit_predict(pool, rng).tolist() == [2, 0, 2, 2, 1]


@pytest.mark.parametrize(
    ("columns", "there"), [({}, "none"), ({"tokens": [1], "label_tokens": [1]}, "label_tokens, tokens")]
)
def test_missing_column_names_those_that_are_there(columns: dict[str, list[int]], there: str) -> None:
    message = f"clusterer source: the pool has no column 'source'; its columns: {there}"
    with pytest.raises(OptionError, match=message):
        Source().fit_predict(pool_of([[0.0]], **columns), np.random.default_rng(0))


@given(st.integers(1, 4), st.integers(0, 60), st.integers(0, 1000))
def test_rows_of_a_tree_are_in_the_nearest_cluster_of_the_nearest_group(n_groups, n_rows, seed):
    rng = np.random.default_rng(seed)
    tree = Tree(
        rng.normal(size=(n_groups, 3)).astype(np.float32),
        [rng.normal(size=(int(rng.integers(1, 5)), 3)).astype(np.float32) for _ in range(n_groups)],
    )
    rows = rng.normal(size=(n_rows, 3)).astype(np.float32)
    expected = []
    for row in rows:
        group = int(np.argmax(tree.groups @ row))
        expected.append(sum(map(len, tree.clusters[:group])) + int(np.argmax(tree.clusters[group] @ row)))
    np.testing.assert_array_equal(tree.assign(rows), expected)


@pytest.mark.parametrize("n_clusters", [6, 36])
def test_clusters_of_a_large_pool_are_found_in_a_sample_and_in_two_levels(monkeypatch, n_clusters):
    rows, axis = directions(3, 2000, 0.02, 0)
    monkeypatch.setattr(large, "LARGE", 50)
    monkeypatch.setattr("clusterucb.clusterers.kmeans._ONE_LEVEL", 10)
    monkeypatch.setattr("clusterucb.clusterers.kmeans._FEWEST_ROWS", 500)
    labels = kmeans(rows, n_clusters)
    np.testing.assert_array_equal(kmeans(rows, n_clusters), labels)
    assert set(labels) == set(range(labels.max() + 1))
    assert labels.max() < n_clusters + 6  # groups round their shares
    pairs = set(zip(labels.tolist(), axis.tolist(), strict=True))
    assert len(pairs) == len(set(labels))  # no cluster mixes directions
    if n_clusters == 6:
        assert same_partition(labels, axis)


def test_equal_rows_of_a_large_pool_are_one_cluster(monkeypatch):
    monkeypatch.setattr(large, "LARGE", 50)
    assert not kmeans(np.ones((80, 3)), 5).any()
    assert len(set(kmeans([[1.0, 0.0]] * 70 + [[-1.0, 0.0]] * 10, 300))) == 2
