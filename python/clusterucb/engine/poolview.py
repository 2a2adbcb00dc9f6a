"""Give strategies a frozen, read-only view of a pool in canonical order.

Clusterers and policies see arrays, never files, models or text. A strategy then takes only a few lines of numpy, the
engine can replay it on recorded scores, and the order of lines and files does not matter: rows are already in canonical
order when the view is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.engine.components import joined
from clusterucb.engine.large import forget, in_parts, is_large
from clusterucb.engine.rules import Rules
from clusterucb.errors import OptionError
from clusterucb.wording import counted

_EXPONENT = np.uint16(0x7C00)  # the exponent of half-precision infinity and NaN
ESTIMATES = "estimates"  # the block of `PoolView.prior` that estimates the scores of this search, f32[N, S]


@dataclass(frozen=True, eq=False)
class PoolView:
    """The pool as strategies see it: N rows in canonical order, every array read-only.

    Attributes:
        features: named blocks of features, each f32[N, k]. In a large pool (`clusterucb.engine.large`), a block may be
            f16[N, k], mapped from a file: take some rows at a time, or `matrix`.
        labels: i64[N], the arm of each row, 0..K-1; all 0 before clustering.
        priority: f64[N], seeded random numbers. An arm's rows are drawn in rising order of priority.
        columns: named arrays [N] beside the features: ``source``, ``tokens``, ``label_tokens``, ...
        budget: the number of draws that may be spent, or the expected number; at most N.
        n_select: the number of rows to select, at most ``budget``.
        rules: how rows with scores for S subtasks are selected.
        prior: named blocks, each f32[N, k], that may correlate with the scores, such as the scores of an earlier run,
            for policies that predict (`clusterucb.jobs.stages.prior`). The block `ESTIMATES`, if present, holds
            estimates of the scores themselves.
    """

    features: Mapping[str, NDArray[np.floating]]
    labels: NDArray[np.int64]
    priority: NDArray[np.float64]
    columns: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    budget: int = 0
    n_select: int = 0
    rules: Rules = field(default_factory=Rules)
    prior: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        blocks = (*self.features.values(), *self.prior.values())
        for array in (*blocks, *self.columns.values(), self.labels, self.priority):
            array.flags.writeable = False

    def __len__(self) -> int:
        """Return N, the number of rows."""
        return len(self.labels)

    @property
    def n_arms(self) -> int:
        """K, the number of arms (labels are 0..K-1 without gaps)."""
        return int(self.labels.max()) + 1 if len(self) else 0

    def matrix(self) -> NDArray[np.float32]:
        """Return all feature blocks side by side, f32[N, sum of k].

        Each block is centred and scaled to unit mean row norm, so that no block outweighs another only because of its
        units. A block whose rows are all equal becomes zeros. In a large pool, each block is projected to its first 16
        principal components, and the sum of k is at most 16 a block: otherwise, the matrix would not fit into memory.
        """
        if self.features and is_large(len(self)):
            return joined(list(self.features.values()))
        blocks = []
        for block in self.features.values():
            centred = block - block.mean(axis=0, dtype=np.float64).astype(np.float32)
            scale = float(np.linalg.norm(centred, axis=1).mean(dtype=np.float64))
            blocks.append(centred / np.float32(scale) if scale > 0 else np.zeros_like(centred))
        return np.concatenate(blocks, axis=1) if blocks else np.zeros((len(self), 0), np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class SideInformation:
    """Information about the N rows of a pool beside their features.

    Attributes:
        columns: named arrays [N], for strategies that use more than the features.
        prior: f32[N, P], or named blocks of this shape: scores that may correlate with the new ones, such as the scores
            for another target. Policies that predict learn how strong the correlation is. With a block `ESTIMATES`
            f32[N, S], which estimates the new scores themselves, the cold start is smaller and drawn at random from the
            whole pool.
        first: rows i64[m], which are drawn after the cold start in this order, before the policy chooses. They take at
            most a quarter of the budget; the others are left to the policy. A uniform policy draws at random alone. By
            default, there are none.
    """

    columns: Mapping[str, ArrayLike] | None = None
    prior: ArrayLike | Mapping[str, ArrayLike] | None = None
    first: ArrayLike | None = None


def pool_view(
    features: ArrayLike | Mapping[str, ArrayLike],
    side: SideInformation,
    rules: Rules,
    *,
    priority: Callable[[int], NDArray[np.float64]],
) -> PoolView:
    """Return a pool with a single arm.

    Args:
        features: f32[N, k], or named blocks of this shape.
        side: information beside the features.
        rules: how scores become rewards.
        priority: a function of N that returns the random priorities f64[N].

    Raises:
        OptionError: an array has another shape, or a feature or prior is not finite.
    """
    blocks = feature_blocks(features)
    n_rows = len(next(iter(blocks.values())))
    return PoolView(
        features=blocks,
        labels=np.zeros(n_rows, np.int64),
        priority=priority(n_rows),
        columns=pool_columns(side.columns, n_rows),
        rules=rules,
        prior=_prior_blocks(side.prior, n_rows),
    )


def feature_blocks(
    features: ArrayLike | Mapping[str, ArrayLike], kind: str = "feature"
) -> dict[str, NDArray[Any]]:
    """Check a matrix [N, k] or named blocks of this shape, and return them as f32 blocks: copies, unless read-only.

    Read-only blocks f16[N, k] of a large pool stay as they are.

    Args:
        features: the matrix or the blocks.
        kind: what an error message calls them.

    Raises:
        OptionError: a block is no matrix or holds NaN or infinity, or the blocks have different numbers of rows, or
            there are no rows.
    """
    named = features if isinstance(features, Mapping) else {"features": features}
    blocks: dict[str, NDArray[Any]] = {}
    for name, values in named.items():
        block = _unchanging(values, np.float16 if _stays_half(values) else np.float32)
        if block.ndim != 2:
            raise OptionError(
                f"{kind} block {name!r} has shape {block.shape}; expected [N, k], a row for each sample"
            )
        bad = _not_finite(block)
        if bad.size:
            raise OptionError(
                f"{kind} block {name!r} holds NaN or infinity in {bad.size} rows (first: row {bad[0]}); "
                f"every {kind} must be finite"
            )
        blocks[name] = block
    sizes = {name: len(block) for name, block in blocks.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise OptionError(
            f"{kind} blocks have {sizes or 'no'} rows; expected one or more blocks of N >= 1 rows each"
        )
    return blocks


def pool_columns(columns: Mapping[str, ArrayLike] | None, n_rows: int) -> dict[str, NDArray[np.generic]]:
    """Check that every column has ``n_rows`` entries, and return the columns as arrays: copies, unless read-only.

    Raises:
        OptionError: a column has another shape.
    """
    checked = {name: _unchanging(values) for name, values in (columns or {}).items()}
    for name, values in checked.items():
        if values.shape != (n_rows,):
            raise OptionError(
                f"column {name!r} has shape {values.shape}; expected [{n_rows}], an entry for each row"
            )
    return checked


def numbered(column: NDArray[np.generic]) -> NDArray[np.int64]:
    """Number the distinct values of a column from 0 in sorted order, and return each row's number, i64[N]."""
    if column.dtype == object:  # one text for many rows: sorting all rows takes minutes in a pool of millions
        number_of = {value: number for number, value in enumerate(sorted(set(column)))}
        return np.fromiter(map(number_of.__getitem__, column), np.int64, len(column))
    if column.dtype.kind in "iu" and len(column):
        low = int(column.min())
        n_values = int(column.max()) - low + 1
        if n_values <= len(column):  # counting takes less time than sorting
            places = column - low if low else column
            numbers: NDArray[np.int64] = np.cumsum(np.bincount(places, minlength=n_values) > 0)
            numbers -= 1
            found: NDArray[np.int64] = numbers[places]
            return found
    return np.searchsorted(np.unique(column), column)


