"""Hold the rules by which rows are selected, and turn scores into the rewards that these rules imply.

The caller gives `Rules`; `Rewards` applies them during a search.

Decisions:
    - Mean and deviation of a subtask's scores are fitted once: to estimates of all scores, if there are any (a gradient
      store), else to the cold start, with each draw weighted by one over its inclusion probability. A policy without a
      cold start gets no rewards until `_FEWEST` rows are scored, to which they are then fitted. They never change
      afterwards, so a reward does not depend on when its row was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.engine.aggregate import (
    MEAN,
    PAPER,
    ROUND_ROBIN,
    RULES,
    STANDARDIZED,
    Standardized,
    above_cuts,
    combined,
    normal_cuts,
)
from clusterucb.engine.checks import check_whole
from clusterucb.engine.choice import choose
from clusterucb.errors import OptionError, check_choice

if TYPE_CHECKING:
    from clusterucb.engine.draws import History

_FEWEST = 32  # scored rows to which mean and deviation are fitted if there is no cold start

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rules:
    """How samples with scores for S subtasks are selected.

    Attributes:
        rule: ``round-robin`` (each subtask's best in turn), ``paper`` (the largest scores over all subtasks, as in the
            paper), ``mean`` or ``standardized`` (`clusterucb.engine.aggregate`). With one subtask, all are the same.
        max_per_source: the largest number of selected rows with the same value in the column ``source``.
        weights: f64[S], the weight of each subtask: its share of the turns under ``round-robin``, else the factor of
            its scores. By default, 1 each.

    Raises:
        OptionError: a value cannot be used.
    """

    rule: str = ROUND_ROBIN
    max_per_source: int | None = None
    weights: ArrayLike | None = None

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, RULES)
        if self.max_per_source is not None:
            check_whole("max_per_source", self.max_per_source)
        if self.weights is None:
            return
        weights = np.array(self.weights, np.float64)
        if weights.ndim != 1 or not len(weights) or not (np.isfinite(weights) & (weights > 0)).all():
            raise OptionError(f"weights is {self.weights!r:.80}; expected a number above 0 for each subtask")

    @property
    def counts(self) -> Floats | None:
        """The subtasks' weights as an array f64[S], or None."""
        return None if self.weights is None else np.array(self.weights, np.float64)

    @property
    def in_turn(self) -> bool:
        """Whether subtasks select in turn."""
        return self.rule == ROUND_ROBIN

    def seats(self, n_select: int, n_subtasks: int) -> Floats:
        """Return the number of rows that each subtask would select alone: its share of ``n_select``, f64[S].

        Args:
            n_select: the number of rows to select.
            n_subtasks: S.
        """
        turns = np.ones(n_subtasks) if self.counts is None or not self.in_turn else self.counts
        seats: Floats = np.maximum(turns / turns.sum() * n_select, 1.0)
        return seats

    def choose(
        self,
        rows: NDArray[np.int64],
        scores: Floats,
        rewards: Floats,
        n_select: int,
        sources: NDArray[np.generic] | None,
    ) -> NDArray[np.int64]:
        """Return the positions of the selected rows in ``rows``, i64[n_select] or fewer, best first.

        Args:
            rows: i64[m], the scored rows.
            scores: f64[m, S], their scores; NaN where scoring failed.
            rewards: f64[m], their rewards.
            n_select: the number of rows to select.
            sources: [m], the source of each row. Needed with ``max_per_source``.
        """
        ranked, turns = (scores, self.counts) if self.in_turn else (rewards[:, None], None)
        return choose(rows, ranked, n_select, groups=sources, cap=self.max_per_source, weights=turns)

    def wanted(self, known: Floats, n_select: int) -> Callable[[Floats], Floats]:
        """Return a function that returns how much the rule wants rows: policies that predict scores draw the largest.

        The function is one of scores f64[m, S], predicted ones or bounds of them, and returns f64[m].

        Args:
            known: f64[n, S], the scores that are known, at least one row.
            n_select: the number of rows to select.
        """
        if known.shape[1] == 1 or self.rule in (PAPER, MEAN):
            return lambda scores: combined(self.rule, scores, self.counts)
        if self.in_turn:
            return above_cuts(known, self.seats(n_select, known.shape[1]))
        return Standardized(known, np.ones(len(known)), factors=self.counts)


def chosen_of_best(scores: Floats, chosen: NDArray[np.bool_], counts: Iterable[int]) -> NDArray[np.int64]:
    """Return how many of each subtask's best rows are chosen, i64[S].

    Args:
        scores: f64[m, S]; NaN where scoring failed.
        chosen: bool[m], whether a row is chosen.
        counts: for each subtask, the number of its best rows.
    """
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=0, kind="stable")
    return np.array([chosen[own[:count]].sum() for own, count in zip(order.T, counts, strict=True)])


def capturing(served: Floats) -> int | None:
    """Return the number of a subtask that captures a selection, or None.

    It does if at least a quarter of its own best rows are selected, and of some other subtask's less than a quarter of
    that.

    Args:
        served: f64[S], the share of each subtask's own best rows that is selected.
    """
    most = float(served.max())
    return int(served.argmax()) if most >= 0.25 and float(served.min()) < most / 4 else None


class Rewards:
    """Turns scores into rewards.

    Args:
        rules: the rules of the search.
        n_rows: N, the number of rows of the pool.
        n_select: the number of rows to select.
        estimates: f64[N, S], estimates of all scores; None if there are none.

    Attributes:
        ready: whether rewards can be computed.
    """

    def __init__(
        self, rules: Rules, n_rows: int, n_select: int, estimates: NDArray[np.floating] | None = None
    ) -> None:
        self._rules = rules
        self._n_rows, self._n_select = n_rows, n_select
        self._fitted: Standardized | None = None
        self.ready = False
        if estimates is not None and estimates.shape[1] > 1 and rules.rule in (ROUND_ROBIN, STANDARDIZED):
            self._fit(np.asarray(estimates, np.float64), np.ones(len(estimates)))

    def __call__(self, scores: Floats) -> Floats:
        """Return the rewards f64[m] of scores f64[m, S]."""
        if self._plain(scores):
            return combined(self._rules.rule, scores, self._rules.counts)
        assert self._fitted is not None
        return self._fitted(scores)

    def news(self, history: History) -> Iterator[tuple[NDArray[np.int64], Floats, Floats]]:
        """Yield the rows i64[m], rewards f64[m] and scores f64[m, S] that the policy has not received yet.

        Failed rows are left out. Nothing is yielded before rewards can be computed.
        """
        batches = [history.last_scored()]
        if self._fitted is None and not self._plain(batches[0][1]):
            if history.n_cold_left if history.has_cold else history.n_drawn < _FEWEST:
                return
            self.fit(history)
            batches = history.scored()
        self.ready = True
        for rows, scores in batches:
            rewards = self(scores)
            seen = ~np.isnan(rewards)
            if seen.any():
                yield rows[seen], rewards[seen], scores[seen]

    def fit(self, history: History) -> None:
        """Fit mean and deviation to the cold start, or to all draws without one, unless they are fitted already."""
        if self._fitted is None and not self._plain(history.last_scored()[1]):
            if history.has_cold:
                self._fit(*history.cold_draws())
            else:
                scores = history.draws().scores
                self._fit(scores, np.ones(len(scores)))
        self.ready = True

    def _fit(self, scores: Floats, probability: Floats) -> None:
        rules = self._rules
        if rules.in_turn:
            cuts = normal_cuts(rules.seats(self._n_select, scores.shape[1]), self._n_rows)
            self._fitted = Standardized(scores, probability, cuts=cuts)
        else:
            self._fitted = Standardized(scores, probability, factors=rules.counts)

    def _plain(self, scores: Floats) -> bool:
        """Whether rewards need no mean and deviation."""
        return scores.shape[1] == 1 or self._rules.rule in (PAPER, MEAN)

    @property
    def scale(self) -> Floats | None:
        """The mean and deviation f64[2, S] by which scores are standardized; None under other rules."""
        return np.stack([self._fitted.mean, self._fitted.std]) if self._fitted else None
