"""Choose arms by Thompson sampling: draw from the arm that is best in one random sample from the posterior.

`Thompson` estimates what the selection needs: the probability that the next draw from an arm is among the rows to
select. `ThompsonMean` is the textbook method, on an arm's mean reward. But a selection does not take arms by their
mean: an arm of ordinary rows with a few excellent ones has a poor mean.

Decisions, measured on recorded scores (the tables are in the README):
    - The threshold is an estimate for the *pool*. The draws are biased towards good arms: a quantile of the draws
      themselves rises too far, and the reward of the n_select-th best draw starts far too low. Counting each draw as
      size / count rows of its arm removes the bias.
    - A Beta posterior on the share above the threshold is better than a normal-inverse-gamma posterior, whose tail
      follows the bulk of an arm's rewards rather than its best rewards.
    - The prior's mean is the share of the pool that will be selected, which is known. The prior's weight is small. A
      weight of one observation or more keeps returning to poor arms. A weight fitted to the arms (empirical Bayes) is
      worse if arms have a dozen rows each: most arms then have only one or two observations to fit.
    - A batch is drawn in parts, each from its own sample of the posterior. One sample for the whole batch would spend
      it on a single arm, which may have been a lucky guess. More than 16 samples find no more, and cost time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError
from clusterucb.hookspecs import hookimpl
from clusterucb.policies import ArmStats, IndexPolicy, Policy
from numpy.typing import NDArray

__all__ = ["Thompson", "ThompsonMean"]

_SAMPLES = 16  # the maximum number of posterior samples per batch


@dataclass
class Thompson(IndexPolicy):
    """Thompson sampling on the share of an arm's rows that belong to the selection.

    The threshold is the reward that an estimated share ``q`` of the pool reaches. The share of an arm's rewards above
    the threshold has a Beta posterior. The next draw comes from the arm with the largest sampled share.

    Attributes:
        q: the share of the pool to look for; by default the share to select, ``n_select`` / N.
        prior: the weight of the prior, in observations.
    """

    q: float | None = None
    prior: float = 0.1

    def __post_init__(self) -> None:
        if self.q is not None and not (_is_number(self.q) and 0 < self.q < 1):
            raise OptionError(f"thompson: q is {self.q!r}; expected a share between 0 and 1, both excluded")
        _check_prior("thompson", self.prior)

    def start(self, pool: PoolView) -> None:
        """Forget everything, and compute the share of the pool to look for."""
        super().start(pool)
        # The added halves keep the share inside (0, 1), even if no rows or all rows are to be selected.
        self._share = (pool.n_select + 0.5) / (len(pool) + 1) if self.q is None else float(self.q)
        self._rewards = np.zeros(0)  # in rising order
        self._reward_arms = np.zeros(0, np.int64)

    def tell(
        self, rows: NDArray[np.int64], rewards: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> None:
        """Add the rewards to the statistics of the rows' arms, and to the sorted list of all rewards."""
        super().tell(rows, rewards, scores)
        order = np.argsort(rewards, kind="stable")
        places = np.searchsorted(self._rewards, rewards[order], side="right")
        self._rewards = np.insert(self._rewards, places, rewards[order])
        self._reward_arms = np.insert(self._reward_arms, places, self._labels[rows[order]])

    def index(self, arms: ArmStats, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return one sample of `indices`, f64[K]."""
        index: NDArray[np.float64] = self.indices(arms, 1, rng)[0]
        return index

    def indices(self, arms: ArmStats, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return samples of each arm's share above the threshold, as log odds f64[min(n, 16), K].

        Log odds have the same order as shares, and stay distinct where shares would round to 0.
        """
        hits = self._hits(arms)
        misses = arms.count - hits
        m = min(n, _SAMPLES)
        return _log_gamma(hits + self.prior * self._share, m, rng) - _log_gamma(
            misses + self.prior * (1 - self._share), m, rng
        )

    def _hits(self, arms: ArmStats) -> NDArray[np.float64]:
        """Return the number of each arm's draws that belong to the best ``q`` of the pool, f64[K].

        A reward equal to the threshold counts as a fraction, so that the estimate for the pool is exactly ``q``. If
        most rewards are equal, they are neither all above the threshold nor all below it.
        """
        if not len(self._rewards):
            return np.zeros(len(arms.size))
        stands_for = (arms.size / np.maximum(arms.count, 1))[
            self._reward_arms
        ]  # pool rows per observed reward
        up_to = np.cumsum(stands_for[::-1])[::-1]  # estimated pool rows that reach each reward
        wanted = self._share * up_to[0]
        threshold = self._rewards[np.flatnonzero(up_to >= wanted)[-1]]
        first = np.searchsorted(self._rewards, threshold, side="left")
        end = np.searchsorted(self._rewards, threshold, side="right")
        above = up_to[end] if end < len(up_to) else 0.0
        value = np.ones(len(self._rewards) - first)
        value[: end - first] = np.clip((wanted - above) / (up_to[first] - above), 0, 1)
        hits = np.zeros(len(arms.size))
        np.add.at(hits, self._reward_arms[first:], value)
        return hits


@dataclass
class ThompsonMean(IndexPolicy):
    """Thompson sampling on the mean reward of an arm, as in textbooks, for comparison.

    The rewards of an arm are modelled as normal with unknown mean and variance (normal-inverse-gamma prior). The
    prior is centred on the mean and variance of all rewards so far.

    Attributes:
        prior: the weight of the prior, in observations.
    """

    prior: float = 0.1

    def __post_init__(self) -> None:
        _check_prior("thompson-mean", self.prior)

    def index(self, arms: ArmStats, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return one sample of `indices`, f64[K]."""
        index: NDArray[np.float64] = self.indices(arms, 1, rng)[0]
        return index

    def indices(self, arms: ArmStats, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return samples of each arm's mean from its posterior, a Student's t distribution, f64[min(n, 16), K]."""
        observed = arms.count > 0
        count = np.maximum(
            arms.count, 1
        )  # the index of an unobserved arm does not matter: such arms come last
        total = max(int(arms.count.sum()), 1)
        centre = float(np.sum((arms.count * arms.mean)[observed])) / total
        mean = np.where(observed, arms.mean, centre)
        variance = np.where(observed, arms.std, 0.0) ** 2
        spread = float(np.sum(arms.count * (variance + (mean - centre) ** 2))) / total
        weight = self.prior + count
        location = (self.prior * centre + count * mean) / weight
        squares = self.prior * spread + count * variance + self.prior * count * (mean - centre) ** 2 / weight
        shape = (min(n, _SAMPLES), len(weight))
        samples: NDArray[np.float64] = location + np.sqrt(squares) / weight * rng.standard_t(weight, shape)
        return samples


def _log_gamma(shape: NDArray[np.float64], m: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return logarithms of gamma samples, f64[m, K]; the samples themselves would round to 0 for a small ``shape``.

    If G ~ Gamma(shape + 1) and U is uniform on (0, 1), G * U^(1 / shape) ~ Gamma(shape) (Marsaglia and Tsang 2000).
    """
    size = (m, len(shape))
    return np.log(rng.standard_gamma(shape + 1, size)) - rng.standard_exponential(size) / shape


def _is_number(value: object) -> bool:
    return isinstance(value, float | int | np.number) and not isinstance(value, bool)


def _check_prior(name: str, prior: float) -> None:
    """Refuse a prior weight that is not a finite number above 0."""
    if not (_is_number(prior) and 0 < prior < math.inf):
        raise OptionError(f"{name}: prior is {prior!r}; expected a number of observations above 0")


@hookimpl
def clusterucb_policies() -> dict[str, type[Policy]]:
    """Return this package's policies by name."""
    return {"thompson": Thompson, "thompson-mean": ThompsonMean}
