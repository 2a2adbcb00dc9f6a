"""Leave in the run folder what the page of a selection shows, and write the page (`clusterucb.report.run_page`)."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.recall import Recall
from clusterucb.jobs.stages.opening import Session
from clusterucb.options.search import SelectSettings
from clusterucb.report.result import Result
from clusterucb.report.run_page.content import write_page
from clusterucb.report.run_page.details import DRAWN_EXCERPTS, MOST_READ, keep_details
from clusterucb.report.run_page.overview import EXCERPTS, keep_overview
from clusterucb.report.run_page.pool_map import DRAWN
from clusterucb.report.run_page.trail import Point, add_point, read_trail

_OF_SAMPLE, _OF_DRAW = 20, 16  # bytes in the overview and on the page
_OF_TEMPLATE = 70_000
_OF_EXCERPT = 400  # bytes of the beginnings of a sample's texts, at most
_OF_CONVERSATION = 1500


def page_bytes(n_samples: int, n_draws: int, n_select: int, line: float) -> int:
    """Return about how many bytes the page of a selection and the files that it is made from take.

    Args:
        n_samples, n_draws, n_select: the numbers of pool samples, draws and selected samples.
        line: the mean number of bytes of a pool sample.
    """
    n_excerpts = min(n_samples, EXCERPTS) + min(n_draws, DRAWN_EXCERPTS)
    texts = n_excerpts * min(line, _OF_EXCERPT) + min(n_select, MOST_READ) * min(line, _OF_CONVERSATION)
    drawn = _OF_DRAW * min(n_draws, DRAWN)
    return round(_OF_SAMPLE * n_samples + 2 * texts + drawn + _OF_TEMPLATE)


class RunPage:
    """The page of a selection.

    Args:
        session: the job and its run folder.
        kept: whether the run folder stays. If not, nothing is written.
    """

    def __init__(self, session: Session[SelectSettings], *, kept: bool) -> None:
        self._run, self._material = session.run, session.material
        self._kept = kept and not session.run.read_only
        trail = read_trail(self._run.folder) if self._kept else []
        last = trail[-1] if trail else Point(0, 0.0, (0.0, 0.0, 1.0))
        self._n_known = last.draws  # of the last estimate of earlier sessions
        self._began = time.monotonic() - max(session.run.manifest.cost.seconds, last.seconds)

    def describe(self, blocks: Mapping[str, NDArray[np.floating]]) -> None:
        """Keep an overview of the pool, whose feature blocks are ``blocks``, each [N, k]."""
        if not self._kept:
            return
        with self._run.phase("features"):
            keep_overview(self._run.files, self._material, blocks)

    def watch(self, n_draws: int, recall: Recall) -> None:
        """Keep the estimate of the recall after ``n_draws`` draws, unless an earlier session did."""
        if self._kept and n_draws > self._n_known:
            seconds = time.monotonic() - self._began
            add_point(self._run.folder, Point(n_draws, seconds, (recall.estimate, recall.low, recall.high)))

    def finish(self, result: Result) -> None:
        """Keep the details of the result, with the manifest, and write the page.

        Raises:
            RunError: a file cannot be written. The result is whole without it.
        """
        if self._kept:
            keep_details(self._run, result, self._material)
            write_page(self._run.folder)
