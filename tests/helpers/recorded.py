"""Searches over recorded scores, and a journal in memory."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from clusterucb.engine.aggregate import RULES
from clusterucb.engine.draws import Batch
from clusterucb.engine.loop import Selection
from clusterucb.errors import ClusterUCBWarning
from clusterucb.policies import UCB, UCB1, ClusterMean, Policy, Random, ThresholdHard, ThresholdNormal
from helpers.searching import search

POLICIES = [UCB(), UCB1(), ThresholdHard(), ThresholdNormal(), Random(), ClusterMean()]


@dataclass
class Case:
    """A pool of recorded scores f64[N, S] and everything else that `search` takes."""

    scores: np.ndarray
    labels: np.ndarray
    policy: Policy
    budget: int
    n_select: int
    cold_start: float
    batch_size: int
    seed: int
    rule: str = "round-robin"
    first: tuple[int, ...] = ()

    def run(self, journal: Any = None, score: Any = None, **changes: Any) -> Selection:
        options = {
            "clusterer": self.labels,
            "policy": self.policy,
            "budget": self.budget,
            "n_select": self.n_select,
            "cold_start": self.cold_start,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "rule": self.rule,
            "first": np.array(self.first, int),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClusterUCBWarning)
            return search(
                np.zeros((len(self.scores), 1)),
                score or self.scores.__getitem__,
                **{**options, **changes},
                journal=journal,
            )


def rewards_of(case: Case, found: Selection) -> np.ndarray:
    """Return the rewards f64[N] that the scores stand for, NaN where scoring fails."""
    scores = np.where(np.isfinite(case.scores).all(axis=1)[:, None], case.scores, np.nan)
    if found.standardized is not None:
        mean, std = found.standardized
        return ((scores - mean) / std).max(axis=1)
    return scores.max(axis=1) if case.rule != "mean" else scores.mean(axis=1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Pools full of ties, failures, negative scores, noise, gaps in the labels and singleton arms."""
    n_rows = draw(st.integers(1, 40))
    n_subtasks = draw(st.integers(1, 3))
    value = st.sampled_from([-1.0, -0.25, 0.0, 0.25, 0.5, 1.0, math.nan, math.inf]) | st.floats(-1, 1)
    row = st.lists(value, min_size=n_subtasks, max_size=n_subtasks)
    budget = draw(st.integers(1, n_rows + 5))
    return Case(
        scores=np.array(draw(st.lists(row, min_size=n_rows, max_size=n_rows))),
        labels=np.array(draw(st.lists(st.integers(-1, 9), min_size=n_rows, max_size=n_rows))),
        policy=draw(st.sampled_from(POLICIES)),
        budget=budget,
        n_select=draw(st.integers(1, min(budget, n_rows))),
        cold_start=draw(st.sampled_from([0, 0.05, 0.29, 0.5, 1])),
        batch_size=draw(st.integers(1, 7)),
        seed=draw(st.integers(0, 3)),
        rule=draw(st.sampled_from(RULES)),
        first=tuple(draw(st.lists(st.integers(0, n_rows - 1), max_size=9, unique=True))),
    )


def identical(one: Selection, other: Selection) -> None:
    for name, value in vars(one).items():
        pair = (value, getattr(other, name))
        for a, b in zip(*pair, strict=True) if isinstance(value, tuple) else [pair]:
            np.testing.assert_array_equal(a, b, err_msg=name)


class Memory:
    """A journal in memory that may begin with the first operations of another."""

    def __init__(self, operations: list[tuple[str, Batch]] = ()) -> None:
        self.operations = list(operations)
        self._before = list(operations)

    def recorded(self):
        finished = {batch.number: batch for kind, batch in self._before if kind == "finish"}
        return [finished.get(batch.number, batch) for kind, batch in self._before if kind == "begin"]

    def begin(self, batch):
        assert batch.scores is None
        self.operations.append(("begin", batch))

    def finish(self, batch):
        assert batch.scores is not None
        self.operations.append(("finish", batch))
