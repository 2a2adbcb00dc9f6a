"""Keep what the page of a run needs of its result, in one file that is written with the result.

The samples' texts lie in the pool, which may be gone when the page is made again; and what the search expected of the
samples that it did not draw follows from features that the page does not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb.atomic import write_whole
from clusterucb.engine.large import evenly
from clusterucb.filenames import DETAILS
from clusterucb.report.run_page.duplicates import near_duplicates
from clusterucb.report.run_page.overview import Excerpt, cut, excerpts
from clusterucb.report.run_page.scales import NARROWEST, ends

if TYPE_CHECKING:
    from clusterucb.report.result import Result
    from clusterucb.run.folder import Run
    from clusterucb.run.kept_files import KeptFiles
    from clusterucb.samples.pool_and_target import Material
    from clusterucb.samples.sample import Sample

MOST_LISTED = 2000  # selected samples in the table
MOST_READ = 300  # selected samples whose conversations are kept
EDGE = 10  # samples just below the cut, and samples with the lowest scores
DRAWN_EXCERPTS = 1000  # drawn samples whose beginnings are kept
_LONGEST = 1200  # letters of a turn
_TURNS = 12  # of a conversation
_CELLS = 24  # of the grid of predicted and observed scores, along each side
SOURCES = 200  # that are listed
SUBTASKS = 8  # with figures of their own


class Turn(msgspec.Struct, array_like=True):
    """A turn of a conversation: who says it, what, and whether it is learnt."""

    role: str
    text: str
    learnt: bool


class Listed(msgspec.Struct, array_like=True):
    """A sample that the page lists.

    Attributes:
        row: its row in the pool's canonical order.
        id: its id.
        score: its reward under the run's rule; None where scoring failed.
        turns: its conversation; empty if it is not kept.
    """

    row: int
    id: str
    score: float
    turns: list[Turn] = []


class Calibration(msgspec.Struct):
    """How predicted scores compare with observed ones.

    Attributes:
        low, high: the ends of both axes.
        counts: the number of draws in each cell; counts[i][j] has the i-th predicted and the j-th observed interval.
        correlation: Pearson's correlation; None if it is undefined.
    """

    low: float
    high: float
    counts: list[list[int]]
    correlation: float | None


class Details(msgspec.Struct):
    """What a page shows of a result.

    Attributes:
        n_draws: the number of samples that were scored.
        rows: the rows of all selected samples, best first.
        selected: the selected samples, best first, at most `MOST_LISTED`.
        last: the sample that was selected last, if it is not the first.
        below: the samples just below the cut, best first.
        worst: the samples with the lowest scores, lowest first.
        excerpts: the beginnings of evenly spaced draws.
        calibration: for each subtask, predicted against observed scores; None without an outlook.
        missed: the expected number of the best samples that were not drawn, and that number for the sources that have
            most of them; None without an outlook.
        duplicates: selected samples with a near-duplicate among better ones, those that share most first, at most
            `EDGE`, as (row of the better one, row, share of their word triples).
        n_duplicates: the number of such samples.
    """

    n_draws: int
    rows: list[int]
    selected: list[Listed]
    last: list[Listed]
    below: list[Listed]
    worst: list[Listed]
    excerpts: list[Excerpt]
    calibration: dict[str, Calibration] | None
    missed: tuple[float, list[tuple[str, float]]] | None
    duplicates: list[tuple[int, int, float]]
    n_duplicates: int


def keep_details(run: Run, result: Result, material: Material) -> None:
    """Write what the page shows of a result.

    Args:
        run: the run, which has no record of earlier details (`clusterucb.report.written.finish` drops it).
        result: its result.
        material: the pool and the target.

    Raises:
        RunError: the file cannot be written.
    """
    selection = result.selection
    drawn, scores = selection.drawn_rows, selection.drawn_scores
    order = np.argsort(-scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]
    others = order[~np.isin(drawn[order], result.rows)]
    pairs = near_duplicates([_whole(sample) for sample in result.samples[:MOST_LISTED]])
    chosen = list(zip(result.rows.tolist(), result.samples, result.scores.tolist(), strict=True))
    details = Details(
        n_draws=selection.n_scored,
        rows=result.rows.tolist(),
        selected=[
            Listed(row, sample.id, score, _turns(sample) if rank < MOST_READ else [])
            for rank, (row, sample, score) in enumerate(chosen[:MOST_LISTED])
        ],
        last=[Listed(row, sample.id, score, _turns(sample)) for row, sample, score in chosen[1:][-1:]],
        below=_listed(others[:EDGE], result, material),
        worst=_listed(order[::-1][:EDGE], result, material),
        excerpts=excerpts(material.samples, drawn[evenly(len(drawn), DRAWN_EXCERPTS)]),
        calibration=_calibrations(result),
        missed=_missed(result, material),
        duplicates=[
            (int(result.rows[a]), int(result.rows[b]), round(share, 3))
            for a, b, share in sorted(pairs, key=lambda pair: -pair[2])[:EDGE]
        ],
        n_duplicates=len(pairs),
    )
    write_whole(run.path(DETAILS), msgspec.json.encode(details))
    run.files.record(DETAILS)


def read_details(files: KeptFiles) -> Details | None:
    """Return what a run kept for its page, or None if it has no result yet.

    Raises:
        RunError: the file is damaged.
    """
    path = files.find(DETAILS)
    if path is None:
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Details)
    except (OSError, msgspec.DecodeError) as error:
        raise files.damaged(path, error) from error


def _listed(draws: NDArray[np.int64], result: Result, material: Material) -> list[Listed]:
    """Return the samples of some draws, with their conversations."""
    rows = result.selection.drawn_rows[draws]
    scores = result.selection.drawn_scores[draws]
    samples = material.samples.take(rows)
    return [
        Listed(row, sample.id, score, _turns(sample))
        for row, sample, score in zip(rows.tolist(), samples, scores.tolist(), strict=True)
    ]


def _turns(sample: Sample) -> list[Turn]:
    return [Turn(one.role, cut(one.text, _LONGEST), one.learnt) for one in sample.messages[-_TURNS:]]


def _whole(sample: Sample) -> str:
    return f"{sample.prompt}\n{sample.answer}"


def _calibrations(result: Result) -> dict[str, Calibration] | None:
    outlook = result.selection.outlook
    if outlook is None:
        return None
    columns = zip(result.subtasks, outlook.expected.T, result.selection.subtask_scores.T, strict=True)
    return {
        name: _calibration(expected, observed)
        for _, (name, expected, observed) in zip(range(SUBTASKS), columns, strict=False)
    }


def _calibration(expected: NDArray[np.float64], observed: NDArray[np.float64]) -> Calibration:
    """Return how predictions f64[n] compare with observations f64[n]; NaN where there is none."""
    both = ~np.isnan(expected) & ~np.isnan(observed)
    pair = np.stack([expected[both], observed[both]])
    low, high = ends(pair)
    cell = ((pair - low) / max(high - low, NARROWEST) * _CELLS).astype(np.int64).clip(0, _CELLS - 1)
    counts = np.bincount(cell[0] * _CELLS + cell[1], minlength=_CELLS**2).reshape(_CELLS, _CELLS)
    spreads = pair.shape[1] > 1 and bool(np.ptp(pair, axis=1).all())
    correlation = float(np.corrcoef(pair).ravel()[1]) if spreads else None
    return Calibration(low, high, counts.tolist(), correlation)


def _missed(result: Result, material: Material) -> tuple[float, list[tuple[str, float]]] | None:
    """Return the expected number of missed samples, and that of the sources that have most of them."""
    outlook = result.selection.outlook
    if outlook is None:
        return None
    counts: dict[str, float] = {}
    for row in np.flatnonzero(outlook.missed).tolist():
        source = material.sources[row]
        counts[source] = counts.get(source, 0.0) + float(outlook.missed[row])
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SOURCES]
    return float(outlook.missed.sum()), [(name, round(count, 4)) for name, count in most]
