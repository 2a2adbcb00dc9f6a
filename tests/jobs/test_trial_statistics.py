"""The bootstrap of a trial, and the rows that its arms train on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.jobs.trial.arms import at_random, elsewhere, of_tokens
from clusterucb.jobs.trial.cells import order_of
from clusterucb.jobs.trial.statistics import differences


def losses(seed, shift=0.0, rates=2, seeds=3, judges=(20, 30)):
    rng = np.random.default_rng(seed)
    own = {f"subtask {i}": rng.normal(1, 0.5, size=count) for i, count in enumerate(judges)}
    return {
        name: values + shift + rng.normal(0, 0.05, size=(rates, seeds, len(values)))
        for name, values in own.items()
    }


def test_the_bootstrap_equals_one_that_draws_seeds_and_judges_one_by_one():
    ours, theirs = losses(1, -0.1), losses(2)
    by_subtask, mean = differences(ours, theirs)
    rng = np.random.default_rng(9)
    drawn = []
    for _ in range(4000):
        seeds = rng.integers(3, size=3)
        of_subtasks = []
        for name in ours:
            apart = (ours[name] - theirs[name]).mean(axis=0)
            of_subtasks.append(apart[np.ix_(seeds, rng.integers(apart.shape[1], size=apart.shape[1]))].mean())
        drawn.append(of_subtasks)
    low, high = np.quantile(np.mean(drawn, axis=1), [0.025, 0.975])
    assert mean.mean == pytest.approx(np.mean([(ours[name] - theirs[name]).mean() for name in ours]))
    assert (mean.low, mean.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    for at, name in enumerate(ours):
        low, high = np.quantile(np.array(drawn)[:, at], [0.025, 0.975])
        found = by_subtask[name]
        assert (found.low, found.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_an_interval_covers_a_difference_of_zero_about_as_often_as_it_says():
    covered = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        noise = [{"a": rng.normal(size=(1, 12, 40)) + rng.normal(size=(1, 12, 1))} for _ in range(2)]
        _, mean = differences(*noise)
        covered.append(mean.low <= 0 <= mean.high)
    assert 0.85 <= np.mean(covered) <= 0.99


def test_the_verdict_is_clear_only_outside_of_the_interval():
    better, equal, worse = (differences(losses(1, shift), losses(1))[1] for shift in (-0.5, 0.0, 0.5))
    assert (better.verdict, equal.verdict, worse.verdict) == ("lower", "unclear", "higher")


def test_every_subtask_has_the_same_weight():
    ours = {"small": np.full((1, 1, 2), 3.0), "large": np.full((1, 1, 50), 1.0)}
    theirs = {"small": np.full((1, 1, 2), 1.0), "large": np.full((1, 1, 50), 1.0)}
    assert differences(ours, theirs)[1].mean == 1.0


def test_subtasks_may_have_different_numbers_of_seeds():
    ours, theirs = losses(1, -0.1), losses(2)
    together, _ = differences(ours, theirs)
    few = {name: values[:, :1] for name, values in list(ours.items())[1:]}
    mixed, mean = differences({**ours, **few}, {**theirs, **{name: theirs[name][:, :1] for name in few}})
    first = next(iter(ours))
    assert mixed[first] == together[first]
    of_one, _ = differences(few, {name: theirs[name][:, :1] for name in few})
    assert {name: mixed[name].mean for name in few} == {name: of_one[name].mean for name in few}
    assert mean.mean == pytest.approx(np.mean([found.mean for found in mixed.values()]))


def test_an_arm_without_seeds_is_compared_with_every_seed():
    ours, theirs = losses(1), {name: values[:1, :1] for name, values in losses(2).items()}
    by_subtask, _ = differences(ours, theirs)
    for name, found in by_subtask.items():
        assert found.mean == pytest.approx(ours[name].mean() - theirs[name].mean())


@given(st.integers(1, 40), st.integers(0, 100), st.integers(0, 2**31))
def test_a_training_takes_as_many_samples_as_asked_and_all_rows_equally_often(n_rows, n_draws, seed):
    rows = np.arange(n_rows) * 3
    order = order_of(rows, n_draws, np.random.default_rng(seed)) if n_draws else np.zeros(0, np.int64)
    assert len(order) == n_draws
    counts = np.bincount(order, minlength=3 * n_rows)[rows]
    assert counts.sum() == n_draws
    assert counts.max() - counts.min() <= 1


@given(st.integers(2, 200), st.data())
def test_random_rows_are_distinct_and_have_the_tokens_if_swaps_lead_there(n_rows, data):
    lengths = np.array(data.draw(st.lists(st.integers(1, 50), min_size=n_rows, max_size=n_rows)))
    n = data.draw(st.integers(1, n_rows))
    rows = of_tokens(lengths, n, int(lengths.mean() * n), np.random.default_rng(0))
    assert len(np.unique(rows)) == n
    if n_rows >= 100 and 20 <= n <= n_rows // 2:
        assert lengths[rows].sum() == pytest.approx(lengths.mean() * n, rel=0.05)


def test_reserved_rows_are_never_drawn_and_never_selected():
    selected = np.arange(0, 100, 2)
    reserved = elsewhere(100, selected)
    assert len(reserved) == 12
    assert not np.isin(reserved, selected).any()
    arm = at_random("random", np.full(100, 7), reserved, 80, 560)
    for seed in range(5):
        assert len(arm.rows(seed)) == 80
        assert not np.isin(arm.rows(seed), reserved).any()
    assert len(at_random("all", np.full(100, 7), reserved, 500, 1).rows(0)) == 88
