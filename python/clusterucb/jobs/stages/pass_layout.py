"""Lay out the passes that a selection will make, and the time that they take in one process or on workers.

The passes of a call, such as a batch of draws, may be computed side by side. Calls come one after the other, because
the policy decides between them. So workers help as far as a call has passes for them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.gradients.passes import micro_batches, overhead_of
from clusterucb.gradients.session import AdaptedModel
from clusterucb.options.search import Settings
from clusterucb.samples.pool_and_target import Material

_SIMULATED = 300  # batches of draws that are laid out
_SPREAD = 4096  # samples whose passes represent those of the whole pool
_HANDING = 7e-4  # seconds of the driver to hand a pass out and read its answer (benchmarks/bench_workers.py)
_NEAR = 1.05  # more workers do not help if the time is at most so many times that of any number of workers


@dataclass(frozen=True)
class Work:
    """Passes of the model.

    Attributes:
        calls: for each call, i64[n], the padded tokens of its passes in their order.
        times: how often all of them are computed.
    """

    calls: Sequence[NDArray[np.int64]]
    times: float = 1.0

    @classmethod
    def of(
        cls, calls: Sequence[Sequence[NDArray[np.int64]]], lengths: NDArray[np.int64], times: float = 1.0
    ) -> Work:
        """Return the work of calls whose passes hold the given rows.

        Args:
            calls: for each call, i64[m], the rows of each pass.
            lengths: i64[N], the number of tokens of each row.
            times: as for the attribute.
        """
        tokens = [
            np.array([len(rows) * int(lengths[rows].max()) for rows in call], np.int64) for call in calls
        ]
        return cls([call for call in tokens if len(call)], times)

    @property
    def passes(self) -> float:
        """The number of passes."""
        return self.times * sum(map(len, self.calls))

    @property
    def tokens(self) -> float:
        """The number of padded tokens in the passes."""
        return self.times * sum(int(call.sum()) for call in self.calls)

    @property
    def widest(self) -> int:
        """The most passes in a call."""
        return max(map(len, self.calls), default=0)


@dataclass(frozen=True)
class Rate:
    """The time of a pass: a constant, and a part for each padded token.

    Attributes:
        constant, per_token: seconds.
    """

    constant: float
    per_token: float

    def seconds(self, work: Work, workers: int | None = None) -> float:
        """Return the seconds that work takes in this process, or on so many workers."""
        if workers is None:
            return self.constant * work.passes + self.per_token * work.tokens
        calls = (self.constant + self.per_token * call for call in work.calls)
        return work.times * sum(_side_by_side(call.tolist(), workers) for call in calls)

    def useful(self, works: Sequence[Work]) -> int:
        """Return the smallest number of workers from which more of them do not help: see `_NEAR`."""
        most = max([1, *(work.widest for work in works)])
        least = sum(self.seconds(work, most) for work in works)

        def suffices(workers: int) -> bool:
            return sum(self.seconds(work, workers) for work in works) <= _NEAR * least

        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if suffices(middle) else (middle + 1, high)
        return low


def _side_by_side(seconds: Sequence[float], workers: int) -> float:
    """Return the time until the last pass has ended, if each goes to the first worker that is free."""
    free = [0.0] * min(workers, len(seconds))
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(max(free), _HANDING * len(seconds))


class Layout:
    """The passes that a selection will make at one checkpoint.

    Args:
        settings: the options.
        material: the pool and the target.
        adapted: the model.
        per_token: the seconds that scoring takes for each token, if the budget is a time.

    Attributes:
        warm_up, target, draws: the work of each phase.
        everything: the work of computing the gradients of the whole pool.
        drawn: i64[n], rows that are drawn at random here.
        typical, large: the samples of the two passes to time.
    """

    def __init__(
        self, settings: Settings, material: Material, adapted: AdaptedModel, per_token: float | None = None
    ) -> None:
        lengths, limit = material.encoded.lengths, adapted.passes.limit
        overhead = overhead_of(adapted.device, limit)
        n_budget = min(settings.counts(lengths, per_token)[0], len(lengths))
        self._n_checkpoints = len(adapted.checkpoints)
        self._lengths = lengths

        def passes(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
            return [rows[batch] for batch in micro_batches(lengths[rows], limit, overhead)]

        self.drawn = np.random.default_rng(settings.seed).permutation(len(lengths))[:n_budget]
        starts = range(0, n_budget, settings.batch_size)
        calls = [passes(self.drawn[start : start + settings.batch_size]) for start in starts[:_SIMULATED]]
        self.draws = Work.of(calls, lengths, len(starts) / max(len(calls), 1))
        if settings.free_scores:
            self.draws = Work.of([passes(material.unsketched)], lengths)
        spread = np.arange(0, len(lengths), -(-len(lengths) // _SPREAD))
        self.everything = Work.of([passes(spread)], lengths, len(lengths) / len(spread))
        steps = material.warmup_rows(settings.warmup_steps, settings.seed) if settings.warms_up else ()
        self.warm_up = Work.of([[rows] for rows in steps], lengths)
        of_target = (np.array([len(one) for one in samples]) for samples in material.target.values())
        self.target = Work(
            [call for own in of_target for call in Work.of([micro_batches(own, limit, overhead)], own).calls]
        )
        by_size = sorted(
            (rows for call in calls for rows in call), key=lambda rows: len(rows) * lengths[rows].max()
        )
        encoded = material.encoded
        self.typical = [encoded[int(row)] for row in by_size[len(by_size) // 2]]
        self.large = [encoded[int(row)] for row in by_size[len(by_size) * 19 // 20]]

    def per_token(self, seconds: Callable[[Work], float]) -> float:
        """Return the seconds that drawing and scoring take for each token.

        Args:
            seconds: returns the seconds that work takes.
        """
        return self._n_checkpoints * seconds(self.draws) / float(self._lengths[self.drawn].sum())
