"""Define a cell of a trial: one training and what was measured in it."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

BATCH = 8  # samples in a step

Rows = NDArray[np.int64]


class Cell(msgspec.Struct):
    """The measurements of one training.

    Attributes:
        steps: the numbers of steps after which the judges were measured.
        losses: for each subtask, the loss of each judge at each measurement, [measurements][judges].
        elsewhere: the loss of each of the random pool samples at the end.
        samples: the number of samples in all steps.
        tokens: the number of their tokens.
        seconds: the time of the training, without the measurements.
    """

    steps: list[int]
    losses: dict[str, list[list[float]]]
    elsewhere: list[float]
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0


def order_of(rows: Rows, n_draws: int, rng: np.random.Generator) -> Rows:
    """Return the rows of a training in order, i64[n_draws]: one random permutation of ``rows`` after another."""
    rounds = -(-n_draws // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:n_draws]
