"""The surrogate policy: better where features say something, no worse where they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clusterucb as cu
from clusterucb.engine.aggregate import RULES
from clusterucb.engine.loop import Selection
from clusterucb.engine.poolview import PoolView
from clusterucb.testing import PolicySuite
from helpers.searching import search


class TestSurrogate(PolicySuite):
    @pytest.fixture
    def policy(self) -> cu.Surrogate:
        return cu.Surrogate()


def hills(n_rows: int = 400, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return features, and scores f64[N, 2] that are large near a place of their own."""
    rng = np.random.default_rng(seed)
    place = rng.normal(size=(n_rows, 3)).astype(np.float32)
    scores = np.stack([-((place - centre) ** 2).sum(axis=1) for centre in rng.normal(size=(2, 3))], axis=1)
    features = {"place": place, "nothing": rng.normal(size=(n_rows, 4)).astype(np.float32)}
    return features, scores + rng.normal(scale=0.1, size=scores.shape)


def found(
    features: dict[str, np.ndarray], scores: np.ndarray, policy: cu.Policy, *, seed: int = 0, **options: Any
) -> float:
    """Return how much of the best 5 % a budget of 20 % finds."""
    n_rows = len(scores)
    best = np.argsort(-scores.max(axis=1))[: n_rows // 20]
    return float(np.isin(best, searched(features, scores, policy, seed=seed, **options).drawn_rows).mean())


def searched(
    features: dict[str, np.ndarray], scores: np.ndarray, policy: cu.Policy, **options: Any
) -> Selection:
    options = {"clusterer": None, "budget": len(scores) // 5, "n_select": len(scores) // 20, **options}
    return search(features, lambda rows: scores[rows], policy=policy, **options)


def test_finds_what_features_foretell() -> None:
    features, scores = hills()
    assert found(features, scores, cu.Surrogate()) > 0.9
    clusters = {"clusterer": cu.KMeans(n_clusters=20)}
    assert found(features, scores, cu.Surrogate(), **clusters) > found(features, scores, cu.UCB(), **clusters)


def test_finds_what_sources_foretell() -> None:
    rng = np.random.default_rng(0)
    features = {"nothing": rng.normal(size=(600, 3)).astype(np.float32)}
    source = rng.integers(0, 30, 600)
    scores = np.isin(source, (4, 17))[:, None] + rng.normal(scale=0.1, size=(600, 1))
    with_sources = found(features, scores, cu.Surrogate(), columns={"source": source})
    assert with_sources > found(features, scores, cu.Surrogate()) + 0.4


@pytest.mark.parametrize("rule", RULES)
def test_draws_by_the_rule_that_is_asked_for(rule: str) -> None:
    rng = np.random.default_rng(1)
    place = rng.uniform(-3, 3, size=(500, 1)).astype(np.float32)
    near = [np.exp(-((place[:, 0] - centre) ** 2)) for centre in (-2, 2)]
    # the second subtask matters once they are on one scale
    scores = np.stack([10 * near[0], near[1]], axis=1)
    drawn = searched({"place": place}, scores, cu.Surrogate(), rule=rule, seed=1).drawn_rows
    share = float((place[drawn, 0] > 1).mean())
    assert share > 0.3 if rule in ("round-robin", "standardized") else share < 0.3


def test_weights_of_subtasks_count() -> None:
    features, scores = hills(seed=2)
    mine, other = (
        searched(features, scores, cu.Surrogate(), weights=weights).subtask_scores.mean(axis=0)
        for weights in ((1, 100), (100, 1))
    )
    assert mine[1] > other[1]
    assert mine[0] < other[0]


def test_no_worse_than_random_where_features_say_nothing() -> None:
    rng = np.random.default_rng(3)
    recalls = []
    for seed in range(30):
        features = {"nothing": rng.normal(size=(300, 5)).astype(np.float32)}
        recalls.append(found(features, rng.normal(size=(300, 2)), cu.Surrogate(), seed=seed))
    assert np.mean(recalls) == pytest.approx(0.2, abs=0.05)  # whose deviation is .4 / sqrt(15 * 30) = .019


@given(batches=st.integers(1, 30), budget=st.integers(20, 100), batch_size=st.integers(1, 9))
def test_budget_is_spent_in_so_many_batches(batches: int, budget: int, batch_size: int) -> None:
    features, scores = hills(100)
    asked = []

    class Counts(cu.Surrogate):
        def ask(self, n: int, available: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            asked.append(n)
            return np.flatnonzero(available)[:n]

    searched(features, scores, Counts(batches=batches), budget=budget, n_select=5, batch_size=batch_size)
    assert len(asked) <= batches
    assert set(asked[:-1]) <= {max(batch_size, -(-budget // batches))}


def test_many_observations_go_by_way_of_points(monkeypatch: pytest.MonkeyPatch) -> None:
    features, scores = hills()
    exact = found(features, scores, cu.Surrogate())
    monkeypatch.setattr("clusterucb.engine.regression._POINTS", (8, 40))
    assert found(features, scores, cu.Surrogate()) > exact - 0.15


def test_best_rows_are_among_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusterucb.engine.regression._POINTS", (4, 10))
    features, scores = hills(60)
    policy = cu.Surrogate()
    policy.start(PoolView(features, np.zeros(60, np.int64), np.arange(60) / 60))
    policy.tell(np.arange(40), scores[:40].max(axis=1), scores[:40])
    points = policy._regression._points(scores[:40])
    assert len(np.unique(points)) == 10
    assert set(np.argsort(-scores[:40].max(axis=1))[:5]) <= set(points.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": -1}, "kappa is -1; expected a number of at least 0"),
        ({"kappa": "x"}, "kappa is 'x'; expected a number of at least 0"),
        ({"batches": 0}, "batches is 0; expected a whole number of at least 1"),
        ({"batches": True}, "batches is True; expected a whole number of at least 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(cu.ClusterUCBError, match=message):
        cu.Surrogate(**options)
