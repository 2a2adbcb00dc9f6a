"""What workers that are not started yet will do to a selection's time and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from clusterucb.jobs.stages.pass_layout import Rate, Work
from clusterucb.options.workers import WorkersAsked
from clusterucb.report.plan import WorkersPlan
from clusterucb.workers.start import address_of, count


@dataclass(frozen=True)
class PlannedWorkers:
    """The workers of a planned selection.

    Attributes:
        number: their number.
        number_here: how many of them run on this machine.
        cores: the cores that they share; None if each has a device of its own.
    """

    number: int
    number_here: int
    cores: int | None

    @classmethod
    def of(cls, spec: str | None, device: str) -> Self | None:
        """Return the workers that ``--workers`` asks for, or None if it is not given."""
        if spec is None:
            return None
        asked = WorkersAsked.of(spec)
        number, elsewhere = count(asked, device), address_of(asked) is not None
        shares = not elsewhere and torch.device(device).type == "cpu"
        return cls(number, 0 if elsewhere else number, (os.cpu_count() or 1) if shares else None)

    def rate(self, timed: Callable[[], Rate], here: Rate | None = None) -> Rate:
        """Return the time of a pass on a worker.

        Args:
            timed: times passes in this process. It is called with the threads that a worker has.
            here: the time of a pass in this process, if it is known; that of a worker with a device of its own.
        """
        if self.cores is None:
            return here or timed()
        before, threads = torch.get_num_threads(), max(self.cores // self.number, 1)
        torch.set_num_threads(threads)
        try:
            found = timed()
        finally:
            torch.set_num_threads(before)
        slowdown = max(self.number * threads / self.cores, 1.0)
        return Rate(slowdown * found.constant, slowdown * found.per_token)

    def plan(self, rate: Rate, works: Sequence[Work], memory: int, bytes_per_token: float) -> WorkersPlan:
        """Return what the workers take.

        Args:
            rate: the time of a pass on a worker.
            works: the work that they share.
            memory: the bytes of a worker's process.
            bytes_per_token: the bytes that are sent for each token.
        """
        useful = rate.useful(works)
        return WorkersPlan(
            number=self.number,
            memory=memory,
            sent=round(bytes_per_token * sum(work.tokens for work in works)),
            useful=useful if self.cores is None else min(useful, self.cores),
        )
