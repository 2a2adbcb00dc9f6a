"""Replay strategies on a pool whose scores are all known, and measure how much of the best each strategy finds.

A replay runs `clusterucb.engine.loop.search`, the same loop as a selection, with a score function that looks recorded
scores up. A comparison therefore shows what the strategies would have done, at the cost of milliseconds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.clusterers.kmeans import KMeans
from clusterucb.engine.arms import Schedule
from clusterucb.engine.blame import blamed
from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.loop import Selection, search
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView, SideInformation
from clusterucb.engine.rules import Rewards, Rules, chosen_of_best
from clusterucb.features.base import Feature
from clusterucb.features.embedding import Embedding


@dataclass(frozen=True)
class Contender:
    """A strategy that takes part in a comparison.

    Attributes:
        name: the contender's name in tables.
        policy: spends the budget.
        clusterer: makes the arms; None for a single arm.
        features: computes the features that the pool is clustered by.
        cold_start, batch_size: the contender's own values of these options; None for those of the comparison.
    """

    name: str
    policy: Policy
    clusterer: Clusterer | None = field(default_factory=KMeans)
    features: Feature = field(default_factory=Embedding)
    cold_start: float | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Terms:
    """The terms that are the same for all contenders.

    Attributes:
        n_select: the number of rows to select.
        rules: how scores become rewards, and rewards become a selection.
        schedule: the sizes of the cold start and of batches for contenders without sizes of their own.
    """

    n_select: int
    rules: Rules = Rules()
    schedule: Schedule = Schedule(batch_size=8)

    def of(self, contender: Contender, seed: int) -> Schedule:
        """Return the schedule of one search of a contender."""
        shared = self.schedule
        return Schedule(
            cold_start=shared.cold_start if contender.cold_start is None else contender.cold_start,
            batch_size=shared.batch_size if contender.batch_size is None else contender.batch_size,
            seed=seed,
        )


@dataclass(frozen=True)
class Truth:
    """The scores of the whole pool, and the selection that they give.

    Attributes:
        scores: f64[N, S]; NaN where scoring failed.
        sources: [N], the source of each row.
        rewards: f64[N], the reward of each row.
        best: i64[n], the rows that are selected when every score is known.
        rules: the rules by which they are.
    """

    scores: NDArray[np.float64]
    sources: NDArray[np.generic]
    rewards: NDArray[np.float64]
    best: NDArray[np.int64]
    rules: Rules

    @classmethod
    def of(cls, scores: NDArray[np.float64], sources: NDArray[np.generic], terms: Terms) -> Truth:
        """Compute rewards and the best rows under the rules of a comparison."""
        rewards = Rewards(terms.rules, len(scores), terms.n_select, scores)(scores)
        best = terms.rules.choose(np.arange(len(scores)), scores, rewards, terms.n_select, sources)
        return cls(scores, sources, rewards, best, terms.rules)

    def recall(self, rows: NDArray[np.int64]) -> float:
        """Return the share of the best rows that are in ``rows``."""
        return float(np.isin(self.best, rows).mean())

    def mass(self, rows: NDArray[np.int64]) -> float:
        """Return the sum of the rewards of ``rows`` above the pool's mean, as a share of the largest possible sum.

        Where subtasks select in turn, it is the mean over the subtasks: each counts its own scores of as many of its
        best among ``rows`` as it would select alone.
        """
        if not self.rules.in_turn:
            return _mass(self.rewards, rows, len(self.best))
        own = zip(self.scores.T, self._counts.tolist(), strict=True)
        return float(np.mean([_mass(values, rows, count) for values, count in own]))

    def served(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the share of each subtask's own best that is in ``rows``, f64[S] (`Rules.seats`)."""
        chosen = np.isin(np.arange(len(self.scores)), rows)
        return chosen_of_best(self.scores, chosen, self._counts.tolist()) / self._counts

    @property
    def _counts(self) -> NDArray[np.int64]:
        """The number of rows that each subtask would select alone, i64[S]."""
        return self.rules.seats(len(self.best), self.scores.shape[1]).astype(np.int64)


def _mass(values: NDArray[np.float64], rows: NDArray[np.int64], count: int) -> float:
    """Return the sum of the ``count`` largest values of ``rows`` above the mean, as a share of the largest possible."""
    base = float(np.nanmean(values))
    largest, found = (np.sort(some[~np.isnan(some)])[-count:] for some in (values, values[rows]))
    attainable = float((largest - base).sum())
    return float((found - base).sum() / attainable) if attainable > 0 else 1.0


