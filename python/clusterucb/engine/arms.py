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
import warnings
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.engine.blame import blamed
from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import ClusterUCBWarning, OptionError, PluginError
from clusterucb.wording import counted

FEWEST_RANDOM = 10  # draws without which it is not said how much was found
_STREAMS = ("priority", "cluster", "noise", "cold start")


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


def default_cold_start(budget: int, n_rows: int, *, told: bool = False) -> float:
    """Return the share of every arm that is drawn first: a quarter of the budget's share of all rows.

    At a budget of 20 % it is the paper's 5 %. A fixed 5 % would leave a budget of 5 % nothing to decide about.

    Args:
        budget: draws.
        n_rows: N.
        told: whether estimates tell where to begin; then it is a tenth, for what they do not tell, or as much more, up
            to a quarter, as an estimate of the recall needs.
    """
    share, enough = min(budget, n_rows) / n_rows, (FEWEST_RANDOM + 0.5) / n_rows
    if not told:
        return share / 4
    return max(share / 10, enough if enough <= share / 4 else 0.0)


def cold_schedule(
    pool: PoolView, share: float | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the cold-start draws in order, i64[m], and the inclusion probability of each, f64[m].

    Every arm j is owed max(floor(share * size_j), 1) draws (the paper's rule), by priority within
    the arm. They come in rounds, the arms in random order: each arm's first draw before any
    arm's second.
    """
    if share is None:
        return np.zeros(0, np.int64), np.zeros(0)
    sizes = np.bincount(pool.labels, minlength=pool.n_arms)
    exact = Fraction(str(float(share)))  # the decimal as written: .29 of 100 rows is 29, not 28
    owed = np.array([max(math.floor(exact * int(size)), 1) for size in sizes])
    if owed.sum() > pool.budget:
        short = "one draw of each arm" if pool.budget < len(sizes) else "the whole cold start"
        warnings.warn(
            f"the budget of {counted(pool.budget, 'draw')} is too small for {short} ({counted(len(sizes), 'arm')}, "
            f"{counted(int(owed.sum()), 'draw')} with cold_start={share}), so the policy has no say. Use fewer "
            "clusters, a smaller cold start or a larger budget",
            ClusterUCBWarning,
            stacklevel=4,
        )
    by_priority = np.lexsort((pool.priority, pool.labels))
    arm = pool.labels[by_priority]
    begin = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    position = np.arange(len(pool)) - begin[arm]  # of each row within its arm
    order = stream(seed, "cold start").permutation(len(sizes))
    first = np.flatnonzero(position < owed[arm])
    first = first[np.lexsort((np.argsort(order)[arm[first]], position[first]))]
    return by_priority[first], (owed / sizes)[arm[first]]
