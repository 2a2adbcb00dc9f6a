"""Select among the scored samples: the best by reward, or each subtask's best in turn.

One subtask often has larger scores than the others and would fill the selection alone. `round-robin` gives every
subtask the same number of samples, or numbers in proportion to the weights (like seats to votes, by D'Hondt's rule). A
cap keeps one source of the pool from filling the selection.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SELECT_BY = ("top", "round-robin")


def choose(
    rows: NDArray[np.int64],
    rewards: NDArray[np.float64],
    scores: NDArray[np.float64],
    n_select: int,
    *,
    by: str = "top",
    groups: NDArray[np.generic] | None = None,
    cap: int | None = None,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Return the positions of the selected rows in ``rows``, i64[n_select] or fewer, best first.

    Args:
        rows: i64[m], the scored rows. The lower row wins a tie.
        rewards: f64[m]. A row with NaN failed and is never selected.
        scores: f64[m, S], a score for each subtask.
        n_select: the number of rows to select.
        by: ``top`` takes the largest rewards. ``round-robin`` takes each subtask's largest remaining score in turn.
        groups: [m], each row's source. Needed with a cap.
        cap: the largest number of rows from one source.
        weights: f64[S], the relative number of turns of each subtask. By default, all subtasks have the same number.
            They have no effect on ``top``, because the rewards include them already.
    """
    import numpy as np

    good = np.flatnonzero(~np.isnan(rewards))
    ranked = [rewards] if by == "top" else list(scores.T)
    orders = [iter(good[np.lexsort((rows[good], -values[good]))].tolist()) for values in ranked]
    votes = np.ones(len(orders)) if weights is None or by == "top" else weights.copy()
    seats = np.zeros(len(orders))
    taken: list[int] = []
    count: Counter[object] = Counter()

    def admitted(position: int) -> bool:
        return position not in seen and not (cap and groups is not None and count[groups[position]] >= cap)

    seen: set[int] = set()
    while len(taken) < n_select and votes.any():
        turn = int(np.argmax(votes / (seats + 1)))
        position = next(filter(admitted, orders[turn]), None)
        if position is None:
            votes[turn] = 0
            continue
        seats[turn] += 1
        taken.append(position)
        seen.add(position)
        if groups is not None:
            count[groups[position]] += 1
    return np.array(taken, np.int64)
