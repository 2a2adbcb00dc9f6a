"""Statistics and indices of arms against numpy, and what every policy must keep to."""

from __future__ import annotations

import math
import statistics
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError, PluginError
from clusterucb.policies import (
    UCB,
    UCB1,
    ArmStats,
    ClusterMean,
    IndexPolicy,
    Policy,
    Random,
    ThresholdHard,
    ThresholdNormal,
)

N_ARMS = 5
REWARDS = st.floats(-1, 1) | st.sampled_from([-0.5, 0.0, 0.1, 0.25])
OBSERVATIONS = st.lists(st.tuples(st.integers(0, N_ARMS - 1), REWARDS), max_size=120)
POLICIES = [UCB(), UCB(beta=3), UCB1(), ThresholdHard(), ThresholdNormal(), Random(), ClusterMean()]
INDEX_POLICIES = [policy for policy in POLICIES if isinstance(policy, IndexPolicy)]
named = {"ids": lambda policy: repr(policy)}


def observed(observations: list[tuple[int, float]], size: int = 200) -> tuple[ArmStats, list[np.ndarray]]:
    """Return the statistics, and the rewards of each arm as plain arrays."""
    arms = ArmStats([size] * N_ARMS)
    for start in range(0, len(observations), 7):
        chunk = observations[start : start + 7]
        arms.add(np.array([arm for arm, _ in chunk]), np.array([reward for _, reward in chunk]))
    return arms, [np.array([r for a, r in observations if a == arm]) for arm in range(N_ARMS)]


def each(function: Any, rewards: list[np.ndarray]) -> np.ndarray:
    return np.array([function(of_arm) if len(of_arm) else math.nan for of_arm in rewards])


def index_of(policy: IndexPolicy, arms: ArmStats) -> np.ndarray:
    return policy.index(arms, np.random.default_rng(0))


def pool_of(labels: Any, seed: int = 0) -> PoolView:
    labels = np.array(labels)
    priority = np.random.default_rng(seed).random(len(labels))
    return PoolView({"x": np.zeros((len(labels), 1), np.float32)}, labels, priority, budget=len(labels))


# Statistics ----------------------------------------------------------------------------------------------


