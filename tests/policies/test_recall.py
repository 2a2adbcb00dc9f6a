"""Replayed on the recorded scores of three real pools, the paper's bandit finds much of the best, a surrogate more.

`benchmarks/strategies.py` scored the pools for SmolLM2-135M-Instruct and eight subtasks each; `benchmarks/record.py`
wrote the scores, and the leading components of the embeddings. ``templated``: 3,040 samples of 32 sources;
``diverse``: 2,660 samples of 228 small sources; ``code``: 2,179 functions, whose answers are long, of 165 modules.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import clusterucb as cu
from helpers.searching import best_rows, search

RECORDED = {
    name: dict(np.load(Path(__file__).parents[1] / "data" / f"{name}.npz"))
    for name in ("templated", "diverse", "code")
}
TARGETS = (slice(0, 3), slice(3, 6), slice(6, 8))  # of the subtasks in alphabetical order


def scores_of(recorded, target):
    return recorded["scores"][:, np.argsort(recorded["subtasks"])[target]]


def recall(pool, target, policy, seed, budget=0.2, **options):
    recorded = RECORDED[pool]
    scores = scores_of(recorded, target)
    n_best = len(scores) // 20
    found = search(
        {name: recorded[name] for name in ("embedding", "length")},
        lambda rows: scores[rows],
        clusterer=cu.KMeans(),
        policy=policy,
        budget=int(budget * len(scores)),
        n_select=n_best,
        batch_size=8,
        seed=seed,
        **options,
    )
    rule = options.get("rule", "round-robin")
    return np.isin(best_rows(scores, n_best, rule), found.rows).mean()


@pytest.mark.parametrize(
    ("pool", "policy", "rule", "at_least"),
    [
        ("templated", cu.UCB(), "round-robin", 0.88),
        ("diverse", cu.UCB(), "round-robin", 0.58),
        ("code", cu.UCB(), "round-robin", 0.25),
        ("templated", cu.Surrogate(), "round-robin", 0.85),
        ("diverse", cu.Surrogate(), "round-robin", 0.60),
        ("code", cu.Surrogate(), "round-robin", 0.48),
        ("templated", cu.UCB(), "paper", 0.88),
        ("diverse", cu.UCB(), "paper", 0.58),
        ("code", cu.UCB(), "paper", 0.34),
        ("templated", cu.Surrogate(), "paper", 0.85),
        ("diverse", cu.Surrogate(), "paper", 0.68),
        ("code", cu.Surrogate(), "paper", 0.48),
    ],
)
def test_a_fifth_of_the_gradients_finds_most_of_the_best(pool, policy, rule, at_least):
    found = [[recall(pool, target, policy, seed, rule=rule) for seed in range(3)] for target in TARGETS]
    assert np.mean(found) >= at_least


@pytest.mark.parametrize(
    ("pool", "rule", "at_least"),
    [
        ("templated", "round-robin", 0.98),
        ("diverse", "round-robin", 0.95),
        ("templated", "paper", 0.98),
        ("diverse", "paper", 0.98),
    ],
)
def test_with_a_store_a_tenth_of_the_gradients_finds_nearly_all(pool, at_least, rule):
    sketched = dict(np.load(Path(__file__).parents[1] / "data" / f"{pool}-sketched.npz"))
    found = [
        recall(
            pool,
            target,
            cu.Surrogate(),
            0,
            budget=0.1,
            rule=rule,
            prior={"estimates": scores_of(sketched, target)},
        )
        for target in TARGETS
    ]
    assert np.mean(found) >= at_least


@pytest.mark.parametrize(("rule", "at_least"), [("round-robin", 0.35), ("paper", 0.5)])
def test_a_twentieth_of_the_gradients_finds_more_than_chance(rule, at_least):
    found = [
        recall("templated", target, cu.UCB(), seed, budget=0.05, rule=rule)
        for target in TARGETS
        for seed in range(3)
    ]
    assert np.mean(found) >= at_least


@pytest.mark.parametrize("pool", RECORDED)
@pytest.mark.parametrize("target", TARGETS, ids=("first", "second", "third"))
def test_random_draws_find_as_much_as_they_draw(pool, target):
    assert 0.15 < np.mean([recall(pool, target, cu.Random(), seed) for seed in range(3)]) < 0.25
