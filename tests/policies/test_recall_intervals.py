"""The estimated recall tells the truth: on average, and as often as its interval says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clusterucb as cu
from clusterucb.engine.poolview import ESTIMATES
from clusterucb.engine.recall import (
    Recall,
)
from helpers.hills import searched
from helpers.searching import best_rows, search

DATA = Path(__file__).parents[1] / "data"


@contextmanager
def asked_once() -> Iterator[None]:
    """Let searches estimate their recall in their end alone: it is the same as after twenty estimates on the way.

    `test_recall_estimate.py` tests that it does not matter how draws were told.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("clusterucb.engine.stopping._ESTIMATES", 1)
        yield


@pytest.mark.parametrize("policy", [cu.Random(), cu.UCB(), cu.Surrogate()])
@asked_once()
def test_features_that_are_all_the_same_say_nothing(policy):
    off = []
    for seed in range(5):
        scores = np.random.default_rng(seed).normal(size=(300, 2))
        best = best_rows(scores, 30)
        found = search(
            np.ones((300, 1)),
            lambda rows, scores=scores: scores[rows],
            clusterer=None,
            policy=policy,
            budget=120,
            n_select=30,
            cold_start=0.2,
            seed=seed,
            watch=lambda _: None,
        )
        off.append(found.recall.estimate - np.isin(best, found.drawn_rows).mean())
    assert abs(np.mean(off)) < 0.1


@pytest.mark.parametrize(("rule", "n_best"), [("round-robin", 30), ("paper", 15)])
@asked_once()
def test_random_draws_have_found_their_share(rule, n_best):
    off, covered = [], []
    for seed in range(20):
        options = {"budget": 120, "n_select": n_best, "rule": rule}
        found, scores = searched(seed, cu.Random(), watch=lambda _: None, **options)
        truth = np.isin(best_rows(scores, n_best, rule), found.drawn_rows).mean()
        off.append(found.recall.estimate - truth)
        covered.append(found.recall.low <= truth <= found.recall.high)
    assert abs(np.mean(off)) < 0.05
    assert np.mean(covered) >= 0.9


def said(features: Any, scores: np.ndarray, **options: Any) -> tuple[float, Recall]:
    """Return how much of its best twentieth a search has found, and what it says of that, once in its end."""
    n_best = len(scores) // 20
    with asked_once():
        found = search(
            features,
            lambda rows: scores[rows],
            n_select=n_best,
            batch_size=8,
            watch=lambda _: None,
            **options,
        )
    best = best_rows(scores, n_best, options.get("rule", "round-robin"))
    return float(np.isin(best, found.rows).mean()), found.recall


def described(recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the features of a recorded pool."""
    return {name: recorded[name].astype(np.float32) for name in ("embedding", "length")}


def test_the_largest_of_several_scores_is_told_from_each():
    off = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        features = {name: rng.normal(size=(1000, 8)).astype(np.float32) for name in ("prompt", "answer")}
        scores = np.sin(features["answer"][:, :3].astype(np.float64)) + 0.3 * rng.normal(size=(1000, 3))
        scores += features["prompt"][:, :2] @ rng.normal(size=(2, 3))
        truth, recall = said(
            features, scores, clusterer=None, policy=cu.Surrogate(), budget=200, seed=seed, rule="paper"
        )
        off.append(recall.estimate - truth)
    assert np.abs(off).mean() < 0.08  # a regression of the largest alone is .2 off


def test_intervals_cover_what_real_pools_have():
    pairs = {
        (0, 3): (cu.Surrogate(), cu.UCB()),
        (3, 6): (cu.UCB(),),
        (6, 8): (cu.Surrogate(), cu.Random()),
    }
    found = []
    for name in ("templated", "diverse", "code"):
        recorded = np.load(DATA / f"{name}.npz")
        features = described(recorded)
        for (first, last), policies in pairs.items():
            scores = recorded["scores"][:, first:last]
            found += [
                said(features, scores, clusterer=cu.KMeans(), policy=policy, budget=len(scores) // 5)
                for policy in policies
            ]
    off = [estimate.estimate - truth for truth, estimate in found]
    covered = [estimate.low <= truth <= estimate.high for truth, estimate in found]
    assert np.mean(covered) >= 0.8
    assert np.median([estimate.high - estimate.low for _, estimate in found]) <= 0.35
    assert np.abs(off).mean() <= 0.08


def test_intervals_cover_what_a_gradient_store_finds():
    covered = []
    for name in ("templated", "diverse"):
        recorded, sketched = (np.load(DATA / f"{file}.npz") for file in (name, f"{name}-sketched"))
        features = described(recorded)
        for first, last in ((0, 3), (3, 6), (6, 8)):
            scores = recorded["scores"][:, first:last]
            for seed in range(2):
                truth, recall = said(
                    features,
                    scores,
                    clusterer=None,
                    policy=cu.Surrogate(),
                    budget=int(0.075 * len(scores)),
                    seed=seed,
                    prior={ESTIMATES: sketched["scores"][:, first:last]},
                )
                assert truth > 0.8
                covered.append(recall.low <= truth <= recall.high)
    assert np.mean(covered) >= 0.8
