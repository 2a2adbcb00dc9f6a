"""Make arms from clusters and schedule the cold-start draws of every arm.

Decisions:
    - Rows are never dropped. Noise is split into arms of about the median size.
    - There are no empty arms: labels are renumbered without gaps.
    - Cold-start draws do not depend on rewards. They depend on the budget only through the default share. Their order
      is fixed beforehand (every arm once, then every arm that is owed a second draw, ...), so a budget that is too
      small treats all arms alike, and a larger budget with the same share continues where the smaller one stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.engine.blame import blamed
from clusterucb.engine.checks import check_whole
from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.large import by_arm
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import ESTIMATES, PoolView, numbered
from clusterucb.errors import OptionError, PluginError, warn
from clusterucb.wording import counted

FEWEST_RANDOM = 10  # the fewest random draws from which the recall is estimated
_STREAMS = ("priority", "cluster", "noise", "cold start")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The size of the cold start and of the batches, and the seed of all randomness.

    Attributes:
        cold_start: the share of every arm that is drawn first, max(floor(share * size), 1) rows, if the policy wants a
            cold start. By default, a quarter of the budget's share of the pool.
        batch_size: the rows drawn between two updates of the policy. A policy that limits its number of batches
            (`Policy.batches`) may get larger ones. 1 is the paper's loop.
        seed: the same seed gives the same result.

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
        """Return the number of rows in a batch, for a policy that plans by ``planned`` draws."""
        return max(self.batch_size, -(-planned // policy.batches)) if policy.batches else self.batch_size


class ColdStart(NamedTuple):
    """The random draws that a search begins with.

    Attributes:
        rows: i64[m], the rows in the order of their draws.
        probability: f64[m], the inclusion probability of each row.
    """

    rows: NDArray[np.int64]
    probability: NDArray[np.float64]


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the random generator for one purpose. Batches use ``default_rng([seed, batch])`` instead."""
    return np.random.default_rng([seed, 0, 1 + _STREAMS.index(name)])


def make_arms(pool: PoolView, clusterer: Clusterer | ArrayLike | None, seed: int) -> NDArray[np.int64]:
    """Return the arm of each row, i64[N], 0..K-1 without gaps. Noise is split into arms of about the median size."""
    if clusterer is None:
        return np.zeros(len(pool), np.int64)
    if isinstance(clusterer, Clusterer):
        labels = check_labels(
            clusterer, blamed(clusterer.fit_predict)(pool, stream(seed, "cluster")), len(pool)
        )
    else:
        labels = check_labels(clusterer, clusterer, len(pool))
    noise = np.flatnonzero(labels == -1)
    labels = numbered(labels)
    if not noise.size:
        return labels
    labels -= 1  # noise sorts first
    sizes = np.bincount(labels[labels >= 0])
    size = float(np.median(sizes)) if len(sizes) else math.sqrt(len(noise))
    n_arms = max(round(len(noise) / size), 1)
    labels[stream(seed, "noise").permutation(noise)] = len(sizes) + np.arange(len(noise)) % n_arms
    return labels


def check_labels(clusterer: object, found: ArrayLike, n_rows: int) -> NDArray[np.int64]:
    """Return a clusterer's labels, or the labels that the caller gave instead of a clusterer, as i64[N].

    Raises:
        PluginError: a clusterer did not return an integer label of at least -1 for each row.
        OptionError: the caller's labels are not an integer of at least -1 for each row.
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
    return labels.astype(np.int64, copy=False)


def is_guided(policy: Policy, prior: Iterable[str]) -> bool:
    """Return whether estimated scores guide the first draws; the random cold start can then be small.

    Args:
        policy: the policy of the search.
        prior: the names of the prior's blocks.
    """
    return policy.predicts and ESTIMATES in prior


def guide(pool: PoolView, policy: Policy) -> NDArray[np.float32] | None:
    """Return the estimated scores f32[N, S] that guide the first draws, or None."""
    return pool.prior[ESTIMATES] if is_guided(policy, pool.prior) else None


def cold_start(pool: PoolView, policy: Policy, schedule: Schedule) -> ColdStart:
    """Return the random draws that a search begins with. There are none if the policy wants none."""
    if not policy.cold_start:
        return ColdStart(np.zeros(0, np.int64), np.zeros(0))
    share, guided = schedule.cold_start, is_guided(policy, pool.prior)
    if share is None:
        share = default_cold_start(pool.budget, len(pool), guided=guided)
    arms = replace(pool, labels=np.zeros_like(pool.labels)) if guided else pool
    return cold_schedule(arms, share, schedule.seed)


def default_cold_start(budget: int, n_rows: int, *, guided: bool = False) -> float:
    """Return the share of every arm that is drawn first: a quarter of the budget's share of all rows.

    At a budget of 20 %, this is the paper's 5 %. A fixed 5 % would use up a budget of 5 %, so that the policy would
    decide nothing.

    Args:
        budget: the number of draws.
        n_rows: N.
        guided: whether estimated scores guide the first draws. A tenth is then enough. If a tenth is too little for a
            recall estimate, the share is what that estimate needs, unless that is more than a quarter.
    """
    share, enough = min(budget, n_rows) / n_rows, (FEWEST_RANDOM + 0.5) / n_rows
    if not guided:
        return share / 4
    return max(share / 10, enough if enough <= share / 4 else 0.0)


def cold_schedule(pool: PoolView, share: float, seed: int) -> ColdStart:
    """Return the cold-start draws in order.

    Every arm j gets max(floor(share * size_j), 1) draws (the paper's rule), in order of priority within the arm. The
    draws are made in rounds, with the arms in random order: every arm's first draw comes before any arm's second.
    """
    sizes = np.bincount(pool.labels, minlength=pool.n_arms)
    exact = Fraction(str(float(share)))  # the decimal as written: .29 of 100 rows is 29, not 28
    owed = np.array([max(math.floor(exact * int(size)), 1) for size in sizes])
    if owed.sum() > pool.budget:
        short = "one draw of each arm" if pool.budget < len(sizes) else "the whole cold start"
        warn(
            f"the budget of {counted(pool.budget, 'draw')} is too small for {short} ({counted(len(sizes), 'arm')}, "
            f"{counted(int(owed.sum()), 'draw')} with cold_start={share}), so the policy chooses nothing. Use fewer "
            "clusters, a smaller cold start or a larger budget"
        )
    arm = np.repeat(np.arange(len(sizes)), owed)  # of each draw, arm by arm
    rank = np.arange(len(arm)) - np.repeat(np.cumsum(owed) - owed, owed)  # of each draw within its arm
    by_priority = by_arm(pool.labels, pool.priority)
    rows = by_priority[(np.cumsum(sizes) - sizes)[arm] + rank]
    order = stream(seed, "cold start").permutation(len(sizes))
    in_rounds = np.lexsort((np.argsort(order)[arm], rank))
    return ColdStart(rows[in_rounds], (owed / sizes)[arm[in_rounds]])
