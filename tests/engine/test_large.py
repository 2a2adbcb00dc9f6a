"""Large pools: what is computed in parts and from samples, against the same computed at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clusterucb as cu
from clusterucb.engine import large
from clusterucb.engine.components import LARGE_DIM, Projection, said, squares
from clusterucb.engine.gaussian import Kernel, KernelInputs, Posterior
from clusterucb.engine.kernel_columns import KernelColumns
from clusterucb.engine.large import by_arm, evenly, floats, in_parts, largest, product
from clusterucb.engine.poolview import PoolView, SideInformation, numbered, pool_view
from clusterucb.engine.regression import Regression
from clusterucb.engine.rules import Rules
from clusterucb.errors import OptionError
from clusterucb.policies import Surrogate
from helpers.recorded import Memory, identical
from helpers.searching import best_rows, search

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture
def small_is_large(monkeypatch):
    monkeypatch.setattr(large, "LARGE", 50)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.1, 0.5, 0.5, 0.9])), max_size=40), st.booleans()
)
def test_rows_are_sorted_by_arm_and_priority(pairs, far):
    labels = np.array([label for label, _ in pairs], np.int64) * (100_000 if far else 1)
    priority = np.array([own for _, own in pairs], np.float64)
    np.testing.assert_array_equal(by_arm(labels, priority), np.lexsort((priority, labels)))


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0]), min_size=1, max_size=30), st.integers(1, 35))
def test_the_largest_are_found_with_their_equals(values, count):
    values = np.array(values)
    least = np.sort(values)[::-1][min(count, len(values)) - 1]
    np.testing.assert_array_equal(largest(values, count), np.flatnonzero(values >= least))


@given(
    st.lists(st.integers(-3, 40), min_size=1, max_size=30), st.sampled_from([np.int64, np.int8, np.uint16])
)
def test_values_are_numbered_as_by_sorting(values, kind):
    column = np.array(values).clip(0 if kind is np.uint16 else -3).astype(kind)
    np.testing.assert_array_equal(numbered(column), np.unique(column, return_inverse=True)[1])


@given(st.integers(0, 300), st.integers(1, 60), st.integers(1, 60), st.booleans(), seeds)
def test_a_product_in_pieces_is_the_product(m, k, n, strided, seed):
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(m, k + 3)).astype(np.float32)
    left = left[:, 2 : 2 + k] if strided else left[:, :k].copy()
    right = rng.normal(size=(k, n)).astype(np.float32)
    np.testing.assert_allclose(product(left, right), left @ right, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 200), st.integers(1, 250))
def test_evenly_spaced_rows_are_distinct_and_reach_from_the_first_on(n_rows, count):
    rows = evenly(n_rows, count)
    assert len(rows) == min(count, n_rows)
    assert (np.diff(rows) >= 1).all()
    assert (np.diff(rows) <= -(-n_rows // max(len(rows), 1))).all()
    assert not len(rows) or (rows[0] == 0 and rows[-1] < n_rows)


@given(st.integers(0, 100), st.integers(1, 30))
def test_parts_cover_all_rows_once(n_rows, size):
    seen = np.zeros(n_rows, np.int64)

    def one(here):
        assert here.stop - here.start <= size
        seen[here] += 1

    in_parts(one, n_rows, size)
    assert (seen == 1).all()


def kernel_of(n_rows: int, seed: int, *, n_blocks: int, others: bool) -> Kernel:
    rng = np.random.default_rng(seed)
    blocks = [rng.normal(size=(n_rows, 2 + block)).astype(np.float32) for block in range(n_blocks)]
    linear = [rng.normal(size=(n_rows, 2)).astype(np.float32)] if others else []
    kernel = Kernel(KernelInputs(blocks, [rng.integers(0, 3, n_rows)] if others else [], linear))
    kernel.parameters = kernel.parameters + rng.normal(scale=0.3, size=len(kernel.parameters))
    return kernel


@given(seeds, st.integers(1, 3), st.booleans())
def test_kernel_columns_are_the_kernel(seed, n_blocks, others):
    kernel = kernel_of(30, seed, n_blocks=n_blocks, others=others)
    rows, columns = np.arange(30), np.array([3, 0, 17])
    np.testing.assert_allclose(
        KernelColumns(kernel, columns)(rows), kernel(rows, columns), rtol=1e-4, atol=1e-5
    )


@given(seeds, st.integers(1, 3), st.booleans())
@settings(max_examples=20)
def test_predictions_of_a_large_pool_are_those_of_a_small_one(seed, n_blocks, others):
    kernel = kernel_of(80, seed, n_blocks=n_blocks, others=others)
    rng = np.random.default_rng(seed)
    rows, values, points = rng.permutation(80)[:40], rng.normal(size=(40, 2)), np.arange(0, 40, 3)
    small, big = (Posterior.of(kernel, rows, values, points) for _ in range(2))
    everywhere = np.arange(80)
    mean, deviation = small.predict(everywhere)
    left_out = small.left_out(rows, values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "LARGE", 50)
        np.testing.assert_allclose(big.mean(everywhere), mean, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(big.left_out(rows, values), left_out, rtol=1e-2, atol=1e-2)
        without = big.predict(everywhere)[1]
    assert small.influence is not None
    added = kernel.noise * squares(kernel(everywhere, small.points) @ small.influence)
    np.testing.assert_allclose(without**2, (deviation**2 - added).clip(0), rtol=1e-2, atol=2e-3)


@given(st.integers(1, 40), st.sampled_from(["normal", "one row"]), seeds)
@settings(max_examples=20)
def test_a_block_is_projected_in_parts_as_at_once(width, kind, seed):
    rng = np.random.default_rng(seed)
    n_rows = 70_000  # three parts
    block = (rng.normal(size=(n_rows if kind == "normal" else 1, width)) + 3).astype(np.float16)
    block = np.broadcast_to(block, (n_rows, width)).copy()
    projection = Projection.of(block, distances=True)
    assert projection.width <= min(width, LARGE_DIM)
    found = projection.all_rows(block, n_more=2)
    if kind == "one row":
        assert projection.scale == 0
        assert not found[:, :-1].any()
        return
    expected = projection(floats(block, slice(0, n_rows)))
    np.testing.assert_allclose(found[:, :-2], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[:, -2], (found[:, :-2] ** 2).sum(axis=1), rtol=1e-4)
    assert (found[:, -1] == 1).all()
    assert 2 * found[:, -2].mean(dtype=float) == pytest.approx(1, rel=0.02)  # two random rows are 1 apart


def halves(n_rows: int, seed: int = 0, width: int = 40) -> np.ndarray:
    """Return features f16[N, k] of ten groups, read-only."""
    rng = np.random.default_rng(seed)
    rows = 2 * rng.normal(size=(10, width))[np.arange(n_rows) % 10] + 0.3 * rng.normal(size=(n_rows, width))
    found = rows.astype(np.float16)
    found.flags.writeable = False
    return found


def test_half_precision_features_are_shared_in_large_pools_alone(small_is_large):
    for n_rows, kind in ((51, np.float16), (50, np.float32)):
        block = halves(n_rows)
        pool = pool_view(block, SideInformation(), Rules(), priority=np.zeros)
        assert pool.features["features"].dtype == kind
        assert np.shares_memory(pool.features["features"], block) == (kind is np.float16)
    bad = halves(60).copy()
    bad[7, 3] = np.inf
    bad.flags.writeable = False
    with pytest.raises(OptionError, match=r"NaN or infinity in 1 rows \(first: row 7\)"):
        pool_view(bad, SideInformation(), Rules(), priority=np.zeros)


def test_the_matrix_of_a_large_pool_keeps_its_distances(small_is_large, monkeypatch):
    features = {
        "a": halves(300),
        "b": 100 * halves(300, 1, 3).astype(np.float32),
        "c": np.ones((300, 2), np.float32),
    }
    pool = PoolView(features, np.zeros(300, np.int64), np.zeros(300))
    reduced = pool.matrix()
    assert reduced.shape == (300, LARGE_DIM + 3 + 2)
    assert not reduced[:, -2:].any()
    monkeypatch.setattr(large, "LARGE", 10**6)
    whole = pool.matrix()
    np.testing.assert_allclose(reduced @ reduced.T, whole @ whole.T, atol=0.1)


@pytest.mark.usefixtures("small_is_large")
def test_a_mapped_file_is_forgotten_and_read_again(tmp_path: Path):
    rows = halves(40_000)
    rows.tofile(tmp_path / "rows")
    mapped = np.asarray(np.memmap(tmp_path / "rows", np.float16, "r", shape=rows.shape))
    for _ in range(2):
        np.testing.assert_array_equal(said([mapped])[0], said([rows])[0])
    part = floats(mapped, slice(13, 33_001))
    np.testing.assert_array_equal(part, rows[13:33_001])
    large.forget(mapped[5:], slice(0, 100))  # does nothing: a part of a file
    np.testing.assert_array_equal(mapped, rows)
    changed = np.memmap(tmp_path / "rows", np.float16, "c", shape=rows.shape)
    changed[:] = 1  # in memory alone
    assert (floats(np.asarray(changed), slice(0, 40_000)) == 1).all()
    assert (changed == 1).all()


def pool_with_scores(n_rows: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    features = halves(n_rows, seed)
    rng = np.random.default_rng(seed + 1)
    scores = features[:, :2].astype(float) + 0.9 * rng.normal(size=(n_rows, 2))
    scores[rng.random(n_rows) < 0.02] = np.nan
    return features, scores


def run(journal=None, **changes):
    features, scores = pool_with_scores()
    options = {"clusterer": cu.KMeans(), "policy": Surrogate(batches=12), "budget": 240, "n_select": 30}
    options |= {"cold_start": 0.1, "watch": lambda recall: None, **changes}
    return search(features, scores.__getitem__, journal=journal, **options)


@pytest.mark.usefixtures("small_is_large")
def test_a_search_in_a_large_pool_resumes_to_the_same_result(monkeypatch):
    monkeypatch.setattr("clusterucb.engine.regression._FIRST", (32, 40))
    whole = Memory()
    expected = run(whole)
    assert expected.n_scored == len(set(expected.drawn_rows.tolist())) == 240
    for cut in range(0, len(whole.operations), 5):
        identical(run(Memory(whole.operations[:cut])), expected)


@pytest.mark.usefixtures("small_is_large")
def test_what_is_drawn_after_the_kernel_is_learnt_is_what_all_rows_say():
    features, scores = pool_with_scores()
    pool = PoolView(
        {"x": features},
        np.arange(600) % 7,
        np.random.default_rng(3).random(600),
        budget=600,
        n_select=30,
    )
    policy, regression = Surrogate(), Regression(pool, 2)
    policy.start(pool)
    rows = np.flatnonzero(~np.isnan(scores[:, 0]))[:450]
    policy.tell(rows, scores[rows].max(axis=1), scores[rows])
    regression.add(rows, scores[rows])
    assert regression.when_learnt == [450]
    available = np.ones(600, np.bool_)
    available[rows] = False
    others = np.flatnonzero(available)
    predicted, deviation = regression.predict(others)
    bound = pool.rules.wanted(scores[rows], 30)(predicted + policy.kappa * deviation)
    expected = others[np.lexsort((pool.priority[others], -bound))]
    np.testing.assert_array_equal(policy.ask(20, available, np.random.default_rng(0)), expected[:20])
    every = policy.ask(150, available, np.random.default_rng(0))  # more than there are candidates
    np.testing.assert_array_equal(every, expected)


def test_a_large_pool_is_searched_as_well(monkeypatch):
    found = []
    for many in (10**6, 50):
        monkeypatch.setattr(large, "LARGE", many)
        found.append(run())
    _, scores = pool_with_scores()
    best = best_rows(scores, 30)
    recall = [np.isin(best, selection.rows).mean() for selection in found]
    assert recall[1] > recall[0] - 0.15
    assert recall[1] > 0.7
    for selection, true in zip(found, recall, strict=True):
        assert selection.recall is not None
        assert abs(selection.recall.estimate - true) < 0.2


def test_the_recall_of_a_large_pool_is_estimated_from_a_sample(monkeypatch):
    monkeypatch.setattr(large, "LARGE", 50)
    whole: list[cu.engine.Recall] = []
    sampled: list[cu.engine.Recall] = []
    expected = run(watch=whole.append)
    monkeypatch.setattr("clusterucb.engine.recall._UNDRAWN", 150)
    monkeypatch.setattr("clusterucb.engine.regression._LEFT_OUT", 100)
    np.testing.assert_array_equal(run(watch=sampled.append).rows, expected.rows)
    assert len(whole) == len(sampled) >= 5
    assert whole != sampled
    for one, other in zip(sampled, whole, strict=True):
        assert one.estimate == pytest.approx(other.estimate, abs=0.15)


def test_regressions_on_a_pool_share_what_they_learn(monkeypatch):
    features, scores = pool_with_scores()
    scores = np.nan_to_num(scores)
    pool = PoolView({"x": features.astype(np.float32)}, np.zeros(600, np.int64), np.zeros(600))
    one, other, apart = Regression(pool, 2), Regression(pool, 2), Regression(pool_copy(pool), 2)
    learn, n_learnt = Kernel.learn, []

    def counted(kernel, *arguments):
        n_learnt.append(1)
        learn(kernel, *arguments)

    monkeypatch.setattr(Kernel, "learn", counted)
    rows = np.random.default_rng(0).permutation(600)[:100]
    for regression, parts in ((one, 1), (other, 4), (apart, 1)):
        before = len(n_learnt)
        for part in np.array_split(rows, parts):
            regression.add(part, scores[part])
        assert (len(n_learnt) > before) == (regression is not other)
    expected = apart.predict(np.arange(600))
    one.add(rows[:0], scores[:0])
    for regression in (one, other):
        for found, wanted in zip(regression.predict(np.arange(600)), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    one.add(np.array([500]), scores[[500]] + 9)  # what one learns does not change what another has learnt
    np.testing.assert_array_equal(other.predict(np.arange(600))[0], expected[0])
    assert (one.predict(np.arange(600))[0] != expected[0]).any()


def pool_copy(pool: PoolView) -> PoolView:
    return PoolView(pool.features, pool.labels, pool.priority)
