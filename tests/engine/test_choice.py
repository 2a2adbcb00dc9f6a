"""Which scored samples are selected, against a plain reading of the rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.engine.aggregate import Standardized
from clusterucb.engine.choice import choose
from clusterucb.errors import ClusterUCBWarning, OptionError
from clusterucb.policies import UCB, Random
from helpers.searching import search

VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0]) | st.floats(-1, 1)


@st.composite
def scored(draw: st.DrawFn):
    n_rows, n_subtasks = draw(st.integers(1, 25)), draw(st.integers(1, 3))
    row = st.lists(VALUES, min_size=n_subtasks, max_size=n_subtasks) | st.just([math.nan] * n_subtasks)
    scores = np.array(draw(st.lists(row, min_size=n_rows, max_size=n_rows)))
    rows = np.random.default_rng(draw(st.integers(0, 9))).permutation(n_rows) + draw(st.integers(0, 5))
    groups = np.array(draw(st.lists(st.sampled_from("abc"), min_size=n_rows, max_size=n_rows)))
    return rows, scores.max(axis=1), scores, groups, draw(st.integers(1, 25)), draw(st.integers(1, 6))


def plainly(rows, rewards, scores, groups, n_select, cap, by):
    """Subtask after subtask takes its best row that is left and allowed."""
    lists = [rewards] if by == "top" else list(scores.T)
    chosen: list[int] = []
    while len(chosen) < n_select:
        before = len(chosen)
        for values in lists:
            left = [
                k
                for k in range(len(rows))
                if k not in chosen
                and not math.isnan(rewards[k])
                and sum(groups[c] == groups[k] for c in chosen) < cap
            ]
            if left and len(chosen) < n_select:
                chosen.append(min(left, key=lambda k: (-values[k], rows[k])))
        if len(chosen) == before:
            break
    return chosen


@pytest.mark.parametrize("by", ["top", "round-robin"])
@given(scored())
def test_the_choice_is_that_of_the_rules(by, case):
    rows, rewards, scores, groups, n_select, cap = case
    got = choose(rows, rewards, scores, n_select, by=by, groups=groups, cap=cap)
    assert got.tolist() == plainly(rows, rewards, scores, groups, n_select, cap, by)
    free = choose(rows, rewards, scores, n_select, by=by)
    assert free.tolist() == plainly(rows, rewards, scores, groups, n_select, len(rows), by)


def test_each_subtask_gets_its_best_in_turn():
    scores = np.array([[9, 0.1], [8, 0.3], [7, 0.2], [6, 0.0]])
    rows = np.arange(4)
    assert choose(rows, scores.max(axis=1), scores, 3).tolist() == [0, 1, 2]
    assert choose(rows, scores.max(axis=1), scores, 3, by="round-robin").tolist() == [0, 1, 2]
    assert choose(rows, scores.max(axis=1), scores, 2, by="round-robin").tolist() == [0, 1]
    assert choose(rows[::-1], scores.max(axis=1), scores, 1, by="top").tolist() == [0]


@given(scored(), st.data())
def test_turns_are_shared_out_by_weights(case, data):
    rows, rewards, scores, _, n_select, _ = case
    n_subtasks = scores.shape[1]
    weights = np.array(
        data.draw(st.lists(st.sampled_from([0.5, 1, 2, 3]), min_size=n_subtasks, max_size=n_subtasks))
    )
    got = choose(rows, rewards, scores, n_select, by="round-robin", weights=weights)
    chosen, seats = [], [0] * n_subtasks
    while len(chosen) < min(n_select, np.isfinite(rewards).sum()):
        turn = max(range(n_subtasks), key=lambda s: (weights[s] / (seats[s] + 1), -s))
        left = [k for k in range(len(rows)) if k not in chosen and not math.isnan(rewards[k])]
        chosen.append(min(left, key=lambda k: (-scores[k, turn], rows[k])))
        seats[turn] += 1
    assert got.tolist() == chosen
    by_reward = choose(rows, rewards, scores, n_select, weights=weights)
    assert by_reward.tolist() == choose(rows, rewards, scores, n_select).tolist()


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
    with pytest.raises(OptionError, match="select_by is 'best'; expected one of top, round-robin"):
        run(np.arange(9.0), select_by="best")


# Standardised rewards -------------------------------------------------------------------------------------


def test_one_subtask_with_large_scores_does_not_decide_alone():
    rng = np.random.default_rng(0)
    scores = np.stack([10 + rng.random(400), rng.random(400) / 100], axis=1)
    scores[7, 1] = 1.0
    assert 7 not in run(scores, aggregate="max", budget=400).rows
    found = run(scores, aggregate="standardized", budget=400, cold_start=1.0)
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


@pytest.mark.parametrize("policy", [UCB(), Random()])
def test_a_reward_does_not_depend_on_when_it_was_drawn(policy):
    scores = np.random.default_rng(1).normal(size=(200, 3)) * [1, 5, 0.1]
    labels = np.arange(200) % 10
    found = run(scores, clusterer=labels, policy=policy, budget=120, aggregate="standardized", cold_start=0.1)
    mean, std = found.standardized
    cold = found.drawn_rows[:20]  # 2 of 20 in each of 10 arms, equally likely
    np.testing.assert_allclose(mean, scores[cold].mean(axis=0))
    np.testing.assert_allclose(std, scores[cold].std(axis=0))
    expected = ((scores[found.drawn_rows] - mean) / std).max(axis=1)
    np.testing.assert_allclose(found.drawn_scores, expected)
    assert found.draws.min() >= 2


# Weights of subtasks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregate", "rewards"),
    [
        ("max", lambda scores: np.maximum(3 * scores[:, 0], scores[:, 1])),
        ("mean", lambda scores: 0.75 * scores[:, 0] + 0.25 * scores[:, 1]),
        ("standardized", lambda scores: ((scores - scores.mean(0)) / scores.std(0) * [3, 1]).max(axis=1)),
    ],
)
def test_a_subtask_counts_by_its_weight(aggregate, rewards):
    scores = np.random.default_rng(2).normal(size=(60, 2))
    found = run(scores, aggregate=aggregate, weights=[3, 1], budget=60, cold_start=1.0)
    np.testing.assert_allclose(found.drawn_scores, rewards(scores[found.drawn_rows]))
    assert set(found.rows) == set(np.argsort(-rewards(scores))[:4])


def test_equal_weights_change_no_bit():
    scores = np.random.default_rng(3).normal(size=(60, 3))
    for aggregate in ("max", "mean", "standardized"):
        one = run(scores, aggregate=aggregate, select_by="round-robin", budget=30)
        other = run(scores, aggregate=aggregate, select_by="round-robin", budget=30, weights=np.ones(3))
        np.testing.assert_array_equal(one.drawn_scores, other.drawn_scores)
        np.testing.assert_array_equal(one.rows, other.rows)


def test_weights_are_a_number_above_zero_for_each_subtask():
    for weights in ([1, 0], [1, -2], [1, math.nan], [[1, 2]], []):
        with pytest.raises(OptionError, match="expected a number above 0 for each subtask"):
            run(np.ones((9, 2)), weights=weights)
    with pytest.raises(OptionError, match=r"score returned shape \(\d, 2\); expected \[\d\] or \[\d, 3\]"):
        run(np.ones((9, 2)), weights=[1, 2, 3])
