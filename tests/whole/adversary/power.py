"""Cut the power of every command after each of its changes of the file system, and repeat it.

    python tests/whole/adversary/power.py [EVERY [FIRST]]

A command runs once, and every change that it makes in its folder is recorded (`changes`). A model of the disk (`disk`)
says what may be left if the power fails after the k-th change: what was not flushed may be missing. Of what may be
left, four folders are made: all changes are there (as after a kill); those that were not flushed are missing; their
names are there without the content; and a draw of them. In each folder, the same command then runs to its end. Its
results must be those of a command whose power never failed, byte for byte, and nothing half-written may be left. After
its last change, a command has said that it is done, so its results must be there, whatever was lost.

Visits the points FIRST, FIRST + EVERY and so on of every scenario of `kills`, and the last one, and prints the faults.
A folder that is left at several points is judged once.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from whole.adversary import changes, damage, kills
from whole.adversary.changes import Recorded, Tree
from whole.adversary.disk import ALL_LOST, DATA_LOST, NOTHING_LOST, Disk, any_lost


def make(tree: Tree | None) -> None:
    """Make the folder ``work``."""
    shutil.rmtree("work", ignore_errors=True)
    for path, content in {"": None, **tree}.items() if tree is not None else ():
        if content is None:
            Path("work", path).mkdir()
        else:
            Path("work", path).write_bytes(content)


def left(scenario: str, recorded: Recorded, every: int, first: int) -> Iterator[tuple[int, str, Tree | None]]:
    """Yield what a loss of power may leave: the point, the name of the loss, and the files."""
    disk = Disk(recorded.before)
    for point in range(len(recorded.changes) + 1):
        if point:
            disk.apply(recorded.changes[point - 1])
        losses = {
            "nothing": NOTHING_LOST,
            "everything": ALL_LOST,
            "content": DATA_LOST,
            "something": any_lost(random.Random(f"{scenario} {point}")),
        }
        if point == len(recorded.changes) or (point >= first and (point - first) % every == 0):
            for name, loss in losses.items():
                yield point, name, disk.left(loss)
    assert disk.left(NOTHING_LOST) == recorded.after, "a change was not recorded"


def fault(scenario: str, recorded: Recorded, tree: Tree | None, *, finished: bool) -> str:
    """Make a folder and repeat the scenario there. Returns what is wrong with the outcome; "" for a right outcome."""
    make(tree)
    if finished and kills.results() != recorded.expected:
        return "the results of a finished command are lost"
    return kills.fault(scenario, recorded.expected)


def losses(every: int, first: int, scenarios: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield a label and the fault ("" for none) of each loss of power that leaves another folder than those before.

    Args:
        every: the distance of the points.
        first: the first point.
        scenarios: the scenarios of `kills`, by default all.
    """
    for scenario, recorded in changes.record(scenarios or tuple(kills.SCENARIOS)).items():
        known, last = set(), len(recorded.changes)
        for point, lost, tree in left(scenario, recorded, every, first):
            folder = (repr(tree), point == last)
            if folder not in known:
                known.add(folder)
                wrong = fault(scenario, recorded, tree, finished=point == last)
                yield f"{scenario}, power lost after change {point} of {last}, {lost} lost", wrong


def main(every: int = 1, first: int = 0) -> int:
    """Cut the power at the points and print the faults. Returns their number."""
    with damage.world():
        return damage.report(losses(every, first))


if __name__ == "__main__":
    os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
