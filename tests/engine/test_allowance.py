"""Budgets of tokens and of time: nothing is overdrawn, and the search goes on as long as it may."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clusterucb.engine.budget import NothingLeft, TimeAllowance, TokenAllowance
from clusterucb.errors import ClusterUCBWarning, OptionError
from clusterucb.policies import UCB, Random
from helpers.searching import search

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=60)


def draw(lengths, allowance, **options):
    """Search a pool of random scores."""
    count = len(lengths)
    scores = np.random.default_rng(0).random(count)
    defaults = {
        "clusterer": np.arange(count) % 5,
        "policy": UCB(),
        "budget": max(count // 3, 1),
        "n_select": 1,
    }
    return search(np.zeros((count, 1)), scores.__getitem__, **{**defaults, **options}, allowance=allowance)


@given(LENGTHS, st.integers(30, 600), st.sampled_from([1, 4, 16]), st.sampled_from([UCB(), Random()]))
@pytest.mark.filterwarnings("ignore::clusterucb.errors.ClusterUCBWarning")
def test_tokens_are_drawn_until_the_longest_sample_would_not_fit(lengths, limit, batch_size, policy):
    tokens = np.array(lengths)
    found = draw(tokens, TokenAllowance(tokens, limit), batch_size=batch_size, policy=policy)
    spent = tokens[found.drawn_rows].sum()
    assert spent <= limit
    if found.n_scored < len(tokens):
        assert spent + tokens.max() > limit
        assert found.stopped == "budget"
    else:
        assert found.stopped == "exhausted"


@given(LENGTHS, st.integers(1, 600), st.data())
def test_granted_rows_do_not_depend_on_how_they_are_asked_for(lengths, limit, data):
    tokens = np.array(lengths)
    allowance = TokenAllowance(tokens, limit)
    rows = np.array(data.draw(st.permutations(range(len(tokens)))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(tokens)))) | {0, len(tokens)})
    granted = [allowance.grant(rows[start:stop]) for start, stop in itertools.pairwise(cuts)]
    sums = [tokens[rows[:count]].sum() for count in range(len(tokens))]
    assert sum(granted) == sum(limit - spent >= tokens.max() for spent in sums)
    assert allowance.grant(rows[:1]) == (limit - tokens[rows[: sum(granted)]].sum() >= tokens.max())


class Clock:
    """Time that passes by itself only when something is scored."""

    def __init__(self, tokens, per_token):
        self.now = 100.0
        self._tokens, self._per_token = tokens, per_token

    def __call__(self):
        return self.now

    def score(self, rows):
        self.now += self._per_token * self._tokens[rows].sum()
        return np.zeros(len(rows))


@given(LENGTHS, st.integers(1, 40), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([1, 4]))
@pytest.mark.filterwarnings("ignore::clusterucb.errors.ClusterUCBWarning")
def test_a_time_is_not_overdrawn_and_its_rate_is_learnt(lengths, seconds, guess, batch_size):
    tokens = np.array(lengths)
    clock = Clock(tokens, per_token=0.1)
    allowance = TimeAllowance(tokens, seconds, per_token=0.1 * guess, clock=clock)
    options = {"clusterer": None, "policy": Random(), "budget": 1, "n_select": 1, "batch_size": batch_size}
    assume(tokens.max() * 0.1 * guess <= seconds)
    found = search(np.zeros((len(tokens), 1)), clock.score, **options, allowance=allowance)
    first = tokens[found.drawn_rows[:batch_size]].sum() * 0.1  # was granted by the guess
    assert clock.now - 100 <= max(seconds, first) + 1e-9
    if found.n_scored < len(tokens) and clock.now - 100 >= first * (1 + 1e-9):
        left = np.setdiff1d(np.arange(len(tokens)), found.drawn_rows)
        assert clock.now - 100 + 0.1 * tokens[left].max() > seconds - 1e-9


def test_what_was_drawn_before_counts():
    tokens = np.full(20, 10)
    allowance = TokenAllowance(tokens, 100)
    allowance.recorded(np.arange(6))
    assert allowance.grant(np.arange(6, 20)) == 4
    assert NothingLeft().grant(np.arange(6)) == 0
    clock = Clock(tokens, 1.0)
    timed = TimeAllowance(tokens, 25.0, per_token=0.5, clock=clock)
    timed.recorded(np.arange(6))
    assert timed.grant(np.arange(6, 20)) == 5


def test_an_allowance_that_is_too_small_says_so():
    tokens = np.full(20, 10)
    with pytest.raises(OptionError, match="too small for a single draw"):
        draw(tokens, TokenAllowance(tokens, 9))
    with pytest.warns(ClusterUCBWarning, match="only 3 draws fit into the budget: fewer than the 5 rows"):
        found = draw(tokens, TokenAllowance(tokens, 39), n_select=5, budget=5)
    assert len(found.rows) == 3
    with pytest.warns(ClusterUCBWarning, match="only 3 draws"):  # in the midst of the cold start
        found = draw(tokens, TokenAllowance(tokens, 39), n_select=5, budget=5, rule="standardized")
    assert found.standardized is None
