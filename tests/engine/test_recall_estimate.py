"""The estimated recall: its parts against brute force, its intervals against recorded scores, and where it stops."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clusterucb as cu
from clusterucb.engine.missed import Missed, Predicted
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.recall import (
    Draws,
    Evidence,
    Recall,
    RecallEstimator,
    _found,
    _n_effective,
    _Part,
)
from helpers.hills import hills, searched
from helpers.recorded import Memory
from helpers.searching import best_rows, search

DATA = Path(__file__).parents[1] / "data"


def numbers(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 8, n).astype(np.float64) / 2


@given(n_drawn=st.integers(1, 60), n_others=st.integers(1, 80), seed=st.integers(0, 2**32))
def test_rows_are_missed_as_often_as_their_neighbours_surprise(n_drawn, n_others, seed):
    values, left_out = numbers(n_drawn, seed), numbers(n_drawn, seed + 1)
    predicted = numbers(n_others, seed + 2)
    order = np.argsort(left_out, kind="stable")
    expected, surprise = left_out[order], (values - left_out)[order]
    window = min(20, n_drawn)
    said = Predicted(slice(None), left_out, np.arange(len(predicted)), predicted, n_others)
    missed = Missed(values, said, slice(None))  # fewer rows than parts: each has neighbours of its own
    for least in (-20.0, -1.0, 0.0, 2.5, 20.0):
        lifted, chances = np.zeros(n_drawn), []
        for one in predicted:
            begin = min(max(np.searchsorted(expected, one) - window // 2, 0), n_drawn - window)
            near = np.abs(expected - one) <= 0.1 * surprise.std()
            near[begin : begin + window] = True
            reached = near & (one + surprise >= least)
            lifted[reached] += 1 / near.sum()
            chances.append(reached.sum() / near.sum())
        assert missed.lifted(least) == pytest.approx(lifted)
        assert missed(least) == pytest.approx(lifted.sum())
        assert missed.by_row(least) == pytest.approx(np.array(chances))


def test_no_row_is_missed_if_none_is_left():
    nothing = Predicted(slice(None), numbers(30, 1), np.zeros(0, np.int64), np.zeros(0), 0)
    missed = Missed(numbers(30, 0), nothing, slice(None))
    assert missed(0.0) == 0
    assert missed.by_row(0.0).shape == (0,)


@given(weight=st.floats(0.1, 10), n=st.integers(1, 50), n_others=st.integers(0, 50))
def test_what_weighs_nothing_says_nothing(weight, n, n_others):
    weights = np.array([weight] * n + [0.0] * n_others)
    assert _n_effective(weights) == pytest.approx(n)
    assert 1 <= _n_effective(weights * np.arange(1, len(weights) + 1)) <= n + 1e-9
    assert _n_effective(np.zeros(n)) == np.inf


@given(
    n_best=st.integers(1, 300),
    odds=st.tuples(st.floats(-6, 6), st.floats(-6, 6)),
    variances=st.tuples(st.floats(0, 4), st.floats(0.01, 50)),
)
def test_an_interval_ends_at_whole_samples_and_widens_with_doubt(n_best, odds, variances):
    said = Evidence(float(n_best), odds[0], variances[0], odds[1], variances[1]).recall()
    assert 0 <= said.low <= said.estimate <= said.high <= 1
    for end in (said.low, said.high):
        assert end * n_best == pytest.approx(round(end * n_best), abs=1e-9)
    doubtful = Evidence(float(n_best), odds[0], 1e3, odds[0], 1e3).recall()
    assert (doubtful.low, doubtful.high) == (0, 1)


def drawn(surprises: list[float]) -> Evidence:
    """Return what 400 draws say of 1,000 others, which are expected to be a bit less than the 50 best of them."""
    rng = np.random.default_rng(0)
    left_out = np.concatenate([np.linspace(1, 2, 40), rng.uniform(-1, 1, 360)])
    values = left_out.copy()
    values[40 : 40 + len(surprises)] += surprises
    others = rng.uniform(-1, 0.9, 1000)
    chance = np.where(np.arange(400) < 200, np.nan, 0.15)
    said = Predicted(slice(None), left_out, np.arange(len(others)), others, len(others))
    return _Part(values, said, chance, 50.0).evidence


def test_what_rests_on_few_surprises_is_uncertain():
    few, many = drawn([2.0]), drawn([0.1] * 160)
    assert many.of_regression < few.of_regression


def test_random_draws_cannot_tell_nearly_all_from_all():
    some, nearly_all = drawn([0.2] * 160), drawn([])
    assert some.by_regression < nearly_all.by_regression
    assert some.of_random < nearly_all.of_random


@given(n_drawn=st.integers(1, 40), n_best=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_what_is_found_and_what_is_missed_make_up_the_best(n_drawn, n_best, seed):
    falling, others = np.sort(numbers(n_drawn, seed))[::-1], numbers(30, seed + 1)

    def missed(least: float) -> float:
        return float((others >= least).sum())

    fit = [n for n in range(1, min(n_best, n_drawn) + 1) if n + missed(falling[n - 1]) <= n_best]
    assert _found(falling, float(n_best), missed) == min(max(fit, default=0) + 0.5, n_best)


def test_all_is_found_when_all_is_drawn():
    found, _ = searched(budget=300, watch=lambda _: None)
    assert found.recall == Recall(1.0, 1.0, 1.0)


def test_nothing_is_said_without_random_draws():
    class First(cu.Policy):
        def ask(self, n, available, rng):
            return np.flatnonzero(available)[:n]

    said: list[Recall] = []
    found, _ = searched(policy=First(), watch=said.append)
    assert found.recall is None
    assert not said
    with pytest.raises(cu.ClusterUCBError, match="First draws nothing at random"):
        searched(policy=First(), until=0.9)


def test_nobody_asked():
    assert searched()[0].recall is None


def test_it_is_told_some_twenty_times_and_grows():
    said: list[Recall] = []
    found, _ = searched(watch=said.append)
    assert 12 <= len(said) <= 20
    assert said[-1] == found.recall
    assert said[0].estimate < said[-1].estimate
    for recall in said:
        assert 0 <= recall.low <= recall.estimate <= recall.high <= 1


@given(seed=st.integers(0, 50), order=st.randoms(use_true_random=False))
def test_it_does_not_matter_how_draws_were_told(seed, order):
    place, scores = hills(seed, 70)
    rewards = partial(np.max, axis=1)
    rows = np.random.default_rng(seed).permutation(70)[:36]
    draws = Draws(rows, scores[rows], np.full(36, 0.5))
    pool = PoolView({"place": place}, np.zeros(70, np.int64), np.zeros(70), n_select=10)
    at_once = RecallEstimator(pool)(draws, rewards)
    bit_by_bit = RecallEstimator(pool)
    for n in sorted(order.sample(range(15, 36), 3)):
        bit_by_bit(Draws(*(array[:n] for array in draws)), rewards)
    assert bit_by_bit(draws, rewards) == at_once


def until_found(seed: int, until: float) -> dict[str, Any]:
    return {
        "clusterer": cu.KMeans(n_clusters=8),
        "policy": cu.UCB(),
        "budget": 80,
        "n_select": 8,
        "batch_size": 4,
        "until": until,
        "seed": seed,
    }


@cache
def uninterrupted(seed: int, until: float) -> cu.Selection:
    place, scores = hills(seed, n_rows=80)
    return search(place, lambda rows: scores[rows], **until_found(seed, until))


@given(seed=st.integers(0, 9), until=st.sampled_from([0.3, 0.6, 0.9]), stop=st.integers(1, 80))
def test_an_interrupted_search_stops_at_the_same_draw(seed, until, stop):
    place, scores = hills(seed, n_rows=80)
    options, whole = until_found(seed, until), uninterrupted(seed, until)
    assert whole.stopped in ("recall", "budget")
    journal, left = Memory(), [stop]

    def score(rows: np.ndarray) -> np.ndarray:
        left[0] -= len(rows)
        if left[0] < 0:
            raise KeyboardInterrupt
        return scores[rows]

    try:
        search(place, score, **options, journal=journal)
    except KeyboardInterrupt:
        left[0] = 10**9
    again = search(place, lambda rows: scores[rows], **options, journal=journal)
    assert again.drawn_rows.tolist() == whole.drawn_rows.tolist()
    assert (again.stopped, again.recall) == (whole.stopped, whole.recall)


def test_it_stops_when_enough_is_found_and_goes_on_for_more():
    journal = Memory()
    options = {"budget": 300, "journal": journal, "cold_start": 0.1}
    some, scores = searched(until=0.5, **options)
    more, _ = searched(until=0.9, **options)
    assert (some.stopped, more.stopped) == ("recall", "recall")
    assert some.recall.estimate >= 0.5
    assert more.recall.estimate >= 0.9
    assert len(some.drawn_rows) < len(more.drawn_rows) < 300
    assert more.drawn_rows[: len(some.drawn_rows)].tolist() == some.drawn_rows.tolist()
    assert np.isin(best_rows(scores, 15), more.drawn_rows).mean() > 0.7


def test_it_is_said_that_nothing_can_be_said():
    with pytest.warns(cu.ClusterUCBWarning, match="too few draws were random"):
        found, _ = searched(until=0.5, clusterer=None, cold_start=0)
    assert (found.stopped, found.recall) == ("budget", None)


def test_the_budget_ends_what_finds_too_little():
    found, _ = searched(until=0.99, budget=40, cold_start=0.1)
    assert found.stopped == "budget"
    assert found.n_scored == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": 0}, "until is 0; expected a recall above 0, at most 1"),
        ({"until": 1.5}, "until is 1.5; expected a recall above 0, at most 1"),
        ({"until": True}, "until is True; expected a recall above 0, at most 1"),
        ({"until": 0.9, "max_per_source": 3}, "until and max_per_source are given; expected only one"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(cu.ClusterUCBError, match=message):
        searched(**options)


def test_subtasks_in_turn_are_estimated_one_by_one():
    found, scores = searched(watch=lambda _: None)
    best = [np.argsort(-column)[:7] for column in scores.T]
    truth = np.mean([np.isin(rows, found.drawn_rows).mean() for rows in best])
    assert found.recall.low <= truth <= found.recall.high
    one_sided, _ = searched(weights=[1, 1e-6], watch=lambda _: None)
    assert one_sided.recall != found.recall


def searched_with_failures(**options: Any) -> cu.Selection:
    """Return a search in which the scoring of every seventh row fails."""
    place, scores = hills(0)
    scores[::7] = np.nan
    own = {"clusterer": cu.KMeans(n_clusters=8), "policy": cu.UCB(), "budget": 100, "n_select": 15}
    return search(place, lambda rows: scores[rows], **own, **options)


def test_rewards_on_one_scale_and_failures_are_no_obstacle():
    found = searched_with_failures(rule="standardized", cold_start=0.1, until=0.95)
    assert 0 < found.recall.estimate <= 1


@pytest.mark.parametrize("options", [{}, {"rule": "standardized"}, {"rule": "paper"}])
def test_the_outlook_says_where_the_missed_rows_are(options):
    found, scores = searched(1, budget=60, cold_start=0.2, watch=lambda _: None, **options)
    expected, missed = found.outlook
    assert missed.shape == (300,)
    assert (missed >= 0).all()
    assert not missed[found.drawn_rows].any()
    n_missed = 15 * (1 - found.recall.estimate)
    assert missed.sum() == pytest.approx(n_missed)
    undrawn = np.setdiff1d(np.arange(300), found.drawn_rows)
    likely = undrawn[np.argsort(-missed[undrawn])[:30]]
    assert scores[likely].max(axis=1).mean() > scores[undrawn].max(axis=1).mean()
    assert expected.shape == (60, 2)
    assert np.corrcoef(expected[:, 0], scores[found.drawn_rows, 0])[0, 1] > 0.8


def test_there_is_no_outlook_if_all_is_drawn_or_nobody_asked_and_none_for_failures():
    assert searched(budget=300, watch=lambda _: None)[0].outlook is None
    assert searched()[0].outlook is None
    found = searched_with_failures(watch=lambda _: None)
    failed = np.isnan(found.drawn_scores)
    assert failed.any()
    assert np.array_equal(np.isnan(found.outlook.expected).all(axis=1), failed)
