"""The bandit loop: clusters become arms, a budget of draws is spent on them, the best rows are kept.

`search` is numpy alone. `clusterucb select` calls this very function with a score that computes
gradients; a replay calls it with a score that looks up recorded numbers. The engine owns what every
strategy needs and none should have to write: the cold start, empty and exhausted arms, the exact
budget, batches, randomness, failures and the journal.

Decisions:
    - A score must be pure by row. Then a batch that was interrupted can simply run again, and a
      journal of (rows, scores) is all there is to resume from: no strategy ever saves its state.
    - Randomness is derived from (seed, batch number), never from a running generator, so a resumed
      search draws the same numbers as an uninterrupted one.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.aggregate import AGGREGATES
from clusterucb.arms import cold_schedule, make_arms, stream
from clusterucb.clusterers.base import Clusterer
from clusterucb.errors import ClusterUCBWarning, OptionError, PluginError, blamed, did_you_mean
from clusterucb.policies.base import Policy
from clusterucb.poolview import PoolView, feature_blocks, pool_columns

Phase = Literal["cold", "random", "policy"]
Score = Callable[[NDArray[np.int64]], ArrayLike]

# Cold-start draws are submitted in batches of at least this many rows whatever the batch size:
# they do not depend on each other, and a scorer is faster on many rows of similar length.
_COLD_BATCH = 32


@dataclass(frozen=True)
class Batch:
    """Rows that are scored together.

    Attributes:
        number: 0, 1, 2, ... in the order of submission.
        phase: ``cold`` (start of an arm), ``random`` (a uniform policy) or ``policy``.
        rows: i64[m].
        arms: i64[m], the arm of each row.
        probability: f64[m], the probability that the row was included (by the whole cold start, even
            where the budget cut it short); NaN where a policy chose it.
        scores: f64[m, S] once scored; a row of NaN is a failure.
    """

    number: int
    phase: Phase
    rows: NDArray[np.int64]
    arms: NDArray[np.int64]
    probability: NDArray[np.float64]
    scores: NDArray[np.float64] | None = None


class Journal(Protocol):
    """Where a search is recorded so that it can go on after an interruption."""

    def recorded(self) -> Iterable[Batch]:
        """Return earlier batches in order; those without scores were begun and not finished."""

    def begin(self, batch: Batch) -> None:
        """Record that ``batch`` is about to be scored."""

    def finish(self, batch: Batch) -> None:
        """Record the scores of ``batch``."""


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """What a search found.

    Attributes:
        rows: i64[n_select], best first, ties to the lower row (fewer only if scoring failed for many).
        scores: f64[n_select], the rewards of exactly those rows.
        drawn_rows: i64[n_scored], every row submitted, in order.
        drawn_scores: f64[n_scored], their rewards; NaN where scoring failed.
        subtask_scores: f64[n_scored, S], the scores that the rewards aggregate.
        n_scored: rows submitted for scoring, failures included.
        draws: i64[K], draws of each arm, cold start included.
        labels: i64[N], the arm of each row.
        stopped: ``budget`` when the whole budget was spent, ``exhausted`` when the pool ended first.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    drawn_rows: NDArray[np.int64]
    drawn_scores: NDArray[np.float64]
    subtask_scores: NDArray[np.float64]
    n_scored: int
    draws: NDArray[np.int64]
    labels: NDArray[np.int64]
    stopped: Literal["budget", "exhausted"]

    def __repr__(self) -> str:
        return (
            f"<Selection: {len(self.rows)} of {len(self.labels)} rows selected, {self.n_scored} scored in "
            f"{len(self.draws)} arms, stopped by {self.stopped}>"
        )


