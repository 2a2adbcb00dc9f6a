"""Kill every command before and after each of its file-system events, and repeat it.

    python tests/whole/adversary/kills.py [EVERY [FIRST]]

An event is a call that changes what is on the disk: a file created, flushed, renamed or removed, a folder made or
removed, or a transaction of the ledger. A process of its own kills itself at the k-th point; points lie before and
after each event. The same command then runs to its end. Its results must be those of a command that nobody killed, byte
for byte, and nothing half-written may be left. Visits the points FIRST, FIRST + EVERY and so on of every scenario, and
prints the faults.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from clusterucb.run.feature_shards import CACHED
from clusterucb.run.ledger import Ledger
from whole.adversary import damage, processes

# Scenarios by name: the folder to begin with, if any, and the command without --out and the folder.
SCENARIOS: dict[str, tuple[str | None, list[str]]] = {
    "select": (None, damage.MADE["run"]),
    "grow": ("run", damage.USES["run"]["grow"][0][:-2]),
    "overwrite": ("other-run", [*damage.MADE["run"], "--overwrite"]),
    "sketch": (None, damage.MADE["store"]),
    "grow a store": ("store", damage.USES["store"]["grow"][0][:-2]),
    "merge stores": (None, ["stores", "store", "--merge"]),
    "select from a store": (None, damage.USES["store"]["select"][0][:-2]),
    "compare": (None, damage.MADE["comparison"]),
    "try": (None, damage.MADE["trial"]),
}
_EVENTS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "link")),
    (Ledger, "begin"),
    (Ledger, "finish"),
)


def arguments_of(scenario: str) -> list[str]:
    """Return the command of a scenario; a store is read from the folder that `damage.build` made."""
    parts = [part.replace("{}", "store") for part in SCENARIOS[scenario][1]]
    return [*parts, "work"] if parts[-1] == "--merge" else [*parts, "--out", "work"]


def begin(scenario: str, folder: str = "work") -> None:
    """Put the folder of a scenario in place."""
    shutil.rmtree(folder, ignore_errors=True)
    if (start := SCENARIOS[scenario][0]) is not None:
        shutil.copytree(start, folder)


def undisturbed(scenario: str) -> dict[str, bytes]:
    """Run a scenario, and return its results."""
    begin(scenario)
    code, shown = damage.command(arguments_of(scenario))
    assert code == 0, shown
    return results()


def killing(function: Callable[..., Any], countdown: Callable[[], None]) -> Callable[..., Any]:
    """Return the function, with a point before and a point after it."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        countdown()
        result = function(*arguments, **options)
        countdown()
        return result

    return wrapped


def kill_at(point: int) -> None:
    """Let this process kill itself at a point."""
    left = iter(range(point))

    def countdown() -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, name in _EVENTS:
        setattr(owner, name, killing(getattr(owner, name), countdown))


def run_until(scenario: str, point: int) -> bool:
    """Run a scenario in a process that kills itself at a point. Returns whether it was killed."""
    ended = processes.run(arguments_of(scenario), lambda: kill_at(point))
    return ended.code == -signal.SIGKILL


def results(folder: str = "work") -> dict[str, bytes]:
    """Return the results in a folder, without times, and the names of everything in it.

    The mark of features from the cache is none of them: another process may have computed them first.
    """
    place = Path(folder)
    found = [*(place / name for name in damage.OUTPUTS), *place.glob("sketches-*"), *place.glob("samples-*")]
    names = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.name != CACHED)
    return {path.name: damage.comparable(path) for path in found if path.is_file()} | {
        "names": "\n".join(names).encode()
    }


def fault(scenario: str, expected: dict[str, bytes], folder: str = "work") -> str:
    """Repeat a scenario that was disturbed, and return what is wrong with its outcome; "" for a right outcome."""
    code, shown = damage.command([*arguments_of(scenario)[:-1], folder])
    if code:
        return f"exit {code}: {shown[-600:]}"
    found = results(folder)
    wrong = [name for name in expected if found.get(name) != expected[name]]
    names = {*found["names"].split()} ^ {*expected["names"].split()}
    return f"other results: {wrong}, files: {sorted(names)}" if wrong else ""


def kills(every: int, first: int) -> Iterator[tuple[str, int, str]]:
    """Yield the scenario, the point and the fault ("" for none) of each kill."""
    for scenario in SCENARIOS:
        expected, point = undisturbed(scenario), first
        begin(scenario)
        while run_until(scenario, point):
            yield scenario, point, fault(scenario, expected)
            begin(scenario)
            point += every


def main(every: int = 1, first: int = 0) -> int:
    """Kill at the points and print the faults. Returns their number."""
    with damage.world():
        found = kills(every, first)
        return damage.report((f"{scenario}, killed at {point}", wrong) for scenario, point, wrong in found)


if __name__ == "__main__":
    os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
