"""Compare two selections: their settings, what they selected, and the scores of samples that both have scored.

Samples are matched by their ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clusterucb import filenames
from clusterucb.atomic import unreadable
from clusterucb.report.run_page.details import read_details
from clusterucb.report.run_page.found import files_of, finished_selection
from clusterucb.report.written import spearman
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.manifest import Manifest, shown
from clusterucb.wording import one_line

_MOVED = 5  # samples of each list


class Score(msgspec.Struct):
    """A line of ``scores.jsonl``, as far as it is compared.

    Attributes:
        id: the sample's id.
        score: its reward under the run's rule.
        subtasks: its score for each subtask.
        selected: whether it is selected.
    """

    id: str
    score: float
    subtasks: dict[str, float]
    selected: bool


class Moved(msgspec.Struct):
    """A sample that one run selected, and the other did not.

    Attributes:
        id: the sample's id.
        rank: its rank in the run that selected it, from 1.
        scored: whether the other run has scored it.
    """

    id: str
    rank: int
    scored: bool


class Difference(msgspec.Struct):
    """How two selections differ.

    Attributes:
        runs: the two run folders.
        settings: the options that differ, by name, as (first, second).
        contents: what the runs read that differs, such as the pool or the model.
        selected: the numbers of samples that both, only the first and only the second selected.
        scored: the same of the samples that were scored.
        correlation: for each subtask that both have, Spearman's rank correlation of the scores of the samples that both
            have scored; None if it is undefined.
        only_first, only_second: the best samples that only one of them selected.
        recall: the estimated recall of each, or None.
        cost: the cost of each, where 1 is a gradient of every pool sample.
    """

    runs: tuple[str, str]
    settings: dict[str, tuple[Any, Any]]
    contents: list[str]
    selected: tuple[int, int, int]
    scored: tuple[int, int, int]
    correlation: dict[str, float | None]
    only_first: list[Moved]
    only_second: list[Moved]
    recall: tuple[float | None, float | None]
    cost: tuple[float, float]

    @property
    def overlap(self) -> float:
        """The share of the samples that either one selected, that both selected."""
        return self.selected[0] / max(sum(self.selected), 1)


def difference(first: Path, second: Path) -> Difference:
    """Return how two finished selections differ.

    Args:
        first, second: the run folders.

    Raises:
        RunError: a folder holds no finished selection, or a file is damaged.
    """
    one, other = runs = [finished_selection(folder) for folder in (first, second)]
    files = [files_of(folder, run) for folder, run in zip((first, second), runs, strict=True)]
    scores = [_scores(of_run) for of_run in files]
    chosen = [_ranked(of_run, lines) for of_run, lines in zip(files, scores, strict=True)]
    own = [{line.id for line in lines} for lines in scores]
    options, options_now = ({**run.identity.options, **_asked(run)} for run in (one, other))
    return Difference(
        runs=(str(first), str(second)),
        settings={
            name: (options.get(name), options_now.get(name))
            for name in {**options, **options_now}
            if options.get(name) != options_now.get(name)
        },
        contents=one.identity.other_contents(other.identity.contents),
        selected=_counts(set(chosen[0]), set(chosen[1])),
        scored=_counts(*own),
        correlation=_correlations(*scores),
        only_first=_moved(chosen[0], chosen[1], own[1]),
        only_second=_moved(chosen[1], chosen[0], own[0]),
        recall=(_recall(one), _recall(other)),
        cost=(one.cost.total, other.cost.total),
    )


def _asked(manifest: Manifest) -> dict[str, Any]:
    return {f"--{name}": value for name, value in msgspec.to_builtins(manifest.asked).items()}


def _scores(files: KeptFiles) -> list[Score]:
    """Return the lines of ``scores.jsonl``.

    Raises:
        RunError: the file is not there, or is damaged.
    """
    path = files.path(filenames.SCORES)
    try:
        return msgspec.json.Decoder(Score).decode_lines(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except msgspec.DecodeError as error:
        raise files.damaged(path, error) from error


def _ranked(files: KeptFiles, lines: list[Score]) -> list[str]:
    """Return the ids of the selected samples, best first; those that the page does not list come last."""
    details = read_details(files)
    listed = {one.id: rank for rank, one in enumerate(details.selected)} if details else {}
    selected = [line.id for line in lines if line.selected]
    return sorted(selected, key=lambda name: listed.get(name, len(listed)))


def _counts(first: set[str], second: set[str]) -> tuple[int, int, int]:
    return len(first & second), len(first - second), len(second - first)


def _correlations(first: list[Score], second: list[Score]) -> dict[str, float | None]:
    others = {line.id: line for line in second}
    pairs = [(line.subtasks, others[line.id].subtasks) for line in first if line.id in others]
    shared = [name for name in pairs[0][0] if name in pairs[0][1]] if pairs else []
    return {name: spearman(*np.array([(a[name], b[name]) for a, b in pairs]).T) for name in shared}


def _moved(chosen: list[str], others: list[str], scored: set[str]) -> list[Moved]:
    there = set(others)
    lost = ((rank, name) for rank, name in enumerate(chosen, start=1) if name not in there)
    return [Moved(name, rank, name in scored) for _, (rank, name) in zip(range(_MOVED), lost, strict=False)]


def _recall(manifest: Manifest) -> float | None:
    return manifest.outcome.found if manifest.outcome else None


def show(found: Difference, console: Console) -> None:
    """Print how two selections differ."""
    table = Table("setting", box=None, pad_edge=False, header_style="dim")
    for folder in found.runs:
        table.add_column(Text(one_line(folder)), overflow="fold")
    for name, values in found.settings.items():
        table.add_row(name, *(Text(one_line(shown(value))) for value in values))
    for name in found.contents:
        table.add_row(f"{name} content", "", "differs")
    table.add_row("cost", *(f"{cost:.3f}" for cost in found.cost))
    table.add_row("estimated recall", *("" if recall is None else f"{recall:.0%}" for recall in found.recall))
    console.print(table)
    both, first, second = found.selected
    console.print(
        Text(
            f"\nSelected by both: {both:,}; by the first alone: {first:,}; by the second alone: {second:,} "
            f"(overlap {found.overlap:.0%})"
        )
    )
    scored, only_first, only_second = found.scored
    console.print(Text(f"Scored by both: {scored:,}; by one alone: {only_first:,} and {only_second:,}"))
    correlations = {
        name: "undefined" if one is None else f"{one:.3f}" for name, one in found.correlation.items()
    }
    if correlations:
        pairs = ", ".join(f"{one_line(name)} {value}" for name, value in correlations.items())
        console.print(Text(f"Rank correlation of the scores that both have: {pairs}"), soft_wrap=True)
    for which, moved in (("first", found.only_first), ("second", found.only_second)):
        if moved:
            names = ", ".join(
                f"{one_line(one.id)} (rank {one.rank}{'' if one.scored else ', not scored by the other'})"
                for one in moved
            )
            console.print(Text(f"The best that only the {which} selected: {names}"), soft_wrap=True)
