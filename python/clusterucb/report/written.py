"""Write the files of a finished run.

The files are written from what the run recorded, never from other state in memory, so writing them again gives the same
bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.atomic import write_lines
from clusterucb.engine.aggregate import ROUND_ROBIN
from clusterucb.engine.loop import Selection
from clusterucb.engine.recall import CONFIDENCE
from clusterucb.engine.rules import capturing
from clusterucb.errors import warn
from clusterucb.report.export import export
from clusterucb.report.result import TABLE, Result
from clusterucb.report.scores_table import write_scores
from clusterucb.run.cost import Cost
from clusterucb.run.folder import Run
from clusterucb.run.manifest import Inputs, RunOutcome
from clusterucb.samples.rejected import write_rejected

if TYPE_CHECKING:
    from clusterucb.options.search import SelectSettings
    from clusterucb.samples.pool import Sample
    from clusterucb.samples.pool_and_target import Material


_WRITTEN = (filenames.SELECTED, filenames.SCORES, filenames.REJECTED)


def finish(
    run: Run,
    material: Material,
    selection: Selection,
    failures: Sequence[tuple[int, str]],
    cost: Cost,
    settings: SelectSettings,
    model: str,
    planned: tuple[int, int],
    judges: Iterable[Sample] = (),
    reselection: str | None = None,
) -> Result:
    """Write a run's files, and mark the run as finished. Of a run that is only read, nothing is written.

    Args:
        run: the run.
        material: the encoded pool and target.
        selection: the search's result.
        failures: (row, reason) of every draw that could not be scored.
        cost: the cost of the whole run.
        settings: the options, among them the forms to write.
        model: the model's folder or hub id.
        planned: the number of draws in the budget, and the number of samples to select.
        judges: the target samples that are held out.
        reselection: the call that selects anew in a training, for exports, or None.

    Raises:
        RunError: a file cannot be written.
    """
    samples = [material.samples[row] for row in selection.rows.tolist()]
    result = Result(
        rows=selection.rows,
        ids=[sample.id for sample in samples],
        scores=selection.scores,
        samples=samples,
        subtasks=list(material.target),
        cost=cost,
        selection=selection,
        manifest=run.manifest,
        out=run.folder,
        exports=[]
        if run.read_only
        else export(
            run.folder, settings.tools, samples, model=model, settings=settings, reselection=reselection
        ),
    )
    if run.read_only:
        return result
    run.files.forget(*_WRITTEN, filenames.DETAILS)
    result.write(run.path(filenames.SELECTED), annotate=settings.annotate)
    write_lines(run.path(filenames.SCORES), _score_lines(selection, material))
    if settings.scores_parquet or run.path(TABLE).exists():  # else a table of an earlier selection would stay
        write_scores(run.path(TABLE), selection, material.samples, list(material.target))
    failed = material.rejected_rows(failures)
    rejected = write_rejected(
        run.path(filenames.REJECTED), material.pool_rejected, material.target_rejected, failed
    )
    run.files.record(*_WRITTEN)
    outcome = _outcome(selection, material, samples, len(failures), settings, planned)
    run.finish(Inputs.of(material, rejected, judges), cost=cost, outcome=outcome)
    if outcome.served and outcome.captured_by:
        warn(captured(outcome.served, outcome.captured_by, settings.rule))
    return result


def captured(served: Mapping[str, float], captor: str, rule: str) -> str:
    """Return a warning that one subtask captures a selection.

    Args:
        served: the share of each subtask's own best samples that is selected.
        captor: the subtask that captures the selection.
        rule: the rule that selected.
    """
    least = min(served, key=lambda name: served[name])
    remedy = (
        "--subtask-weights" if rule == ROUND_ROBIN else f"--rule {ROUND_ROBIN}, where subtasks select in turn"
    )
    return (
        f"subtask {captor} captures the selection, which holds {served[captor]:.0%} of its best samples, and "
        f"{served[least]:.0%} of those for {least}; expected a share for every subtask. Use {remedy}"
    )


def _outcome(
    selection: Selection,
    material: Material,
    samples: Sequence[Sample],
    n_failed: int,
    settings: SelectSettings,
    planned: tuple[int, int],
) -> RunOutcome:
    """Return the numbers that sum up a selection.

    Args:
        selection: the search's result.
        material: the encoded pool and target.
        samples: the selected samples.
        n_failed: the number of draws that could not be scored.
        settings: the options.
        planned: the number of draws in the budget, and the number of samples to select.
    """
    subtasks = list(material.target)
    served = None if selection.served is None else dict(zip(subtasks, selection.served.tolist(), strict=True))
    captor = None if selection.served is None else capturing(selection.served)
    good = ~np.isnan(selection.drawn_scores)
    answers = np.array([material.encoded[row].n_labels for row in selection.drawn_rows], np.float64)
    return RunOutcome(
        n_selected=len(samples),
        n_scored=selection.n_scored,
        n_failed=n_failed,
        stopped=selection.stopped,
        clusters=len(selection.draws),
        draws=selection.draws.tolist(),
        selected_by_source=dict(Counter(sample.source for sample in samples).most_common()),
        length_correlation=spearman(selection.drawn_scores[good], answers[good]),
        standardized=None
        if selection.standardized is None
        else dict(zip(material.target, selection.standardized.T.tolist(), strict=True)),
        recall={**asdict(selection.recall), "confidence": CONFIDENCE} if selection.recall else None,
        served=served,
        captured_by=None if captor is None else subtasks[captor],
        n_budget=planned[0],
        n_select=planned[1],
        rule=settings.rule,
        max_per_source=settings.max_per_source,
        annotated=settings.annotate,
    )


def _score_lines(selection: Selection, material: Material) -> Iterator[dict[str, Any]]:
    """Yield the line of each scored sample for ``scores.jsonl``, in draw order."""
    chosen = set(selection.rows.tolist())
    draws = zip(
        selection.drawn_rows.tolist(),
        selection.drawn_scores.tolist(),
        selection.subtask_scores.tolist(),
        strict=True,
    )
    for draw, (row, score, scores) in enumerate(draws):
        if not math.isnan(score):
            yield {
                "id": material.samples[row].id,
                "score": score,
                "subtasks": dict(zip(material.target, scores, strict=True)),
                "cluster": int(selection.labels[row]),
                "draw": draw,
                "selected": row in chosen,
            }


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Return Spearman's rank correlation of two arrays f64[m], where ties share their mean rank; None if undefined."""
    ranks = np.array([_ranks(a), _ranks(b)])
    if ranks.shape[1] < 2 or not np.ptp(ranks, axis=1).all():
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks
