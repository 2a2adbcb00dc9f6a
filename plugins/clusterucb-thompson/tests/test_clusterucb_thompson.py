"""Test Thompson sampling: its shares and samples, extreme pools, and the rows that a search finds."""

from __future__ import annotations

import math
import warnings
from typing import Any

import clusterucb as cu
import numpy as np
import pytest
from clusterucb import plugins
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError
from clusterucb.testing import PolicySuite

from clusterucb_thompson import Thompson, ThompsonMean


class TestThompsonKeepsTheContract(PolicySuite):
    @pytest.fixture
    def policy(self) -> Thompson:
        return Thompson()


class TestThompsonWithFixedOptionsKeepsTheContract(PolicySuite):
    @pytest.fixture
    def policy(self) -> Thompson:
        return Thompson(q=0.3, prior=1)


class TestThompsonMeanKeepsTheContract(PolicySuite):
    @pytest.fixture
    def policy(self) -> ThompsonMean:
        return ThompsonMean()


BOTH = pytest.mark.parametrize("make", [Thompson, ThompsonMean])


def told(policy: Any, rewards: list[list[float]], size: int = 40, n_select: int = 4) -> Any:
    """Start ``policy`` on arms of ``size`` rows, tell it the rewards of each arm, and return the policy."""
    labels = np.repeat(np.arange(len(rewards)), size)
    priority = np.random.default_rng(0).random(len(labels))
    policy.start(PoolView({}, labels, priority, budget=len(labels), n_select=n_select))
    rows = [np.flatnonzero(labels == arm)[: len(of_arm)] for arm, of_arm in enumerate(rewards)]
    values = np.concatenate([np.array(of_arm, dtype=np.float64) for of_arm in rewards])
    policy.tell(np.concatenate(rows), values, values[:, None])
    return policy


def samples(policy: Any, n: int = 4000) -> np.ndarray:
    """Return samples of the index, f64[n, K]."""
    rng = np.random.default_rng(1)
    return np.stack([policy.index(policy._arms, rng) for _ in range(n)])


def drawn_arms(policy: Any, n: int, size: int = 40, seed: int = 0) -> np.ndarray:
    available = np.ones(len(policy._labels), bool)
    return policy.ask(n, available, np.random.default_rng(seed)) // size


# The threshold and the posterior ---------------------------------------------------------------------------


def test_hits_make_up_the_share_of_the_pool_that_is_looked_for() -> None:
    rng = np.random.default_rng(0)
    policy = told(Thompson(q=0.1), [rng.normal(arm / 3, size=5 + 7 * arm).tolist() for arm in range(5)])
    arms = policy._arms
    share = (policy._hits(arms) / arms.count * arms.size).sum() / arms.size.sum()
    assert share == pytest.approx(0.1)


def test_threshold_is_the_pools_however_often_an_arm_was_drawn() -> None:
    rng = np.random.default_rng(1)
    poor, good = rng.normal(size=10).tolist(), rng.normal(3, size=400).tolist()
    policy = told(Thompson(q=0.25), [poor, good], size=400)
    hits = policy._hits(policy._arms)
    # The good arm has half of the pool, so its better half is the best quarter of the pool.
    assert hits[1] / 400 == pytest.approx(0.5, abs=0.01)
    assert hits[0] == 0


def test_equal_rewards_are_neither_all_above_nor_all_below() -> None:
    policy = told(Thompson(q=0.2), [[0.0] * 10, [0.0] * 9 + [1.0], [0.0] * 20])
    hits = policy._hits(policy._arms)
    assert hits[1] > 1  # the single high reward counts in full
    assert (hits / policy._arms.count).mean() == pytest.approx(0.2)
    assert hits[0] / 10 == pytest.approx(hits[2] / 20)


def test_share_has_the_beta_posterior() -> None:
    policy = told(Thompson(q=0.25, prior=2), [[0.0] * 9 + [5.0], [5.0, 6.0, 7.0, 8.0, 0.0], [0.0] * 20])
    hits, count = policy._hits(policy._arms), policy._arms.count
    share = 1 / (1 + np.exp(-samples(policy)))
    a, n = hits + 2 * 0.25, count + 2
    np.testing.assert_allclose(share.mean(axis=0), a / n, atol=0.01)
    np.testing.assert_allclose(share.var(axis=0), a * (n - a) / (n * n * (n + 1)), rtol=0.15, atol=1e-4)


def test_mean_has_students_posterior() -> None:
    rng = np.random.default_rng(2)
    rewards = [rng.normal(arm, size=12).tolist() for arm in range(3)]
    found = samples(told(ThompsonMean(prior=0.01), rewards))
    # With almost no prior, the posterior is mean + t(n) * std / sqrt(n); its deviation is std / sqrt(n - 2).
    np.testing.assert_allclose(found.mean(axis=0), np.mean(rewards, axis=1), atol=0.03)
    np.testing.assert_allclose(found.std(axis=0), np.std(rewards, axis=1) / math.sqrt(10), rtol=0.1)


