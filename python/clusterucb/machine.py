"""Measure the memory and the disk space that a job may use, and start threads where memory is short."""

from __future__ import annotations

import _thread
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_BEGINS = 10.0  # seconds until a new thread has to begin
_CGROUP = Path("/sys/fs/cgroup")


def memory() -> tuple[int, int]:
    """Return how many bytes of memory this process may use, and how many of these bytes are available."""
    kilobytes = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        kilobytes[name] = int(value.split()[0])
    total, free = kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
    with suppress(OSError, ValueError):  # a container may be limited to a part of the machine's memory
        limit = int((_CGROUP / "memory.max").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(statistics["file"])
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return total, free


def resident_memory() -> int:
    """Return how many bytes of memory this process uses now."""
    return _pages(1)


def address_space() -> int:
    """Return how many bytes of address space this process has reserved."""
    return _pages(0)


def _pages(field: int) -> int:
    """Return a number of pages that the system counts for this process, in bytes."""
    descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(descriptor, 128).split()[field]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        os.close(descriptor)


def free_disk(place: Path) -> int:
    """Return how many bytes are free on the disk that holds a folder, or would hold it once it exists."""
    existing = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def start_thread(run: Callable[[], None]) -> None:
    """Run a function in a new thread, which does not keep the process alive.

    `threading.Thread.start` waits for ever if there is no memory for the first steps of the thread.

    Raises:
        MemoryError: the thread cannot be started, or does not begin.
    """
    starting = _thread.allocate_lock()
    starting.acquire()

    def begin() -> None:
        starting.release()
        run()

    try:
        _thread.start_new_thread(begin, ())
    except RuntimeError as error:
        raise MemoryError(str(error)) from error
    if not starting.acquire(timeout=_BEGINS):
        raise MemoryError("there is not enough memory for a new thread")
