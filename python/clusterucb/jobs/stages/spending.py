"""How a budget of draws is spent: what may be drawn, and what a person sees of it, in the budget's own unit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.budget import Allowance, TimeAllowance, TokenAllowance
from clusterucb.options.amounts import Seconds, Tokens
from clusterucb.progress import Advance, Observer
from clusterucb.run.folder import PhaseCost, Run


class Spending:
    """A budget while it is spent.

    Args:
        allowance: what may be drawn where the budget is no number of draws.
        unit: ``draws``, ``tokens`` or ``seconds``.
        left: how many of them there are.

    Attributes:
        allowance: as given.
        count: told how many are spent.
        note: what else there is to see.
    """

    def __init__(self, allowance: Allowance | None, unit: str, left: int) -> None:
        self.allowance = allowance
        self.count: Advance = lambda _: None
        self.note = ""
        self._unit = unit
        self._left = left
        self._began = time.monotonic()
        self._tokens = 0.0  # of what was scored so far
        self._mean = 0.0  # tokens of a sample that is scored now
        self._told = 0

    def scoring(self, tokens: NDArray[np.int64]) -> None:
        """Take note that samples of so many tokens, i64[m], are scored next."""
        self._mean = float(tokens.mean())

    def advance(self, n: int) -> None:
        """Tell that ``n`` more samples are scored."""
        self._tokens += n * self._mean
        if self._unit == "draws":
            self.count(n)
            return
        spent = self._tokens if self._unit == "tokens" else time.monotonic() - self._began
        if (now := min(round(spent), self._left)) > self._told:
            self.count(now - self._told)
            self._told = now


@contextmanager
def spending(
    run: Run,
    observer: Observer,
    lengths: NDArray[np.int64],
    limit: Tokens | Seconds | None,
    budget: int,
    done: tuple[int, int],
) -> Iterator[Spending]:
    """Time the draws that the block makes, and show how much of the budget is spent.

    Args:
        run: the run; its manifest knows the time of earlier sessions, and that of a token.
        observer: who is told.
        lengths: i64[N], tokens of each sample.
        limit: the budget where it is no number of draws.
        budget: draws, or how many are expected.
        done: draws that are recorded, and their tokens.
    """
    allowance: Allowance | None = None
    total, before, unit = budget, done[0], "draws"
    if isinstance(limit, Tokens):
        allowance = TokenAllowance(lengths, limit.most)
        total, before, unit = limit.most, done[1], "tokens"
    elif isinstance(limit, Seconds):
        assert run.manifest.seconds_per_token is not None
        before_now = run.manifest.cost.phases.get("draws", PhaseCost()).seconds
        allowance = TimeAllowance(lengths, limit.most - before_now, run.manifest.seconds_per_token)
        total, before, unit = round(limit.most), round(before_now), "seconds"
    before = min(before, total)
    spent = Spending(allowance, unit, total - before)
    with (
        observer.count("Scoring", total, done=before, unit=unit, note=lambda: spent.note) as spent.count,
        run.phase("draws"),
    ):
        yield spent
