"""Make small pools for the suites from fixed seeds, in every shape that a real pool can have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.draws import Batch
from clusterucb.engine.poolview import PoolView

Rows = NDArray[np.int64]

UNEVEN = np.random.default_rng(0).permutation(np.repeat(np.arange(6), [1, 2, 4, 8, 12, 3]))
ONE_ARM = np.zeros(8, np.int64)
SINGLETONS = np.arange(9)
ONE_ROW = np.zeros(1, np.int64)


def pool_of(labels: Sequence[int] | Rows, wanted: Iterable[str] = ()) -> PoolView:
    """Return a pool with these labels, and with a budget of all its rows.

    Args:
        labels: the arm of each row, 0..K-1 without gaps.
        wanted: columns that the pool needs beside the usual ones; only ``similarity`` exists.
    """
    arms = np.array(labels, np.int64)
    rng = np.random.default_rng(1)
    features = {
        "embedding": rng.normal(size=(len(arms), 4)).astype(np.float32),
        "length": rng.normal(size=(len(arms), 2)).astype(np.float32),
    }
    columns = columns_of(arms, wanted)
    return PoolView(
        features, arms, rng.random(len(arms)), columns, budget=len(arms), n_select=-(-len(arms) // 10)
    )


def columns_of(labels: Rows, wanted: Iterable[str] = ()) -> dict[str, NDArray[np.generic]]:
    """Return the columns [N] that every pool has, and ``similarity`` if it is wanted."""
    rng = np.random.default_rng(2)
    columns: dict[str, NDArray[np.generic]] = {
        "source": np.array([f"source {label}" for label in labels]),
        "tokens": rng.permutation(np.arange(20, 20 + len(labels))),
        "label_tokens": rng.integers(1, 20, len(labels)),
    }
    if "similarity" in wanted:
        columns["similarity"] = rng.uniform(-1, 1, len(labels))
    return columns


def scores_of(labels: Rows) -> NDArray[np.float64]:
    """Return recorded scores for two subtasks, f64[N, 2]; some arms have higher scores than others."""
    rng = np.random.default_rng(3)
    return np.asarray(labels)[:, None] / 10 + rng.normal(scale=0.2, size=(len(labels), 2))


def first_of_arms(labels: Rows) -> Rows:
    """Return one row of each arm."""
    return np.unique(labels, return_index=True)[1].astype(np.int64)


def blobs() -> PoolView:
    """Return 40 rows in two clusters; all rows of a cluster are equal.

    If they were not, k-means with more centres than clusters would cut a cluster in a way that depends on its seed.
    """
    labels = np.random.default_rng(4).permutation(np.repeat([0, 1], [25, 15]))
    centres = np.array([[1, 2, 0, -1], [-3, 0, 1, 2]], np.float32)
    columns: dict[str, NDArray[np.generic]] = {
        "source": np.array(["a", "b"])[labels],
        "tokens": np.array([12, 90])[labels],
        "label_tokens": np.array([3, 30])[labels],
    }
    return _unclustered({"embedding": centres[labels], "length": centres[labels][:, :2].copy()}, columns)


def spread() -> PoolView:
    """Return 20 rows with all distances and lengths different, so that a hierarchy or a quantile meets no tie."""
    order = np.random.default_rng(5).permutation(20)
    place = 1.3 ** order.astype(np.float64)
    features = {"embedding": np.stack([place, np.sqrt(place)], axis=1).astype(np.float32)}
    columns: dict[str, NDArray[np.generic]] = {
        "source": np.array(["a", "b", "c"])[order % 3],
        "tokens": 10 + 7 * order,
        "label_tokens": 1 + 3 * order,
    }
    return _unclustered(features, columns)


def identical(n_rows: int) -> PoolView:
    """Return rows that are equal in every feature and column."""
    columns: dict[str, NDArray[np.generic]] = {
        "source": np.full(n_rows, "a"),
        "tokens": np.full(n_rows, 9),
        "label_tokens": np.full(n_rows, 3),
    }
    return _unclustered({"embedding": np.ones((n_rows, 4), np.float32)}, columns)


def few(n_rows: int) -> PoolView:
    """Return a pool of a few rows, all different, with the label 0 that rows have before clustering."""
    pool = pool_of(np.arange(n_rows))
    return replace(pool, labels=np.zeros(n_rows, np.int64))


def permuted(pool: PoolView, order: NDArray[np.intp]) -> PoolView:
    """Return the same rows in another order."""
    return PoolView(
        {name: block[order] for name, block in pool.features.items()},
        pool.labels[order],
        pool.priority[order],
        {name: column[order] for name, column in pool.columns.items()},
        pool.budget,
        pool.n_select,
    )


def contents(pool: PoolView) -> dict[str, bytes]:
    """Return the bytes of every array in a pool, to compare them with the bytes at a later time."""
    named: dict[str, NDArray[np.generic]] = {"labels": pool.labels, "priority": pool.priority}
    named.update({f"feature {name}": block for name, block in pool.features.items()})
    named.update({f"column {name}": column for name, column in pool.columns.items()})
    return {name: array.tobytes() for name, array in named.items()}


def _unclustered(
    features: dict[str, NDArray[np.float32]], columns: dict[str, NDArray[np.generic]]
) -> PoolView:
    """Return a pool as it is before clustering: all labels are 0, and the budget is all rows."""
    n_rows = len(columns["tokens"])
    priority = np.random.default_rng(6).random(n_rows)
    return PoolView(
        features, np.zeros(n_rows, np.int64), priority, columns, budget=n_rows, n_select=-(-n_rows // 10)
    )


class Memory:
    """A journal in memory, which may begin with the operations that another journal recorded.

    Attributes:
        operations: the recorded operations in order: (False, batch) at its beginning, (True, batch) at its end.
    """

    def __init__(self, operations: Sequence[tuple[bool, Batch]] = ()) -> None:
        self._before = list(operations)
        self.operations = list(operations)

    def recorded(self) -> list[Batch]:
        """Return the batches of the earlier operations; a batch that was not finished has no scores."""
        finished = {batch.number: batch for done, batch in self._before if done}
        return [finished.get(batch.number, batch) for done, batch in self._before if not done]

    def begin(self, batch: Batch) -> None:
        """Record the beginning of a batch."""
        self.operations.append((False, batch))

    def finish(self, batch: Batch) -> None:
        """Record the end of a batch, with its scores."""
        self.operations.append((True, batch))