def test_mean_of_an_arm_with_one_reward_is_drawn_towards_all_rewards() -> None:
    found = samples(told(ThompsonMean(prior=1), [[1.0], [0.0, 0.1, -0.1, 0.0]]))
    centre = 0.2
    assert np.median(found[:, 0]) == pytest.approx((1 + centre) / 2, abs=0.05)


# Extremes --------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "rewards",
    [
        [[0.5], [0.1]],
        [[-3.0], [-2.0], [-2.5]],
        [[0.0] * 5, [0.0], [0.0] * 30],
        [[1e-12, 2e-12], [1e12, 3e12]],
        [[], [0.1, 0.2]],
        [[-1.0] * 4, [-2.0] * 40],
    ],
    ids=["one reward each", "negative", "all equal", "scales apart", "unobserved", "no spread"],
)
def test_index_is_finite_without_warnings(make: Any, rewards: list[list[float]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = told(make(), rewards)
        index = samples(policy, 200)
        rows = policy.ask(7, np.ones(len(policy._labels), bool), np.random.default_rng(0))
    assert np.isfinite(index[:, policy._arms.count > 0]).all()
    assert len(set(rows.tolist())) == 7


@BOTH
def test_clearly_best_arm_wins_nearly_always_even_with_negative_rewards(make: Any) -> None:
    rng = np.random.default_rng(3)
    policy = told(make(), [rng.normal(mean, 0.1, size=20).tolist() for mean in (-9, -5, -8)], n_select=40)
    wins = samples(policy, 500).argmax(axis=1)
    assert (wins == 1).mean() > 0.95


@BOTH
def test_arms_of_equal_rewards_are_all_drawn_from(make: Any) -> None:
    policy = told(make(), [[0.1, 0.3, 0.2]] * 4)
    assert set(drawn_arms(policy, 40, seed=2)) == {0, 1, 2, 3}


def test_arm_of_ordinary_rows_with_a_few_excellent_ones_is_worth_more_than_its_mean() -> None:
    mixed, steady = [-0.2] * 14 + [1.0] * 6, [0.2] * 20
    assert (samples(told(Thompson(), [mixed, steady]), 500).argmax(axis=1) == 0).mean() > 0.9
    assert (samples(told(ThompsonMean(), [mixed, steady]), 500).argmax(axis=1) == 1).mean() > 0.5


def test_rows_of_a_batch_come_from_samples_of_their_own() -> None:
    policy = told(Thompson(), [[0.1, 0.3, 0.2]] * 4)
    assert len(set(drawn_arms(policy, 8))) > 1
    assert len(set(drawn_arms(policy, 1))) == 1


@pytest.mark.parametrize("n_select", [0, 1, 80])
def test_any_number_to_select_gives_a_share_inside_the_bounds(n_select: int) -> None:
    policy = told(Thompson(), [[0.3, 0.1], [0.2]], n_select=n_select)
    assert 0 < policy._share < 1
    assert np.isfinite(samples(policy, 50)).all()


# Options, installation and use -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Thompson(q=0), "thompson: q is 0; expected a share between 0 and 1, both excluded"),
        (lambda: Thompson(q=1.0), "thompson: q is 1.0; expected a share"),
        (lambda: Thompson(q=math.nan), "thompson: q is nan; expected a share"),
        (lambda: Thompson(prior=0), "thompson: prior is 0; expected a number of observations above 0"),
        (lambda: Thompson(prior=math.inf), "thompson: prior is inf; expected"),
        (lambda: ThompsonMean(prior=-1), "thompson-mean: prior is -1; expected a number of observations"),
        (lambda: ThompsonMean(prior=True), "thompson-mean: prior is True; expected"),
    ],
)
def test_unusable_hyper_parameter_is_refused(make: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert message in str(caught.value)


def test_policies_are_installed_under_their_names() -> None:
    found = plugins.load()
    assert found.make("policy", "thompson", {}) == Thompson()
    assert found.make("policy", "thompson", {"q": "none", "prior": "1"}) == Thompson(prior=1)
    assert found.make("policy", "thompson-mean", {"prior": "2"}) == ThompsonMean(prior=2)
    assert found.table["policy", "thompson"].provider == "clusterucb-thompson"


@BOTH
@pytest.mark.parametrize("batch_size", [1, 8])
def test_search_finds_most_of_the_best_rows(make: Any, batch_size: int) -> None:
    rng = np.random.default_rng(4)
    labels = rng.permutation(np.arange(2000) % 25)
    scores = rng.normal(size=2000) * 0.3 + rng.normal(size=25)[labels]

    def found() -> np.ndarray:
        return cu.search(
            np.zeros((2000, 1)),
            lambda rows: scores[rows],
            clusterer=labels,
            policy=make(),
            budget=400,
            n_select=100,
            schedule=cu.Schedule(batch_size=batch_size),
        ).rows

    rows = found()
    assert np.isin(np.argsort(-scores)[:100], rows).mean() > 0.8
    np.testing.assert_array_equal(found(), rows)
