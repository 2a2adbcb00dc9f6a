"""Give hostile inputs to the commands that read them, and watch what the commands do.

    python tests/whole/adversary/hostile.py [EVERY [FIRST [NAME]]]

Each input is read by a command in a process of its own. The verdict: the command ends with exit code 0, or with 2 and a
message, within its time; no code of the input runs; nothing outside of its ``--out``, of the cache and of the folder
for temporary files is written; no control character of the input reaches the terminal; and it takes less than 1.5 GB of
memory beyond that of a command that does nothing. Runs the inputs FIRST, FIRST + EVERY and so on (by default all) whose
names hold NAME, and prints the faults.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from clusterucb.machine import resident_memory
from helpers.terminals import obeyed
from helpers.tiny import rows, write_model, write_rows
from whole.adversary import damage, processes
from whole.adversary.inputs.files import all_files
from whole.adversary.inputs.kept import all_kept
from whole.adversary.inputs.models import all_models
from whole.adversary.inputs.payloads import CANARY, Hostile, evils, select
from whole.adversary.inputs.rows import all_rows

_MEMORY = 1_500_000_000  # bytes beyond those of a command that does nothing
_OWN = ("out", "cache", "temporary")  # folders that a command may write to
_RUNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "subprocess.Popen",
    "pty.spawn",
)
_WRITES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.move",
)
_EVENTS = "events"  # a file of the working folder, with what the audit found


def inputs() -> list[Hostile]:
    """Return every hostile input."""
    return [one for family in (all_rows, all_files, all_models, all_kept) for one in family()]


def _audited(own: tuple[str, ...], note: int) -> None:
    """Note every program that this process starts, and every write outside of its own folders."""

    def outside(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        real = os.path.realpath(os.fsdecode(path))
        return not real.startswith((*own, "/dev/", "/proc/"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        found = ""
        if event in _RUNS and arguments[0] != sys.executable:  # the matcher of an adapter's patterns is ours
            found = f"runs {arguments[:2]!r:.200}"
        elif (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            found = f"writes {arguments[0]!r:.200}" if outside(arguments[0]) else ""
        elif event in ("os.remove", "os.rmdir") and arguments[1] != -1:  # relative to an open folder
            inside = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), os.fsdecode(arguments[0]))
            found = f"{event} {inside!r:.200}" if outside(inside) else ""
        elif event in _WRITES and outside(arguments[0]):
            found = f"{event} {arguments[0]!r:.200}"
        if found:
            os.write(note, f"{found}\n".encode())

    sys.addaudithook(hook)


def _snapshot() -> dict[str, tuple[object, ...]]:
    """Return what stands in the working folder, without the folders that a command may write to."""
    found: dict[str, tuple[object, ...]] = {}
    left = ["."]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.path.removeprefix("./") in (*_OWN, _EVENTS):
                    continue
                about = entry.stat(follow_symlinks=False)
                found[entry.path] = (about.st_mode, about.st_size, about.st_mtime_ns, about.st_ino)
                if entry.is_dir(follow_symlinks=False):
                    found[entry.path] = (about.st_mode,)
                    left.append(entry.path)
    return found


def fault(hostile: Hostile) -> str:
    """Let a command read a hostile input, and return what is wrong with what it does; "" for nothing."""
    for place in (*_OWN, "case"):
        shutil.rmtree(place, ignore_errors=True)
    for place in ("case", "temporary"):
        Path(place).mkdir()
    Path(CANARY).unlink(missing_ok=True)
    arguments = hostile.make(Path("case"))
    before = _snapshot()
    note = os.open(_EVENTS, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    own = tuple(f"{Path(place).resolve()}" for place in _OWN)
    base = resident_memory()
    ended = processes.run(arguments, lambda: _audited(own, note))
    events = os.pread(note, 4000, 0).decode()
    os.close(note)
    after = _snapshot()
    changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    wrong = [
        f"code has run: {CANARY}" if Path(CANARY).exists() else "",
        f"changed {changed}" if changed else "",
        events and f"noted {events}",
        f"the terminal obeys {obeyed(ended.shown)!r:.80}" if obeyed(ended.shown) else "",
        f"{(ended.peak - base) / 1e9:.1f} GB of memory" if ended.peak - base > _MEMORY else "",
        "" if ended.clean else str(ended),
        "nothing is said" if ended.code and not ended.shown.strip() else "",
    ]
    return "; ".join(filter(None, wrong))


@contextlib.contextmanager
def world() -> Iterator[None]:
    """Make a model, a pool, a target and a run in a temporary folder, and work there."""
    before, environment = Path.cwd(), dict(os.environ)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        home = Path("cache").resolve()
        os.environ |= {
            "HOME": str(home),
            "HF_HOME": str(home),
            "CLUSTERUCB_CACHE": str(home),
            "HF_HUB_OFFLINE": "1",
        }
        os.environ["TMPDIR"] = tempfile.tempdir = str(Path("temporary").resolve())
        Path("temporary").mkdir()
        try:
            write_model(Path("model"))
            write_rows(Path("pool.jsonl"), rows(24))
            write_rows(Path("dev.jsonl"), rows(6, seed=9))
            code, shown = damage.command([part if part != "out" else "run" for part in select()])
            assert code == 0, shown
            for name in ("exec", "open"):  # the canary does show that code has run
                evils()[name].fire()
                assert Path(CANARY).exists()
                Path(CANARY).unlink()
            yield
        finally:
            os.chdir(before)
            tempfile.tempdir = None
            os.environ.clear()
            os.environ.update(environment)


def main(every: str = "1", first: str = "0", name: str = "") -> int:
    """Read the inputs and print the faults. Returns their number."""
    with world():
        chosen = [one for one in inputs() if name in one.name][int(first) :: int(every)]
        return damage.report((one.name, fault(one)) for one in chosen)


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
