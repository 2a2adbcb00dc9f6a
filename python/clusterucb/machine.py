"""The memory and the disk that a job may use."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def memory() -> tuple[int, int]:
    """Return the bytes of memory that this process may use, and those of them that are available."""
    kilobytes = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        kilobytes[name] = int(value.split()[0])
    total, free = kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
    with suppress(OSError, ValueError):  # of a container that may use a part of it
        limit = int((_CGROUP / "memory.max").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(statistics["file"])
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return total, free


def free_disk(place: Path) -> int:
    """Return the bytes free where a folder is, or would be."""
    there = next(one for one in (place.absolute(), *place.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free
