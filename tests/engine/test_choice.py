"""Which scored samples are selected, against a plain reading of the rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.engine.aggregate import RULES, Standardized, above_cuts, normal_cuts
from clusterucb.engine.choice import choose
from clusterucb.engine.rules import Rules
from clusterucb.errors import ClusterUCBWarning, OptionError
from clusterucb.policies import UCB, ClusterMean, Random, Surrogate
from helpers.searching import search

VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0]) | st.floats(-1, 1)


@st.composite
def scored(draw: st.DrawFn):
    n_rows, n_subtasks = draw(st.integers(1, 25)), draw(st.integers(1, 3))
    row = st.lists(VALUES, min_size=n_subtasks, max_size=n_subtasks) | st.just([math.nan] * n_subtasks)
    scores = np.array(draw(st.lists(row, min_size=n_rows, max_size=n_rows)))
    rows = np.random.default_rng(draw(st.integers(0, 9))).permutation(n_rows) + draw(st.integers(0, 5))
    groups = np.array(draw(st.lists(st.sampled_from("abc"), min_size=n_rows, max_size=n_rows)))
    return rows, scores, groups, draw(st.integers(1, 25)), draw(st.integers(1, 6))


def plainly(rows, scores, groups, n_select, cap):
    """Column after column takes its best row that is left and allowed."""
    chosen: list[int] = []
    while len(chosen) < n_select:
        before = len(chosen)
        for values in scores.T:
            left = [
                k
                for k in range(len(rows))
                if k not in chosen
                and not math.isnan(scores[k].max())
                and sum(groups[c] == groups[k] for c in chosen) < cap
            ]
            if left and len(chosen) < n_select:
                chosen.append(min(left, key=lambda k: (-values[k], rows[k])))
        if len(chosen) == before:
            break
    return chosen


@given(scored())
def test_columns_choose_in_turn(case):
    rows, scores, groups, n_select, cap = case
    got = choose(rows, scores, n_select, groups=groups, cap=cap)
    assert got.tolist() == plainly(rows, scores, groups, n_select, cap)
    free = choose(rows, scores, n_select)
    assert free.tolist() == plainly(rows, scores, groups, n_select, len(rows))


def test_each_subtask_gets_its_best_in_turn():
    scores = np.array([[9, 0.1], [8, 0.3], [7, 0.2], [6, 0.0]])
    rows = np.arange(4)
    assert choose(rows, scores, 3).tolist() == [0, 1, 2]
    assert choose(rows, scores, 2).tolist() == [0, 1]
    assert choose(rows[::-1], scores[:, :1], 1).tolist() == [0]


@given(scored())
def test_a_rule_selects_in_turn_or_by_reward(case):
    rows, scores, groups, n_select, _ = case
    n_select = min(n_select, len(rows))
    for rule in RULES:
        rules = Rules(rule=rule)
        rewards = scores.mean(axis=1)
        got = rules.choose(rows, scores, rewards, n_select, None)
        assert got.tolist() == plainly(
            rows, scores if rules.in_turn else rewards[:, None], groups, n_select, len(rows)
        )


@given(scored(), st.data())
def test_turns_are_shared_out_by_weights(case, data):
    rows, scores, _, n_select, _ = case
    n_subtasks = scores.shape[1]
    weights = np.array(
        data.draw(st.lists(st.sampled_from([0.5, 1, 2, 3]), min_size=n_subtasks, max_size=n_subtasks))
    )
    got = choose(rows, scores, n_select, weights=weights)
    chosen, seats = [], [0] * n_subtasks
    while len(chosen) < min(n_select, np.isfinite(scores).all(axis=1).sum()):
        turn = max(range(n_subtasks), key=lambda s: (weights[s] / (seats[s] + 1), -s))
        left = [k for k in range(len(rows)) if k not in chosen and not math.isnan(scores[k, 0])]
        chosen.append(min(left, key=lambda k: (-scores[k, turn], rows[k])))
        seats[turn] += 1
    assert got.tolist() == chosen


def run(scores, **options):
    defaults = {"clusterer": None, "policy": UCB(), "budget": len(scores), "n_select": 4}
    return search(np.zeros((len(scores), 1)), scores.__getitem__, **{**defaults, **options})


def test_a_cap_keeps_a_source_from_filling_the_selection():
    scores = np.arange(20.0)
    sources = np.array(["few"] * 15 + ["many"] * 5)
    assert run(scores, columns={"source": sources}).rows.tolist() == [19, 18, 17, 16]
    capped = run(scores, columns={"source": sources}, max_per_source=2)
    assert capped.rows.tolist() == [19, 18, 14, 13]
    with pytest.warns(ClusterUCBWarning, match="only 2 of 20 draws fit under at most 1 of each source"):
        few = run(scores, columns={"source": sources}, max_per_source=1)
    assert few.rows.tolist() == [19, 14]


def test_a_cap_needs_sources_and_names_are_checked():
    with pytest.raises(OptionError, match="no column 'source'"):
        run(np.arange(9.0), max_per_source=2)
    with pytest.raises(OptionError, match="max_per_source is 0"):
        run(np.arange(9.0), max_per_source=0)
    with pytest.raises(
        OptionError, match="rule is 'best'; expected one of round-robin, paper, mean, standardized"
    ):
        run(np.arange(9.0), rule="best")


# Standardised rewards -------------------------------------------------------------------------------------


def test_one_subtask_with_large_scores_does_not_decide_alone():
    rng = np.random.default_rng(0)
    scores = np.stack([10 + rng.random(400), rng.random(400) / 100], axis=1)
    scores[7, 1] = 1.0
    assert 7 not in run(scores, rule="paper", budget=400).rows
    found = run(scores, rule="standardized", budget=400, cold_start=1.0)
    assert found.rows[0] == 7
    np.testing.assert_allclose(found.standardized, [scores.mean(axis=0), scores.std(axis=0)])


def test_the_estimate_is_weighted_by_one_over_inclusion():
    scores = np.array([[1.0], [1.0], [4.0]])
    fitted = Standardized(scores, np.array([1.0, 1.0, 0.25]))
    assert fitted.mean.tolist() == [3.0]
    assert fitted.std.tolist() == [math.sqrt(2.0)]


def test_equal_scores_and_failures_standardise_to_zero():
    fitted = Standardized(np.array([[2.0], [2.0], [math.nan]]), np.ones(3))
    assert fitted(np.array([[2.0], [math.nan]])).tolist()[0] == 0
    assert math.isnan(fitted(np.array([[math.nan]]))[0])
    assert Standardized(np.full((2, 1), math.nan), np.ones(2))(np.array([[5.0]])).tolist() == [5.0]


@pytest.mark.parametrize("policy", [UCB(), Surrogate()])
def test_a_reward_does_not_depend_on_when_it_was_drawn(policy):
    scores = np.random.default_rng(1).normal(size=(200, 3)) * [1, 5, 0.1]
    labels = np.arange(200) % 10
    found = run(scores, clusterer=labels, policy=policy, budget=120, rule="standardized", cold_start=0.1)
    mean, std = found.standardized
    cold = found.drawn_rows[:20]  # 2 of 20 in each of 10 arms, equally likely
    np.testing.assert_allclose(mean, scores[cold].mean(axis=0))
    np.testing.assert_allclose(std, scores[cold].std(axis=0))
    expected = ((scores[found.drawn_rows] - mean) / std).max(axis=1)
    np.testing.assert_allclose(found.drawn_scores, expected)
    assert found.draws.min() >= 2


# Weights of subtasks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "rewards"),
    [
        ("paper", lambda scores: np.maximum(3 * scores[:, 0], scores[:, 1])),
        ("mean", lambda scores: 0.75 * scores[:, 0] + 0.25 * scores[:, 1]),
        ("standardized", lambda scores: ((scores - scores.mean(0)) / scores.std(0) * [3, 1]).max(axis=1)),
    ],
)
def test_a_subtask_counts_by_its_weight(rule, rewards):
    scores = np.random.default_rng(2).normal(size=(60, 2))
    found = run(scores, rule=rule, weights=[3, 1], budget=60, cold_start=1.0)
    np.testing.assert_allclose(found.drawn_scores, rewards(scores[found.drawn_rows]))
    assert set(found.rows) == set(np.argsort(-rewards(scores))[:4])


def test_equal_weights_change_no_bit():
    scores = np.random.default_rng(3).normal(size=(60, 3))
    for rule in RULES:
        one, other = (run(scores, rule=rule, budget=30, weights=weights) for weights in (None, np.ones(3)))
        np.testing.assert_array_equal(one.drawn_scores, other.drawn_scores)
        np.testing.assert_array_equal(one.rows, other.rows)


def test_weights_are_a_number_above_zero_for_each_subtask():
    for weights in ([1, 0], [1, -2], [1, math.nan], [[1, 2]], []):
        with pytest.raises(OptionError, match="expected a number above 0 for each subtask"):
            run(np.ones((9, 2)), weights=weights)
    with pytest.raises(OptionError, match=r"score returned shape \(\d, 2\); expected \[\d\] or \[\d, 3\]"):
        run(np.ones((9, 2)), weights=[1, 2, 3])


# Rewards when subtasks select in turn ---------------------------------------------------------------------


def test_rewards_of_turns_are_the_largest_z_scores():
    scores = np.random.default_rng(4).normal(size=(80, 3)) * [1, 5, 0.1]
    in_turn, standardized = (run(scores, rule=rule, budget=40) for rule in ("round-robin", "standardized"))
    np.testing.assert_array_equal(in_turn.standardized, standardized.standardized)
    np.testing.assert_allclose(in_turn.drawn_scores, standardized.drawn_scores, rtol=1e-12)


def test_a_subtask_with_more_turns_has_a_lower_cut():
    cuts = normal_cuts(np.array([8.0, 4.0, 4.0]), 100)
    assert cuts[0] < cuts[1] == cuts[2]
    np.testing.assert_allclose(normal_cuts(np.array([5.0, 5.0]), 100), 0, atol=1e-12)
    assert np.isfinite(normal_cuts(np.array([1e-9, 100.0]), 100)).all()


@given(st.integers(1, 30), st.integers(1, 3), st.integers(1, 12), st.integers(0, 99))
def test_rows_above_a_cut_are_those_that_would_be_selected(n_known, n_subtasks, n_select, seed):
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(n_known, n_subtasks)) * rng.uniform(0.1, 10, size=n_subtasks)
    seats = Rules().seats(n_select, n_subtasks)
    one = rng.normal(size=n_subtasks)
    wins = False
    for own, score, n_seats in zip(known.T, one, seats, strict=True):
        falling = sorted(own, reverse=True)
        wins |= score > falling[min(int(np.ceil(n_seats)), n_known) - 1]
    assert (above_cuts(known, seats)(one[None])[0] > 0) == wins


@pytest.mark.parametrize("rule", RULES)
def test_one_subtask_makes_all_rules_the_same(rule):
    scores = np.random.default_rng(5).normal(size=60)
    for policy in (UCB(), Random(), ClusterMean(), Surrogate()):
        ours, papers = (run(scores, rule=one, policy=policy, budget=30) for one in (rule, "paper"))
        np.testing.assert_array_equal(ours.drawn_rows, papers.drawn_rows)
        np.testing.assert_array_equal(ours.drawn_scores, scores[ours.drawn_rows])
        np.testing.assert_array_equal(ours.rows, papers.rows)
        assert ours.standardized is None


def test_a_policy_without_a_cold_start_gets_rewards_once_they_can_be_fitted():
    told = []

    class Spy(Random):
        def tell(self, rows, rewards, scores):
            told.append(len(rows))

    scores = np.random.default_rng(6).normal(size=(60, 2))
    found = run(scores, policy=Spy(), budget=50)
    assert told == [1] * 50
    np.testing.assert_allclose(found.standardized[0], scores[found.drawn_rows[:32]].mean(axis=0))


def test_rewards_are_fitted_to_estimates_of_all_scores_if_there_are_any():
    scores = np.random.default_rng(7).normal(size=(90, 2)) * [1, 9]
    guided = run(scores, policy=Surrogate(), budget=40, prior={"estimates": scores.astype(np.float32)})
    np.testing.assert_allclose(guided.standardized, [scores.mean(0), scores.std(0)], rtol=1e-5)
