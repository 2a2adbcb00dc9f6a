"""Read what a run folder holds for the page of a run, whether the run is finished, interrupted or at work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.errors import RunError
from clusterucb.report.run_page.details import Details, read_details
from clusterucb.report.run_page.overview import Overview, read_overview
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.ledger import Ledger
from clusterucb.run.manifest import Manifest
from clusterucb.run.manifest_file import read_manifest

_REMEDY = "remove it and repeat the clusterucb select command of the run, which writes it again"
_NOTHING = "has nothing to show yet, because no sample was scored"
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Found:
    """What a run folder holds for the page.

    Attributes:
        manifest: the manifest.
        overview: what is known of the pool.
        rows: i64[n], the scored rows, in order.
        arms: i64[n], the arm of each.
        scores: f64[n, S], their scores; NaN where scoring failed.
        subtasks: the names of the subtasks.
        details: what is known of the result; None before the search has ended, or if it went on since.
        config: the content of config.yaml; "" if the run has none.
    """

    manifest: Manifest
    overview: Overview
    rows: Rows
    arms: Rows
    scores: Floats
    subtasks: list[str]
    details: Details | None
    config: str

    @cached_property
    def mean_scores(self) -> Floats:
        """Each draw's mean score over the subtasks, f64[n]."""
        means: Floats = self.scores.mean(axis=1)
        return means

    @cached_property
    def _by_row(self) -> Rows:
        return np.argsort(self.rows, kind="stable")

    def draws_of(self, rows: Sequence[int]) -> list[int]:
        """Return the number of the draw of each of some drawn rows, counted from 0."""
        place = np.searchsorted(self.rows, rows, sorter=self._by_row)
        return self._by_row[np.minimum(place, len(self.rows) - 1)].tolist()  # type: ignore[no-any-return]

    @cached_property
    def selected(self) -> NDArray[np.bool_]:
        """Whether a draw is selected, bool[n]; none is before there is a result."""
        return np.isin(self.rows, self.details.rows if self.details else [])


def selection_manifest(folder: Path) -> Manifest:
    """Return the manifest of a selection.

    Raises:
        RunError: the folder holds no selection, or its manifest is damaged.
    """
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        raise RunError(
            f"{folder} holds no run: it has no {filenames.MANIFEST}; expected the folder of a selection"
        ) from None
    if manifest.identity.job != "select":
        kind = {"compare": filenames.COMPARISON_PAGE, "try": filenames.TRIAL_PAGE}.get(manifest.identity.job)
        page = f". Its own page is {folder / kind}" if kind else ""
        raise RunError(f"{folder} holds no selection; expected the folder of clusterucb select{page}")
    return manifest


def finished_selection(folder: Path) -> Manifest:
    """Return the manifest of a finished selection.

    Raises:
        RunError: the folder holds none, or its manifest is damaged.
    """
    manifest = selection_manifest(folder)
    if manifest.status != "finished" or manifest.outcome is None:
        raise RunError(
            f"the run in {folder} is not finished: repeat its clusterucb select command to resume it"
        )
    return manifest


def is_complete(folder: Path) -> bool:
    """Return whether a selection is finished, and all that its page shows is written.

    Raises:
        RunError: as for `selection_manifest`.
    """
    manifest = selection_manifest(folder)
    return manifest.status == "finished" and filenames.DETAILS in (manifest.files or {})


def files_of(folder: Path, manifest: Manifest) -> KeptFiles:
    """Return the files of a selection that its page is made from.

    Raises:
        RunError: one of them was removed, or is damaged.
    """
    files = KeptFiles(folder, manifest.files, remedy=_REMEDY)
    for name in (filenames.OVERVIEW, filenames.DETAILS, filenames.CONFIG):
        if files.recorded(name) and files.find(name) is None:
            raise RunError(f"{folder / name} was removed: {_REMEDY.removeprefix('remove it and ')}")
    return files


def found_in(folder: Path) -> Found:
    """Return what a run folder holds.

    Raises:
        RunError: the folder holds no selection, or nothing was scored yet; or a file is damaged.
    """
    manifest = selection_manifest(folder)
    files = files_of(folder, manifest)
    overview = read_overview(files)
    if overview is None:
        old = manifest.outcome is not None or (folder / filenames.LEDGER).exists()
        reason = "was written by an earlier version, which kept nothing for a page" if old else _NOTHING
        raise RunError(f"the run in {folder} {reason}: repeat its clusterucb select command")
    if not manifest.search.begun:
        raise RunError(f"the run in {folder} {_NOTHING}: wait, or repeat its clusterucb select command")
    subtasks = list(overview.subtasks)
    with Ledger(
        folder / filenames.LEDGER,
        subtasks=subtasks,
        tokens=overview.tokens.astype(np.int64),
        run=manifest.token,
        begun=True,
        read_only=True,
    ) as ledger:
        batches = [batch for batch in ledger.recorded() if batch.scores is not None]
    if not batches:
        raise RunError(f"the run in {folder} {_NOTHING}: wait, or repeat its clusterucb select command")
    rows, arms, scores = (
        np.concatenate(arrays)
        for arrays in zip(*((batch.rows, batch.arms, batch.scores) for batch in batches), strict=True)
    )
    details = read_details(files) if manifest.status == "finished" or manifest.outcome else None
    if details and (details.n_draws != len(rows)):
        details = None
    config = files.find(filenames.CONFIG)
    text = config.read_text("utf-8", errors="replace") if config else ""
    return Found(manifest, overview, rows, arms, scores, subtasks, details, text)
