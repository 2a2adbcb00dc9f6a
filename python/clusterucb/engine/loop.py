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
    - The recall is estimated at fixed numbers of draws, so that a search that is to stop at a recall stops at the same
      draw however often it was interrupted.
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

from clusterucb.engine.aggregate import NAMES, STANDARDIZED, Standardized, weighted
from clusterucb.engine.allowance import Allowance
from clusterucb.engine.arms import cold_schedule, default_cold_start, make_arms, stream
from clusterucb.engine.blame import blamed
from clusterucb.engine.choice import SELECT_BY, choose
from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import ESTIMATES, PoolView, feature_blocks, pool_columns
from clusterucb.engine.recall import Draws, Recall, RecallEstimator
from clusterucb.errors import ClusterUCBWarning, OptionError, PluginError, check_choice
from clusterucb.wording import counted

Phase = Literal["cold", "random", "policy"]
Stopped = Literal["budget", "exhausted", "recall", "interrupted"]
Score = Callable[[NDArray[np.int64]], ArrayLike]

# Cold-start draws are submitted in batches of at least this many rows whatever the batch size:
# they do not depend on each other, and a scorer is faster on many rows of similar length.
_COLD_BATCH = 32
_ESTIMATES = 20  # of the recall, in a search that spends its budget


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
        rows: i64[n_select], best first, ties to the lower row (fewer only if scoring failed for many, or a cap
            kept them out).
        scores: f64[n_select], the rewards of exactly those rows.
        drawn_rows: i64[n_scored], every row submitted, in order.
        drawn_scores: f64[n_scored], their rewards; NaN where scoring failed.
        subtask_scores: f64[n_scored, S], the scores that the rewards aggregate.
        drawn_probability: f64[n_scored], the probability that a row was drawn by now; NaN where a policy chose it.
        n_scored: rows submitted for scoring, failures included.
        draws: i64[K], draws of each arm, cold start included.
        labels: i64[N], the arm of each row.
        stopped: ``budget`` when the whole budget was spent, ``exhausted`` when the pool ended first, ``recall`` when
            enough was found, ``interrupted``.
        standardized: the mean and deviation f64[2, S] that the rewards are based on; None for other aggregates.
        recall: how much of the best was found; None if nobody asked, or it cannot be said (`clusterucb.engine.recall`).
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    drawn_rows: NDArray[np.int64]
    drawn_scores: NDArray[np.float64]
    subtask_scores: NDArray[np.float64]
    drawn_probability: NDArray[np.float64]
    n_scored: int
    draws: NDArray[np.int64]
    labels: NDArray[np.int64]
    stopped: Stopped
    standardized: NDArray[np.float64] | None = None
    recall: Recall | None = None

    def __repr__(self) -> str:
        return (
            f"<Selection: {len(self.rows):,} of {counted(len(self.labels), 'row')} selected, {self.n_scored:,} scored "
            f"in {counted(len(self.draws), 'arm')}, stopped by {self.stopped}>"
        )


