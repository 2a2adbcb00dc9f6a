"""Find out what this installation can do: versions, kernels, threads, GPU, memory, disk and plugins."""

from __future__ import annotations

import os
import platform
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec

from clusterucb import plugins
from clusterucb.errors import ClusterUCBError
from clusterucb.kernels import ops
from clusterucb.machine import free_disk, memory
from clusterucb.run import feature_cache as cache
from clusterucb.versions import __version__, version_of

_PACKAGES = ("torch", "transformers", "peft", "numpy", "pyarrow", "safetensors")


class Machine(msgspec.Struct):
    """The capabilities of this installation.

    Attributes:
        versions: the versions of clusterucb, Python and the libraries.
        kernels: the CPU kernels in use and the reason for them, or the reason why there are none.
        threads: the number of threads that a job would use, and the number of cores.
        gpu: the GPU and its kernels, or the reason why there is none.
        memory: the bytes in all, and the bytes available.
        disk: for each purpose, a folder and the bytes free in it.
        cached: the bytes in the cache.
        plugins: for each package with strategies, the reason why it cannot be loaded; "" if it can.
    """

    versions: dict[str, str]
    kernels: str
    threads: str
    gpu: str
    memory: tuple[int, int]
    disk: dict[str, tuple[str, int]]
    cached: int
    plugins: dict[str, str]


def examine_machine() -> Machine:
    """Find out what this installation can do."""
    installed = plugins.load()
    found = {f"{one.provider} {one.version}": "" for one in installed.table.values()}
    found |= {f"{one.provider} {one.version}".rstrip(): one.reason for one in installed.broken}
    places = {"this folder": Path(), "temporary files": Path(tempfile.gettempdir()), "cache": cache.home()}
    return Machine(
        versions={
            "clusterucb": __version__,
            "python": platform.python_version(),
            **{name: version_of(name) or "missing" for name in _PACKAGES},
        },
        kernels=_kernels(),
        threads=_threads(),
        gpu=_gpu(),
        memory=memory(),
        disk={what: (str(place.absolute()), free_disk(place)) for what, place in places.items()},
        cached=_kept(cache.home()),
        plugins=found,
    )


def _kernels() -> str:
    try:
        name = ops.simd()
    except ClusterUCBError as error:
        return f"none: {error}"
    forced = os.environ.get("CLUSTERUCB_SIMD")
    why = "set by CLUSTERUCB_SIMD" if forced else "the best for this CPU"
    return f"{name} ({why}); the self-test passed"


def _threads() -> str:
    import torch

    cores = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS")
    return f"{torch.get_num_threads()} of {cores} cores" + (f" (OMP_NUM_THREADS is {asked})" if asked else "")


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        why = "torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        return f"none: {why}"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if find_spec("clusterucb.kernels._cuda") is None:
        return (
            f"{', '.join(names)}; without clusterucb's CUDA kernels: torch computes the scores; no sketches"
        )
    return f"{', '.join(names)}; with clusterucb's CUDA kernels"


def _kept(folder: Path) -> int:
    """Return the bytes of the files in a folder. Another process may remove files meanwhile."""
    total = 0
    for inside, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(inside, name)).st_size
    return total
