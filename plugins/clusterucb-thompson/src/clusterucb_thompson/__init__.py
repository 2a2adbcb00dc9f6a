"""Thompson sampling: draw from the arm that looks best in a world sampled from what is known.

`Thompson` asks what the selection needs: how likely is the next draw of an arm among the rows to be
selected? `ThompsonMean` is the textbook's, on an arm's mean reward. An arm's mean is not what is
selected: an arm of ordinary rows with a few excellent ones has a poor mean.

Decisions, measured on recorded scores (the tables are in the README):
    - The threshold is an estimate for the *pool*. A sampler's draws are biased towards good arms, so a
      quantile of the draws themselves rises too far, and the reward of the n_select-th best draw starts
      far too low; counting each draw as size / count rows of its arm undoes the bias.
    - A Beta posterior on the share above the threshold beats a normal-inverse-gamma posterior, whose
      tail follows the bulk of an arm's rewards rather than its best.
    - The prior's mean is the share of the pool that will be selected, which is known; its weight is small.
      One observation or more keeps returning to arms that are poor, and a weight fitted to the arms (empirical
      Bayes) is worse where arms have a dozen rows each: it is fitted to one or two observations of most.
    - A batch is drawn in parts, with a sample each: one sample for all of it would spend it on one arm, which
      may have been a lucky guess. More than 16 samples find no more, and cost time.
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

_SAMPLES = 16  # of a batch at most


@dataclass
class Thompson(IndexPolicy):
    """Thompson sampling on the share of an arm's rows that belong to the selection.

    The threshold is the reward that a share ``q`` of the pool is estimated to reach. An arm's share of
    rewards above it has a Beta posterior; the arm whose sampled share is largest is drawn from.

    Attributes:
        q: share of the pool to look for; by default the share to be selected, ``n_select`` / N.
        prior: observations that the prior is worth.
    """

    q: float | None = None
    prior: float = 0.1

    def __post_init__(self) -> None:
        if self.q is not None and not (_is_number(self.q) and 0 < self.q < 1):
            raise OptionError(f"thompson: q is {self.q!r}; expected a share between 0 and 1, both excluded")
        _check_prior("thompson", self.prior)

    def start(self, pool: PoolView) -> None:
        """Forget everything, and note what share of the pool will be selected."""
        super().start(pool)
        # half a row more or less keeps a share of nothing or of everything inside (0, 1)
        self._share = (pool.n_select + 0.5) / (len(pool) + 1) if self.q is None else float(self.q)
        self._rewards = np.zeros(0)  # rising
        self._reward_arms = np.zeros(0, np.int64)

    def tell(
        self, rows: NDArray[np.int64], rewards: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> None:
        """Add the rewards to the statistics of the rows' arms, and keep all rewards in order."""
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

        Log odds have the order of the shares, and tell apart samples that as shares would round to 0.
        """
        hits = self._hits(arms)
        misses = arms.count - hits
        m = min(n, _SAMPLES)
        return _log_gamma(hits + self.prior * self._share, m, rng) - _log_gamma(
            misses + self.prior * (1 - self._share), m, rng
        )

    def _hits(self, arms: ArmStats) -> NDArray[np.float64]:
        """Return the draws of each arm that belong to the best ``q`` of the pool, f64[K].

        Rewards equal to the threshold count in part, so that the estimate for the pool is exactly ``q``:
        where most rewards are equal, they are neither all above nor all below.
        """
        if not len(self._rewards):
            return np.zeros(len(arms.size))
        stands_for = (arms.size / np.maximum(arms.count, 1))[self._reward_arms]  # rows of the pool
        up_to = np.cumsum(stands_for[::-1])[::-1]  # rows that reach each reward
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
    """Thompson sampling on the mean reward of an arm, the textbook's, for comparison.

    Rewards of an arm count as normal with unknown mean and variance (normal-inverse-gamma prior). The
    prior is centred on the mean and variance of all rewards so far.

    Attributes:
        prior: observations that the prior is worth.
    """

    prior: float = 0.1

    def __post_init__(self) -> None:
        _check_prior("thompson-mean", self.prior)

    def index(self, arms: ArmStats, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return one sample of `indices`, f64[K]."""
        index: NDArray[np.float64] = self.indices(arms, 1, rng)[0]
        return index

    def indices(self, arms: ArmStats, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return samples of each arm's mean, f64[min(n, 16), K], from its posterior, Student's t."""
        observed = arms.count > 0
        count = np.maximum(arms.count, 1)  # an unobserved arm comes last whatever its index
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
    """Return the logarithms of gamma samples, f64[m, K]; a small ``shape`` would round the samples to 0.

    If G ~ Gamma(shape + 1) and U is uniform, G * U^(1 / shape) ~ Gamma(shape) (Marsaglia and Tsang 2000).
    """
    size = (m, len(shape))
    return np.log(rng.standard_gamma(shape + 1, size)) - rng.standard_exponential(size) / shape


def _is_number(value: object) -> bool:
    return isinstance(value, float | int | np.number) and not isinstance(value, bool)


def _check_prior(name: str, prior: float) -> None:
    if not (_is_number(prior) and 0 < prior < math.inf):
        raise OptionError(f"{name}: prior is {prior!r}; expected a number of observations above 0")


@hookimpl
def clusterucb_policies() -> dict[str, type[Policy]]:
    """Name this package's policies."""
    return {"thompson": Thompson, "thompson-mean": ThompsonMean}
