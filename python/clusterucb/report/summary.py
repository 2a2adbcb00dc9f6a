"""Sum up a selection for the terminal and for programs, from its result in memory or from its run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from clusterucb import filenames
from clusterucb.report.run_page.details import read_details
from clusterucb.report.run_page.found import files_of, finished_selection
from clusterucb.run.manifest import Manifest, RunOutcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clusterucb.report.export import Exported
    from clusterucb.report.result import Result

EXAMPLES = 3  # of the best samples


class Example(NamedTuple):
    """A selected sample: what the user says last, and the answer that is learnt."""

    id: str
    score: float
    question: str
    answer: str


@dataclass(frozen=True)
class Summary:
    """What a selection found.

    Attributes:
        out: the run's folder; None if the run was not kept.
        manifest: the run's record.
        best: the best samples, at most `EXAMPLES`.
        last: the sample that was selected last, if there are more.
        exports: the files that were written for training tools. From a folder, only their folders are known.
    """

    out: Path | None
    manifest: Manifest
    best: Sequence[Example]
    last: Example | None
    exports: Sequence[Exported] = ()

    @property
    def outcome(self) -> RunOutcome:
        """The numbers that sum up the result."""
        assert self.manifest.outcome is not None
        return self.manifest.outcome

    @classmethod
    def of(cls, result: Result) -> Self:
        """Return the summary of a result."""
        some = zip(result.ids, result.scores.tolist(), result.samples, strict=True)
        examples = [
            Example(
                name,
                score,
                next((turn.content for turn in reversed(sample.messages) if turn.role == "user"), ""),
                next(turn.content for turn in reversed(sample.messages) if turn.learnt),
            )
            for at, (name, score, sample) in enumerate(some)
            if at < EXAMPLES or at == len(result) - 1
        ]
        return cls(result.out, result.manifest, *_divided(examples), exports=result.exports)

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """Return the summary of the selection in a run folder.

        Raises:
            RunError: the folder holds no finished selection, or a file is damaged.
        """
        manifest = finished_selection(folder)
        details = read_details(files_of(folder, manifest))
        listed = [] if details is None else [*details.selected[:EXAMPLES], *details.last]
        examples = [
            Example(
                one.id,
                one.score,
                next((turn.text for turn in reversed(one.turns) if turn.role == "user"), ""),
                next((turn.text for turn in reversed(one.turns) if turn.learnt), ""),
            )
            for one in listed
        ]
        return cls(folder, manifest, *_divided(examples))

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values: the outcome, the cost, the best samples and the files' paths."""
        manifest = msgspec.to_builtins(self.manifest)
        names = (
            "pool_samples",
            "pool_rejected",
            "pool_unsketched",
            "target_samples",
            "target_rejected",
            "subtasks",
        )
        return {
            "out": str(self.out) if self.out else None,
            **{name: manifest["inputs"][name] for name in names},
            **manifest["outcome"],
            "cost": manifest["cost"],
            "best": [{"id": one.id, "score": one.score} for one in self.best],
            "files": {name: str(path) for name, path in self._files().items()},
        }

    def _files(self) -> dict[str, Path]:
        """Return the paths of the run's files by their names."""
        if self.out is None:
            return {}
        names = [filenames.SELECTED, filenames.SCORES, filenames.REJECTED, filenames.MANIFEST]
        optional = (
            filenames.SCORES_TABLE,
            filenames.RUN_PAGE,
            *(f"export-{tool}" for tool in filenames.EXPORTS),
        )
        return {
            name: self.out / name
            for name in (*names, *optional)
            if name in names or (self.out / name).exists()
        }


def _divided(examples: Sequence[Example]) -> tuple[Sequence[Example], Example | None]:
    """Return the best of some examples, and the last one if there are more."""
    return examples[:EXAMPLES], examples[EXAMPLES] if len(examples) > EXAMPLES else None
