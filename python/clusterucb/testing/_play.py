"""How the suite of policies plays the engine: asks, tells, draws a pool to its end, searches.

Everything is done under the same global seed and, where a test begins anew, with a copy of the policy that was never
started: a policy with global randomness, or one that does not forget, fails the test of just that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine import Schedule, Selection, SideInformation, search
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError
from clusterucb.testing._checks import require, seeded
from clusterucb.testing._pools import UNEVEN, Memory, Rows, first_of_arms, pool_of, scores_of

_ASKED = (1, 4, len(UNEVEN) + 5)


def begin(policy: Policy, labels: Rows) -> tuple[PoolView, NDArray[np.float64]]:
    """Start a policy with a pool; return the pool and its recorded scores, f64[N, 2]."""
    pool = pool_of(labels, policy.columns)
    with seeded(0):
        policy.start(pool)
    return pool, scores_of(labels)


def ask(policy: Policy, n: int, available: NDArray[np.bool_], seed: int = 7) -> Rows:
    """Return what a policy answers; it gets a copy of ``available``."""
    with seeded(0):
        return policy.ask(n, available.copy(), np.random.default_rng(seed))


def tell(policy: Policy, rows: Rows, scores: NDArray[np.float64]) -> None:
    """Tell a policy the scores f64[m, S] of some rows; ``scores`` has those of all."""
    if len(rows):  # the engine tells nothing where there is nothing to tell
        with seeded(0):
            policy.tell(rows.copy(), scores[rows].max(axis=1), scores[rows])


def left(pool: PoolView, drawn: Rows) -> NDArray[np.bool_]:
    """Return which rows are available when some are drawn, bool[N]."""
    available = np.ones(len(pool), np.bool_)
    available[drawn] = False
    return available


def told_half(policy: Policy, pool: PoolView, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell half of a pool and return what is available then; arms of one and two rows are at their end."""
    small = np.flatnonzero(np.bincount(pool.labels)[pool.labels] <= 2)
    others = np.setdiff1d(np.arange(len(pool)), small)
    drawn = np.concatenate([small, others[::2]])
    for at in range(0, len(drawn), 5):
        tell(policy, drawn[at : at + 5], scores)
    return left(pool, drawn)


def answers(policy: Policy) -> Iterator[tuple[int, NDArray[np.bool_], Rows]]:
    """Yield (n, available, rows): what a policy answers in the middle of a search and near its end."""
    pool, scores = begin(policy, UNEVEN)
    available = told_half(policy, pool, scores)
    rest = np.flatnonzero(available)[3:]
    for told in (rest[:0], rest):
        tell(policy, told, scores)
        available[told] = False
        for n in _ASKED:
            yield n, available, ask(policy, n, available)


def flat(rows: Rows) -> Rows:
    """Return the numbers in an answer whatever its shape and type."""
    return np.asarray(rows).ravel().astype(np.int64)


def usable(rows: Rows, available: NDArray[np.bool_]) -> Rows:
    """Return what can be drawn of an answer, whatever else is wrong with it."""
    got = np.unique(flat(rows))
    got = got[(got >= 0) & (got < len(available))]
    return got[available[got]]


def require_whole_numbers(rows: Rows, asked: str) -> None:
    """Require that an answer can be used as indices; ``asked`` says what was asked."""
    dtype = np.asarray(rows).dtype
    require(dtype.kind in "iu", f"{dtype} from {asked}", "int64", "Return rows.astype(np.int64)")


def require_some(rows: Rows, available: NDArray[np.bool_], where: str) -> None:
    """Require that an answer takes a search forward; ``where`` says in which one."""
    require(
        len(usable(rows, available)),
        f"{rows} {where}: no row that is available, though {np.count_nonzero(available)} are",
        "rows that can be drawn",
        "An arm without rows left must lose against every other, whatever its rewards",
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
        policy: what is asked.
        labels: the arm of each row.
        scores: f64[N, S].
        where: the pool in words.
        n_cold: arms that are begun before the policy is asked; all by default.
        fails: bool[N], the rows that cannot be scored and so are never told.
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
    """Return half of the pool and all of it; only all of it for a policy that refuses less."""
    try:
        searched(policy, len(UNEVEN) // 2)
    except OptionError:
        return [len(UNEVEN)]
    except Exception:  # a fault that the search itself will show
        pass
    return [len(UNEVEN) // 2, len(UNEVEN)]


def searched(policy: Policy, budget: int, *, batch_size: int = 4, journal: Memory | None = None) -> Selection:
    """Search with a fresh copy of a policy, in a pool where some rows fail."""
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
            side=SideInformation(columns=pool.columns),
            schedule=Schedule(cold_start=0.1, batch_size=batch_size),
            journal=journal,
        )