@dataclass(frozen=True)
class Replay:
    """One search of one contender, with one seed and one budget.

    Attributes:
        selection: the result of the search.
        seconds: the time of the clusterer and the policy, including the look-up of scores.
    """

    selection: Selection
    seconds: float


Clusterings = dict[tuple[str, int], tuple[NDArray[np.int64], float]]


class _Clustered(Clusterer):
    """A clusterer that fits once for each seed and budget.

    Args:
        clusterer: the clusterer that fits.
        found: the labels computed so far, and the seconds that they took. Contenders with the same clusterer and
            features may share it.

    Attributes:
        saved: the seconds that the last clustering would have taken if it had not been computed before.
    """

    def __init__(self, clusterer: Clusterer, found: Clusterings) -> None:
        self._clusterer = clusterer
        self._found = found
        self.saved = 0.0

    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:
        key = (str(rng.bit_generator.state), pool.budget)
        if key in self._found:
            labels, self.saved = self._found[key]
            return labels
        began = time.perf_counter()
        labels = blamed(self._clusterer.fit_predict)(pool, rng)
        self._found[key] = labels, time.perf_counter() - began
        self.saved = 0.0
        return labels


def replay(
    contender: Contender,
    truth: Truth,
    features: Mapping[str, NDArray[np.float32]],
    columns: Mapping[str, NDArray[np.generic]],
    budgets: Sequence[int],
    seeds: int,
    terms: Terms,
    clusterings: Clusterings | None = None,
    advance: Callable[[int], None] = lambda _: None,
    known: SideInformation = SideInformation(),
) -> list[list[Replay]]:
    """Replay a contender, and return for each budget the replays of all seeds.

    Args:
        contender: the strategy.
        truth: the recorded scores.
        features: the pool's feature blocks, each f32[N, k].
        columns: the pool's columns, which strategies may use too.
        budgets: the budgets as numbers of draws.
        seeds: the number of searches for each budget.
        terms: the terms that are the same for all contenders.
        clusterings: the clusterings of earlier contenders with the same clusterer and features. The replays use them,
            and add new ones.
        advance: called with 1 after each search.
        known: for policies that predict scores, the prior, and the rows to draw first.
    """
    found_before = {} if clusterings is None else clusterings
    clusterer = None if contender.clusterer is None else _Clustered(contender.clusterer, found_before)
    first = known.first if contender.policy.predicts else None
    found: list[list[Replay]] = []
    for budget in budgets:
        found.append([])
        for seed in range(seeds):
            began = time.perf_counter()
            selection = search(
                features,
                lambda rows: truth.scores[rows],
                clusterer=clusterer,
                policy=contender.policy,
                budget=budget,
                n_select=terms.n_select,
                rules=terms.rules,
                side=SideInformation(columns=columns, prior=known.prior, first=first),
                schedule=terms.of(contender, seed),
            )
            seconds = time.perf_counter() - began + (clusterer.saved if clusterer else 0.0)
            found[-1].append(Replay(selection, seconds))
            advance(1)
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean, the standard deviation and the values themselves as JSON values."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), "seeds": [float(v) for v in values]}


def overlaps(selections: Mapping[str, Sequence[Selection]]) -> list[list[float]]:
    """Return the overlap (Jaccard index) of the selections of every two contenders, averaged over seeds."""
    names = list(selections)
    matrix = np.eye(len(names))
    for (i, one), (j, other) in combinations(enumerate(names), 2):
        shared = [
            len(np.intersect1d(a.rows, b.rows)) / max(len(np.union1d(a.rows, b.rows)), 1)
            for a, b in zip(selections[one], selections[other], strict=True)
        ]
        matrix[i, j] = matrix[j, i] = float(np.mean(shared))
    return [[float(value) for value in row] for row in matrix]


def by_source(rows: Sequence[NDArray[np.int64]], sources: NDArray[np.generic]) -> dict[str, float]:
    """Return the number of rows from each source, averaged over several selections, largest first."""
    count: Counter[str] = Counter()
    for one in rows:
        count.update(sources[one].tolist())
    return {source: number / len(rows) for source, number in count.most_common()}
