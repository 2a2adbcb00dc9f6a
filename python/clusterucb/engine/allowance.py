"""What limits draws beside their number: tokens, or time.

Decisions:
    - A search is told how many draws are expected, since strategies plan by it, and goes on as long as it may.
    - Nothing is overdrawn. A sample is expected to take the time that its tokens have taken so far. Tokens are drawn
      until fewer are left than the longest sample has, so that what was spent alone says whether a search goes on: one
      that was interrupted then ends where it would have ended.
    - A time is that of drawing and scoring, over all sessions of a run: what comes before is reported beside it, as it
      is of every budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Allowance(Protocol):
    """What may still be drawn."""

    def grant(self, rows: NDArray[np.int64]) -> int:
        """Return how many of ``rows``, the first ones, may be drawn; they count as drawn from now on."""

    def recorded(self, rows: NDArray[np.int64]) -> None:
        """Take note that ``rows`` were drawn in an earlier session."""


class NothingLeft:
    """Of a budget that is spent."""

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
        """Nothing: what they took is not left."""
