"""Which of the scored samples are selected: the best by reward, or each subtask's own best in turn.

One subtask often has larger scores than the others and would fill the selection alone; `round-robin` gives every
subtask the same number of samples, or numbers in proportion to weights (as seats to votes, by D'Hondt's rule). A cap
keeps one source of the pool from filling it.
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
    """Return the positions of the selected rows, i64[n_select] or fewer, best first.

    Args:
        rows: i64[m], scored rows; the lower row wins a tie.
        rewards: f64[m], NaN where scoring failed: never selected.
        scores: f64[m, S], a score for each subtask.
        n_select: how many to select.
        by: ``top`` takes the largest rewards; ``round-robin`` each subtask's largest score that is left, in turn.
        groups: [m], each row's source; needed with a cap.
        cap: most rows of one source.
        weights: f64[S], how often a subtask's turn comes, beside the others; all the same by default. Of no effect on
            ``top``: rewards have them already.
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
