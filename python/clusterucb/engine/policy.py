"""Define the contract of a policy, and the base class of policies that rank arms by an index.

A policy has one required method, `Policy.ask`, which returns the next rows to draw. `Policy.tell` gives it the rewards.
A policy's state must follow from these calls alone: to resume a run, the engine calls `start` and repeats the recorded
`tell`s. That is why `ask` must not change state, and why it takes its random numbers from ``rng``, which the engine
seeds for each batch.

Most bandits need only a number for each arm, and `IndexPolicy` asks for nothing else. It visits the arms from the
largest index down and takes each arm's rows in order of the pool's random priority, so a draw from an arm is a random
draw without replacement.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.arm_stats import ArmStats
from clusterucb.engine.large import by_arm
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import PluginError


class Policy(ABC):
    """Decides which rows are drawn next.

    Attributes:
        cold_start: whether the engine draws from every arm before it first asks the policy.
        uniform: whether `ask` draws uniformly at random from all available rows. The ledger then records the draws'
            inclusion probability.
        batches: the largest number of batches in which a budget is spent, for a policy whose decisions take long. 0
            means no limit.
        predicts: whether the policy uses ``pool.prior``.
        columns: the optional columns that `start` needs in ``pool.columns``. There is one: ``similarity``, f64[N], the
            cosine of each sample's features with the target's (`clusterucb.features.similarity`).
    """

    cold_start: ClassVar[bool] = False
    uniform: ClassVar[bool] = False
    batches: int = 0
    predicts: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()

    def start(self, pool: PoolView) -> None:  # noqa: B027  (optional: not every policy needs the pool)
        """Reset the policy to begin with ``pool``. The engine calls this once, at the beginning of a search."""

    @abstractmethod
    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the next rows to draw.

        Args:
            n: the number of rows wanted; 0 is a number, too.
            available: bool[N], True for the rows that may be returned.
            rng: the only permitted source of randomness.

        Returns:
            i64[min(n, available.sum())], distinct rows with ``available[row]``.
        """

    def tell(  # noqa: B027  (optional: a policy may ignore what was observed)
        self, rows: NDArray[np.int64], rewards: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> None:
        """Learn from observed rewards. After `start`, this is the only method that may change state.

        Args:
            rows: i64[m], the scored rows, without those whose scoring failed.
            rewards: f64[m], the aggregated scores; all finite.
            scores: f64[m, S], a score for each subtask.
        """


class IndexPolicy(Policy):
    """A policy that ranks the arms. A subclass only has to define `index`.

    Example:
        >>> class Greedy(IndexPolicy):
        ...     def index(self, arms, rng):
        ...         return arms.mean
    """

    cold_start: ClassVar[bool] = True

    @abstractmethod
    def index(self, arms: ArmStats, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the index of each arm, f64[K]. The next draw is from the arm with the largest index.

        The lower arm wins a tie. Arms without an observation may have any index, even NaN: they come after all observed
        arms.
        """

    def start(self, pool: PoolView) -> None:
        """Sort each arm's rows by priority, and reset the statistics."""
        self._labels = pool.labels
        sizes = np.bincount(pool.labels, minlength=pool.n_arms)
        self._by_priority = by_arm(pool.labels, pool.priority)
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
        """Return m indices of the K arms, f64[m, K], with m from 1 to n: a batch of ``n`` rows is drawn in m parts.

        Each part follows its own index. By default there is one index for the whole batch. A policy with a random index
        may override this.
        """
        return np.asarray(self.index(arms, rng), dtype=np.float64)[None]

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return rows of the arm with the largest index, then of the next arm if that one has no rows left."""
        if not n:
            return np.zeros(0, np.int64)
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
        """Return ``wanted`` rows of the arms with the largest indices, as one array for each arm."""
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
        """Yield the arms that may have rows left: the observed arms by falling index, then the others."""
        observed = arms.count > 0
        can_be = observed & (arms.count < arms.size)
        best = np.argmax(np.where(can_be, index, -np.inf)) if can_be.any() else None
        if best is not None:  # the first arm is nearly always enough, so yield it before sorting
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
