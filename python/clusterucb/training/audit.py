"""Ask whether the ranking of an earlier round still holds, with a tenth of a round's budget.

An audit computes the scores of some rows anew: at random, half from the rows that the earlier round selected, half from
the others that it scored. By the old scores and by the new ones, the rule selects half of them. The recall of the
audit is the share of rows that both select; two rankings that have nothing to do with each other have a recall of a
half. Rows are compared by exact scores alone, so no prediction enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.policy import Policy
from clusterucb.engine.rules import Rules

SHARE = 10  # one in so many gradients of a round's budget is spent on the audit
FEWEST = 20  # rows of an audit; a smaller one says too little, so the round selects without it
HOLDS = 0.8  # the smallest recall at which the rows of the earlier round stay


@dataclass
class These(Policy):
    """Draws given rows.

    Attributes:
        rows: the rows, in the order of their draws.
    """

    rows: tuple[int, ...]

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        """Return the next n rows that are available."""
        rows = np.array(self.rows, np.int64)
        return rows[available[rows]][:n]


def rows_of_audit(
    selected: Sequence[int], scored: Sequence[int], budget: int, seed: int
) -> NDArray[np.int64]:
    """Return the rows of an audit, i64[n]; none if it would be too small.

    Args:
        selected: the rows that the earlier round selected.
        scored: all rows that it scored.
        budget: the gradients of a round.
        seed: the seed of the choice.
    """
    others = sorted({*scored} - {*selected})
    n_half = min(budget // SHARE // 2, len(selected), len(others))
    if 2 * n_half < FEWEST:
        return np.zeros(0, np.int64)
    rng = np.random.default_rng([seed, SHARE])
    halves = [rng.choice(np.array(rows), n_half, replace=False) for rows in (selected, others)]
    return np.concatenate(halves)


def recall(old: NDArray[np.float64], new: NDArray[np.float64], rules: Rules) -> float:
    """Return the share of the rows that the rule selects by old scores among those that it selects by new ones.

    Args:
        old, new: f64[m, S], the scores of the same rows, of which half are selected.
        rules: the rules of the selection.
    """
    n_select = max(len(old) // 2, 1)
    by_old, by_new = (
        rules.choose(np.arange(len(scores)), scores, rules.wanted(scores, n_select)(scores), n_select, None)
        for scores in (old, new)
    )
    return len({*by_old.tolist()} & {*by_new.tolist()}) / max(len(by_new), 1)
