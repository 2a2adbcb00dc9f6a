"""What a bandit has to beat: scoring everything, similarity without gradients, whole clusters by their mean."""

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
    """Score every sample: the truth that all others are measured by, at the price of every gradient."""

    def start(self, pool: PoolView) -> None:
        """Refuse a budget that leaves samples out."""
        if pool.budget < len(pool):
            raise OptionError(
                f"policy exhaustive scores every sample, but the budget is {pool.budget} of {len(pool)}; use a "
                "budget of 100%, or another policy"
            )

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        """Return the first rows that are left."""
        return np.flatnonzero(available)[:n]


@dataclass
class RDS(Policy):
    """Score what is most similar to the target (RDS: representations in place of gradients).

    Similarity is the column ``similarity``: the cosine of a sample's features with the mean of a subtask's, the
    largest over the subtasks. With the feature ``hidden`` it is representation-based selection as in Ivison et
    al. 2025 (arXiv 2503.01807): hidden states, later tokens weighing more; with ``embedding`` it takes no
    pass of the model. A budget that equals the number to select takes the most similar samples as they are.
    """

    columns: ClassVar[tuple[str, ...]] = ("similarity",)

    def start(self, pool: PoolView) -> None:
        """Sort the rows by similarity, ties to the lower row."""
        if "similarity" not in pool.columns:
            raise OptionError("policy rds needs the column 'similarity' f64[N]; pass it in columns")
        self._order = np.argsort(-pool.columns["similarity"].astype(np.float64), kind="stable")

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        """Return the most similar rows that are left."""
        return self._order[available[self._order]][:n]


@dataclass
class ClusterMean(IndexPolicy):
    """Score a few representatives of every cluster, then whole clusters by the mean of theirs.

    This is what selects clusters rather than samples; a bandit goes on learning while it draws.

    Attributes:
        representatives: rows scored of every cluster first.
    """

    cold_start: ClassVar[bool] = False
    representatives: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.representatives, int) or self.representatives < 1:
            raise OptionError(
                f"cluster-mean: representatives is {self.representatives!r}; expected a whole number from 1"
            )

    def start(self, pool: PoolView) -> None:
        """Choose the representatives: the first of every cluster by priority, all first ones first."""
        super().start(pool)
        begin = self._begin[:-1]
        places = [begin + place for place in range(self.representatives)]
        rows = [self._by_priority[place[place < self._begin[1:]]] for place in places]
        self._representatives = np.concatenate(rows)
        self._represents = np.zeros(len(pool), np.bool_)
        self._represents[self._representatives] = True

    def index(self, arms: ArmStats, rng: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
        """Return the mean of each cluster's representatives."""
        return arms.mean

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return representatives that are left, then the rows of the clusters whose mean is largest."""
        first = self._representatives[available[self._representatives]][:n]
        others = available & ~self._represents
        return np.concatenate([first, super().ask(n - len(first), others, rng)]) if len(first) < n else first

    def tell(
        self, rows: NDArray[np.int64], rewards: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> None:
        """Add the rewards of representatives to their clusters' means."""
        kept = self._represents[rows]
        super().tell(rows[kept], rewards[kept], scores[kept])
