"""Play the engine's part in the suite of policies: ask, tell, draw a pool to its end, search.

All functions call the policy under the same global seed. A test that starts again takes a copy of the policy that was
never started. So a policy that uses global randomness, or that does not forget, fails only the test of that property.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine import Rules, Schedule, Selection, SideInformation, search
from clusterucb.engine.aggregate import PAPER
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError
from clusterucb.testing._checks import require, seeded
from clusterucb.testing._pools import UNEVEN, Memory, Rows, first_of_arms, pool_of, scores_of

_ASKED = (1, 4, len(UNEVEN) + 5)


def begin(policy: Policy, labels: Rows) -> tuple[PoolView, NDArray[np.float64]]:
    """Start a policy on a pool with these labels; return the pool and its recorded scores, f64[N, 2]."""
    pool = pool_of(labels, policy.columns)
    with seeded(0):
        policy.start(pool)
    return pool, scores_of(labels)


def ask(policy: Policy, n: int, available: NDArray[np.bool_], seed: int = 7) -> Rows:
    """Return a policy's answer to one ask; the policy gets a copy of ``available``."""
    with seeded(0):
        return policy.ask(n, available.copy(), np.random.default_rng(seed))


def tell(policy: Policy, rows: Rows, scores: NDArray[np.float64]) -> None:
    """Tell a policy the scores of ``rows``; ``scores`` f64[N, S] has the scores of all rows."""
    if len(rows):  # the engine never tells zero rows
        with seeded(0):
            policy.tell(rows.copy(), scores[rows].max(axis=1), scores[rows])


def left(pool: PoolView, drawn: Rows) -> NDArray[np.bool_]:
    """Return which rows are still available after ``drawn``, bool[N]."""
    available = np.ones(len(pool), np.bool_)
    available[drawn] = False
    return available


def tell_half(policy: Policy, pool: PoolView, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell the policy half of a pool, with all rows of arms of one or two rows; return what is available, bool[N]."""
    small = np.flatnonzero(np.bincount(pool.labels)[pool.labels] <= 2)
    others = np.setdiff1d(np.arange(len(pool)), small)
    drawn = np.concatenate([small, others[::2]])
    for at in range(0, len(drawn), 5):
        tell(policy, drawn[at : at + 5], scores)
    return left(pool, drawn)


def answers(policy: Policy) -> Iterator[tuple[int, NDArray[np.bool_], Rows]]:
    """Yield (n, available, rows): a policy's answers to asks in the middle of a search and near its end."""
    pool, scores = begin(policy, UNEVEN)
    available = tell_half(policy, pool, scores)
    rest = np.flatnonzero(available)[3:]
    for rows in (rest[:0], rest):
        tell(policy, rows, scores)
        available[rows] = False
        for n in _ASKED:
            yield n, available, ask(policy, n, available)


def flat(rows: Rows) -> Rows:
    """Return the numbers in an answer as i64, in one dimension, whatever its shape and type."""
    return np.asarray(rows).ravel().astype(np.int64)


def usable(rows: Rows, available: NDArray[np.bool_]) -> Rows:
    """Return the distinct rows of an answer that are available, whatever else is wrong with the answer."""
    valid = np.unique(flat(rows))
    valid = valid[(valid >= 0) & (valid < len(available))]
    return valid[available[valid]]


def require_whole_numbers(rows: Rows, asked: str) -> None:
    """Require that an answer is of an integer type; ``asked`` is the ask in words."""
    dtype = np.asarray(rows).dtype
    require(dtype.kind in "iu", f"{dtype} from {asked}", "int64", "Return rows.astype(np.int64)")


def require_some(rows: Rows, available: NDArray[np.bool_], where: str) -> None:
    """Require that an answer has a row that can be drawn; ``where`` says in which search or situation."""
    require(
        len(usable(rows, available)),
        f"{rows} {where}, with none of the {np.count_nonzero(available)} available rows",
        "rows that can be drawn",
        "An arm without available rows must lose against every other arm, whatever its rewards",
    )


def drain(
    policy: Policy,
    labels: Rows,
    scores: NDArray[np.float64],
    where: str,
    *,
    n_cold: int | None = None,
    fails: NDArray[np.bool_] | None = None,
) -> None:
    """Draw a pool to its end as the engine does, three rows at a time.

    Args:
        policy: the policy to ask.
        labels: the arm of each row, i64[N].
        scores: the score of each row and subtask, f64[N, S].
        where: the pool in words.
        n_cold: the number of arms from which one row is drawn before the policy is asked; all arms by default.
        fails: bool[N], the rows whose scoring fails, so that the policy is never told about them.
    """
    policy = copy.deepcopy(policy)
    pool, _ = begin(policy, labels)
    ok = np.ones(len(pool), np.bool_) if fails is None else ~fails
    drawn = first_of_arms(labels)[:n_cold]
    available = np.ones(len(pool), np.bool_)
    while True:
        available[drawn] = False
        tell(policy, drawn[ok[drawn]], scores)
        if not available.any():
            return
        rows = ask(policy, 3, available)
        require_some(rows, available, f"in {where}")
        drawn = usable(rows, available)


def budgets(policy: Policy) -> list[int]:
    """Return two budgets: half of the pool and all of it, or only the second if the policy refuses the first."""
    try:
        searched(policy, len(UNEVEN) // 2)
    except OptionError:
        return [len(UNEVEN)]
    except Exception:  # the search that follows will report it
        pass
    return [len(UNEVEN) // 2, len(UNEVEN)]


def searched(policy: Policy, budget: int, *, batch_size: int = 4, journal: Memory | None = None) -> Selection:
    """Search with a fresh copy of a policy, in a pool where the scoring of some rows fails."""
    pool = pool_of(UNEVEN, policy.columns)
    scores = scores_of(UNEVEN)
    scores[5::7] = np.nan
    score: Callable[[Rows], NDArray[np.float64]] = scores.__getitem__
    with seeded(0):
        return search(
            pool.features,
            score,
            clusterer=UNEVEN,
            policy=copy.deepcopy(policy),
            budget=budget,
            n_select=5,
            rules=Rules(rule=PAPER),  # rewards are told from the first draw on
            side=SideInformation(columns=pool.columns),
            schedule=Schedule(cold_start=0.1, batch_size=batch_size),
            journal=journal,
        )
