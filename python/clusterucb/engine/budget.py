"""Limit what a search may spend: draws, tokens or time, or draws until an estimated recall is reached.

Decisions:
    - A search knows the expected number of draws, because strategies plan by that number. It continues as long as its
      allowance grants draws.
    - A budget is never exceeded. Under a time budget, a sample is expected to take the time per token so far, times
      its tokens. Under a token budget, the search ends when fewer tokens are left than the longest sample has. So the
      tokens spent alone decide whether the search continues, and an interrupted search ends at the same draw as an
      uninterrupted one.
    - A time budget covers drawing and scoring, over all sessions of a run. The time before the first draw is reported
      separately, as for every budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clusterucb.engine.recall import Recall


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a search may spend, and at which recall it may stop earlier.

    Attributes:
        draws: the number of rows that may be scored. With an allowance, it is the expected number, by which strategies
            plan.
        allowance: a limit on something other than the number of draws, such as tokens. By default, none.
        until: the estimated recall at which the search stops. Strategies then plan by `planned_draws`. By default, the
            search spends its budget.
        watch: a function that is called with the estimated recall about 20 times during a search.
    """

    draws: int
    allowance: Allowance | None = None
    until: float | None = None
    watch: Callable[[Recall], object] | None = None

    def within(self, n_rows: int) -> Budget:
        """Return this budget with at most ``n_rows`` draws."""
        return replace(self, draws=min(self.draws, n_rows))


def planned_draws(draws: int, n_rows: int, n_select: int, until: float | None) -> int:
    """Return the number of draws that strategies plan by.

    It is ``draws``. If a recall may end the search, it is at most a fifth of the pool, or ``n_select`` if that is more.
    """
    return draws if until is None else min(draws, max(n_rows // 5, n_select))


class Allowance(Protocol):
    """Decides how many more rows may be drawn."""

    def grant(self, rows: NDArray[np.int64]) -> int:
        """Return how many of ``rows``, counted from the first, may be drawn, and count them as drawn."""

    def recorded(self, rows: NDArray[np.int64]) -> None:
        """Count ``rows`` as drawn in an earlier session."""


class NothingLeft:
    """An allowance that grants nothing: the budget is already spent."""

    def grant(self, rows: NDArray[np.int64]) -> int:  # noqa: ARG002
        """Return 0."""
        return 0

    def recorded(self, rows: NDArray[np.int64]) -> None:
        """Do nothing."""


class TokenAllowance:
    """An allowance of tokens.

    Args:
        tokens: i64[N], the number of tokens of each sample.
        limit: the number of tokens that may be drawn in all.
    """

    def __init__(self, tokens: NDArray[np.int64], limit: int) -> None:
        self._tokens = tokens
        self._left = limit
        self._longest = int(tokens.max())

    def grant(self, rows: NDArray[np.int64]) -> int:
        """Return how many of ``rows`` may be drawn before fewer tokens are left than the longest sample has."""
        before = np.concatenate([[0], np.cumsum(self._tokens[rows])])
        count = int(np.searchsorted(before[:-1], self._left - self._longest, side="right"))
        self._left -= int(before[count])
        return count

    def recorded(self, rows: NDArray[np.int64]) -> None:
        """Subtract the rows' tokens."""
        self._left -= int(self._tokens[rows].sum())


class TimeAllowance:
    """An allowance of time.

    Args:
        tokens: i64[N], the number of tokens of each sample.
        limit: the seconds that are left.
        per_token: the estimated seconds per token. This session's own measurement replaces it after the first draws.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        tokens: NDArray[np.int64],
        limit: float,
        per_token: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = tokens
        self._clock = clock
        self._began = clock()
        self._until = self._began + limit
        self._per_token = per_token
        self._drawn = 0

    def grant(self, rows: NDArray[np.int64]) -> int:
        """Return how many of ``rows`` can probably be scored in the time that is left."""
        now = self._clock()
        if self._drawn:
            self._per_token = (now - self._began) / self._drawn
        tokens = np.cumsum(self._tokens[rows])
        count = int(np.searchsorted(tokens * self._per_token, self._until - now, side="right"))
        self._drawn += int(tokens[count - 1]) if count else 0
        return count

    def recorded(self, rows: NDArray[np.int64]) -> None:
        """Do nothing: the limit already excludes the time of earlier sessions."""