@given(OBSERVATIONS, st.floats(0, 1), st.floats(-1, 1))
def test_statistics_are_those_of_numpy(
    observations: list[tuple[int, float]], q: float, threshold: float
) -> None:
    arms, rewards = observed(observations)
    everything = np.array([reward for _, reward in observations])
    assert arms.count.tolist() == [len(of_arm) for of_arm in rewards]
    assert arms.total == len(everything)
    np.testing.assert_allclose(arms.mean, each(np.mean, rewards), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(arms.std, each(np.std, rewards), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(arms.min, each(np.min, rewards))
    np.testing.assert_array_equal(arms.max, each(np.max, rewards))
    np.testing.assert_array_equal(
        arms.exceedance(threshold), each(lambda r: np.mean(r >= threshold), rewards)
    )
    expected = np.quantile(everything, q) if len(everything) else math.nan
    np.testing.assert_array_equal(arms.quantile(q), expected)


@given(st.floats(-1, 1), st.integers(1, 300))
def test_equal_rewards_have_a_deviation_of_exactly_zero(reward: float, count: int) -> None:
    arms, _ = observed([(2, reward)] * count)
    assert arms.std[2] == 0
    assert arms.mean[2] == reward


def test_deviation_survives_a_large_common_offset() -> None:
    rewards = 1e6 + np.random.default_rng(0).normal(scale=1e-3, size=500)
    arms, _ = observed([(0, reward) for reward in rewards])
    np.testing.assert_allclose(arms.std[0], statistics.pstdev(rewards), rtol=1e-6)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.data())
def test_arms_know_what_is_left_and_what_is_pending(labels: list[int], data: st.DataObject) -> None:
    labels = np.unique(labels, return_inverse=True)[1]
    row = st.integers(0, len(labels) - 1)
    drawn = np.array(data.draw(st.lists(row, unique=True)), dtype=np.int64)
    seen = drawn[: data.draw(st.integers(0, len(drawn)))]
    available = np.ones(len(labels), bool)
    available[drawn] = False
    arms = ArmStats(np.bincount(labels))
    arms.add(labels[seen], np.zeros(len(seen)))
    view = arms.seen_from(labels, available)
    per_arm = {"minlength": len(arms.size)}
    np.testing.assert_array_equal(view.remaining, np.bincount(labels[available], **per_arm))
    np.testing.assert_array_equal(
        view.pending, np.bincount(labels[drawn], **per_arm) - np.bincount(labels[seen], **per_arm)
    )


# Indices -------------------------------------------------------------------------------------------------


@given(OBSERVATIONS, st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_ucb_is_mean_plus_beta_population_deviations(
    observations: list[tuple[int, float]], beta: float
) -> None:
    arms, rewards = observed(observations)
    expected = each(lambda r: np.mean(r) + beta * np.std(r), rewards)
    np.testing.assert_allclose(index_of(UCB(beta), arms), expected, rtol=1e-9, atol=1e-9)


@given(OBSERVATIONS)
def test_ucb1_is_as_published(observations: list[tuple[int, float]]) -> None:
    arms, rewards = observed(observations)
    expected = each(lambda r: np.mean(r) + np.sqrt(2 * np.log(len(observations)) / len(r)), rewards)
    np.testing.assert_allclose(index_of(UCB1(), arms), expected, rtol=1e-9, atol=1e-12)


@given(OBSERVATIONS, st.sampled_from([0.1, 0.25, 0.9]))
def test_threshold_hard_is_the_share_above_the_quantile_of_everything(
    observations: list[tuple[int, float]], q: float
) -> None:
    arms, rewards = observed(observations)
    threshold = np.quantile([reward for _, reward in observations], 1 - q) if observations else math.nan
    expected = each(lambda r: sum(reward >= threshold for reward in r) / len(r), rewards)
    np.testing.assert_array_equal(index_of(ThresholdHard(q), arms), expected)


@given(OBSERVATIONS, st.sampled_from([0.1, 0.25, 0.9]))
def test_threshold_normal_is_the_share_of_a_fitted_normal(
    observations: list[tuple[int, float]], q: float
) -> None:
    arms, rewards = observed(observations)
    threshold = np.quantile([reward for _, reward in observations], 1 - q) if observations else math.nan

    for arm, share in enumerate(index_of(ThresholdNormal(q), arms)):
        if not len(rewards[arm]):
            assert math.isnan(share)
        elif arms.std[arm] == 0:
            assert share == (arms.mean[arm] >= threshold)
        else:
            fit = statistics.NormalDist(arms.mean[arm], arms.std[arm])
            assert share == pytest.approx(1 - fit.cdf(threshold), abs=1e-12)


@pytest.mark.parametrize("policy", INDEX_POLICIES, **named)
@given(OBSERVATIONS)
def test_index_is_a_number_for_every_observed_arm_and_warns_of_nothing(
    policy: IndexPolicy, observations: list[tuple[int, float]]
) -> None:
    arms, _ = observed(observations)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = index_of(policy, arms)
    assert index.shape == (N_ARMS,)
    assert np.isfinite(index[arms.count > 0]).all()


# Draws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES, **named)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_ask_returns_distinct_available_rows_and_changes_nothing(
    policy: Policy, labels: list[int], seed: int, data: st.DataObject
) -> None:
    labels = np.unique(labels, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    policy.start(pool_of(labels, seed))
    drawn = rng.permutation(len(labels))[: data.draw(st.integers(0, len(labels)))]
    told = drawn[: data.draw(st.integers(0, len(drawn)))]  # the rest failed, or is pending
    rewards = rng.normal(size=len(told)) - 2
    policy.tell(told, rewards, rewards[:, None])
    available = np.ones(len(labels), bool)
    available[drawn] = False
    n = data.draw(st.integers(1, len(labels) + 3))

    first = policy.ask(n, available.copy(), np.random.default_rng(7))
    assert len(first) == len(set(first.tolist())) == min(n, available.sum())
    assert available[first].all()
    policy.ask(1, available.copy(), np.random.default_rng(8))
    np.testing.assert_array_equal(policy.ask(n, available.copy(), np.random.default_rng(7)), first)


@pytest.mark.parametrize("policy", POLICIES, **named)
def test_start_forgets_everything(policy: Policy) -> None:
    labels = np.repeat([0, 1, 2], 5)
    available = np.ones(15, bool)

    def first_rows() -> list[int]:
        policy.start(pool_of(labels))
        policy.tell(np.array([0, 5, 10]), np.array([0.1, 0.5, 0.3]), np.zeros((3, 1)))
        return policy.ask(4, available, np.random.default_rng(0)).tolist()

    before = first_rows()
    policy.tell(np.array([1, 2]), np.array([9.0, 9.0]), np.zeros((2, 1)))
    assert first_rows() == before


def test_arms_are_walked_by_index_then_by_priority_and_unobserved_ones_come_last() -> None:
    pool = pool_of(np.repeat([0, 1, 2, 3], 3))
    policy = UCB()
    policy.start(pool)
    first_of_arm = [arm * 3 for arm in (1, 2, 3)]
    policy.tell(np.array(first_of_arm), np.array([-0.5, -0.1, -0.5]), np.zeros((3, 1)))
    available = np.ones(12, bool)
    available[first_of_arm] = False
    rows = policy.ask(12, available, np.random.default_rng(0))
    assert (rows // 3).tolist() == [2, 2, 1, 1, 3, 3, 0, 0, 0]
    for arm in range(4):
        priority = pool.priority[rows[rows // 3 == arm]]
        assert (np.diff(priority) > 0).all()


@pytest.mark.parametrize("value", [-np.inf, np.inf, -1e300])
def test_dead_arm_never_wins_whatever_its_index(value: float) -> None:
    class Fixed(IndexPolicy):
        def index(self, arms, rng):
            return np.where(arms.remaining == 0, np.inf, value)

    policy = Fixed()
    policy.start(pool_of([0, 0, 1, 1]))
    policy.tell(np.array([0, 1, 2]), np.array([0.9, 0.9, -0.9]), np.zeros((3, 1)))
    available = np.array([False, False, False, True])
    assert policy.ask(1, available, np.random.default_rng(0)).tolist() == [3]
    assert policy.ask(1, np.zeros(4, bool), np.random.default_rng(0)).tolist() == []


def test_policy_in_one_method_can_use_randomness() -> None:
    class Thompson(IndexPolicy):
        def index(self, arms, rng):
            return rng.normal(arms.mean, arms.std / np.sqrt(np.maximum(arms.count, 1)))

    policy = Thompson()
    policy.start(pool_of(np.repeat([0, 1], 50)))
    rows = np.r_[0:20, 50:70]
    policy.tell(rows, np.random.default_rng(0).normal(size=40), np.zeros((40, 1)))
    available = np.ones(100, bool)
    available[rows] = False
    arms = {policy.ask(1, available, np.random.default_rng(seed))[0] // 50 for seed in range(30)}
    assert arms == {0, 1}


def test_random_draws_every_row_equally_often() -> None:
    available = np.arange(10) % 2 == 0
    rows = [Random().ask(2, available, np.random.default_rng(seed)) for seed in range(2000)]
    counts = np.bincount(np.concatenate(rows), minlength=10)
    assert not counts[1::2].any()
    np.testing.assert_allclose(counts[::2], 800, atol=100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UCB(beta=-1), "ucb: beta is -1; expected a number of at least 0"),
        (lambda: UCB(beta=math.nan), "ucb: beta is nan; expected"),
        (lambda: UCB(beta=math.inf), "ucb: beta is inf; expected"),
        (
            lambda: ThresholdHard(q=0),
            "threshold-hard: q is 0; expected a share between 0 and 1, both excluded",
        ),
        (lambda: ThresholdHard(q=math.nan), "threshold-hard: q is nan; expected"),
        (lambda: ThresholdNormal(q=1), "threshold-normal: q is 1; expected"),
    ],
)
def test_unusable_hyper_parameter_is_refused(make: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert message in str(caught.value)


def test_a_batch_may_be_drawn_by_several_indices():
    class Turns(IndexPolicy):
        def index(self, arms, rng):
            return arms.mean

        def indices(self, arms, n, rng):
            return np.eye(3)[: min(n, 3)]

    policy = Turns()
    pool = pool_of([0, 0, 0, 1, 1, 1, 2, 2, 2])
    policy.start(pool)
    policy.tell(np.array([0, 3, 6]), np.zeros(3), np.zeros((3, 1)))
    available = np.ones(9, bool)
    available[[0, 3, 6]] = False
    drawn = policy.ask(5, available, np.random.default_rng(0))
    assert pool.labels[drawn].tolist() == [0, 1, 1, 2, 2]
    assert len(set(drawn)) == 5
    available[[1, 2]] = False  # the first arm has no rows left: the next best takes its part
    assert pool.labels[policy.ask(3, available, np.random.default_rng(0))].tolist() == [1, 1, 2]


@pytest.mark.parametrize("shape", [(0, 2), (9, 2), (2, 3), (2,)])
def test_indices_of_a_wrong_shape_are_refused(shape):
    class Wrong(UCB):
        def indices(self, arms, n, rng):
            return np.zeros(shape)

    policy = Wrong()
    policy.start(pool_of([0, 0, 1, 1]))
    with pytest.raises(PluginError, match=r"Wrong.indices returned shape .*; expected \(1 to 3, 2\)"):
        policy.ask(3, np.ones(4, bool), np.random.default_rng(0))
