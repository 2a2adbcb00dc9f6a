"""The contract of a policy, and the base class of those that rank arms by an index.

A policy has one required method, `Policy.ask`. It is asked for rows, told their rewards, and keeps
nothing that could not be rebuilt from what it was told: resuming a run is `start` plus the recorded
`tell`s. That is why `ask` must not change state, and why its randomness comes from the ``rng`` that
the engine seeds per batch.

Most bandits only need a number per arm; `IndexPolicy` asks for just that. It walks the arms from
the largest index down and takes rows of each in order of the pool's random priority, so a draw from
an arm is a random draw without replacement.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import PluginError
from clusterucb.policies.stats import ArmStats
from clusterucb.poolview import PoolView


class Policy(ABC):
    """Decides which rows are drawn next.

    Attributes:
        cold_start: when true, the engine first draws from every arm, before it asks the policy.
        uniform: set it when `ask` draws uniformly at random from all available rows; the ledger then
            records the draws' inclusion probability.
        columns: what `start` needs in ``pool.columns`` that is not always there: ``similarity``, f64[N], the cosine
            of each sample's features with the target's (`clusterucb.similarity`).
    """

    cold_start: ClassVar[bool] = False
    uniform: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()

    def start(self, pool: PoolView) -> None:  # noqa: B027  (optional: not every policy needs the pool)
        """Forget everything and begin with ``pool``; called once at the beginning of a search."""

    @abstractmethod
    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the next rows to draw.

        Args:
            n: rows wanted, at least 1.
            available: bool[N]; only rows where it is true may be returned.
            rng: the only permitted source of randomness.

        Returns:
            i64[min(n, available.sum())], distinct rows with ``available[row]``.
        """

    def tell(  # noqa: B027  (optional: a policy may ignore what was observed)
        self, rows: NDArray[np.int64], rewards: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> None:
        """Learn what was observed; the only method that may change state.

        Args:
            rows: i64[m]; rows whose scoring failed are left out.
            rewards: f64[m], the aggregate of the scores, finite.
            scores: f64[m, S], a score for each subtask.
        """


class IndexPolicy(Policy):
    """A policy that ranks the arms; the whole of it is `index`.

    Example:
        >>> class Greedy(IndexPolicy):
        ...     def index(self, arms, rng):
        ...         return arms.mean
    """

    cold_start: ClassVar[bool] = True

    @abstractmethod
    def index(self, arms: ArmStats, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return f64[K]: the arm with the largest value is drawn from next, ties go to the lower arm.

        Arms without an observation may have any value, NaN too: they come after all observed arms.
        """

    def start(self, pool: PoolView) -> None:
        """Sort each arm's rows by priority and forget all observations."""
        self._labels = pool.labels
        self._by_priority = np.lexsort((pool.priority, pool.labels))
        sizes = np.bincount(pool.labels, minlength=pool.n_arms)
        self._begin = np.concatenate([[0], np.cumsum(sizes)])
        self._arms = ArmStats(sizes)

    def tell(
        self,
        rows: NDArray[np.int64],
        rewards: NDArray[np.float64],
        scores: NDArray[np.float64],  # noqa: ARG002  (part of the contract)
    ) -> None:
        """Add the rewards to the statistics of the rows' arms."""
        self._arms.add(self._labels[rows], rewards)

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw from the arm with the largest index, overflowing to the next when it has no rows left."""
        rows: list[NDArray[np.int64]] = []
        missing = n
        for arm in self._ranked(available, rng):
            members = self._by_priority[self._begin[arm] : self._begin[arm + 1]]
            taken = members[available[members]][:missing]
            rows.append(taken)
            missing -= len(taken)
            if not missing:
                break
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)

    def _ranked(self, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.intp]:
        """Return the arms that may have rows left: observed ones by falling index, then the others."""
        arms = self._arms.seen_from(self._labels, available)
        index = np.asarray(self.index(arms, rng), dtype=np.float64)
        if index.shape != arms.count.shape:
            raise PluginError(
                f"{type(self).__name__}.index returned shape {index.shape}; expected {arms.count.shape}, "
                "a value for each arm"
            )
        observed = arms.count > 0
        for arm in np.flatnonzero(observed & np.isnan(index))[:1]:
            raise PluginError(
                f"{type(self).__name__}.index returned NaN for arm {arm}, which was observed; expected "
                "a number"
            )
        order = np.argsort(-np.where(observed, index, np.nan), kind="stable")  # NaN sorts last
        return order[arms.count[order] < arms.size[order]]
