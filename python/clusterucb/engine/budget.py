"""What a search may spend: draws, tokens or time, and a recall that is enough.

Decisions:
    - A search is told how many draws are expected, since strategies plan by that number, and goes on as long as its
      allowance grants draws.
    - Nothing is overdrawn. A sample is expected to take the time that its tokens have taken so far. Tokens are drawn
      until fewer are left than the longest sample has. So the tokens spent alone say whether a search goes on, and an
      interrupted search ends where it would have ended.
    - A time is that of drawing and scoring, over all sessions of a run. What comes before is reported beside it, as it
      is for every budget.
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
    """What a search may spend, and when it may stop before.

    Attributes:
        draws: rows that may be scored. With an allowance it is the number that is expected, which strategies plan by.
        allowance: what limits the draws in place of their number, such as tokens.
        until: stop as soon as this share of the best is estimated to be found; strategies then plan by
            `planned_draws`.
        watch: called with the estimated recall some 20 times in a budget.
    """

    draws: int
    allowance: Allowance | None = None
    until: float | None = None
    watch: Callable[[Recall], object] | None = None

    def within(self, n_rows: int) -> Budget:
        """Return this budget with at most ``n_rows`` draws."""
        return replace(self, draws=min(self.draws, n_rows))


def planned_draws(draws: int, n_rows: int, n_select: int, until: float | None) -> int:
    """Return how many draws strategies plan by: all; at most a fifth of the pool where a recall may end the search."""
    return draws if until is None else min(draws, max(n_rows // 5, n_select))


class Allowance(Protocol):
    """What may still be drawn."""

    def grant(self, rows: NDArray[np.int64]) -> int:
        """Return how many of ``rows``, the first ones, may be drawn; they count as drawn from now on."""

    def recorded(self, rows: NDArray[np.int64]) -> None:
        """Count ``rows`` that were drawn in an earlier session."""


class NothingLeft:
    """An allowance that grants nothing: the budget is already spent."""

    def grant(self, rows: NDArray[np.int64]) -> int:  # noqa: ARG002
        """Return 0."""
        return 0

    def recorded(self, rows: NDArray[np.int64]) -> None:
        """Do nothing."""


class TokenAllowance:
    """A number of tokens.

    Args:
        tokens: i64[N], of each sample.
        limit: how many may be drawn in all.
    """

    def __init__(self, tokens: NDArray[np.int64], limit: int) -> None:
        self._tokens = tokens
        self._left = limit
        self._longest = int(tokens.max())

    def grant(self, rows: NDArray[np.int64]) -> int:
        """Return how many of ``rows`` come before fewer tokens are left than the longest sample has."""
        before = np.concatenate([[0], np.cumsum(self._tokens[rows])])
        count = int(np.searchsorted(before[:-1], self._left - self._longest, side="right"))
        self._left -= int(before[count])
        return count

    def recorded(self, rows: NDArray[np.int64]) -> None:
        """Subtract the rows' tokens."""
        self._left -= int(self._tokens[rows].sum())


class TimeAllowance:
    """A time.

    Args:
        tokens: i64[N], of each sample.
        limit: seconds that are left.
        per_token: seconds that a token takes, until this session knows better.
        clock: tells the time in seconds.
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
        """Return how many of ``rows`` are expected to be scored in time."""
        now = self._clock()
        if self._drawn:
            self._per_token = (now - self._began) / self._drawn
        tokens = np.cumsum(self._tokens[rows])
        count = int(np.searchsorted(tokens * self._per_token, self._until - now, side="right"))
        self._drawn += int(tokens[count - 1]) if count else 0
        return count

    def recorded(self, rows: NDArray[np.int64]) -> None:
        """Do nothing: the limit already excludes the time of earlier sessions."""
