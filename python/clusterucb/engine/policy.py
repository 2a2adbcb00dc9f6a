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
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.arm_stats import ArmStats
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import PluginError


class Policy(ABC):
    """Decides which rows are drawn next.

    Attributes:
        cold_start: when true, the engine first draws from every arm, before it asks the policy.
        uniform: set it when `ask` draws uniformly at random from all available rows; the ledger then
            records the draws' inclusion probability.
        batches: in how many batches it wants a budget to be spent at most, if a decision takes it long; 0: in as many
            as there are.
        predicts: whether it looks at ``pool.prior``.
        columns: what `start` needs in ``pool.columns`` that is not always there: ``similarity``, f64[N], the cosine
            of each sample's features with the target's (`clusterucb.features.similarity`).
    """

    cold_start: ClassVar[bool] = False
    uniform: ClassVar[bool] = False
    batches: int = 0
    predicts: ClassVar[bool] = False
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

    def indices(self, arms: ArmStats, n: int, rng: np.random.Generator) -> NDArray[np.float64]:  # noqa: ARG002
        """Return f64[m, K], m from 1 to n: a batch of ``n`` rows is drawn in m parts, each by an index of its own.

        One for the whole batch where it is not overridden; a random index may want more.
        """
        return np.asarray(self.index(arms, rng), dtype=np.float64)[None]

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw from the arm with the largest index, overflowing to the next when it has no rows left."""
        arms = self._arms.seen_from(self._labels, available)
        indices = self._checked(self.indices(arms, n, rng), arms, n)
        left = available if len(indices) == 1 else available.copy()
        rows: list[NDArray[np.int64]] = []
        for part, index in enumerate(indices):
            wanted = n * (part + 1) // len(indices) - n * part // len(indices)
            rows += self._walk(index, wanted, left, arms)
            if len(indices) > 1 and rows:
                left[np.concatenate(rows)] = False
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)

    def _walk(
        self, index: NDArray[np.float64], wanted: int, left: NDArray[np.bool_], arms: ArmStats
    ) -> list[NDArray[np.int64]]:
        """Return ``wanted`` rows of the arms with the largest index; an array for each arm."""
        rows = []
        for arm in self._ranked(index, arms):
            members = self._by_priority[self._begin[arm] : self._begin[arm + 1]]
            taken = members[left[members]][:wanted]
            rows.append(taken)
            wanted -= len(taken)
            if not wanted:
                break
        return rows

    def _ranked(self, index: NDArray[np.float64], arms: ArmStats) -> Iterator[np.intp]:
        """Yield the arms that may have rows left: observed ones by falling index, then the others."""
        observed = arms.count > 0
        can_be = observed & (arms.count < arms.size)
        best = np.argmax(np.where(can_be, index, -np.inf)) if can_be.any() else None
        if best is not None:  # the first is nearly always enough
            yield best
        order = np.argsort(-np.where(observed, index, np.nan), kind="stable")  # NaN sorts last
        yield from (arm for arm in order[arms.count[order] < arms.size[order]] if arm != best)

    def _checked(self, indices: NDArray[np.float64], arms: ArmStats, n: int) -> NDArray[np.float64]:
        n_arms = len(arms.count)
        if indices.ndim != 2 or indices.shape[1] != n_arms or not 1 <= len(indices) <= n:
            name, shape = ("index", indices.shape[1:]) if len(indices) == 1 else ("indices", indices.shape)
            expected = f"({n_arms},)" if name == "index" else f"(1 to {n}, {n_arms})"
            raise PluginError(
                f"{type(self).__name__}.{name} returned shape {shape}; expected {expected}, a value for each arm"
            )
        observed = arms.count > 0
        for arm in np.flatnonzero(observed & np.isnan(indices).any(axis=0))[:1]:
            raise PluginError(
                f"{type(self).__name__}.index returned NaN for arm {arm}, which was observed; expected "
                "a number"
            )
        return indices