def search(
    features: ArrayLike | Mapping[str, ArrayLike],
    score: Score,
    *,
    clusterer: Clusterer | ArrayLike | None,
    policy: Policy,
    budget: int,
    n_select: int,
    cold_start: float | None = None,
    batch_size: int = 1,
    seed: int = 0,
    columns: Mapping[str, ArrayLike] | None = None,
    aggregate: str = "max",
    select_by: str = "top",
    max_per_source: int | None = None,
    weights: ArrayLike | None = None,
    prior: ArrayLike | Mapping[str, ArrayLike] | None = None,
    allowance: Allowance | None = None,
    until: float | None = None,
    watch: Callable[[Recall], object] | None = None,
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
            policy wants a cold start; by default a quarter of the budget's share of the pool.
        batch_size: rows drawn between two updates of the policy, more if it wants fewer `Policy.batches`. 1 is the
            paper's loop.
        seed: same seed, same result.
        columns: named arrays [N] for strategies that use more than the features.
        aggregate: how S scores become one reward: ``max`` (the paper's), ``mean`` or ``standardized``
            (`clusterucb.engine.aggregate`), which makes a cold start for every policy.
        select_by: ``top`` or ``round-robin`` (`clusterucb.engine.choice`).
        max_per_source: most rows selected of one value of the column ``source``.
        weights: f64[S], how much each subtask's scores count in a reward, and in turns of ``round-robin``; 1 each by
            default.
        prior: f32[N, P], scores that may go with these ones, such as those for another target, or named blocks of
            what may, for policies that predict; they learn how far. With a block ``estimates`` f32[N, S] of these very
            scores, the cold start is smaller, and from the whole pool at random.
        allowance: what limits the draws in place of the budget, such as tokens (`clusterucb.engine.allowance`); the
            budget is then the draws that are expected, which strategies plan by.
        until: stop as soon as so much of the best is estimated to have been found, a share; the budget is then what
            may be spent, and strategies plan by `expected_draws`.
        watch: called with the estimated recall (`clusterucb.engine.recall`) some 20 times in a budget.
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
        raise OptionError(
            f"n_select is {n_select}; expected at most the budget, {budget:,} of {counted(n_rows, 'row')}"
        )
    _count("batch_size", batch_size)
    if max_per_source is not None:
        _count("max_per_source", max_per_source)
    _check_options(policy, cold_start, seed, aggregate, select_by)
    counts = None if weights is None else _checked_weights(weights)
    if until is not None:
        check_until(until, policy, aggregate, max_per_source)
    planned = expected_draws(budget, n_rows, n_select, until)

    pool = PoolView(
        features=blocks,
        labels=np.zeros(n_rows, np.int64),
        priority=stream(seed, "priority").random(n_rows),
        columns=pool_columns(columns, n_rows),
        budget=planned,
        n_select=n_select,
        aggregate=aggregate,
        weights=counts,
        prior=_checked_prior(prior, n_rows),
    )
    if max_per_source is not None and "source" not in pool.columns:
        raise OptionError("max_per_source is given, but the pool has no column 'source'; pass it in columns")
    pool = replace(pool, labels=make_arms(pool, clusterer, seed))
    state = _State(pool, budget, journal, allowance, None if counts is None else len(counts))
    blamed(policy.start)(pool)
    tell = blamed(policy.tell)
    reward = None if aggregate == STANDARDIZED else weighted(aggregate, counts)
    share, told = None, is_told(policy, pool.prior, aggregate)
    if policy.cold_start or reward is None:
        share = default_cold_start(planned, n_rows, told=told) if cold_start is None else cold_start
    if policy.batches:
        batch_size = max(batch_size, -(-planned // policy.batches))
    estimator = None
    if (until is not None or watch) and not max_per_source:
        estimator = RecallEstimator(pool, in_turn=select_by != "top")
    recall, n_estimated = None, 0
    stopped: Stopped = "budget"
    for batch in state.batches(policy, share, batch_size, seed, by_arm=not told):
        news = [(batch.rows, state.add(batch, score))]
        if reward is None:
            if state.n_cold_left:
                continue
            reward = Standardized(*state.random_draws(), counts)
            news = state.drawn()
        for rows, scores in news:
            rewards = reward(scores)
            seen = ~np.isnan(rewards)
            if seen.any():
                tell(rows[seen], rewards[seen], scores[seen])
        if estimator and state.passed(max(planned // _ESTIMATES, 1)):
            recall, n_estimated = estimator(state.draws(), reward), state.n_drawn
            if recall and watch:
                watch(recall)
            if recall and until is not None and recall.estimate >= until:
                stopped = "recall"
                break
    if not state.n_drawn:
        raise OptionError("the budget does not suffice for a single draw; expected a larger one")
    reward = reward or Standardized(*state.random_draws(), counts)  # which an allowance cut short
    draws = state.draws()
    rows, scores, chance = draws
    rewards = reward(scores)
    groups = pool.columns["source"][rows] if max_per_source else None
    best = choose(
        rows, rewards, scores, n_select, by=select_by, groups=groups, cap=max_per_source, weights=counts
    )
    if stopped == "budget" and (asked > n_rows or (allowance and len(rows) == n_rows)):
        stopped = "exhausted"
    if estimator and n_estimated < len(rows):
        recall = estimator(draws, reward)
    if until is not None and recall is None:
        warnings.warn(
            "too few of the draws were random to say how much they have found, so that the budget alone ended them. "
            "Use a larger cold start",
            ClusterUCBWarning,
            stacklevel=2,
        )
    if len(best) < n_select:
        _warn_of_few(len(best), rewards, n_select, max_per_source)
    return Selection(
        rows=rows[best],
        scores=rewards[best],
        drawn_rows=rows,
        drawn_scores=rewards,
        subtask_scores=scores,
        drawn_probability=chance,
        n_scored=len(rows),
        draws=np.bincount(pool.labels[rows], minlength=pool.n_arms),
        labels=pool.labels,
        stopped=stopped,
        standardized=np.stack([reward.mean, reward.std]) if isinstance(reward, Standardized) else None,
        recall=recall,
    )


def expected_draws(budget: int, n_rows: int, n_select: int, until: float | None) -> int:
    """Return how many draws strategies plan by: the budget; where a recall may end it, a fifth of the pool at most."""
    return budget if until is None else min(budget, max(n_rows // 5, n_select))


class _State:
    """What has been drawn so far, and where it is recorded.

    Attributes:
        n_cold_left: draws of the cold start that are still to come.
        n_recorded_left: batches of an earlier session that are still to come.
    """

    def __init__(
        self,
        pool: PoolView,
        budget: int,
        journal: Journal | None,
        allowance: Allowance | None,
        n_subtasks: int | None,
    ) -> None:
        self.pool = pool
        self.journal = journal
        self._budget = budget
        self._allowance = allowance
        self._n_subtasks = n_subtasks
        self.available = np.ones(len(pool), np.bool_)
        self.n_drawn = 0
        self.n_cold_left = 0
        self.n_recorded_left = 0
        self._spent = False
        self._drawn: list[tuple[Batch, NDArray[np.float64]]] = []

    def batches(
        self, policy: Policy, share: float | None, size: int, seed: int, *, by_arm: bool
    ) -> Iterator[Batch]:
        """Yield the batches to be scored: recorded ones, then the cold start, then what the policy asks."""
        arms = self.pool.labels if by_arm else np.zeros_like(self.pool.labels)
        schedule, probability = cold_schedule(replace(self.pool, labels=arms), share, seed)
        n_cold = min(len(schedule), self._left)
        self.n_cold_left = n_cold
        number = 0
        recorded = list(self.journal.recorded()) if self.journal else []
        for n_before, batch in enumerate(recorded, start=1):
            self.n_recorded_left = len(recorded) - n_before
            self._check_recorded(batch)
            self._take(batch)
            if self._allowance:
                self._allowance.recorded(batch.rows)
            number = batch.number + 1
            yield batch
            if self.n_cold_left and batch.phase != "cold":
                raise OptionError(
                    f"the journal's cold start had {counted(n_cold - self.n_cold_left, 'draw')}, this one has "
                    f"{n_cold:,}; expected the cold_start of the search that began the journal"
                )
        step = max(size, _COLD_BATCH)
        while self.n_cold_left:
            begin = n_cold - self.n_cold_left
            draws = slice(begin, min(begin + step, n_cold))
            yield from self._begin(number, "cold", schedule[draws], probability[draws])
            if self._spent:
                return
            number += 1
        ask = blamed(policy.ask)
        while self._left:
            wanted = min(size, self._left)
            n_available = int(np.count_nonzero(self.available))
            rows = ask(wanted, self.available.copy(), np.random.default_rng([seed, number]))
            rows = _checked_rows(rows, wanted, self.available, type(policy).__name__)
            chance = wanted / n_available if policy.uniform else math.nan
            phase: Phase = "random" if policy.uniform else "policy"
            yield from self._begin(number, phase, rows, np.full(len(rows), chance))
            if self._spent:
                return
            number += 1

    def add(self, batch: Batch, score: Score) -> NDArray[np.float64]:
        """Return the scores f64[m, S] of a batch, computing and recording those that are missing."""
        if batch.scores is None:
            batch = replace(
                batch, scores=_checked_scores(score(batch.rows), len(batch.rows), self._n_subtasks)
            )
            if self.journal:
                self.journal.finish(batch)
        assert batch.scores is not None
        self._n_subtasks = batch.scores.shape[1]
        self._drawn.append((batch, batch.scores))
        return batch.scores

    def drawn(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return rows i64[m] and scores f64[m, S] of every batch so far."""
        return [(batch.rows, scores) for batch, scores in self._drawn]

    def random_draws(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the scores f64[m, S] of the cold start, and the inclusion probabilities f64[m]."""
        cold = [(scores, batch.probability) for batch, scores in self._drawn if batch.phase == "cold"]
        scores, probability = (np.concatenate(arrays) for arrays in zip(*cold, strict=True))
        return scores, probability

    def passed(self, step: int) -> bool:
        """Return whether the last batch has passed a multiple of a number of draws, in the cold start not.

        Batches of an earlier session went on from there, but for the last: a search may have ended with it.
        """
        if self.n_cold_left or self.n_recorded_left:
            return False
        n_before = self.n_drawn - len(self._drawn[-1][0].rows)
        return self.n_drawn // step > n_before // step

    def draws(self) -> Draws:
        """Return all draws, as their recall is estimated from."""
        rows, scores = (np.concatenate(arrays) for arrays in zip(*self.drawn(), strict=True))
        sizes = [len(batch.rows) for batch, _ in self._drawn]
        phases = np.repeat([batch.phase for batch, _ in self._drawn], sizes)
        chance = np.concatenate([batch.probability for batch, _ in self._drawn])
        arms = self.pool.labels[rows]
        cold, random = phases == "cold", phases == "random"
        by_arm = np.zeros(self.pool.n_arms)
        by_arm[arms[cold]] = chance[cold]
        later = int(random.sum()) / max(len(self.pool) - int(cold.sum()), 1)
        of_all = by_arm + (1 - by_arm) * later
        return Draws(rows, scores, np.where(cold | random, of_all[arms], np.nan))

    @property
    def _left(self) -> int:
        return (len(self.pool) if self._allowance else self._budget) - self.n_drawn

    def _check_recorded(self, batch: Batch) -> None:
        if len(batch.rows) > self._left:
            raise OptionError(
                f"the journal holds at least {self.n_drawn + len(batch.rows):,} draws; expected at most the "
                f"budget, {self._budget:,}: a search goes on with the same budget or a larger one"
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

    def _take(self, batch: Batch) -> None:
        self.available[batch.rows] = False
        self.n_drawn += len(batch.rows)
        self.n_cold_left -= len(batch.rows) if batch.phase == "cold" else 0

    def _begin(
        self, number: int, phase: Phase, rows: NDArray[np.int64], probability: NDArray[np.float64]
    ) -> Iterator[Batch]:
        """Yield a new batch, as far as it may be drawn."""
        granted = self._allowance.grant(rows) if self._allowance else len(rows)
        self._spent = granted < len(rows)
        if not granted:
            return
        rows, probability = rows[:granted], probability[:granted]
        batch = Batch(number, phase, rows, self.pool.labels[rows], probability)
        self._take(batch)
        if self.journal:
            self.journal.begin(batch)
        yield batch


def _warn_of_few(n_found: int, rewards: NDArray[np.float64], n_select: int, cap: int | None) -> None:
    n_failed = int(np.isnan(rewards).sum())
    few = len(rewards) - n_failed < n_select
    reason = f" of {counted(len(rewards), 'draw')} " + (
        "could be scored" if few else f"fit under at most {cap} of each source"
    )
    if n_found == len(rewards):
        reason = f" {'draw' if n_found == 1 else 'draws'} fit into the budget"
    warnings.warn(
        f"only {n_found:,}{reason}: fewer than the {counted(n_select, 'row')} to be selected",
        ClusterUCBWarning,
        stacklevel=3,
    )


def _count(name: str, value: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; expected a whole number of rows, at least 1")
    return count


def _checked_weights(given: ArrayLike) -> NDArray[np.float64]:
    weights = np.array(given, np.float64)
    if weights.ndim != 1 or not len(weights) or not (np.isfinite(weights) & (weights > 0)).all():
        raise OptionError(f"weights is {given!r:.80}; expected a number above 0 for each subtask")
    return weights


def _check_options(
    policy: Policy, cold_start: float | None, seed: int, aggregate: str, select_by: str
) -> None:
    if not isinstance(policy, Policy):
        raise OptionError(f"policy is {policy!r}; expected a Policy object such as clusterucb.UCB()")
    if cold_start is not None and not 0 <= cold_start <= 1:
        raise OptionError(f"cold_start is {cold_start}; expected a share of each arm between 0 and 1")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise OptionError(f"seed is {seed!r}; expected a whole number of at least 0")
    check_choice("aggregate", aggregate, NAMES)
    check_choice("select_by", select_by, SELECT_BY)


def is_told(policy: Policy, prior: Iterable[str], aggregate: str) -> bool:
    """Return whether a policy is told by estimates where to begin, and random draws are for what these do not tell.

    Args:
        policy: which it is.
        prior: names of the blocks that are known.
        aggregate: how scores become a reward; `standardized` is fitted to the random draws, which must not be few.
    """
    return policy.predicts and ESTIMATES in prior and aggregate != STANDARDIZED


def check_until(until: float, policy: Policy, aggregate: str, max_per_source: int | None) -> None:
    """Refuse to stop a search at a recall that cannot be estimated.

    Raises:
        OptionError: it is no share, or a policy or a cap leaves nothing to estimate it by.
    """
    if isinstance(until, bool) or not isinstance(until, int | float) or not 0 < until <= 1:
        raise OptionError(f"until is {until!r}; expected a recall above 0, at most 1")
    if max_per_source:
        raise OptionError(
            "until and max_per_source are given; expected one: how much is found under a cap is not estimated"
        )
    if not (policy.cold_start or policy.uniform or aggregate == STANDARDIZED):
        raise OptionError(
            f"until is given, and {type(policy).__name__} draws nothing at random, without which it cannot be said "
            "how much it has found; expected a policy with a cold start, such as UCB or Surrogate, or Random"
        )


def _checked_prior(
    prior: ArrayLike | Mapping[str, ArrayLike] | None, n_rows: int
) -> dict[str, NDArray[np.float32]]:
    named = prior if isinstance(prior, Mapping) else {} if prior is None else {"scores": prior}
    blocks = feature_blocks(named, "prior") if named else {}
    for name, block in blocks.items():
        if len(block) != n_rows:
            raise OptionError(
                f"prior {name!r} has {counted(len(block), 'row')}; expected {n_rows:,}, one for each sample"
            )
    return blocks


def _checked_rows(
    rows: NDArray[np.int64], wanted: int, available: NDArray[np.bool_], policy: str
) -> NDArray[np.int64]:
    expected = counted(wanted, "distinct available row")
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
