"""List what lies below a folder: selections, scores, gradient stores, comparisons and trials."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clusterucb import filenames
from clusterucb.errors import RunError
from clusterucb.run.manifest import Manifest
from clusterucb.run.manifest_file import read_manifest
from clusterucb.wording import one_line

_BESIDE = {filenames.LEDGER, filenames.CONFIG, filenames.LOCK, filenames.LEASE, filenames.SCORES}
_DEEPEST = 8  # folders inside each other that are searched


class Listed(msgspec.Struct):
    """A folder that a job has written.

    Attributes:
        folder: its path.
        job: the job that wrote it: ``select``, ``score``, ``sketch``, ``compare`` or ``try``; None if the manifest is
            damaged.
        changed: when its manifest was last written, in seconds since 1970.
        status: ``finished``, ``running`` (at work, or interrupted) or ``damaged``.
        budget: the budget, as it was given; None for a job without one.
        samples: the number of pool samples; 0 before they are counted.
        scored: the number of samples scored.
        selected: the number of samples selected; None for a job that selects none.
        recall: the estimated share of the best samples found, or None.
        cost: the cost, where 1 is a gradient of every pool sample; None before the job is finished.
        seconds: the time; None before the job is finished.
        fault: what is wrong with the manifest, or None.
    """

    folder: str
    job: str | None
    changed: float
    status: str
    budget: str | None = None
    samples: int = 0
    scored: int | None = None
    selected: int | None = None
    recall: float | None = None
    cost: float | None = None
    seconds: float | None = None
    fault: str | None = None

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> Listed:
        """Return what a manifest says."""
        outcome, cost = manifest.outcome, manifest.cost
        return cls(
            folder=str(folder),
            job=manifest.identity.job,
            changed=_changed(folder),
            status=manifest.status,
            budget=manifest.asked.budget,
            samples=manifest.inputs.pool_samples or cost.pool_samples,
            scored=outcome.n_scored if outcome else None,
            selected=outcome.n_selected if outcome else None,
            recall=outcome.found if outcome else None,
            cost=cost.total if manifest.status == "finished" else None,
            seconds=cost.seconds if manifest.status == "finished" else None,
        )


def runs(folder: Path) -> list[Listed]:
    """Return what jobs have written to a folder and those below it, the latest first.

    A folder with a damaged manifest is listed as damaged. Links are not followed, and folders that cannot be read are
    passed over.

    Raises:
        RunError: the folder does not exist.
    """
    if not folder.is_dir():
        raise RunError(
            f"{folder} is {'no folder' if folder.exists() else 'not there'}; expected a folder with runs in it"
        )
    return sorted(_below(folder), key=lambda one: (-one.changed, one.folder))


def _below(folder: Path) -> Iterator[Listed]:
    for place, inner, names in os.walk(folder):
        here = Path(place)
        if len(here.relative_to(folder).parts) >= _DEEPEST:
            inner.clear()
        if filenames.MANIFEST not in names:
            continue
        try:
            yield Listed.of(here, read_manifest(here))
        except RunError as error:
            if _BESIDE & {*names}:  # else another program has a file of this name
                yield Listed(str(here), None, _changed(here), "damaged", fault=str(error))
        except OSError:  # it was removed meanwhile
            continue


def _changed(folder: Path) -> float:
    with suppress(FileNotFoundError):
        return (folder / filenames.MANIFEST).lstat().st_mtime
    return 0.0


def show(found: Sequence[Listed], folder: Path, console: Console) -> None:
    """Print a list of runs as a table, and what is wrong with damaged ones."""
    if not found:
        console.print(Text(f"No run lies below {folder}"), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("folder", overflow="fold")
    for title in ("job", "changed", "budget"):
        table.add_column(title, no_wrap=True)
    for title in ("scored", "selected", "found", "cost"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            Text(one_line(one.folder)),
            Text.assemble(one.job or "", ("" if one.status == "finished" else f" {one.status}", "yellow")),
            _day_or_time(one.changed),
            one.budget or "",
            "" if one.scored is None else f"{one.scored:,}",
            "" if one.selected is None else f"{one.selected:,}",
            "" if one.recall is None else f"{one.recall:.0%}",
            "" if one.cost is None else f"{one.cost:.3f}",
        )
    console.print(table)
    for one in found:
        if one.fault:
            console.print(Text(one.fault, style="bold red"), soft_wrap=True)


def _day_or_time(seconds: float) -> str:
    """Return the time of a moment today, and the day of an earlier one."""
    moment = datetime.fromtimestamp(seconds)
    return f"{moment:%H:%M}" if moment.date() == datetime.now().date() else f"{moment:%Y-%m-%d}"
