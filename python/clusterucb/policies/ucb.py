"""Provide the paper's bandits: modified UCB, UCB1 and the two threshold baselines.

Wang et al., "ClusterUCB: Efficient Gradient-Based Data Selection for Targeted Fine-Tuning of LLMs",
Findings of EMNLP 2025 (arXiv 2506.10288).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.arm_stats import ArmStats
from clusterucb.engine.policy import IndexPolicy
from clusterucb.errors import OptionError

_erfc = np.frompyfunc(math.erfc, 1, 1)


@dataclass
class UCB(IndexPolicy):
    """Modified UCB, the paper's method: mean + beta * std of each arm's observed rewards.

    The index has no count term: it is not a confidence bound on an arm's mean, but an estimate of the arm's upper
    tail, where the samples to select lie. ``std`` is the population standard deviation.

    Attributes:
        beta: the weight of the standard deviation (1 in the paper).
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.beta, float | int) or not 0 <= self.beta < math.inf:
            raise OptionError(f"ucb: beta is {self.beta!r}; expected a number of at least 0")

    def index(self, arms: ArmStats, rng: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
        """Return mean + beta * std of each arm, f64[K]."""
        return arms.mean + self.beta * arms.std


@dataclass
class UCB1(IndexPolicy):
    """UCB1 as published (Auer et al. 2002): mean + sqrt(2 ln t / n).

    UCB1 is kept for comparison. Its bonus assumes rewards that spread over [0, 1]. Influence scores are of the order
    of .01 to .1, so the bonus drowns them, and the draws spread almost evenly over the arms.
    """

    def index(self, arms: ArmStats, rng: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
        """Return mean + sqrt(2 ln t / n), f64[K]; t counts all observations, n those of the arm."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return arms.mean + np.sqrt(2 * math.log(max(arms.total, 1)) / arms.count)


def _check_share(name: str, q: float) -> None:
    """Refuse a ``q`` that does not lie strictly between 0 and 1."""
    if not isinstance(q, float | int) or not 0 < q < 1:
        raise OptionError(f"{name}: q is {q!r}; expected a share between 0 and 1, both excluded")


@dataclass
class ThresholdHard(IndexPolicy):
    """The paper's baseline: the share of an arm's rewards at or above a running threshold.

    Attributes:
        q: the threshold is the (1 - q) quantile of all rewards so far (.25 in the paper).
    """

    q: float = 0.25

    def __post_init__(self) -> None:
        _check_share("threshold-hard", self.q)

    def index(self, arms: ArmStats, rng: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
        """Return the share of each arm's rewards at or above the threshold, f64[K]."""
        return arms.exceedance(arms.quantile(1 - self.q))


@dataclass
class ThresholdNormal(IndexPolicy):
    """The paper's baseline: the same share, computed from a normal distribution fitted to each arm.

    If all rewards of an arm are equal, the arm counts as wholly above or wholly below the threshold.

    Attributes:
        q: the threshold is the (1 - q) quantile of all rewards so far (.25 in the paper).
    """

    q: float = 0.25

    def __post_init__(self) -> None:
        _check_share("threshold-normal", self.q)

    def index(self, arms: ArmStats, rng: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
        """Return P(X >= threshold) for X normal with each arm's mean and standard deviation, f64[K]."""
        below = arms.quantile(1 - self.q) - arms.mean
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.asarray(_erfc(below / (arms.std * math.sqrt(2))), dtype=np.float64) / 2
        return np.where(arms.std > 0, share, np.where(arms.count > 0, below <= 0, np.nan))
