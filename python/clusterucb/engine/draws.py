"""Order the draws of a search into batches and record them in a journal.

Decisions:
    - A score must be pure by row. An interrupted batch can then simply run again, and a search resumes from a journal
      of (rows, scores) alone: no strategy ever saves its state.
    - Random numbers are derived from (seed, batch number), never from a running generator. A resumed search therefore
      draws the same numbers as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.engine.arms import ColdStart
from clusterucb.engine.blame import blamed
from clusterucb.engine.budget import Budget
from clusterucb.engine.checks import checked_rows, checked_scores
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.recall import Draws
from clusterucb.errors import OptionError
from clusterucb.wording import counted

Phase = Literal["cold", "random", "policy"]

# The smallest batch of cold-start draws, whatever the batch size: these draws do not depend on each other, and a scorer
# is faster on many rows of similar length.
_COLD_BATCH = 32


@dataclass(frozen=True)
class RowScores:
    """The scores of rows, with the reason of each failure. A score function may return it in place of an array.

    Attributes:
        values: f64[m] or f64[m, S], the scores; NaN where scoring failed.
        failures: why scoring failed, by row.
    """

    values: ArrayLike
    failures: Mapping[int, str] = field(default_factory=dict)


Score = Callable[[NDArray[np.int64]], ArrayLike | RowScores]


@dataclass(frozen=True)
class Batch:
    """Rows that are scored together.

    Attributes:
        number: the batch's number, from 0, in the order of submission.
        phase: ``cold`` (the cold start), ``random`` (a uniform policy) or ``policy``.
        rows: i64[m], the rows to score.
        arms: i64[m], the arm of each row.
        probability: f64[m], each row's inclusion probability; NaN where a policy chose the row. In the cold start, it
            is the probability under the whole cold start, even if the budget cut it short.
        scores: f64[m, S], or None before the batch is scored. A row that failed is NaN.
        failures: why scoring failed, by row, if the score function said so; empty in a recorded batch.
    """

    number: int
    phase: Phase
    rows: NDArray[np.int64]
    arms: NDArray[np.int64]
    probability: NDArray[np.float64]
    scores: NDArray[np.float64] | None = None
    failures: Mapping[int, str] = field(default_factory=dict)


class Journal(Protocol):
    """Records a search so that it can resume after an interruption."""

    def recorded(self) -> Iterable[Batch]:
        """Return the batches of earlier sessions in order. A batch without scores was begun but not finished."""

    def begin(self, batch: Batch) -> None:
        """Record that ``batch`` is about to be scored."""

    def finish(self, batch: Batch) -> None:
        """Record the scores of ``batch``."""


class History:
    """Tracks the draws made so far and yields the next batches.

    Args:
        pool: the pool, with its arms.
        budget: the limit of the draws.
        journal: the record of the draws, or None.
        n_subtasks: S, or None if S is unknown until the first batch is scored.

    Attributes:
        available: bool[N], True for rows that have not been drawn.
        n_drawn: the number of rows drawn.
        n_cold_left: the number of cold-start draws that are left.
    """

    def __init__(
        self, pool: PoolView, budget: Budget, journal: Journal | None, n_subtasks: int | None
    ) -> None:
        self.available = np.ones(len(pool), np.bool_)
        self.n_drawn = 0
        self.n_cold_left = 0
        self._pool = pool
        self._budget = budget
        self._journal = journal
        self._n_subtasks = n_subtasks
        self._number = 0  # the number of the next batch
        self._n_recorded_left = 0  # recorded batches that are still to be replayed
        self._spent = False
        self._scored: list[tuple[Batch, NDArray[np.float64]]] = []

    def batches(
        self, cold: ColdStart, first: NDArray[np.int64], policy: Policy, size: int, seed: int
    ) -> Iterator[Batch]:
        """Yield the recorded batches, then the cold start and given rows, then the batches that the policy asks for.

        Args:
            cold: the random draws that the search begins with.
            first: rows i64[m], which are drawn next, but for those of the cold start.
            policy: the policy that chooses the rows afterwards.
            size: the number of rows in each of the policy's batches.
            seed: the seed of the policy's random numbers.
        """
        n_cold = min(len(cold.rows), self._left)
        self.n_cold_left = n_cold
        yield from self._recorded_batches(n_cold)
        step = max(size, _COLD_BATCH)
        while self.n_cold_left and not self._spent:
            begin = n_cold - self.n_cold_left
            some = slice(begin, min(begin + step, n_cold))
            yield from self._begin("cold", cold.rows[some], cold.probability[some])
        yield from self._given(first[~np.isin(first, cold.rows[:n_cold])], size)
        ask = blamed(policy.ask)
        phase: Phase = "random" if policy.uniform else "policy"
        while self._left and not self._spent:
            wanted, n_available = min(size, self._left), int(np.count_nonzero(self.available))
            rows = ask(wanted, self.available.copy(), np.random.default_rng([seed, self._number]))
            rows = checked_rows(rows, wanted, self.available, type(policy).__name__)
            chance = wanted / n_available if policy.uniform else math.nan
            yield from self._begin(phase, rows, np.full(len(rows), chance))

    def add(self, batch: Batch, score: Score) -> None:
        """Compute and record the scores of a batch, unless an earlier session has done so."""
        if batch.scores is None:
            found = score(batch.rows)
            found = found if isinstance(found, RowScores) else RowScores(found)
            values = checked_scores(found.values, len(batch.rows), self._n_subtasks)
            batch = replace(batch, scores=values, failures=found.failures)
            if self._journal:
                self._journal.finish(batch)
        assert batch.scores is not None
        self._n_subtasks = batch.scores.shape[1]
        self._scored.append((batch, batch.scores))

    def last_scored(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the rows i64[m] and scores f64[m, S] of the last batch."""
        batch, scores = self._scored[-1]
        return batch.rows, scores

    def scored(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return the rows i64[m] and scores f64[m, S] of every batch so far."""
        return [(batch.rows, scores) for batch, scores in self._scored]

    def cold_draws(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the scores f64[m, S] of the cold start and their inclusion probabilities f64[m]."""
        cold = [(scores, batch.probability) for batch, scores in self._scored if batch.phase == "cold"]
        scores, probability = (np.concatenate(arrays) for arrays in zip(*cold, strict=True))
        return scores, probability

    @property
    def has_cold(self) -> bool:
        """Whether the search began with a cold start."""
        return any(batch.phase == "cold" for batch, _ in self._scored)

    def passed(self, step: int) -> bool:
        """Return whether the last batch reached or crossed a multiple of ``step`` draws after the cold start.

        Batches of an earlier session do not count, except the last one: the search may have ended with it.
        """
        if self.n_cold_left or self._n_recorded_left:
            return False
        n_before = self.n_drawn - len(self._scored[-1][0].rows)
        return self.n_drawn // step > n_before // step

    def draws(self) -> Draws:
        """Return all draws in order, with the probability that each row would have been drawn by now."""
        rows, scores = (np.concatenate(arrays) for arrays in zip(*self.scored(), strict=True))
        sizes = [len(batch.rows) for batch, _ in self._scored]
        cold, random = (
            np.repeat([batch.phase == phase for batch, _ in self._scored], sizes)
            for phase in ("cold", "random")
        )
        chance = np.concatenate([batch.probability for batch, _ in self._scored])
        arms = self._pool.labels[rows]
        by_arm = np.zeros(self._pool.n_arms)
        by_arm[arms[cold]] = chance[cold]
        later = int(random.sum()) / max(len(self._pool) - int(cold.sum()), 1)
        of_all = by_arm + (1 - by_arm) * later
        return Draws(rows, scores, np.where(cold | random, of_all[arms], np.nan))

    def exhausted(self, budget: Budget) -> bool:
        """Return whether the pool was exhausted before the budget was spent."""
        n_rows = len(self._pool)
        return budget.draws > n_rows or (budget.allowance is not None and self.n_drawn == n_rows)

    @property
    def _left(self) -> int:
        return (len(self._pool) if self._budget.allowance else self._budget.draws) - self.n_drawn

    def _given(self, rows: NDArray[np.int64], size: int) -> Iterator[Batch]:
        """Yield batches of given rows that are not drawn yet, as long as the budget lasts.

        Their bounds do not depend on where an earlier session stopped.
        """
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            some = some[self.available[some]][: self._left]
            if len(some) and not self._spent:
                yield from self._begin("policy", some, np.full(len(some), math.nan))

    def _recorded_batches(self, n_cold: int) -> Iterator[Batch]:
        recorded = list(self._journal.recorded()) if self._journal else []
        for n_before, batch in enumerate(recorded, start=1):
            self._n_recorded_left = len(recorded) - n_before
            self._check_recorded(batch)
            self._take(batch)
            if self._budget.allowance:
                self._budget.allowance.recorded(batch.rows)
            self._number = batch.number + 1
            yield batch
            if self.n_cold_left and batch.phase != "cold":
                raise OptionError(
                    f"the journal's cold start had {counted(n_cold - self.n_cold_left, 'draw')}, this one has "
                    f"{n_cold:,}; expected the cold_start of the search that started the journal"
                )

    def _check_recorded(self, batch: Batch) -> None:
        if len(batch.rows) > self._left:
            raise OptionError(
                f"the journal holds at least {self.n_drawn + len(batch.rows):,} draws; expected at most the "
                f"budget, {self._budget.draws:,}. Resume the search with the same or a larger budget"
            )
        labels = self._pool.labels
        if (
            batch.rows.max() >= len(labels)
            or not self.available[batch.rows].all()
            or not np.array_equal(labels[batch.rows], batch.arms)
        ):
            raise OptionError(
                f"batch {batch.number} of the journal does not fit the pool and its clusters; expected the "
                "journal of a search with the same features, clusterer and seed"
            )

    def _begin(
        self, phase: Phase, rows: NDArray[np.int64], probability: NDArray[np.float64]
    ) -> Iterator[Batch]:
        """Yield a new batch of the rows that the budget grants; yield nothing if it grants none."""
        granted = self._budget.allowance.grant(rows) if self._budget.allowance else len(rows)
        self._spent = granted < len(rows)
        if not granted:
            return
        rows, probability = rows[:granted], probability[:granted]
        batch = Batch(self._number, phase, rows, self._pool.labels[rows], probability)
        self._take(batch)
        self._number += 1
        if self._journal:
            self._journal.begin(batch)
        yield batch

    def _take(self, batch: Batch) -> None:
        self.available[batch.rows] = False
        self.n_drawn += len(batch.rows)
        self.n_cold_left -= len(batch.rows) if batch.phase == "cold" else 0
