"""How clusters become arms, and how every arm is begun.

Decisions:
    - Rows are never dropped: noise becomes arms of its own, of about the median size.
    - Empty clusters do not exist: labels are renumbered without gaps.
    - Cold-start draws do not depend on rewards, and on the budget only by way of the default share. Their order
      is fixed beforehand (every arm once, then every arm that is owed a second draw, ...), so that a small budget
      cuts it short fairly, and with the same share an enlarged one goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.engine.aggregate import STANDARDIZED
from clusterucb.engine.blame import blamed
from clusterucb.engine.checks import check_whole
from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import ESTIMATES, PoolView
from clusterucb.errors import OptionError, PluginError, warn
from clusterucb.wording import counted

FEWEST_RANDOM = 10  # draws without which it is not said how much was found
_STREAMS = ("priority", "cluster", "noise", "cold start")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How draws are paced, and the seed of all randomness.

    Attributes:
        cold_start: share of every arm that is drawn first, max(floor(share * size), 1) rows, if the policy wants a cold
            start; by default a quarter of the budget's share of the pool.
        batch_size: rows drawn between two updates of the policy, more if it wants fewer `Policy.batches`. 1 is the
            paper's loop.
        seed: same seed, same result.

    Raises:
        OptionError: a value cannot be used.
    """

    cold_start: float | None = None
    batch_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size)
        if self.cold_start is not None and not 0 <= self.cold_start <= 1:
            raise OptionError(
                f"cold_start is {self.cold_start}; expected a share of each arm between 0 and 1"
            )
        seed: object = self.seed
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise OptionError(f"seed is {seed!r}; expected a whole number of at least 0")

    def size(self, policy: Policy, planned: int) -> int:
        """Return the rows of a batch for a policy that plans by so many draws."""
        return max(self.batch_size, -(-planned // policy.batches)) if policy.batches else self.batch_size


class ColdStart(NamedTuple):
    """The random draws that a search begins with.

    Attributes:
        rows: i64[m], in order.
        probability: f64[m], the inclusion probability of each.
    """

    rows: NDArray[np.int64]
    probability: NDArray[np.float64]


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of one purpose; those of the batches are ``default_rng([seed, batch])``."""
    return np.random.default_rng([seed, 0, 1 + _STREAMS.index(name)])


def make_arms(pool: PoolView, clusterer: Clusterer | ArrayLike | None, seed: int) -> NDArray[np.int64]:
    """Return the arm of each row, i64[N], 0..K-1 without gaps; noise becomes arms of median size."""
    if clusterer is None:
        return np.zeros(len(pool), np.int64)
    if isinstance(clusterer, Clusterer):
        labels = check_labels(
            clusterer, blamed(clusterer.fit_predict)(pool, stream(seed, "cluster")), len(pool)
        )
    else:
        labels = check_labels(clusterer, clusterer, len(pool))
    noise = np.flatnonzero(labels == -1)
    kept, inverse = np.unique(labels, return_inverse=True)
    labels = inverse.astype(np.int64)
    if not noise.size:
        return labels
    labels -= 1  # noise sorts first
    sizes = np.bincount(labels[labels >= 0], minlength=len(kept) - 1)
    size = float(np.median(sizes)) if len(sizes) else math.sqrt(len(noise))
    n_arms = max(round(len(noise) / size), 1)
    labels[stream(seed, "noise").permutation(noise)] = len(sizes) + np.arange(len(noise)) % n_arms
    return labels


def check_labels(clusterer: object, found: ArrayLike, n_rows: int) -> NDArray[np.int64]:
    """Return as i64[N] what a clusterer found, or labels that were given in its place.

    Raises:
        PluginError: a clusterer returned something else than a label from -1 for each row.
        OptionError: so are labels that were given.
    """
    from_class = isinstance(clusterer, Clusterer)
    fault = PluginError if from_class else OptionError
    name = f"{type(clusterer).__name__}.fit_predict" if from_class else "clusterer"
    labels = np.asarray(found)
    if labels.dtype.kind not in "iu" or labels.shape != (n_rows,):
        expected = f"an integer label for each of the {counted(n_rows, 'row')}"
        raise fault(
            f"{name}: got {labels.dtype} of shape {labels.shape} ({found!r:.80}); expected "
            f"{expected if from_class else f'a Clusterer object, None, or {expected}'}"
        )
    if labels.min() < -1:
        raise fault(f"{name}: got label {labels.min()}; expected 0 or more, or -1 for noise")
    return labels.astype(np.int64)


def is_guided(policy: Policy, prior: Iterable[str], aggregate: str) -> bool:
    """Return whether estimated scores guide the first draws; the random cold start can then be small.

    Args:
        policy: what draws.
        prior: names of the known blocks.
        aggregate: how scores become a reward; `standardized` is fitted to the random draws, which must not be few.
    """
    return policy.predicts and ESTIMATES in prior and aggregate != STANDARDIZED


def cold_start(pool: PoolView, policy: Policy, schedule: Schedule) -> ColdStart:
    """Return the random draws that a search begins with; none if nothing needs them."""
    if not policy.cold_start and pool.aggregate != STANDARDIZED:
        return ColdStart(np.zeros(0, np.int64), np.zeros(0))
    share, guided = schedule.cold_start, is_guided(policy, pool.prior, pool.aggregate)
    if share is None:
        share = default_cold_start(pool.budget, len(pool), guided=guided)
    arms = replace(pool, labels=np.zeros_like(pool.labels)) if guided else pool
    return cold_schedule(arms, share, schedule.seed)


def default_cold_start(budget: int, n_rows: int, *, guided: bool = False) -> float:
    """Return the share of every arm that is drawn first: a quarter of the budget's share of all rows.

    At a budget of 20 % it is the paper's 5 %. A fixed 5 % would leave a budget of 5 % nothing to decide about.

    Args:
        budget: draws.
        n_rows: N.
        guided: whether estimated scores guide the first draws. Then a tenth is enough, or as much more, up to a
            quarter, as an estimate of the recall needs.
    """
    share, enough = min(budget, n_rows) / n_rows, (FEWEST_RANDOM + 0.5) / n_rows
    if not guided:
        return share / 4
    return max(share / 10, enough if enough <= share / 4 else 0.0)


def cold_schedule(pool: PoolView, share: float, seed: int) -> ColdStart:
    """Return the cold-start draws in order.

    Every arm j is owed max(floor(share * size_j), 1) draws (the paper's rule), by priority within
    the arm. They come in rounds, the arms in random order: each arm's first draw before any
    arm's second.
    """
    sizes = np.bincount(pool.labels, minlength=pool.n_arms)
    exact = Fraction(str(float(share)))  # the decimal as written: .29 of 100 rows is 29, not 28
    owed = np.array([max(math.floor(exact * int(size)), 1) for size in sizes])
    if owed.sum() > pool.budget:
        short = "one draw of each arm" if pool.budget < len(sizes) else "the whole cold start"
        warn(
            f"the budget of {counted(pool.budget, 'draw')} is too small for {short} ({counted(len(sizes), 'arm')}, "
            f"{counted(int(owed.sum()), 'draw')} with cold_start={share}), so the policy has no say. Use fewer "
            "clusters, a smaller cold start or a larger budget"
        )
    by_priority = np.lexsort((pool.priority, pool.labels))
    arm = pool.labels[by_priority]
    begin = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    position = np.arange(len(pool)) - begin[arm]  # of each row within its arm
    order = stream(seed, "cold start").permutation(len(sizes))
    first = np.flatnonzero(position < owed[arm])
    first = first[np.lexsort((np.argsort(order)[arm[first]], position[first]))]
    return ColdStart(by_priority[first], (owed / sizes)[arm[first]])
