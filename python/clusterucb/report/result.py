"""Hold a selection's result for Python: the samples, their scores, tables of them, and a page for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.atomic import write_whole
from clusterucb.engine.loop import Selection
from clusterucb.errors import InputError
from clusterucb.lazy import imported
from clusterucb.report.annotate import annotated
from clusterucb.report.export import Exported
from clusterucb.report.summary import Summary
from clusterucb.run.cost import Cost
from clusterucb.run.manifest import Manifest, RunOutcome
from clusterucb.samples.pool import Sample
from clusterucb.wording import counted, one_line

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

_ROWS = 10  # samples on a notebook's page
_TEXT = 300  # characters of each text on that page
TABLE = filenames.SCORES_TABLE


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The result of a run: the selected samples, best first, and how they were found.

    Attributes:
        rows: i64[n], the selected samples' rows in the pool's canonical order, best first.
        ids: the selected samples' ids.
        scores: f64[n], the selected samples' influence scores.
        samples: the selected samples.
        subtasks: the names of the target's subtasks.
        cost: the passes and the time of each phase of the run.
        selection: the search's result: every draw, the arms, and why the search stopped.
        manifest: the run's record: options, versions, fingerprints, cost and outcome.
        out: the run's folder; None if the run was not kept.
        exports: the files that were written for training tools.
    """

    rows: NDArray[np.int64]
    ids: list[str]
    scores: NDArray[np.float64]
    samples: list[Sample]
    subtasks: list[str]
    cost: Cost
    selection: Selection
    manifest: Manifest
    out: Path | None
    exports: Sequence[Exported] = ()

    @property
    def outcome(self) -> RunOutcome:
        """The numbers that sum up the result, from the manifest."""
        assert self.manifest.outcome is not None
        return self.manifest.outcome

    def __len__(self) -> int:
        """Return the number of selected samples."""
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Result: {self._summary()}, {f'in {self.out}' if self.out else 'in no folder'}>"

    def lines(self, *, annotate: bool = False) -> Iterator[bytes]:
        """Yield the selected rows as lines of JSON, best first, with the bytes that were read.

        Args:
            annotate: whether to add a field ``clusterucb`` with each sample's id, score, rank, subtasks, cluster and
                draw.
        """
        if not annotate:
            return (sample.raw for sample in self.samples)
        return map(annotated, (sample.raw for sample in self.samples), self._annotations())

    def write(self, path: str | PathLike[str], *, annotate: bool = False) -> None:
        """Write the selected rows to a JSONL file, whole or not at all.

        Args:
            path: the file.
            annotate: as for `lines`.

        Raises:
            RunError: the file cannot be written.
        """
        write_whole(Path(path), b"".join(line + b"\n" for line in self.lines(annotate=annotate)))

    def to_dataset(self, *, annotate: bool = False) -> Dataset:
        """Return the selected rows, best first, as a Dataset of the ``datasets`` library.

        If a row lacks a field that other rows have, its value in that column is None.

        Args:
            annotate: as for `lines`.

        Raises:
            InputError: a column has values of several types, such as numbers and texts as ids.
        """
        import pyarrow as pa

        dataset = imported("datasets", "to_dataset()").Dataset
        rows = self._rows(annotate)
        columns = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            try:
                columns[name] = pa.array([row.get(name) for row in rows])
            except (pa.ArrowException, OverflowError) as error:
                raise InputError(
                    f"the selected rows have values in {name!r} that a Dataset has no one type for "
                    f"({one_line(error):.100}); expected one type. to_pandas() and write() take them as they are"
                ) from error
        found: Dataset = dataset(pa.table(columns))
        return found

    def to_pandas(self, *, annotate: bool = False) -> DataFrame:
        """Return the selected rows, best first, as a pandas DataFrame.

        Args:
            annotate: as for `lines`.
        """
        found: DataFrame = imported("pandas", "to_pandas()").DataFrame(self._rows(annotate))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the run's summary as JSON values: the outcome, the cost, the best samples and the files' paths."""
        return Summary.of(self).to_json()

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th style='text-align:left'>{name}</th>" for name in ("score", "source", "prompt", "answer")
        )
        best = zip(self.scores.tolist(), self.samples, strict=True)
        body = "".join(
            f"<tr>{''.join(map(_cell, (f'{score:+.4f}', sample.source, sample.prompt, sample.answer)))}</tr>"
            for _, (score, sample) in zip(range(_ROWS), best, strict=False)
        )
        more = f"<p>and {len(self) - _ROWS} more</p>" if len(self) > _ROWS else ""
        where = f"<p>{html.escape(str(self.out))}</p>" if self.out else ""
        return (
            f"<p><b>{html.escape(self._summary())}</b></p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>{more}{where}"
        )

    def _summary(self) -> str:
        recall = self.selection.recall
        estimate = f", about {recall} of the best found" if recall else ""
        return (
            f"{len(self):,} of {counted(self.cost.pool_samples, 'sample')} selected, {self.selection.n_scored:,} "
            f"scored, cost {self.cost.total:.3f} of all pool gradients{estimate}"
        )

    def _rows(self, annotate: bool) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in self.lines(annotate=annotate)]

    def _annotations(self) -> Iterator[dict[str, Any]]:
        """Yield the value of each selected sample's field ``clusterucb``, best first."""
        selection = self.selection
        draws = np.flatnonzero(np.isin(selection.drawn_rows, self.rows)).tolist()
        draw_of = dict(zip(selection.drawn_rows[draws].tolist(), draws, strict=True))
        best = zip(self.ids, self.rows.tolist(), self.scores.tolist(), strict=True)
        for rank, (name, row, score) in enumerate(best, start=1):
            draw = draw_of[row]
            yield {
                "id": name,
                "score": score,
                "rank": rank,
                "subtasks": dict(zip(self.subtasks, selection.subtask_scores[draw].tolist(), strict=True)),
                "cluster": int(selection.labels[row]),
                "draw": draw,
            }


def _cell(text: str) -> str:
    shown = text if len(text) <= _TEXT else f"{text[:_TEXT]}…"
    return f"<td style='text-align:left;vertical-align:top;white-space:pre-wrap'>{html.escape(shown)}</td>"
