"""Replay parts of the committed tables with two versions, and compare the numbers: `python benchmarks/same_tables.py`.

    python benchmarks/same_tables.py OTHER [--folder FOLDER] [--only NAME,NAME]

OTHER is the checkout of another version, with its environment in `.venv`. Each command of `COMMANDS` runs first there
and then here. A command replays as much of a table as takes a few minutes. Every number has to be the same, except for
seconds. FOLDER keeps the pools and results of both versions (by default beside the demo's model in the user's cache).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
from pathlib import Path
from typing import Any

from clusterucb.demo.wheels import cache_folder

HERE = Path(__file__).parents[1]
COMMANDS = {
    "replay": "replay.py --strategies random,ucb,ucb[parts=false],ucb@source,surrogate",
    "replay-others": "replay.py --pools code --seeds 1",
    "no-signal": "replay.py --no-signal --pools diverse --seeds 2",
    "recall": "bench_recall.py --pools diverse --seeds 1",
    "store": "bench_store.py --pools code --seeds 1",
    "prior": "bench_prior.py --pools diverse --seeds 1",
}


def untimed(content: Any) -> Any:
    """Return the content of a results file without its seconds."""
    if isinstance(content, dict):
        return {key: untimed(value) for key, value in content.items() if key != "seconds"}
    return [untimed(one) for one in content] if isinstance(content, list) else content


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Return where two contents differ, and both values."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [line for key in one for line in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for at, (a, b) in pairs for line in differences(a, b, f"{place}/{at}")]
    return [] if one == other else [f"{place}: {one} and {other}"]


def numbers(content: Any) -> int:
    """Return how many values a content has."""
    if isinstance(content, dict | list):
        return sum(numbers(one) for one in (content.values() if isinstance(content, dict) else content))
    return 1


def replayed(checkout: Path, command: str, folder: Path, name: str) -> tuple[Any, float]:
    """Return the untimed results of a command in a checkout, and the seconds of processor time it took."""
    file = folder / f"{name}.json"
    script, *options = command.split()
    whole = [checkout / ".venv/bin/python", checkout / "benchmarks" / script, *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*whole, "--folder", folder, "--json", file],
        cwd=checkout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return untimed(json.loads(file.read_text())), spent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path)
    parser.add_argument("--folder", type=Path, default=cache_folder().parent / "bench-versions")
    parser.add_argument("--only", default=",".join(COMMANDS))
    options = parser.parse_args()
    different = False
    for name in options.only.split(","):
        found = []
        for version, checkout in (("other", options.other.resolve()), ("this", HERE)):
            folder = options.folder / version
            folder.mkdir(parents=True, exist_ok=True)
            found.append(replayed(checkout, COMMANDS[name], folder, name))
        (before, spent_before), (now, spent_now) = found
        lines = differences(before, now)
        different = different or bool(lines)
        said = (
            f"{len(lines)} of {numbers(now)} values differ"
            if lines
            else f"all {numbers(now)} values are the same"
        )
        print(f"{name}: {said} ({spent_before:.0f} and {spent_now:.0f} s of processor time)", flush=True)
        print(*(f"  {line}" for line in lines), sep="\n", end="\n" if lines else "", flush=True)
    raise SystemExit(different)


if __name__ == "__main__":
    main()
