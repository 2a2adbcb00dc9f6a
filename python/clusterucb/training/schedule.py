"""When a training selects anew, and in which order it visits the selected samples.

Both are pure functions of the step, so a training that is resumed at any step goes on with the same samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Period:
    """The steps between two rounds of selection.

    Attributes:
        number: the number of the round before these steps; 0 before the first round.
        start: the first step.
    """

    number: int
    start: int


@dataclass(frozen=True)
class Schedule:
    """The steps at which a training selects anew.

    Attributes:
        warmup: the steps before the first round.
        every: the steps between two rounds.
    """

    warmup: int
    every: int

    def period(self, step: int) -> Period:
        """Return the period of a step, counted from 0."""
        if step < self.warmup:
            return Period(0, 0)
        n_whole = (step - self.warmup) // self.every
        return Period(n_whole + 1, self.warmup + n_whole * self.every)


def order(rows: NDArray[np.int64], start: int, count: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Return rows in the order of a training that visits all of them, shuffled, again and again.

    Args:
        rows: i64[n], the rows.
        start: the number of rows that the training has visited before.
        count: how many rows to return.
        seed: the seed of the order.

    Returns:
        i64[count].
    """
    found: list[NDArray[np.int64]] = []
    while count:
        turn, at = divmod(start, len(rows))
        some = np.random.default_rng([*seed, turn]).permutation(rows)[at : at + count]
        found.append(some)
        start, count = start + len(some), count - len(some)
    return np.concatenate(found)
