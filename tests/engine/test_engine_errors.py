"""What `search` refuses, and whom it blames: the caller, the score, the policy or the clusterer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from clusterucb.clusterers import Clusterer, KMeans
from clusterucb.errors import OptionError, PluginError
from clusterucb.policies import UCB, IndexPolicy, Policy, Random
from helpers.recorded import Case
from helpers.searching import search

USABLE = {"clusterer": None, "policy": UCB(), "budget": 3, "n_select": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget is 0; expected a whole number of rows, at least 1"),
        ({"budget": -5}, "budget is -5; expected"),
        ({"budget": 0.2}, "budget is 0.2; expected a whole number"),
        ({"budget": True}, "budget is True; expected"),
        ({"budget": "20%"}, "budget is '20%'; expected"),
        ({"n_select": 0}, "n_select is 0; expected"),
        ({"n_select": 4}, "n_select is 4; expected at most the budget, 3 of 5 rows"),
        ({"n_select": 6, "budget": 9}, "n_select is 6; expected at most the budget, 5 of 5 rows"),
        ({"batch_size": 0}, "batch_size is 0; expected"),
        ({"cold_start": -0.1}, "cold_start is -0.1; expected a share of each arm between 0 and 1"),
        ({"cold_start": 5}, "cold_start is 5; expected"),
        ({"cold_start": math.nan}, "cold_start is nan; expected"),
        ({"seed": -1}, "seed is -1; expected a whole number of at least 0"),
        ({"seed": 0.5}, "seed is 0.5; expected"),
        ({"seed": True}, "seed is True; expected"),
        (
            {"rule": "men"},
            "rule is 'men'; expected one of round-robin, paper, mean, standardized. Did you mean 'mean'?",
        ),
        ({"policy": "ucb"}, "policy is 'ucb'; expected a Policy object such as clusterucb.UCB()"),
        ({"policy": UCB}, "expected a Policy object"),
        ({"clusterer": KMeans}, "expected a Clusterer object, None, or an integer label for each of the 5"),
        ({"clusterer": "kmeans"}, "('kmeans'); expected a Clusterer object"),
        ({"clusterer": [0, 1]}, "got int64 of shape (2,)"),
        ({"clusterer": [0.0] * 5}, "got float64 of shape (5,)"),
        ({"clusterer": [0, 1, 2, 3, -2]}, "got label -2; expected 0 or more, or -1 for noise"),
        ({"columns": {"tokens": [1, 2]}}, "column 'tokens' has shape (2,); expected [5]"),
    ],
    ids=repr,
)
def test_unusable_option_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        search(np.zeros((5, 2)), lambda rows: rows * 1.0, **{**USABLE, **changes})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, "feature blocks have no rows; expected one or more blocks of N >= 1 rows each"),
        (np.zeros((0, 3)), "feature blocks have {'features': 0} rows"),
        ({"a": np.zeros((5, 1)), "b": np.zeros((4, 1))}, "feature blocks have {'a': 5, 'b': 4} rows"),
        (np.zeros(5), "feature block 'features' has shape (5,); expected [N, k]"),
        ([[0.0], [math.nan], [math.inf]], "holds NaN or infinity in 2 rows (first: row 1)"),
    ],
    ids=str,
)
def test_unusable_features_are_refused(features: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        search(features, lambda rows: rows * 1.0, **USABLE)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda rows: 0.5, "score returned shape (); expected [3] or [3, S]"),
        (lambda rows: np.zeros(len(rows) + 1), "score returned shape (4,); expected [3] or [3, S]"),
        (lambda rows: np.zeros((len(rows), 0)), "score returned shape (3, 0)"),
        (lambda rows: np.zeros((len(rows), 2, 2)), "score returned shape (3, 2, 2)"),
    ],
)
def test_scores_of_a_wrong_shape_are_refused(score: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        search(np.zeros((5, 2)), score, **{**USABLE, "policy": Random(), "batch_size": 3})
    assert message in str(caught.value)


def test_number_of_subtasks_must_not_change() -> None:
    widths = iter([2, 3])
    with pytest.raises(OptionError, match=r"shape \(1, 3\); expected \[1\] or \[1, 2\]"):
        search(np.zeros((5, 2)), lambda rows: np.zeros((len(rows), next(widths))), **USABLE)


def returning(rows: Any) -> Policy:
    class Misbehaving(Policy):
        def ask(self, n, available, rng):
            return np.asarray(rows)

    return Misbehaving()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 0], "Misbehaving.ask returned a row twice; expected 2 distinct available rows"),
        ([0], "Misbehaving.ask returned int64 of shape (1,); expected 2 distinct"),
        ([0, 1, 2], "returned int64 of shape (3,)"),
        ([[0, 1]], "returned int64 of shape (1, 2)"),
        ([0.0, 1.0], "returned float64 of shape (2,)"),
        ([0.0, math.nan], "returned float64 of shape (2,)"),
        ([0, 5], "returned rows outside 0..4"),
        ([-1, 0], "returned rows outside 0..4"),
        (None, "returned object of shape ()"),
    ],
    ids=repr,
)
def test_policy_that_breaks_its_contract_is_named(rows: Any, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        search(
            np.zeros((5, 2)), lambda rows: rows * 1.0, **{**USABLE, "policy": returning(rows)}, batch_size=2
        )
    assert message in str(caught.value)


def test_policy_that_draws_a_row_again_is_named() -> None:
    with pytest.raises(
        PluginError, match=r"Misbehaving.ask returned row 1, already drawn; expected 1 distinct"
    ):
        search(np.zeros((5, 2)), lambda rows: rows * 1.0, **{**USABLE, "policy": returning([1])})


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (lambda arms: np.zeros(2), r"Odd.index returned shape \(2,\); expected \(3,\), a value for each arm"),
        (lambda arms: arms.mean * np.nan, "Odd.index returned NaN for arm 0, which was observed"),
    ],
)
def test_index_that_breaks_its_contract_is_named(index: Any, message: str) -> None:
    class Odd(IndexPolicy):
        def index(self, arms, rng):
            return index(arms)

    case = Case(np.zeros((9, 1)), np.repeat([0, 1, 2], 3), Odd(), 5, 1, 0, 1, seed=0)
    with pytest.raises(PluginError, match=message):
        case.run()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"Odd.fit_predict: got int64 of shape \(2,\)"),
        ([0, 0, 0, 0, -3], "Odd.fit_predict: got label -3"),
    ],
)
def test_clusterer_that_breaks_its_contract_is_named(labels: list[int], message: str) -> None:
    class Odd(Clusterer):
        def fit_predict(self, pool, rng):
            return labels

    with pytest.raises(PluginError, match=message):
        search(np.zeros((5, 2)), lambda rows: rows * 1.0, **{**USABLE, "clusterer": Odd()})
