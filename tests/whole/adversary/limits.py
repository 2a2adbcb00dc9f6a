"""Run every scenario of kills.py under a limit of the machine, and again without it.

    python tests/whole/adversary/limits.py [EVERY [FIRST]]

The limits: a disk and inodes that run out (a tmpfs of its own, as root), the size of a file, descriptors, memory, and
errors of the file system (full, quota, read-only, damaged) from the k-th call on or at the k-th call. The verdict: the
command ends with exit code 0 and the same results, or with exit code 2 and a message that names what is missing; and
the same command without the limit gives the results of an undisturbed one, byte for byte, and leaves nothing
half-written. Runs the cases FIRST, FIRST + EVERY and so on (by default all), and prints the faults.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from whole.adversary import damage, kills, processes

_SQLITE = ("disk I/O error", "unable to open database file", "disk is full")  # SQLite knows no more
_FULL = (*_SQLITE, "No space left", "no space left", "disk full", "of disk space")
_POINTS = 15  # calls at which a scenario meets each error
_ERRORS: dict[str, tuple[int, bool, tuple[str, ...]]] = {  # number, whether it stays, words of the message
    "a full disk": (errno.ENOSPC, True, _FULL),
    "a quota": (errno.EDQUOT, True, ("quota", *_SQLITE)),
    "a read-only file system": (errno.EROFS, True, ("Read-only", *_SQLITE)),
    "a damaged disk": (errno.EIO, False, ("Input/output", *_SQLITE)),
    "no more descriptors": (errno.EMFILE, False, ("open files", *_SQLITE)),
}
_CHANGES = {
    "os.rename": 1,
    "os.mkdir": 0,
    "os.remove": 0,
    "os.rmdir": 0,
    "os.link": 1,
}  # event: its path's place
_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Limit:
    """A limit.

    Attributes:
        name: what is limited, and to how much.
        words: one of them is in the message of a command that fails.
        prepare: sets the limit in the process of the command.
        disk: options of a tmpfs that takes the place of ``place``; "" for none.
        place: the folder that is limited.
    """

    name: str
    words: tuple[str, ...]
    prepare: Callable[[], None] = field(default=lambda: None)
    disk: str = ""
    place: str = "work"


def file_sizes() -> Iterator[Limit]:
    """Yield limits on the size of a file."""

    def prepare(size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    for size in (0, 500, 3_000, 10_000, 30_000, 60_000, 100_000, 150_000, 200_000, 300_000, 600_000):
        yield Limit(
            f"files of {size:,} bytes",
            ("File too large", "too large", *_FULL),
            lambda size=size: prepare(size),
        )


def descriptors() -> Iterator[Limit]:
    """Yield limits on the number of descriptors beyond those that are open."""

    def prepare(more: int) -> None:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, highest + more))

    for more in (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30):
        yield Limit(f"{more} more descriptors", ("open files", *_SQLITE), lambda more=more: prepare(more))


def memory() -> Iterator[Limit]:
    """Yield limits on the memory beyond that which is in use."""

    def prepare(kind: int, megabytes: int) -> None:
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        now = int(status["VmSize" if kind == resource.RLIMIT_AS else "VmData"].split()[0]) << 10
        limit = now + (megabytes << 20)
        resource.setrlimit(kind, (limit, limit))

    for name, kind in (("addresses", resource.RLIMIT_AS), ("data", resource.RLIMIT_DATA)):
        for megabytes in (0, 1, 2, 4, 6, 9, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256):
            yield Limit(
                f"{megabytes} MB more of {name}",
                ("memory", "thread"),
                lambda kind=kind, megabytes=megabytes: prepare(kind, megabytes),
            )


def disks() -> Iterator[Limit]:
    """Yield disks that are small, and disks of few inodes; nothing where none can be mounted."""
    if not _mounts():
        print("no disk can be mounted here: small disks and inodes are left out", flush=True)
        return
    for kilobytes in (4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048):
        yield Limit(f"a disk of {kilobytes} KB", _FULL, disk=f"size={kilobytes}k")
    for inodes in (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 24):
        yield Limit(f"{inodes} inodes", _FULL, disk=f"nr_inodes={inodes}")
    for kilobytes in (4, 16, 64):
        yield Limit(
            f"a disk of {kilobytes} KB for temporary files",
            _FULL,
            disk=f"size={kilobytes}k",
            place="temporary",
        )


def _mounts() -> bool:
    Path("probe").mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "probe"], capture_output=True, check=False
    )
    if done.returncode == 0:
        subprocess.run(["umount", "probe"], check=True)
    return done.returncode == 0


def injected(name: str, point: int, note: Callable[[int], None] = lambda _: None) -> Limit:
    """Return a limit under which calls of the file system fail.

    Args:
        name: the error's name.
        point: the number of the first call that fails, from 0; calls of the command's own files alone count.
        note: called with the number of calls so far, at each call.
    """
    number, stays, words = _ERRORS[name]
    return Limit(f"{name} at call {point}", words, lambda: _inject(number, point, stays, note))


def _inject(number: int, point: int, stays: bool, note: Callable[[int], None]) -> None:
    """Let the calls of this process that concern files fail from a call on, or at one call."""
    here, count = f"{Path.cwd()}/", 0
    both = number in (errno.EIO, errno.EMFILE)  # reading fails, too

    def step(path: object) -> None:
        nonlocal count
        if not isinstance(path, str | bytes | os.PathLike) or not os.path.abspath(
            os.fsdecode(path)
        ).startswith(here):
            return
        count += 1
        note(count)
        if count - 1 == point or (stays and count > point):
            raise OSError(number, os.strerror(number), os.fsdecode(path))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if both or (isinstance(arguments[2], int) and arguments[2] & _WRITE):
                step(arguments[0])
        elif (
            event in _CHANGES
            and number != errno.EMFILE
            and not (number in (errno.ENOSPC, errno.EDQUOT) and event in ("os.remove", "os.rmdir"))
        ):
            step(arguments[_CHANGES[event]])

    sys.addaudithook(hook)
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if number != errno.EMFILE:
            step(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    os.fsync = fsync


def calls(scenario: str, name: str) -> int:
    """Return how many calls of a scenario an error may meet."""
    counter = os.open("counter", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    kills.begin(scenario)
    limit = injected(name, 10**9, lambda count: os.pwrite(counter, b"%9d" % count, 0))
    ended = processes.run(kills.arguments_of(scenario), limit.prepare)
    assert ended.code == 0, ended
    count = int(os.pread(counter, 9, 0))
    os.close(counter)
    return count


def cases() -> Iterator[tuple[str, Limit]]:
    """Yield every scenario under every limit."""
    kinds = [*file_sizes(), *descriptors(), *memory(), *disks()]
    for scenario in kills.SCENARIOS:
        for limit in kinds:
            yield scenario, limit
        for name in _ERRORS:
            count = calls(scenario, name)
            for point in sorted({count * at // _POINTS for at in range(_POINTS)}):
                yield scenario, injected(name, point)


@contextmanager
def _placed(scenario: str, limit: Limit) -> Iterator[Callable[[], None]]:
    """Put the folders of a scenario in place, on a disk of its own if there is a limit on it.

    Yields a function that lifts the limit.
    """
    if not limit.disk:
        kills.begin(scenario)
        yield lambda: None
        return
    shutil.rmtree("work", ignore_errors=True)
    place = Path(limit.place)
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o"]
    subprocess.run([*mount, "size=50m", "tmpfs", str(place)], check=True)
    try:
        start = kills.SCENARIOS[scenario][0]
        if start is not None:
            shutil.copytree(start, "work", dirs_exist_ok=True)
        used = sum(path.lstat().st_size + 4095 >> 12 << 2 for path in place.rglob("*"))
        inodes = len(list(place.rglob("*"))) + 1
        kind, _, amount = limit.disk.partition("=")
        size = f"size={used + int(amount[:-1])}k" if kind == "size" else f"nr_inodes={inodes + int(amount)}"
        subprocess.run(["mount", "-o", f"remount,{size}", str(place)], check=True)
        yield lambda: subprocess.run(
            ["mount", "-o", "remount,size=50m,nr_inodes=9999", str(place)], check=True
        )
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fault(scenario: str, limit: Limit, expected: dict[str, bytes]) -> str:
    """Run a scenario under a limit, and again without it. Returns what is wrong; "" for nothing."""
    with _placed(scenario, limit) as lift:
        ended = processes.run(kills.arguments_of(scenario), limit.prepare)
        wrong = ""
        if ended.code == 0 and kills.results() != expected:
            wrong = "other results under the limit"
        elif not ended.clean:
            wrong = str(ended)
        elif ended.code and not any(word in ended.shown.rpartition("\nerror: ")[2] for word in limit.words):
            wrong = f"says nothing of the limit: {ended}"
        lift()
        again = kills.fault(scenario, expected)
    return "; ".join(filter(None, (wrong, again and f"afterwards: {again}")))


def main(every: int = 1, first: int = 0) -> int:
    """Run the cases and print the faults. Returns their number."""
    with damage.world():
        expected = {scenario: kills.undisturbed(scenario) for scenario in kills.SCENARIOS}
        chosen = list(cases())[first::every]
        return damage.report(
            (f"{scenario}, {limit.name}", fault(scenario, limit, expected[scenario]))
            for scenario, limit in chosen
        )


if __name__ == "__main__":
    os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
