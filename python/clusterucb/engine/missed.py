"""Estimate how many undrawn rows are among the best, and which, from predictions and residuals.

An undrawn row's value is taken to be its prediction plus the residual of a draw with a similar prediction
(`clusterucb.engine.recall`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_NEIGHBOURS = 20  # the fewest draws whose residuals are used for a row
_AROUND = 0.1  # in deviations of the residuals: all draws with predictions this near count as neighbours
_RESIDUALS = 2048  # the most draws whose residuals are used
_PARTS = 256  # parts of the undrawn rows, in order of prediction; the rows of a part have the same neighbours

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class Predicted(NamedTuple):
    """Predictions for drawn and undrawn rows, in one column (f64[m]) or several (f64[m, S]).

    Attributes:
        at: the positions among the draws of the m drawn rows that are predicted.
        left_out: the predictions of these rows from all other draws.
        rows: i64[u], the undrawn rows that are predicted: all, or evenly spaced ones.
        undrawn: the predictions of these rows.
        n_undrawn: the number of undrawn rows.
    """

    at: Rows | slice
    left_out: Floats
    rows: Rows
    undrawn: Floats
    n_undrawn: int


class Missed:
    """Estimates by regression how many undrawn rows have at least a given value.

    Args:
        values: f64[m], the values of the predicted draws.
        predicted: the predictions of one column.
        used: which of the predicted draws' residuals are used.
    """

    def __init__(self, values: Floats, predicted: Predicted, used: slice | NDArray[np.bool_]) -> None:
        values, left_out, undrawn = values[used], predicted.left_out[used], predicted.undrawn
        # Undrawn rows that a predicted one stands for.
        self._each = predicted.n_undrawn / max(len(undrawn), 1)
        order = np.argsort(left_out, kind="stable")[:: -(-len(left_out) // _RESIDUALS)]
        expected, self._surprises = left_out[order], (values - left_out)[order]
        self._order = np.argsort(undrawn, kind="stable")
        self._predicted = undrawn[self._order]
        bounds = np.linspace(0, len(undrawn), min(_PARTS, len(undrawn)) + 1).astype(np.int64)
        middle = self._predicted[(bounds[:-1] + bounds[1:]) // 2]
        least = min(_NEIGHBOURS, len(order))
        place = (np.searchsorted(expected, middle) - least // 2).clip(0, len(order) - least)
        around = _AROUND * self._surprises.std()
        first = np.minimum(place, np.searchsorted(expected, middle - around))
        last = np.maximum(place + least, np.searchsorted(expected, middle + around, side="right"))
        # a pair for each part and each of its neighbours: the residual, the part's end and size, and the number of
        # its neighbours
        n_around = last - first
        ends = zip(first.tolist(), last.tolist(), strict=True)
        self._parts = list(
            zip(*(ends.tolist() for ends in (bounds[:-1], bounds[1:], first, last)), strict=True)
        )
        self._residual = np.concatenate([np.arange(0), *(np.arange(*pair) for pair in ends)])
        self._end, self._size, self._n_around = (
            np.repeat(of_part, n_around) for of_part in (bounds[1:], np.diff(bounds), n_around)
        )

    def __call__(self, least: float) -> float:
        """Return how many undrawn rows have a value of at least ``least``."""
        return float(self.lifted(least).sum())

    def lifted(self, least: float) -> Floats:
        """Return the number of undrawn rows that each residual lifts to ``least``, f64[m].

        The residuals are in the order of their leave-one-out predictions. The sum of the numbers is the estimated
        number of undrawn rows with a value of at least ``least``.
        """
        reach = np.searchsorted(self._predicted, least - self._surprises)  # the first row that is lifted
        reached = np.minimum(np.maximum(self._end - reach[self._residual], 0), self._size)
        shares: Floats = reached / self._n_around
        lifted: Floats = np.bincount(self._residual, shares, minlength=len(reach)).astype(
            np.float64, copy=False
        )
        return lifted * self._each

    def by_row(self, least: float) -> Floats:
        """Return for each predicted row how many rows with a value of at least ``least`` it stands for, f64[u].

        In a pool whose undrawn rows are all predicted, this is the probability that the row's value is so large.
        """
        chance = np.zeros(len(self._predicted))
        for begin, end, first, last in self._parts:
            enough = np.sort(least - self._surprises[first:last])
            reached = np.searchsorted(enough, self._predicted[begin:end], side="right")
            chance[self._order[begin:end]] = reached / (last - first)
        return chance * self._each