def _unchanging(values: ArrayLike, dtype: type[np.generic] | None = None) -> NDArray[Any]:
    """Return values as an array that the caller cannot change: a read-only array as it is, others as a copy."""
    shared = isinstance(values, np.ndarray) and not values.flags.writeable
    return (np.asarray if shared else np.array)(values, dtype=dtype, order="C")


def _stays_half(values: object) -> bool:
    """Return whether values are the read-only half-precision features of a large pool."""
    return (
        isinstance(values, np.ndarray)
        and values.dtype == np.float16
        and not values.flags.writeable
        and is_large(len(values))
    )


def _not_finite(block: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the rows of a block [N, k] that hold NaN or infinity, i64[m]."""
    bad = np.zeros(len(block), np.bool_)

    def one(here: slice) -> None:
        some = block[here]
        # As whole numbers, half precision takes a tenth of the time.
        if some.dtype == np.float16 and some.flags.c_contiguous:
            exponents = some.view(np.uint16) & _EXPONENT
            if exponents.max(initial=0) < _EXPONENT:
                forget(block, here)
                return
        bad[here] = ~np.isfinite(some).all(axis=1)
        forget(block, here)

    in_parts(one, len(block))
    return np.flatnonzero(bad)


def _prior_blocks(prior: ArrayLike | Mapping[str, ArrayLike] | None, n_rows: int) -> dict[str, NDArray[Any]]:
    named = prior if isinstance(prior, Mapping) else {} if prior is None else {"scores": prior}
    blocks = feature_blocks(named, "prior") if named else {}
    for name, block in blocks.items():
        if len(block) != n_rows:
            raise OptionError(
                f"prior {name!r} has {counted(len(block), 'row')}; expected {n_rows:,}, one for each sample"
            )
    return blocks


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows [m, k] scaled to unit length; rows of zeros stay zeros."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit
