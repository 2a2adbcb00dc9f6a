"""Turn scores into rewards, and hold the rules by which rows are selected.

The caller gives `Rules`; `Rewards` applies them during a search.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.engine.aggregate import NAMES, STANDARDIZED, Standardized, weighted
from clusterucb.engine.checks import check_whole
from clusterucb.engine.choice import SELECT_BY
from clusterucb.errors import OptionError, check_choice

if TYPE_CHECKING:
    from clusterucb.engine.aggregate import Aggregate
    from clusterucb.engine.draws import History


@dataclass(frozen=True, kw_only=True, eq=False)
class Rules:
    """How a sample's S scores become one reward, and which samples are selected.

    Attributes:
        aggregate: ``max`` (the paper's), ``mean`` or ``standardized`` (`clusterucb.engine.aggregate`). With
            ``standardized``, every policy gets a cold start.
        select_by: ``top`` or ``round-robin`` (`clusterucb.engine.choice`).
        max_per_source: the largest number of selected rows with the same value in the column ``source``.
        weights: f64[S], the weight of each subtask's scores in a reward, and of its turns in ``round-robin``. By
            default, 1 each.

    Raises:
        OptionError: a value cannot be used.
    """

    aggregate: str = "max"
    select_by: str = "top"
    max_per_source: int | None = None
    weights: ArrayLike | None = None

    def __post_init__(self) -> None:
        check_choice("aggregate", self.aggregate, NAMES)
        check_choice("select_by", self.select_by, SELECT_BY)
        if self.max_per_source is not None:
            check_whole("max_per_source", self.max_per_source)
        if self.weights is None:
            return
        weights = np.array(self.weights, np.float64)
        if weights.ndim != 1 or not len(weights) or not (np.isfinite(weights) & (weights > 0)).all():
            raise OptionError(f"weights is {self.weights!r:.80}; expected a number above 0 for each subtask")

    @property
    def counts(self) -> NDArray[np.float64] | None:
        """The subtasks' weights as an array f64[S], or None."""
        return None if self.weights is None else np.array(self.weights, np.float64)


class Rewards:
    """Turns scores into rewards. A standardized aggregate is fitted when the cold start is complete.

    Args:
        rules: the rules of the search.
    """

    def __init__(self, rules: Rules) -> None:
        self._weights = rules.counts
        self._aggregate: Aggregate | Standardized | None = None
        if rules.aggregate != STANDARDIZED:
            self._aggregate = weighted(rules.aggregate, self._weights)

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards f64[m] of scores f64[m, S]."""
        assert self._aggregate is not None
        return self._aggregate(scores)

    def news(
        self, history: History
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]:
        """Yield the rows i64[m], rewards f64[m] and scores f64[m, S] that the policy has not received yet.

        Failed rows are left out. Nothing is yielded before rewards can be computed.
        """
        batches = [history.last_scored()]
        if self._aggregate is None:
            if history.n_cold_left:
                return
            self.fit(history)
            batches = history.scored()
        for rows, scores in batches:
            rewards = self(scores)
            seen = ~np.isnan(rewards)
            if seen.any():
                yield rows[seen], rewards[seen], scores[seen]

    def fit(self, history: History) -> None:
        """Fit the aggregate to the cold start, unless it is fitted already or needs no fit."""
        if self._aggregate is None:
            self._aggregate = Standardized(*history.cold_draws(), self._weights)

    @property
    def scale(self) -> NDArray[np.float64] | None:
        """The mean and deviation f64[2, S] by which scores are standardized; None for other aggregates."""
        fitted = self._aggregate
        return np.stack([fitted.mean, fitted.std]) if isinstance(fitted, Standardized) else None
