"""Score every pool sample for a target without a selection.

The job uses the run folder and its ledger as `clusterucb.jobs.select` does, so the same call again resumes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine import Schedule, search
from clusterucb.jobs.stages.opening import open_job
from clusterucb.jobs.stages.prepare import Model, Rows, check_paths
from clusterucb.lazy import imported
from clusterucb.model.loaded import borrowing
from clusterucb.options.keywords import settings_from, spelt_out
from clusterucb.options.search import ScoringSettings
from clusterucb.options.typed import ScoringOptions
from clusterucb.policies.baselines import Exhaustive
from clusterucb.progress import AnyObserver
from clusterucb.run.manifest import Inputs
from clusterucb.samples.sample import Rejected
from clusterucb.wording import counted

if TYPE_CHECKING:
    from pandas import DataFrame

    from clusterucb.jobs.stages.influence import Influence

_BATCH = 64  # samples scored between two writes to the ledger


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """The influence of N pool samples on S subtasks, in the order in which the pool was read.

    Attributes:
        ids: the ids of the samples.
        files: the file of each sample; ``<pool>`` for rows in memory.
        lines: i64[N], the line or row number of each sample in its file, from 1.
        subtasks: the names of the target's subtasks.
        values: f64[N, S], the scores; NaN where a sample could not be scored.
        rejected: the rejected lines, with the reasons. They include the samples that could not be scored.
    """

    ids: list[str]
    files: list[str]
    lines: NDArray[np.int64]
    subtasks: list[str]
    values: NDArray[np.float64]
    rejected: list[Rejected]

    def __len__(self) -> int:
        """Return the number of samples, N."""
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Scores: {counted(len(self), 'sample')}, subtasks {', '.join(self.subtasks)}>"

    def to_pandas(self) -> DataFrame:
        """Return a table with the columns ``id``, ``file`` and ``line``, and one column for each subtask."""
        columns = {"id": self.ids, "file": self.files, "line": self.lines}
        table: DataFrame = imported("pandas", "to_pandas()").DataFrame(columns)
        for name, values in zip(self.subtasks, self.values.T, strict=True):
            table[name] = values
        return table


@borrowing
@spelt_out(ScoringSettings)
def score(
    pool: Rows,
    target: Rows,
    *,
    model: Model,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    observer: AnyObserver | None = None,
    **options: Unpack[ScoringOptions],
) -> Scores:
    """Score every pool sample for every subtask of a target, and select nothing.

    Args:
        pool, target: files, or rows in memory, as in `select`.
        model: the folder of a causal language model, a hub id, or a loaded model together with its ``tokenizer``.
        out: the folder that keeps the scores. The same call again resumes the scoring, or returns finished scores. By
            default, nothing is kept.
        overwrite: delete the earlier run in the folder and start again.
        observer: receives the progress, as in `select`.
        **options: the options of `clusterucb.select` about rows, gradients and scores, such as ``scorer``, ``adapter``
            and ``seed``; see the documentation's list.

    Raises:
        ClusterUCBError: an option, a row, the model or the folder cannot be used.
    """
    settings = settings_from(options, ScoringSettings)
    check_paths(model, out, target=target)
    job = open_job(pool, target, model, settings, observer)

    from clusterucb.jobs.stages.influence import Influence

    material = job.material
    identity = job.identity("score", sketches=job.settings.by_sketch)
    with job.session(out, identity, overwrite=overwrite) as session:
        values, failures = score_all(Influence(session), len(material.samples))
        session.run.finish(Inputs.of(material))
    where = [(sample.id, sample.file, sample.line) for sample in material.samples]
    files = {file: number for number, file in enumerate(material.pool_files)}
    order = sorted(range(len(where)), key=lambda row: (files[where[row][1]], where[row][2]))
    return Scores(
        ids=[where[row][0] for row in order],
        files=[where[row][1] for row in order],
        lines=np.array([where[row][2] for row in order], np.int64),
        subtasks=list(material.target),
        values=values[order],
        rejected=[*material.pool_rejected, *material.target_rejected, *material.rejected_rows(failures)],
    )


def score_all(influence: Influence, n_samples: int) -> tuple[NDArray[np.float64], list[tuple[int, str]]]:
    """Return the scores of the whole pool, f64[N, S], and the (row, reason) of each failure.

    Scoring resumes where an earlier session stopped.
    """
    with influence.ledger() as ledger, influence.drawing(n_samples, ledger.totals()):
        search(
            np.zeros((n_samples, 1)),
            influence.score,
            clusterer=None,
            policy=Exhaustive(),
            budget=n_samples,
            n_select=1,
            schedule=Schedule(batch_size=_BATCH),
            journal=ledger,
        )
        return ledger.scores(), ledger.failures()