def search(
    features: ArrayLike | Mapping[str, ArrayLike],
    score: Score,
    *,
    clusterer: Clusterer | ArrayLike | None,
    policy: Policy,
    budget: int,
    n_select: int,
    cold_start: float = 0.05,
    batch_size: int = 1,
    seed: int = 0,
    columns: Mapping[str, ArrayLike] | None = None,
    aggregate: str = "max",
    journal: Journal | None = None,
) -> Selection:
    """Spend ``budget`` draws on the pool and return the best ``n_select`` of the rows drawn.

    Args:
        features: f32[N, k], or named blocks of such.
        score: called with rows i64[m], returns f64[m] or f64[m, S] (a score for each subtask), pure
            and deterministic by row. NaN means failed: it costs budget, is never selected and enters
            no statistics.
        clusterer: a `Clusterer`, labels [N] (-1 = noise), or None for a single arm.
        policy: decides what is drawn after the cold start.
        budget: rows that may be submitted to ``score``; more than N is clipped.
        n_select: rows to return, at most the budget.
        cold_start: share of every arm that is drawn first, max(floor(share * size), 1) rows, if the
            policy wants a cold start.
        batch_size: rows drawn between two updates of the policy. 1 is the paper's loop.
        seed: same seed, same result.
        columns: named arrays [N] for strategies that use more than the features.
        aggregate: how S scores become one reward: ``max`` (the paper's) or ``mean``.
        journal: where to record the search, and from where to resume it.

    Raises:
        OptionError: an argument cannot be used.
        PluginError: the clusterer or the policy broke its contract.
    """
    blocks = feature_blocks(features)
    n_rows = len(next(iter(blocks.values())))
    asked = _count("budget", budget)
    budget = min(asked, n_rows)
    if _count("n_select", n_select) > budget:
        raise OptionError(f"n_select is {n_select}; expected at most the budget, {budget} of {n_rows} rows")
    _count("batch_size", batch_size)
    _check_options(policy, cold_start, seed, aggregate)

    pool = PoolView(
        features=blocks,
        labels=np.zeros(n_rows, np.int64),
        priority=stream(seed, "priority").random(n_rows),
        columns=pool_columns(columns, n_rows),
        budget=budget,
        n_select=n_select,
    )
    pool = replace(pool, labels=make_arms(pool, clusterer, seed))
    state = _State(pool, journal)
    blamed(policy.start)(pool)
    tell = blamed(policy.tell)
    for batch in state.batches(policy, cold_start if policy.cold_start else None, batch_size, seed):
        scores = batch.scores
        if scores is None:
            scores = _checked_scores(score(batch.rows), len(batch.rows), state.n_subtasks)
            state.finish(batch, scores)
        rewards = AGGREGATES[aggregate](scores)
        state.add(batch, scores, rewards)
        seen = ~np.isnan(rewards)
        if seen.any():
            tell(batch.rows[seen], rewards[seen], scores[seen])
    return state.selection("exhausted" if asked > n_rows else "budget")


class _State:
    """What has been drawn so far, and where it is recorded."""

    def __init__(self, pool: PoolView, journal: Journal | None) -> None:
        self.pool = pool
        self.journal = journal
        self.available = np.ones(len(pool), np.bool_)
        self.n_drawn = 0
        self.n_subtasks: int | None = None
        self._drawn: list[tuple[Batch, NDArray[np.float64], NDArray[np.float64]]] = []

    def batches(self, policy: Policy, share: float | None, size: int, seed: int) -> Iterator[Batch]:
        """Yield the batches to be scored: recorded ones, then the cold start, then what the policy asks."""
        number = 0
        n_cold = 0
        for batch in self.journal.recorded() if self.journal else ():
            self._check_recorded(batch)
            self._take(batch.rows)
            number = batch.number + 1
            n_cold += len(batch.rows) if batch.phase == "cold" else 0
            yield batch
        schedule, probability = cold_schedule(self.pool, share, seed)
        step = max(size, _COLD_BATCH)
        while self._left and n_cold < len(schedule):
            draws = slice(n_cold, n_cold + min(step, self._left))
            n_cold += len(schedule[draws])
            yield self._begin(number, "cold", schedule[draws], probability[draws])
            number += 1
        ask = blamed(policy.ask)
        while self._left:
            wanted = min(size, self._left)
            n_available = int(np.count_nonzero(self.available))
            rows = ask(wanted, self.available.copy(), np.random.default_rng([seed, number]))
            rows = _checked_rows(rows, wanted, self.available, type(policy).__name__)
            chance = wanted / n_available if policy.uniform else math.nan
            phase: Phase = "random" if policy.uniform else "policy"
            yield self._begin(number, phase, rows, np.full(len(rows), chance))
            number += 1

    @property
    def _left(self) -> int:
        return self.pool.budget - self.n_drawn

    def _check_recorded(self, batch: Batch) -> None:
        if len(batch.rows) > self._left:
            raise OptionError(
                f"the journal holds at least {self.n_drawn + len(batch.rows)} draws; expected at most the "
                f"budget, {self.pool.budget}: a search goes on with the same budget or a larger one"
            )
        labels = self.pool.labels
        if (
            batch.rows.max() >= len(labels)
            or not self.available[batch.rows].all()
            or not np.array_equal(labels[batch.rows], batch.arms)
        ):
            raise OptionError(
                f"batch {batch.number} of the journal does not fit the pool and its clusters; expected the "
                "journal of a search with the same features, clusterer and seed"
            )

    def _take(self, rows: NDArray[np.int64]) -> None:
        self.available[rows] = False
        self.n_drawn += len(rows)

    def _begin(
        self, number: int, phase: Phase, rows: NDArray[np.int64], probability: NDArray[np.float64]
    ) -> Batch:
        batch = Batch(number, phase, rows, self.pool.labels[rows], probability)
        self._take(rows)
        if self.journal:
            self.journal.begin(batch)
        return batch

    def finish(self, batch: Batch, scores: NDArray[np.float64]) -> None:
        """Record the scores of ``batch``."""
        if self.journal:
            self.journal.finish(replace(batch, scores=scores))

    def add(self, batch: Batch, scores: NDArray[np.float64], rewards: NDArray[np.float64]) -> None:
        """Remember a scored batch: scores f64[m, S], rewards f64[m]."""
        self.n_subtasks = scores.shape[1]
        self._drawn.append((batch, scores, rewards))

    def selection(self, stopped: Literal["budget", "exhausted"]) -> Selection:
        """Return the best rows among those drawn."""
        rows = np.concatenate([batch.rows for batch, _, _ in self._drawn])
        rewards = np.concatenate([rewards for _, _, rewards in self._drawn])
        good = np.flatnonzero(~np.isnan(rewards))
        best = good[np.lexsort((rows[good], -rewards[good]))][: self.pool.n_select]
        if len(best) < self.pool.n_select:
            warnings.warn(
                f"only {len(best)} of {len(rows)} draws could be scored: fewer than the {self.pool.n_select} "
                "rows to be selected",
                ClusterUCBWarning,
                stacklevel=3,
            )
        return Selection(
            rows=rows[best],
            scores=rewards[best],
            drawn_rows=rows,
            drawn_scores=rewards,
            subtask_scores=np.concatenate([scores for _, scores, _ in self._drawn]),
            n_scored=len(rows),
            draws=np.bincount(self.pool.labels[rows], minlength=self.pool.n_arms),
            labels=self.pool.labels,
            stopped=stopped,
        )


