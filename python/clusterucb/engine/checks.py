"""Check what strategies and score functions return before it is used."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.errors import OptionError, PluginError
from clusterucb.wording import counted


def check_whole(name: str, value: int) -> int:
    """Return a number of rows as an int.

    Args:
        name: what the error message calls the value.
        value: the number of rows.

    Raises:
        OptionError: the value is not a whole number of at least 1.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; expected a whole number of rows, at least 1")
    return count


def checked_rows(
    rows: ArrayLike, wanted: int, available: NDArray[np.bool_], policy: str
) -> NDArray[np.int64]:
    """Return the rows that a policy asks for, as i64[wanted].

    Raises:
        PluginError: the policy did not return ``wanted`` distinct rows with ``available[row]``.
    """
    expected = counted(wanted, "distinct available row")
    try:
        got = np.asarray(rows)
    except ValueError as error:
        raise PluginError(f"{policy}.ask returned {rows!r:.80}; expected {expected}") from error
    if got.dtype.kind not in "iu" or got.shape != (wanted,):
        raise PluginError(f"{policy}.ask returned {got.dtype} of shape {got.shape}; expected {expected}")
    if got.min() < 0 or got.max() >= len(available):
        raise PluginError(f"{policy}.ask returned rows outside 0..{len(available) - 1}; expected {expected}")
    if len(np.unique(got)) < wanted:
        raise PluginError(f"{policy}.ask returned a row twice; expected {expected}")
    if not available[got].all():
        raise PluginError(
            f"{policy}.ask returned row {got[~available[got]][0]}, already drawn; expected {expected}"
        )
    return got.astype(np.int64)


def checked_first(rows: ArrayLike | None, n_rows: int) -> NDArray[np.int64]:
    """Return the rows that are drawn before the policy chooses, as i64[m].

    Args:
        rows: the rows, as the caller gave them; None for none.
        n_rows: N.

    Raises:
        OptionError: they are not distinct rows of the pool.
    """
    got = np.zeros(0, np.int64) if rows is None else np.asarray(rows)
    inside = (
        got.dtype.kind in "iu" and got.ndim == 1 and (not len(got) or 0 <= got.min() <= got.max() < n_rows)
    )
    if not inside or len(np.unique(got)) < len(got):
        raise OptionError(
            f"first is {got.dtype} of shape {got.shape}; expected distinct rows of 0..{n_rows - 1}, as a list"
        )
    return got.astype(np.int64)


def checked_scores(scores: ArrayLike, n_rows: int, n_subtasks: int | None) -> NDArray[np.float64]:
    """Return scores as f64[m, S]. A row with any NaN or infinity counts as failed and becomes NaN throughout.

    Args:
        scores: [m] or [m, S], what the score function returned.
        n_rows: m.
        n_subtasks: S, or None if it is not known yet.

    Raises:
        OptionError: the scores have another shape.
    """
    got = np.array(scores, dtype=np.float64) + 0.0  # turns -0.0 into 0.0, because SQLite would drop the sign
    matrix = got[:, None] if got.ndim == 1 else got
    if (
        matrix.ndim != 2
        or len(matrix) != n_rows
        or n_subtasks not in (None, matrix.shape[1])
        or not matrix.shape[1]
    ):
        subtasks = "S" if n_subtasks is None else n_subtasks
        raise OptionError(f"score returned shape {got.shape}; expected [{n_rows}] or [{n_rows}, {subtasks}]")
    matrix[~np.isfinite(matrix).all(axis=1)] = np.nan
    return matrix
