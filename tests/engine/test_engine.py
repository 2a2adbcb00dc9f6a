"""The bandit loop against brute force and against an independent implementation of the paper's algorithm."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clusterucb as cu
from clusterucb.clusterers import Clusterer, Source
from clusterucb.engine.arms import stream
from clusterucb.engine.poolview import numbered
from clusterucb.errors import ClusterUCBWarning, OptionError
from clusterucb.policies import UCB, Policy, Random
from helpers.recorded import POLICIES, Case, Memory, cases, identical, rewards_of
from helpers.searching import search


@given(cases())
def test_result_is_the_brute_force_best_of_exactly_the_budget(case: Case) -> None:
    submitted: list[int] = []

    def score(rows: np.ndarray) -> np.ndarray:
        submitted.extend(rows)
        return case.scores[rows]

    found = case.run(score=score)
    n_rows = len(case.scores)

    assert len(submitted) == len(set(submitted)) == found.n_scored == min(case.budget, n_rows)
    assert found.stopped == ("exhausted" if case.budget > n_rows else "budget")
    assert found.drawn_rows.tolist() == submitted

    good = np.isfinite(case.scores).all(axis=1)
    rewards = rewards_of(case, found)
    np.testing.assert_array_equal(found.drawn_scores, rewards[submitted])
    expected_scores = np.where(good[submitted][:, None], case.scores[submitted], np.nan)
    np.testing.assert_array_equal(found.subtask_scores, expected_scores)

    usable = [row for row in submitted if good[row]]
    best = sorted(usable, key=lambda row: (-rewards[row], row))[: case.n_select]
    if case.rule == "round-robin":
        best = []
        for turn in range(min(case.n_select, len(usable))):
            own = case.scores[:, turn % case.scores.shape[1]]
            best.append(min(set(usable) - set(best), key=lambda row: (-own[row], row)))
    assert found.rows.tolist() == best
    np.testing.assert_array_equal(found.scores, rewards[found.rows])

    assert set(found.labels) == set(range(found.labels.max() + 1))
    np.testing.assert_array_equal(
        found.draws, np.bincount(found.labels[submitted], minlength=found.labels.max() + 1)
    )


@given(cases())
def test_same_seed_same_result(case: Case) -> None:
    identical(case.run(), case.run())


def test_seed_decides_what_is_drawn() -> None:
    case = Case(np.zeros((200, 1)), np.zeros(200, int), UCB(), 20, 5, 0.05, 1, seed=0)
    assert set(case.run().drawn_rows) != set(case.run(seed=1).drawn_rows)


# The paper's algorithm, written down a second time -----------------------------------------------------


def paper(case: Case, beta: float) -> list[int]:
    """Modified UCB as published, one draw at a time, for labels without noise or gaps."""
    n_arms = case.labels.max() + 1
    priority = stream(case.seed, "priority").random(len(case.labels))
    order = stream(case.seed, "cold start").permutation(n_arms)
    left = [
        sorted(np.flatnonzero(case.labels == arm), key=lambda row: priority[row]) for arm in range(n_arms)
    ]
    share = Fraction(str(case.cold_start))
    owed = [max(math.floor(share * len(rows)), 1) for rows in left]
    seen: list[list[float]] = [[] for _ in range(n_arms)]
    drawn: list[int] = []

    def draw(arm: int) -> None:
        row = left[arm].pop(0)
        drawn.append(row)
        reward = case.scores[row, 0]
        if not math.isnan(reward):
            seen[arm].append(reward)

    for position in range(max(owed)):
        for arm in order:
            if position < owed[arm] and len(drawn) < case.budget:
                draw(arm)
    while len(drawn) < min(case.budget, len(case.labels)):
        arms = [arm for arm in range(n_arms) if left[arm]]
        tail = [np.mean(seen[arm]) + beta * np.std(seen[arm]) if seen[arm] else -math.inf for arm in arms]
        draw(arms[int(np.argmax(tail))])
    return drawn


@given(
    seed=st.integers(0, 10**6),
    n_arms=st.integers(1, 12),
    n_more=st.integers(0, 80),
    spent=st.floats(0, 1.1),
    cold_start=st.sampled_from([0, 0.05, 0.1, 0.29, 0.5]),
    beta=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    failing=st.sampled_from([0, 0.3]),
    shift=st.sampled_from([-0.5, 0, 0.5]),
)
def test_single_draws_are_the_papers_algorithm(
    seed: int,
    n_arms: int,
    n_more: int,
    spent: float,
    cold_start: float,
    beta: float,
    failing: float,
    shift: float,
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.arange(n_arms), rng.integers(n_arms, size=n_more)]))
    scores = rng.normal(loc=rng.normal(scale=0.1, size=n_arms)[labels] + shift, scale=0.1)
    scores[rng.random(len(scores)) < failing] = np.nan
    budget = max(int(spent * len(labels)), 1)
    case = Case(scores[:, None], labels, UCB(beta=beta), budget, 1, cold_start, 1, seed)
    assert case.run().drawn_rows.tolist() == paper(case, beta)


# Arms ----------------------------------------------------------------------------------------------------


def test_exhausted_arm_does_not_outrank_live_arms_of_negative_scores() -> None:
    labels = np.array([0] * 2 + [1] * 5 + [2] * 5)  # arm 0 is the best, and soon empty
    scores = np.where(labels == 0, -0.1, np.where(labels == 1, -0.5, -0.9))[:, None]
    found = Case(scores, labels, UCB(), 7, 7, 0, 1, seed=0).run()
    assert found.draws.tolist() == [2, 4, 1]


def test_equal_rewards_are_drawn_arm_by_arm_and_selected_by_row() -> None:
    labels = np.repeat([0, 1, 2], 4)
    found = Case(np.zeros((12, 1)), labels, UCB(), 8, 3, 0, 1, seed=0).run()
    assert found.draws.tolist() == [4, 3, 1]  # one of each, then the lowest arm until it is empty
    assert found.rows.tolist() == sorted(found.drawn_rows)[:3]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("clusterer", [None, [0], [-1], [7]], ids=repr)
def test_pool_of_one(policy: Policy, clusterer: Any) -> None:
    found = search([[1.0]], lambda rows: [0.5], clusterer=clusterer, policy=policy, budget=1, n_select=1)
    assert (found.rows.tolist(), found.scores.tolist(), found.draws.tolist()) == ([0], [0.5], [1])
    assert found.stopped == "budget"


def test_without_a_clusterer_there_is_one_arm() -> None:
    found = Case(np.zeros((9, 1)), np.zeros(9, int), UCB(), 4, 1, 0.05, 1, seed=0).run(clusterer=None)
    assert found.labels.tolist() == [0] * 9
    assert found.draws.tolist() == [4]


@given(st.lists(st.sampled_from([-1, -1, 0, 3, 4, 9]), min_size=1, max_size=60), st.integers(0, 3))
def test_noise_becomes_arms_of_about_the_median_size_and_clusters_stay(labels: list[int], seed: int) -> None:
    given_labels = np.array(labels)
    found = Case(np.zeros((len(labels), 1)), given_labels, UCB(), 1, 1, 0, 1, seed).run().labels
    clustered = given_labels >= 0
    assert not set(found[clustered]) & set(found[~clustered])
    kept = sorted(set(given_labels[clustered]))
    assert [kept[label] for label in found[clustered]] == given_labels[clustered].tolist()
    noise = np.bincount(found[~clustered])[len(kept) :]
    if len(noise):
        sizes = np.bincount(found[clustered])
        median = np.median(sizes) if len(sizes) else math.sqrt(noise.sum())
        assert len(noise) == max(round(noise.sum() / median), 1)
        assert noise.max() - noise.min() <= 1


def test_small_budget_draws_once_from_random_arms_and_says_so() -> None:
    labels = np.repeat(np.arange(20), 3)
    drawn = []
    for seed in range(8):
        with pytest.warns(ClusterUCBWarning, match=r"budget of 7 draws .*20 arms.*fewer clusters") as caught:
            found = cu.search(
                np.zeros((60, 1)),
                lambda rows: np.zeros(len(rows)),
                clusterer=labels,
                policy=UCB(),
                budget=7,
                n_select=1,
                schedule=cu.Schedule(seed=seed),
            )
        assert caught[0].filename == __file__
        assert found.draws.max() == 1
        assert found.draws.sum() == 7
        drawn.append(tuple(found.draws))
    assert len(set(drawn)) > 1


def test_cold_start_takes_its_share_of_every_arm_before_the_policy_is_asked() -> None:
    sizes = [1, 19, 20, 39, 40, 100]
    labels = np.repeat(np.arange(6), sizes)
    journal = Memory()
    case = Case(np.random.default_rng(0).normal(size=(219, 1)), labels, UCB(), 80, 1, 0.29, 1, seed=0)
    case.run(journal)
    cold = [batch for kind, batch in journal.operations if kind == "begin" and batch.phase == "cold"]
    assert np.bincount(np.concatenate([batch.arms for batch in cold])).tolist() == [1, 5, 5, 11, 11, 29]
    assert case.run(score=lambda rows: -case.scores[rows]).drawn_rows[:62].tolist() == [
        row for batch in cold for row in batch.rows
    ]  # whatever the rewards


@pytest.mark.parametrize(("budget", "per_arm"), [(400, 10), (200, 5), (100, 2), (20, 1)])
def test_cold_start_is_a_quarter_of_the_budget_by_default(budget: int, per_arm: int) -> None:
    journal = Memory()
    scores = np.random.default_rng(0).normal(size=1000)
    search(
        np.ones((1000, 1)),
        lambda rows: scores[rows],
        clusterer=np.arange(1000) % 10,
        policy=UCB(),
        budget=budget,
        n_select=1,
        journal=journal,
    )
    phases = dict.fromkeys(("cold", "policy"), 0)
    for kind, batch in journal.operations:
        phases[batch.phase] += len(batch.rows) * (kind == "begin")
    assert phases == {"cold": 10 * per_arm, "policy": budget - 10 * per_arm}


# Batches -------------------------------------------------------------------------------------------------


def test_batch_is_drawn_from_the_best_arm_and_overflows_to_the_next() -> None:
    labels = np.repeat([0, 1, 2], [3, 4, 20])
    scores = np.choose(labels, [0.2, 0.3, 0.1])[:, None].astype(float)
    found = Case(scores, labels, UCB(), 3 + 8, 1, 0, 8, seed=0).run()
    after_cold_start = found.labels[found.drawn_rows[3:]].tolist()
    assert after_cold_start == [1, 1, 1, 0, 0, 2, 2, 2]


@given(cases())
def test_policy_is_told_each_usable_reward_once_and_asked_for_batches(case: Case) -> None:
    asked: list[int] = []
    told: dict[int, tuple[float, list[float]]] = {}

    class Spy(Random):
        def ask(self, n, available, rng):
            asked.append(n)
            return super().ask(n, available, rng)

        def tell(self, rows, rewards, scores):
            assert np.isfinite(rewards).all()
            assert np.isfinite(scores).all()
            for row, reward, each in zip(rows.tolist(), rewards, scores, strict=True):
                assert row not in told
                told[row] = (reward, each.tolist())

    found = case.run(policy=Spy())
    usable = ~np.isnan(found.drawn_scores)
    if found.n_scored < 32 and found.standardized is not None:  # no mean and deviation before the end
        usable[:] = False
    assert list(told) == found.drawn_rows[usable].tolist()
    assert [reward for reward, _ in told.values()] == found.drawn_scores[usable].tolist()
    assert [each for _, each in told.values()] == found.subtask_scores[usable].tolist()
    full, rest = divmod(sum(asked), case.batch_size)
    assert sum(asked) == found.n_scored
    assert asked == [case.batch_size] * full + [rest] * (rest > 0)


def test_failures_cost_budget_and_too_many_are_reported() -> None:
    scores = np.full((10, 1), np.nan)
    scores[3] = 0.5
    with pytest.warns(ClusterUCBWarning, match=r"only 1 of 10 draws could be scored.* 4 rows") as caught:
        found = cu.search(
            np.zeros((10, 1)),
            scores.__getitem__,
            clusterer=None,
            policy=UCB(),
            budget=10,
            n_select=4,
        )
    assert caught[0].filename == __file__
    assert found.rows.tolist() == [3]
    assert found.n_scored == 10
    assert np.isnan(found.drawn_scores).sum() == 9


def test_negative_zero_is_zero() -> None:
    found = Case(np.array([[-0.0]]), np.array([0]), UCB(), 1, 1, 0, 1, seed=0).run()
    assert math.copysign(1, found.scores[0]) == 1


# What strategies see -------------------------------------------------------------------------------------


def test_strategies_see_named_features_and_columns_in_order_and_cannot_change_them() -> None:
    class Look(Clusterer):
        def fit_predict(self, pool, rng):
            self.pool = pool
            return np.arange(len(pool)) // 2

    class Hear(Random):
        def start(self, pool):
            self.pool = pool

    features = {"z": np.arange(12.0).reshape(6, 2), "a": np.ones((6, 1))}
    columns = {"source": list("aabbcc"), "tokens": np.arange(6)}
    clusterer, policy = Look(), Hear()
    search(
        features,
        lambda rows: rows * 1.0,
        clusterer=clusterer,
        policy=policy,
        budget=5,
        n_select=3,
        columns=columns,
    )
    assert clusterer.pool.labels.tolist() == [0] * 6
    assert policy.pool.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for pool in (clusterer.pool, policy.pool):
        assert list(pool.features) == ["z", "a"]
        assert list(pool.columns) == ["source", "tokens"]
        assert (pool.budget, pool.n_select) == (5, 3)
        np.testing.assert_array_equal(pool.features["z"], features["z"])
        with pytest.raises(ValueError, match="read-only"):
            pool.features["z"][0] = 1
    features["z"][0] = 7  # the caller's arrays stay the caller's
    columns["tokens"][0] = 7
    assert policy.pool.features["z"][0, 0] == 0
    assert policy.pool.columns["tokens"][0] == 0


def test_read_only_arrays_are_shared_because_nobody_can_change_them() -> None:
    features, tokens = np.ones((6, 2), np.float32), np.arange(6)
    for array in (features, tokens):
        array.flags.writeable = False
    policy = UCB()
    told: list[Any] = []
    policy.start = told.append  # type: ignore[method-assign]
    policy.ask = Random().ask  # type: ignore[method-assign]
    policy.tell = lambda *_: None  # type: ignore[method-assign]
    search(
        features,
        lambda rows: rows * 1.0,
        clusterer=None,
        policy=policy,
        budget=5,
        n_select=3,
        columns={"tokens": tokens},
    )
    (pool,) = told
    assert np.shares_memory(pool.features["features"], features)
    assert np.shares_memory(pool.columns["tokens"], tokens)


@given(st.lists(st.sampled_from(["a", "b", "ä", ""]), min_size=1), st.lists(st.integers(-1, 3), min_size=1))
def test_values_are_numbered_in_sorted_order(texts: list[str], numbers: list[int]) -> None:
    for column in (np.array(texts), np.array(texts, object), np.array(numbers)):
        assert numbered(column).tolist() == np.unique(column, return_inverse=True)[1].tolist()


def test_until_the_first_draw_a_search_holds_few_bytes_of_a_row() -> None:
    n_rows = 200_000
    features = np.arange(n_rows, dtype=np.float32)[:, None]
    source = np.array(["one", "two", "three", "four"] * (n_rows // 4), object)
    for array in (features, source):
        array.flags.writeable = False

    class Told(BaseException):
        pass

    class Stop(UCB):
        def tell(self, rows, rewards, scores):
            raise Told

    tracemalloc.start()
    try:
        with pytest.raises(Told):
            search(
                features,
                lambda rows: rows * 1.0,
                clusterer=Source(),
                policy=Stop(),
                budget=500,
                n_select=50,
                columns={"source": source},
            )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / n_rows < 50


def test_blocks_weigh_the_same_whatever_their_units() -> None:
    seen = []

    class Look(Clusterer):
        def fit_predict(self, pool, rng):
            seen.append(pool.matrix())
            return np.zeros(len(pool), int)

    block = np.random.default_rng(0).normal(size=(50, 3))
    features = {"small": block * 1e-3 + 5, "large": block * 1e3 - 7, "constant": np.ones((50, 2))}
    search(features, lambda rows: rows * 1.0, clusterer=Look(), policy=Random(), budget=1, n_select=1)
    (matrix,) = seen
    assert matrix.shape == (50, 8)
    np.testing.assert_allclose(matrix[:, :3], matrix[:, 3:6], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(matrix[:, :3], axis=1).mean(), 1, rtol=1e-5)
    assert not matrix[:, 6:].any()


def test_first_rows_come_after_the_cold_start_within_a_quarter_of_the_budget() -> None:
    scores, first = np.arange(40.0), [7, 3, 30, 1, 2, 5]
    options = {
        "clusterer": None,
        "policy": UCB(),
        "budget": 16,
        "n_select": 4,
        "cold_start": 0.1,
        "batch_size": 3,
    }
    found = search(np.zeros((40, 1)), scores.__getitem__, first=first, **options)
    alone = search(np.zeros((40, 1)), scores.__getitem__, **options)
    assert alone.drawn_rows[:4].tolist() == found.drawn_rows[:4].tolist()
    given = [row for row in first[:4] if row not in found.drawn_rows[:4]]
    assert found.drawn_rows[4 : 4 + len(given)].tolist() == given
    assert np.isnan(found.drawn_probability[4:]).all()
    assert found.n_scored == 16
    assert (
        search(np.zeros((40, 1)), scores.__getitem__, **{**options, "policy": Random()}, first=first).n_scored
        == 16
    )


@pytest.mark.parametrize("first", [[40], [-1], [1, 1], [0.5], [[1]]])
def test_first_rows_that_are_none_are_refused(first) -> None:
    with pytest.raises(OptionError, match=r"expected distinct rows of 0\.\.39"):
        search(
            np.zeros((40, 1)),
            np.arange(40.0).__getitem__,
            clusterer=None,
            policy=UCB(),
            budget=16,
            n_select=4,
            first=first,
        )