def _count(name: str, value: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; expected a whole number of rows, at least 1")
    return count


def _check_options(policy: Policy, cold_start: float, seed: int, aggregate: str) -> None:
    if not isinstance(policy, Policy):
        raise OptionError(f"policy is {policy!r}; expected a Policy object such as clusterucb.UCB()")
    if not 0 <= cold_start <= 1:
        raise OptionError(f"cold_start is {cold_start}; expected a share of each arm between 0 and 1")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise OptionError(f"seed is {seed!r}; expected a whole number of at least 0")
    if aggregate not in AGGREGATES:
        hint = did_you_mean(str(aggregate), AGGREGATES)
        raise OptionError(f"aggregate is {aggregate!r}; expected one of {', '.join(AGGREGATES)}.{hint}")


def _checked_rows(
    rows: NDArray[np.int64], wanted: int, available: NDArray[np.bool_], policy: str
) -> NDArray[np.int64]:
    expected = f"{wanted} distinct available rows"
    try:
        got = np.asarray(rows)
    except ValueError as error:
        raise PluginError(f"{policy}.ask returned {rows!r:.80}; expected {expected}") from error
    if got.dtype.kind not in "iu" or got.shape != (wanted,):
        raise PluginError(f"{policy}.ask returned {got.dtype} of shape {got.shape}; expected {expected}")
    if got.min() < 0 or got.max() >= len(available):
        raise PluginError(f"{policy}.ask returned rows outside 0..{len(available) - 1}; expected {expected}")
    if len(np.unique(got)) < wanted:
        raise PluginError(f"{policy}.ask returned a row twice; expected {expected}")
    if not available[got].all():
        raise PluginError(
            f"{policy}.ask returned row {got[~available[got]][0]}, already drawn; expected {expected}"
        )
    return got.astype(np.int64)


def _checked_scores(scores: ArrayLike, n_rows: int, n_subtasks: int | None) -> NDArray[np.float64]:
    """Return scores as f64[m, S]; a row with any NaN or infinity becomes NaN throughout: it failed."""
    got = np.array(scores, dtype=np.float64) + 0.0  # makes -0.0 0.0, whose sign SQLite would drop
    matrix = got[:, None] if got.ndim == 1 else got
    if (
        matrix.ndim != 2
        or len(matrix) != n_rows
        or n_subtasks not in (None, matrix.shape[1])
        or not matrix.shape[1]
    ):
        subtasks = "S" if n_subtasks is None else n_subtasks
        raise OptionError(f"score returned shape {got.shape}; expected [{n_rows}] or [{n_rows}, {subtasks}]")
    matrix[~np.isfinite(matrix).all(axis=1)] = np.nan
    return matrix
