"""Record every change of the file system that a command makes, by a library of ours that is loaded before libc.

`changes.c` is compiled when it is needed. It sees what Python, SQLite, torch and safetensors write, because all of them
call libc. What it cannot see is writing through a mapping of a file; it logs such mappings, and only SQLite's ``-shm``
may have one: whoever opens a ledger first after a crash makes that file anew. That nothing else is missed is shown by
`power.py`: the changes, replayed, give the very files that the command left.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from whole.adversary import damage, kills

Tree = dict[str, bytes | None]  # files by their path inside the folder; None stands for a folder

_HEADER = struct.Struct("=c7xqQQQ")
MAPPED = "-shm"


@dataclass(frozen=True)
class Change:
    """A change of the file system.

    Attributes:
        what: c (a file is created), w (data is written), t (the size is set), s (a file or a folder is flushed to the
            disk), m (a folder is made), r (renamed), l (linked), u (removed), x (anything else).
        offset: the offset in bytes of what is written, or the size that is set.
        path: the path.
        other: the new path, of r and l.
        data: what is written.
    """

    what: str
    offset: int
    path: str
    other: str
    data: bytes


@dataclass(frozen=True)
class Recorded:
    """What a command did in the folder ``work``.

    Attributes:
        before: the files before the command.
        after: the files after it.
        changes: its changes; paths begin with ``work``, but for a flush of the folder above (``.``).
        expected: its results, from `kills.results`.
    """

    before: Tree
    after: Tree
    changes: list[Change]
    expected: dict[str, bytes]


def tree(folder: Path) -> Tree:
    """Return what a folder holds; empty if it does not exist."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def read(log: Path, root: Path) -> Iterator[Change]:
    """Yield the changes in a log. Their paths are relative to ``root``."""

    def inside(path: bytes) -> str:
        return os.path.relpath(path.decode(), root) if path else ""

    content, at = log.read_bytes(), 0
    while at < len(content):
        what, offset, *lengths = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        parts = []
        for length in lengths:
            parts.append(content[at : at + length])
            at += length
        change = Change(what.decode(), offset, inside(parts[0]), inside(parts[1]), parts[2])
        if change.path == "." or change.path.partition("/")[0] == "work":
            assert change.what != "x" or change.path.endswith(MAPPED), change
            yield change


def record(scenarios: Sequence[str]) -> dict[str, Recorded]:
    """Run scenarios of `kills` once in a process of their own, and return what each did."""
    library, kept = Path("changes.so").absolute(), Path("recorded.pickle")
    source = Path(__file__).with_suffix(".c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl", "-pthread"], check=True
    )
    before = os.environ.get("LD_PRELOAD")
    preload = f"{library}:{before}" if before else str(library)
    environment = {**os.environ, "LD_PRELOAD": preload, "CLUSTERUCB_CACHE_LIMIT": "0"}
    subprocess.run([sys.executable, __file__, library, kept, *scenarios], check=True, env=environment)
    return pickle.loads(kept.read_bytes())


def _main(library: str, kept: str, *scenarios: str) -> None:
    """Run scenarios in this process, which the library watches, and keep what each did in a file."""
    shim, log, recorded = ctypes.CDLL(library), Path("changes.log"), {}
    for scenario in scenarios:
        kills.begin(scenario)
        before = tree(Path("work"))
        log.unlink(missing_ok=True)
        shim.changes_begin(bytes(log.absolute()), bytes(Path.cwd().resolve()))
        code, shown = damage.command(kills.arguments_of(scenario))
        shim.changes_end()
        assert code == 0, shown
        changes = list(read(log, Path.cwd().resolve()))
        recorded[scenario] = Recorded(before, tree(Path("work")), changes, kills.results())
    Path(kept).write_bytes(pickle.dumps(recorded))


if __name__ == "__main__":
    # by its name, so that what is kept names the class of the module and not that of __main__
    from whole.adversary import changes

    changes._main(*sys.argv[1:])
