"""Provide the baselines that a bandit must beat: score everything, use similarity only, or rank whole clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.arm_stats import ArmStats
from clusterucb.engine.policy import IndexPolicy, Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import OptionError


@dataclass
class Exhaustive(Policy):
    """Score every sample: the exact result that other policies are compared with, at the cost of every gradient."""

    def start(self, pool: PoolView) -> None:
        """Check that the budget covers the whole pool.

        Raises:
            OptionError: the budget leaves samples out.
        """
        if pool.budget < len(pool):
            raise OptionError(
                f"policy exhaustive scores every sample, but the budget is {pool.budget} of {len(pool)}; use a "
                "budget of 100%, or another policy"
            )

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        """Return the first n available rows."""
        return np.flatnonzero(available)[:n]


@dataclass
class RDS(Policy):
    """Score the samples most similar to the target (RDS: representations in place of gradients).

    Similarity is the column ``similarity``: the cosine of a sample's features with the mean features of a subtask,
    the largest over the subtasks. With the feature ``hidden`` this is representation-based selection as in Ivison et
    al. 2025 (arXiv 2503.01807): hidden states, in which later tokens weigh more. With ``embedding`` it takes no pass
    of the model. If the budget equals the number to select, the most similar samples are selected as they are.
    """

    columns: ClassVar[tuple[str, ...]] = ("similarity",)

    def start(self, pool: PoolView) -> None:
        """Sort the rows by similarity; the lower row wins a tie.

        Raises:
            OptionError: the pool has no column ``similarity``.
        """
        if "similarity" not in pool.columns:
            raise OptionError("policy rds needs the column 'similarity' f64[N]; pass it in columns")
        self._order = np.argsort(-pool.columns["similarity"].astype(np.float64), kind="stable")

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        """Return the n most similar available rows."""
        return self._order[available[self._order]][:n]


@dataclass
class ClusterMean(IndexPolicy):
    """Score a few representatives of every cluster, then draw whole clusters in order of their representatives' mean.

    This baseline selects clusters rather than samples. Unlike a bandit, it learns nothing after the representatives.

    Attributes:
        representatives: the number of rows of every cluster that are scored first.
    """

    cold_start: ClassVar[bool] = False
    representatives: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.representatives, int) or self.representatives < 1:
            raise OptionError(
                f"cluster-mean: representatives is {self.representatives!r}; expected a whole number of at least 1"
            )

    def start(self, pool: PoolView) -> None:
        """Choose each cluster's first rows by priority; the first rows of all clusters come before the second rows."""
        super().start(pool)
        begin = self._begin[:-1]
        places = [begin + place for place in range(self.representatives)]
        rows = [self._by_priority[place[place < self._begin[1:]]] for place in places]
        self._representatives = np.concatenate(rows)
        self._represents = np.zeros(len(pool), np.bool_)
        self._represents[self._representatives] = True

    def index(self, arms: ArmStats, rng: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
        """Return the mean reward of each cluster's representatives, f64[K]."""
        return arms.mean

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return available representatives first, then rows of the clusters with the largest means."""
        first = self._representatives[available[self._representatives]][:n]
        others = available & ~self._represents
        return np.concatenate([first, super().ask(n - len(first), others, rng)]) if len(first) < n else first

    def tell(
        self, rows: NDArray[np.int64], rewards: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> None:
        """Add the rewards of representatives to their clusters' means; ignore all other rows."""
        kept = self._represents[rows]
        super().tell(rows[kept], rewards[kept], scores[kept])
