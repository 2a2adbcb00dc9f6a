"""What a bandit has to beat: scoring everything, similarity without gradients, whole clusters by their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import OptionError
from clusterucb.policies.base import Policy
from clusterucb.poolview import PoolView


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
class ClusterMean(Policy):
    """Score a few representatives of every cluster, then whole clusters by the mean of theirs.

    This is what selects clusters rather than samples; a bandit goes on learning while it draws.

    Attributes:
        representatives: rows scored of every cluster first.
    """

    representatives: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.representatives, int) or self.representatives < 1:
            raise OptionError(
                f"cluster-mean: representatives is {self.representatives!r}; expected a whole number from 1"
            )

    def start(self, pool: PoolView) -> None:
        """Choose the representatives: the first of every cluster by priority."""
        sizes = np.bincount(pool.labels, minlength=pool.n_arms)
        self._labels, self._by_priority = pool.labels, np.lexsort((pool.priority, pool.labels))
        self._place = np.empty(len(pool), np.int64)  # of each row in its cluster
        self._place[self._by_priority] = np.arange(len(pool)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._is_first = self._place < self.representatives
        self._sum, self._count = np.zeros(pool.n_arms), np.zeros(pool.n_arms)

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        """Return representatives that are left, then the rows of the clusters whose mean is largest."""
        with np.errstate(invalid="ignore"):
            mean = self._sum / self._count  # NaN where nothing was observed, which sorts last
        rank = np.argsort(np.argsort(-mean, kind="stable"), kind="stable")
        rows = self._by_priority[available[self._by_priority]]
        later = np.where(
            self._is_first[rows], self._place[rows], len(self._labels) + rank[self._labels[rows]]
        )
        return rows[np.argsort(later, kind="stable")][:n]

    def tell(
        self,
        rows: NDArray[np.int64],
        rewards: NDArray[np.float64],
        scores: NDArray[np.float64],  # noqa: ARG002  (part of the contract)
    ) -> None:
        """Add the rewards of representatives to their clusters' means."""
        kept = self._is_first[rows]
        np.add.at(self._sum, self._labels[rows[kept]], rewards[kept])
        np.add.at(self._count, self._labels[rows[kept]], 1)
