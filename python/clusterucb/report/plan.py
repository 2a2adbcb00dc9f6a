"""Hold the time, the passes and the room that a selection takes, as `clusterucb plan` shows them."""

from __future__ import annotations

import msgspec

from clusterucb.run.cost import Cost
from clusterucb.wording import in_bytes


class WorkersPlan(msgspec.Struct):
    """What the workers of a selection take.

    Attributes:
        number: their number.
        memory: the bytes of each worker's process, at most.
        sent: the bytes of the samples that are sent to them. Directions are sent once to each machine besides.
        useful: the number of workers from which more of them shorten the passes by less than 5 %.
    """

    number: int
    memory: int
    sent: int
    useful: int


class Plan(msgspec.Struct):
    """The time, the passes and the room that a selection takes.

    Attributes:
        pool_samples, target_samples: the numbers of accepted samples in the pool and in the target.
        n_budget, n_select: the numbers of samples to score and to select.
        set_up: the seconds to read, encode and load.
        cost: the gradients, forward passes and seconds of each phase.
        memory, memory_free: the bytes at this process's peak, and the bytes of the machine that it may use.
        device_memory, device_free: the same for the GPU's memory; None on a CPU.
        disk, disk_free: the bytes needed and free in the run's folder.
        temporary, temporary_free: the bytes needed and free in the folder of temporary files.
        workers: what the workers take; None if the selection has none. ``memory`` counts those on this machine, too.
    """

    pool_samples: int
    target_samples: int
    n_budget: int
    n_select: int
    set_up: float
    cost: Cost
    memory: int
    memory_free: int
    device_memory: int | None
    device_free: int | None
    disk: int
    disk_free: int
    temporary: int
    temporary_free: int
    workers: WorkersPlan | None = None

    @property
    def seconds(self) -> float:
        """The seconds from the beginning to the end."""
        return self.set_up + self.cost.seconds

    def places(self) -> dict[str, tuple[int, int]]:
        """Return for each kind of room the bytes needed and the bytes free."""
        places = {
            "memory": (self.memory, self.memory_free),
            "disk for the run": (self.disk, self.disk_free),
            "disk for temporary files": (self.temporary, self.temporary_free),
        }
        if self.device_memory is not None and self.device_free is not None:
            places["memory of the GPU"] = self.device_memory, self.device_free
        return places

    def misfits(self) -> list[str]:
        """Return a sentence for each kind of room of which there is too little."""
        return [
            f"Not enough {what}: {in_bytes(needed)} needed, {in_bytes(free)} free"
            for what, (needed, free) in self.places().items()
            if needed > free
        ]
