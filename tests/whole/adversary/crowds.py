"""Let several processes use one folder, one store or one cache at once.

    python tests/whole/adversary/crowds.py [EVERY [FIRST]]

Two to four processes run a scenario of kills.py in the same folder, or in folders of their own with one store or one
cache of features. They begin together, or one after the other, or the first kills itself while the others wait; the
folder is protected by a lock of the file system, or by a lease. The verdict: a command that is refused says that
another process uses the folder, and exits with 2; one that finishes has the results of a command that runs alone, byte
for byte; nobody hangs, nothing half-written is left, and the cache holds what it says. Runs the cases FIRST, FIRST +
EVERY and so on (by default all), and prints the faults.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from clusterucb.atomic import file_sha256
from whole.adversary import damage, kills, processes

_STEP = 0.4  # seconds from the beginning of one process to that of the next, where they do not begin together
_CACHE = "cache"
WAYS = ("together", "staggered", "killed")
LOCKS = ("lock", "lease")


@dataclass(frozen=True)
class Crowd:
    """Several processes.

    Attributes:
        scenario: the scenario of kills.py that each of them runs.
        count: their number.
        way: one of `WAYS`.
        lock: one of `LOCKS`.
        point: the event at which the first kills itself, if the way is "killed".
        apart: whether each has a folder of its own; then they share the store that the scenario reads, and the cache.
    """

    scenario: str
    count: int
    way: str
    lock: str
    point: int = 0
    apart: bool = False

    def __str__(self) -> str:
        place = "in folders of their own" if self.apart else "in one folder"
        return f"{self.count} times {self.scenario} {place}, {self.way}, {self.lock}, {self.point}"

    def folder(self, at: int) -> str:
        """Return the folder of a process."""
        return f"work-{at}" if self.apart else "work"

    def arguments(self, at: int) -> list[str]:
        """Return the command of a process."""
        return [*kills.arguments_of(self.scenario)[:-1], self.folder(at)]

    def prepare(self, at: int) -> None:
        """Set a process up, in it."""
        if self.apart:
            os.environ |= {"CLUSTERUCB_CACHE": _CACHE, "CLUSTERUCB_CACHE_LIMIT": "1"}
        if self.lock == "lease":
            fcntl.flock = _no_locks
        if self.way == "staggered":
            time.sleep(_STEP * at)
        if self.way == "killed" and at == 0:
            kills.kill_at(self.point)


def _no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@contextmanager
def _locks(lock: str) -> Iterator[None]:
    """Let this process have no locks of the file system in the block, if the lock is a lease."""
    before = fcntl.flock
    if lock == "lease":
        fcntl.flock = _no_locks
    try:
        yield
    finally:
        fcntl.flock = before


def crowds() -> Iterator[Crowd]:
    """Yield all crowds."""
    for scenario, count, way, lock in product(kills.SCENARIOS, (2, 3, 4), WAYS, LOCKS):
        for point in (3, 20, 45) if way == "killed" else (0,):
            yield Crowd(scenario, count, way, lock, point)
    for scenario, count, way, lock in product(
        ("select", "select from a store", "compare"), (2, 4), WAYS, LOCKS
    ):
        for point in (10, 30) if way == "killed" else (0,):
            yield Crowd(scenario, count, way, lock, point, apart=True)


def _complaints(crowd: Crowd, ended: list[processes.Ended], expected: dict[str, bytes]) -> Iterator[str]:
    """Yield what is wrong with how the processes of a crowd ended."""
    for at, one in enumerate(ended):
        folder = crowd.folder(at)
        if one.code == -9 and crowd.way == "killed" and at == 0 and not one.hung:
            continue
        if not one.clean:
            yield str(one)
        elif one.code == 2 and (crowd.apart or "in use by" not in one.shown.rpartition("\nerror: ")[2]):
            yield f"refused: {one}"
        elif one.code == 0 and kills.results(folder) != expected:
            yield f"{folder} has other results: {one}"
        elif "is damaged" in one.shown or (crowd.apart and "cannot be used" in one.shown):
            yield f"complains: {one}"
    if all(one.code for one in ended) and crowd.way != "killed":
        yield f"nobody finishes: {ended[0]}"


def _entries() -> Iterator[str]:
    """Yield what is wrong with the cache."""
    for about in Path(_CACHE).rglob("entry.json"):
        files = json.loads(about.read_bytes())["files"]
        if wrong := [name for name, digest in files.items() if file_sha256(about.with_name(name)) != digest]:
            yield f"the cache's {about.parent.name} has other bytes in {wrong}"
    if left := [str(path) for path in Path(_CACHE).rglob("*.partial*")]:
        yield f"the cache keeps {left}"


def fault(crowd: Crowd, expected: dict[str, bytes]) -> str:
    """Let a crowd work, then repeat its command alone. Returns what is wrong; "" for nothing."""
    for place in (_CACHE, *Path().glob("work-*")):
        shutil.rmtree(place, ignore_errors=True)
    for at in range(crowd.count if crowd.apart else 1):
        kills.begin(crowd.scenario, crowd.folder(at))
    begun = [
        processes.Process(crowd.arguments(at), lambda at=at: crowd.prepare(at)) for at in range(crowd.count)
    ]
    ended = [process.end() for process in begun]
    wrong = list(_complaints(crowd, ended, expected))
    for at in range(crowd.count if crowd.apart else 1):
        with _locks(crowd.lock):
            wrong.append(kills.fault(crowd.scenario, expected, crowd.folder(at)))
        wrong += [f"left: {path}" for path in Path(crowd.folder(at)).glob("lease*")]
    if crowd.apart and crowd.way != "killed":
        wrong += _entries()
    return "; ".join(filter(None, wrong))


def main(every: int = 1, first: int = 0) -> int:
    """Let the crowds work and print the faults. Returns their number."""
    with damage.world():
        expected = {scenario: kills.undisturbed(scenario) for scenario in kills.SCENARIOS}
        chosen = list(crowds())[first::every]
        return damage.report((str(crowd), fault(crowd, expected[crowd.scenario])) for crowd in chosen)


if __name__ == "__main__":
    os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
