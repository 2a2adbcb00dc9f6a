"""Select among the scored samples: the best by one value, or by several in turn.

If several values rank the samples, such as the scores for several subtasks, each takes its best remaining sample in
turn. All get the same number of samples, or numbers in proportion to their weights (like seats to votes, by D'Hondt's
rule). A cap keeps one source of the pool from filling the selection.
"""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def choose(
    rows: NDArray[np.int64],
    values: NDArray[np.float64],
    n_select: int,
    *,
    groups: NDArray[np.generic] | None = None,
    cap: int | None = None,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Return the positions of the selected rows in ``rows``, i64[n_select] or fewer, best first.

    Args:
        rows: i64[m], the scored rows. The lower row wins a tie.
        values: f64[m, V]. Each column takes the row with its largest value that remains, in turn. A row with NaN failed
            and is never selected.
        n_select: the number of rows to select.
        groups: [m], each row's source. Needed with a cap.
        cap: the largest number of rows from one source.
        weights: f64[V], the relative number of turns of each column. By default, all have the same number.
    """
    import numpy as np

    from clusterucb.engine.large import largest

    good = np.flatnonzero(~np.isnan(values).any(axis=1))
    # without a cap, a column never gets beyond its first n_select rows: then so many are taken
    some = [good if cap else good[largest(one, n_select)] for one in values[good].T]
    orders = [
        iter(own[np.lexsort((rows[own], -one[own]))].tolist())
        for own, one in zip(some, values.T, strict=True)
    ]
    votes = [1.0] * len(orders) if weights is None else weights.tolist()
    seats = [0] * len(orders)
    # By votes / (seats + 1); the lower column wins a tie.
    turns = [(-own, turn) for turn, own in enumerate(votes)]
    heapify(turns)
    taken: list[int] = []
    count: Counter[object] = Counter()

    def admitted(position: int) -> bool:
        return position not in seen and not (cap and groups is not None and count[groups[position]] >= cap)

    seen: set[int] = set()
    while len(taken) < n_select and turns:
        _, turn = turns[0]
        position = next(filter(admitted, orders[turn]), None)
        if position is None:
            heappop(turns)
            continue
        seats[turn] += 1
        heapreplace(turns, (-votes[turn] / (seats[turn] + 1), turn))
        taken.append(position)
        seen.add(position)
        if groups is not None:
            count[groups[position]] += 1
    return np.array(taken, np.int64)
