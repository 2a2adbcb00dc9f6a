"""What a selection takes, as `clusterucb plan` shows it."""

from __future__ import annotations

import msgspec

from clusterucb.run.folder import Cost
from clusterucb.wording import in_bytes


class Plan(msgspec.Struct):
    """What a selection takes.

    Attributes:
        pool_samples, target_samples: that would be used.
        n_budget, n_select: samples to score and to select.
        set_up: seconds to read, encode and load.
        cost: gradients, forward passes and seconds of each phase.
        memory, memory_free: bytes at the peak of this process, and of the machine that it may use.
        device_memory, device_free: the same of a GPU; None on a CPU.
        disk, disk_free: bytes in the run's folder.
        temporary, temporary_free: bytes in the folder of temporary files.
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

    @property
    def seconds(self) -> float:
        """Seconds from the beginning to the end."""
        return self.set_up + self.cost.seconds

    def places(self) -> dict[str, tuple[int, int]]:
        """Return, for each kind of room, the bytes that are needed and those that are free."""
        found = {
            "memory": (self.memory, self.memory_free),
            "disk for the run": (self.disk, self.disk_free),
            "disk for temporary files": (self.temporary, self.temporary_free),
        }
        if self.device_memory is not None and self.device_free is not None:
            found["memory of the GPU"] = self.device_memory, self.device_free
        return found

    def misfits(self) -> list[str]:
        """Return what there is too little of, in words."""
        return [
            f"Too little {what}: {in_bytes(needed)} are needed, {in_bytes(free)} are free"
            for what, (needed, free) in self.places().items()
            if needed > free
        ]
