"""What a selection takes, before it runs: time, memory, disk and gradients.

`plan` is what both ``clusterucb plan`` and ``cu.plan`` run.
"""

from __future__ import annotations

import tempfile
import time
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from clusterucb.clusterers.base import Clusterer
from clusterucb.errors import in_bytes
from clusterucb.features.base import Feature
from clusterucb.loaded import borrowing
from clusterucb.policies.base import Policy
from clusterucb.prepared import Model, Rows, check_paths, prepare
from clusterucb.progress import AnyObserver, observer_of
from clusterucb.run import Cost
from clusterucb.settings import SelectSettings, Settings, settings_from, spelt_out
from clusterucb.store import GradientStore
from clusterucb.strategies import chosen


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


@borrowing
@spelt_out(SelectSettings)
def plan(
    pool: Rows,
    target: Rows,
    *,
    model: Model,
    out: str | PathLike[str] | None = None,
    features: Feature | None = None,
    clusterer: Clusterer | None = None,
    policy: Policy | None = None,
    observer: AnyObserver | None = None,
    **options: Any,
) -> Plan:
    """Return what `select` takes with the same arguments: time, memory, disk and gradients. Nothing is kept.

    Args:
        pool, target, model, features, clusterer, policy, observer, **options: as of `clusterucb.select`.
        out: the run folder that is meant, for the room on its disk; by default, that for temporary files.

    Raises:
        ClusterUCBError: as `select` would, and where something does not fit.
    """
    began = time.monotonic()
    settings: Settings = settings_from(options, SelectSettings)
    check_paths(model, out, target=target)
    watcher = observer_of(observer)
    store = GradientStore(settings.store) if settings.store else None
    settings = store.applied_to(settings) if store else settings
    strategies = chosen(features, clusterer, policy, store=store is not None)
    prepared = prepare(pool, target, model, settings, watcher)
    if store:
        store.check(prepared.contents)

    from clusterucb.estimate import estimate

    return estimate(
        prepared,
        settings,
        *strategies,
        observer=watcher,
        store=store,
        began=began,
        out=Path(out or tempfile.gettempdir()),
    )
