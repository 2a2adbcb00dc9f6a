"""Replayed on the recorded scores of a real pool, the paper's bandit finds most of the best samples.

3,040 samples of 32 sources, scored for SmolLM2-135M-Instruct and 8 subtasks; `benchmarks/record.py` wrote them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import clusterucb as cu

RECORDED = np.load(Path(__file__).parent / "data" / "recorded.npz")
N = len(RECORDED["scores"])
BEST = N // 20
TARGETS = [
    ("born-first", "date-in-words", "escher-sentences"),
    ("food", "formal-logic", "nth-word"),
    ("recurrences", "social-iqa"),
]


def recall(target, policy, seed):
    columns = [RECORDED["subtasks"].tolist().index(name) for name in target]
    scores = RECORDED["scores"][:, columns]
    found = cu.search(
        {name: RECORDED[name] for name in ("embedding", "length")},
        lambda rows: scores[rows],
        clusterer=cu.KMeans(n_clusters=50),
        policy=policy,
        budget=N // 5,
        n_select=BEST,
        seed=seed,
    )
    return np.isin(np.argsort(-scores.max(axis=1), kind="stable")[:BEST], found.rows).mean()


@pytest.mark.parametrize("target", TARGETS)
def test_a_fifth_of_the_gradients_finds_most_of_the_best(target):
    assert np.mean([recall(target, cu.UCB(), seed) for seed in range(3)]) >= 0.85


@pytest.mark.parametrize("target", TARGETS)
def test_random_draws_find_as_much_as_they_draw(target):
    assert 0.15 < np.mean([recall(target, cu.Random(), seed) for seed in range(3)]) < 0.25
