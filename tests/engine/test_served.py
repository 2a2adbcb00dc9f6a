"""How a selection serves each subtask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.engine.rules import capturing
from clusterucb.policies import UCB, Exhaustive, Surrogate
from helpers.hills import hills, searched
from helpers.searching import search


def captured_scores(seed=0):
    """Return scores of two subtasks with different best samples, of which the first has by far the larger ones."""
    place, _ = hills(seed)
    return place, np.stack([10 + place[:, 0], -place[:, 0]], axis=1).astype(np.float64)


def shares(scores, rows, n_select):
    seats = n_select // scores.shape[1]
    return [np.isin(np.argsort(-own, kind="stable")[:seats], rows).mean() for own in scores.T]


@pytest.mark.parametrize("rule", ["round-robin", "paper", "mean"])
def test_shares_are_exact_if_the_whole_pool_was_scored(rule):
    place, scores = captured_scores()
    found = search(
        place,
        scores.__getitem__,
        clusterer=None,
        policy=Exhaustive(),
        budget=300,
        n_select=16,
        rule=rule,
        watch=lambda _: None,
    )
    np.testing.assert_allclose(found.served, shares(scores, found.rows, 16))


@pytest.mark.parametrize("policy", [UCB(), Surrogate()])
def test_estimated_shares_show_who_captures_a_selection(policy):
    off = []
    for seed in range(3):
        place, scores = captured_scores(seed)
        options = {"clusterer": None, "policy": policy, "budget": 120, "n_select": 30, "cold_start": 0.1}
        paper = search(place, scores.__getitem__, **options, rule="paper", watch=lambda _: None)
        assert capturing(paper.served) == 0
        in_turn = search(place, scores.__getitem__, **options, watch=lambda _: None)
        assert capturing(in_turn.served) is None
        off += np.abs(in_turn.served - shares(scores, in_turn.rows, 30)).tolist()
        off += np.abs(paper.served - shares(scores, paper.rows, 30)).tolist()
    assert np.mean(off) < 0.12


def test_nothing_is_said_for_one_subtask_or_unasked():
    assert searched()[0].served is None
    place, scores = hills(0)
    options = {"clusterer": None, "policy": UCB(), "budget": 60, "n_select": 9, "cold_start": 0.1}
    found = search(place, lambda rows: scores[rows, :1], **options, watch=lambda _: None)
    assert found.recall is not None
    assert found.served is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_a_subtask_captures_if_others_get_less_than_a_quarter_of_its_share(given_shares):
    served = np.array(given_shares)
    captor = capturing(served)
    if captor is None:
        assert served.max() < 0.25 or served.min() >= served.max() / 4
    else:
        assert served[captor] == served.max() >= 0.25
        assert served.min() < served.max() / 4
