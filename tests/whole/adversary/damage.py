"""Damage every file of a run, a store, a comparison and a trial in every way, and use the folder afterwards.

    python tests/whole/adversary/damage.py [EVERY [FIRST]]

A case is a folder, a file in it, a damage, and a use of the folder. The verdict is one of three: the result of the
undamaged folder, byte for byte; exit code 2 with a message that names the file or the folder; or, where the damaged
file is not read, again the undamaged result. Anything else is a fault: another result, "a bug", a hang, a change of a
file elsewhere. Runs the cases FIRST, FIRST + EVERY and so on (by default all), and prints the faults.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parents[2]))

from clusterucb.cli import main as cli
from helpers.tiny import rows, write_model, write_rows

_LIMIT = 120  # seconds after which a use counts as a hang
PAGE = "report.html"
OUTPUTS = ("selected.jsonl", "scores.jsonl", "rejected.jsonl", "comparison.json", "trial.json")
_TIMES = ("seconds", "total_seconds", "cost", "phases")
_FILES = ["pool.jsonl", "--target", "dev.jsonl", "--model", "model"]
_SMALL = ["--warmup-steps", "2"]
_DRAWS = ["--batch-size", "4", "--select", "3"]
_SELECT = ["select", *_FILES, *_SMALL, *_DRAWS]
_RUN = [*_SELECT, "--hold-out", "50%", "--export", "trl", "--scores-parquet", "--budget"]

_STORE = ["sketch", "pool.jsonl", "--model", "model", *_SMALL, "--sketch-dim", "256"]
_GROWN = ["sketch", "pool.jsonl", "more.jsonl", *_STORE[2:]]
_FROM_STORE = ["select", *_FILES, *_DRAWS, "--budget", "25%", "--sketch-dim", "256"]
_COMPARE = ["compare", *_FILES, *_SMALL, "--budgets", "50%", "--seeds", "1"]
_TRIAL = ["--seeds", "1", "--epochs", "1"]
_OTHER = ["--seed", "1"]

# Folders by name: the command that makes them, without --out.
MADE = {
    "run": [*_RUN, "25%"],
    "other-run": [*_RUN, "25%", *_OTHER],
    "whole": [*_SELECT, "--budget", "100%", "--policy", "random"],
    "other-whole": [*_SELECT, "--budget", "100%", "--policy", "random", *_OTHER],
    "store": _STORE,
    "other-store": [*_STORE, *_OTHER],
    "comparison": [*_COMPARE, "--strategies", "random,surrogate"],
    "other-comparison": [*_COMPARE, "--strategies", "random", *_OTHER],
    "trial": ["try", "run", *_TRIAL],
    "other-trial": ["try", "other-run", *_TRIAL],
}
# Uses of each folder by name: the command, with {} in place of the folder, and the folder that it writes.
USES = {
    "run": {
        "repeat": ([*MADE["run"], "--out", "{}"], "{}"),
        "grow": ([*_RUN, "50%", "--out", "{}"], "{}"),
        "prior": ([*_SELECT, "--budget", "20%", "--prior", "{}", "--out", "after"], "after"),
        "try": (["try", "{}", *_TRIAL, "--out", "after"], "after"),
        "page": (["report", "{}"], "{}"),
    },
    "whole": {"scores": ([*_COMPARE, "--scores", "{}", "--out", "after"], "after")},
    "store": {
        "repeat": ([*MADE["store"], "--out", "{}"], "{}"),
        "grow": ([*_GROWN, "--out", "{}"], "{}"),
        "select": ([*_FROM_STORE, "--store", "{}", "--out", "after"], "after"),
    },
    "comparison": {"repeat": ([*MADE["comparison"], "--out", "{}"], "{}")},
    "trial": {"repeat": ([*MADE["trial"], "--out", "{}"], "{}")},
}


def truncated(path: Path, _: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) or 1)])


def emptied(path: Path, _: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def randomised(path: Path, _: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(len(path.read_bytes()) or 9))


def flipped(path: Path, _: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def longer(path: Path, _: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(20))


def removed(path: Path, _: Path, rng: random.Random) -> None:
    path.unlink()


def foreign(path: Path, other: Path, rng: random.Random) -> None:
    if other.exists():
        shutil.copyfile(other, path)
    else:
        path.write_bytes(b"{}")


def folder(path: Path, _: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path, _: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def linked(path: Path, _: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(Path("elsewhere").absolute())


def beside(path: Path, _: Path, rng: random.Random) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(Path("elsewhere").absolute())


DAMAGES: list[Callable[[Path, Path, random.Random], None]] = [
    truncated, emptied, randomised, flipped, longer, removed, foreign, folder, pipe, linked, beside,
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A folder, the path of a file in it, a damage, and the name of a use."""

    folder: str
    file: str
    damage: Callable[[Path, Path, random.Random], None]
    use: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.file} {self.damage.__name__}, then {self.use}"


class Hang(BaseException):
    """A use took too long."""


def command(arguments: list[str]) -> tuple[int, str]:
    """Run a command in this process, and return its exit code and what it showed."""

    def stop(_: int, __: FrameType | None) -> None:
        raise Hang

    shown = io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_LIMIT)
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            return cli.run(arguments), shown.getvalue()
    except Hang:
        return -1, f"{shown.getvalue()}\nhangs"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def build(names: Collection[str]) -> None:
    """Make folders in the present one."""
    write_model(Path("model"))
    write_rows(Path("pool.jsonl"), rows(24))
    write_rows(Path("more.jsonl"), rows(6, seed=8))
    write_rows(
        Path("dev.jsonl"), [{**row, "subtask": str(at % 2)} for at, row in enumerate(rows(12, seed=9))]
    )
    Path("elsewhere").write_bytes(b"mine")
    for name in names:
        code, shown = command([*MADE[name], "--out", name])
        assert code == 0, shown


def expected_of(name: str, use: str) -> Path:
    """Return the folder with the results of the use of an undamaged folder."""
    expected = Path("expected") / name / use
    if not expected.exists():
        code, shown, found = used(name, use)
        assert code == 0, shown
        expected.mkdir(parents=True)
        for file, content in found.items():
            (expected / file).write_bytes(content)
    return expected


def used(
    name: str, use: str, damage: Callable[[Path], None] = lambda _: None
) -> tuple[int, str, dict[str, bytes]]:
    """Damage a copy of a folder and use it. Returns the exit code, what was shown, and the results."""
    work = Path("work")
    for place in (work, Path("after")):
        shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(name, work)
    damage(work)
    arguments, out = USES[name][use]
    code, shown = command([part.format("work") for part in arguments])
    written = Path(out.format("work"))
    found = {file: written / file for file in ((PAGE,) if use == "page" else OUTPUTS)}
    return code, shown, {file: comparable(path) for file, path in found.items() if path.is_file()}


def comparable(path: Path) -> bytes:
    """Return what a file says, without times."""
    if path.suffix != ".json":
        return path.read_bytes()

    def timeless(value: object) -> object:
        if isinstance(value, dict):
            return {name: timeless(part) for name, part in value.items() if name not in _TIMES}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    return json.dumps(timeless(json.loads(path.read_bytes()))).encode()


def cases() -> Iterator[Case]:
    """Yield all cases, in an order that does not depend on the machine."""
    for name, uses in USES.items():
        files = sorted(path.relative_to(name).as_posix() for path in Path(name).rglob("*") if path.is_file())
        for file in files:
            for damage in DAMAGES:
                for use in uses:
                    yield Case(name, file, damage, use)


def fault(case: Case) -> str:
    """Return what is wrong with the outcome of a case; "" for a right outcome."""
    rng = random.Random(str(case))
    other = Path(f"other-{case.folder}") / case.file
    code, shown, found = used(case.folder, case.use, lambda work: case.damage(work / case.file, other, rng))
    if Path("elsewhere").read_bytes() != b"mine":
        Path("elsewhere").write_bytes(b"mine")
        return "a file elsewhere was changed"
    if code == 0:
        expected = expected_of(case.folder, case.use)
        wrong = [file for file in found if found[file] != (expected / file).read_bytes()]
        missing = [path.name for path in expected.iterdir() if path.name not in found]
        return f"other results: {', '.join(wrong + missing)}\n{shown}" if wrong or missing else ""
    named = "work" in shown.rpartition("error:")[2]
    return "" if code == 2 and named else f"exit {code}: {shown[-600:]}"


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Work in a temporary folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(before)


@contextlib.contextmanager
def world(names: Collection[str] = tuple(MADE)) -> Iterator[None]:
    """Build folders, by default all, in a temporary folder, and work there."""
    with elsewhere():
        build(names)
        yield


def report(outcomes: Iterable[tuple[str, str]]) -> int:
    """Print what is wrong with each outcome, and how many are right. Returns the number of faults."""
    counts: Counter[str] = Counter()
    for label, wrong in outcomes:
        counts["faults" if wrong else "right"] += 1
        if wrong:
            print(f"{label}: {wrong}", flush=True)
    print(f"{counts['right']:,} right, {counts['faults']:,} faults")
    return counts["faults"]


def main(every: int = 1, first: int = 0) -> int:
    """Run the cases and print the faults. Returns their number."""
    with world():
        return report((str(case), fault(case)) for case in list(cases())[first::every])


if __name__ == "__main__":
    os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
