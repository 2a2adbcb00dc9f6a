"""Keep the rounds of selection of a training: which rows each selected, and the scores that it computed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from clusterucb import filenames
from clusterucb.atomic import check_regular, file_sha256, make_folder, whole_folder, write_whole
from clusterucb.errors import RunError

_ABOUT, _ROUND, _SKETCHES = "selection.json", "round.json", "sketches.safetensors"
_NAME = re.compile(r"round-\d{4,}")
_REMEDY = "expected the rounds of a training. Resume from an earlier checkpoint"


class Round(msgspec.Struct):
    """A round of selection.

    Attributes:
        number: its number, from 1.
        start: the step before which it selected.
        rows: the selected rows of the pool, best first.
        gradients: the gradients that it took, of the pool and the target. Those of a failed round are not known, and
            count as 0.
        seconds: how long it took.
        recall: the estimated share of the best samples found; None if it cannot be estimated.
        audit: the recall of its audit (`clusterucb.training.audit`); None without one.
        stayed: whether the rows of an earlier round stayed after the audit.
        overlap: the share of the rows that the round before selected, too; None in the first round.
        failed: why it selected nothing and kept the rows of the round before; "" if it did not fail.
        scored: the rows whose scores it computed, in the order of the file of its scores.
        scores: the SHA-256 of the file of its scores; "" if it failed.
        sketches: the SHA-256 of the file of its gradients' sketches; "" if it kept none.
    """

    number: int
    start: int
    rows: list[int]
    gradients: int = 0
    seconds: float = 0.0
    recall: float | None = None
    audit: float | None = None
    stayed: bool = False
    overlap: float | None = None
    failed: str = ""
    scored: list[int] = []
    scores: str = ""
    sketches: str = ""


class _Line(msgspec.Struct):
    """The fields that are needed from a line of scores."""

    subtasks: dict[str, float]


class Sketches(NamedTuple):
    """Sketches of gradients.

    Attributes:
        rows: i64[m], rows of the pool, ascending.
        values: f16[m, d], the sketch of each; NaN where the gradient failed.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float16]


class Rounds:
    """The rounds of a training, in a folder.

    Args:
        folder: the folder.
        about: what the rows and the scores depend on, such as the pool's fingerprint.
        n_rows: N, the number of rows of the pool.
    """

    def __init__(self, folder: Path, about: dict[str, str], n_rows: int) -> None:
        self.folder = folder
        self._n_rows = n_rows
        self._about = about
        self._found: dict[int, Round] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Round]:
        return iter(self._found.values())

    def find(self, number: int) -> Round | None:
        """Return the round of a number, or None if it has not been computed."""
        return self._found.get(number)

    @property
    def scored(self) -> list[Path]:
        """The folders with the scores of the rounds, in their order."""
        return [self._path(one.number) for one in self if not one.failed]

    def last_that_selected(self) -> Round | None:
        """Return the last round that selected rows anew, or None."""
        return next(
            (one for one in reversed(self._found.values()) if not one.failed and not one.stayed), None
        )

    def scores(self, number: int) -> list[list[float]]:
        """Return the scores for each subtask that a round has computed, in the order of `Round.scored`."""
        lines = (self._path(number) / filenames.SCORES).read_bytes().splitlines()
        return [list(msgspec.json.decode(line, type=_Line).subtasks.values()) for line in lines]

    def begin(self) -> None:
        """Forget all rounds: the training begins.

        Raises:
            RunError: the folder holds something else than rounds.
        """
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / _ABOUT).exists():
            raise RunError(
                f"{self.folder} is not empty, and holds no rounds of selection; expected a folder for them"
            )
        make_folder(self.folder)
        self._found = {}
        self._remove_others()
        write_whole(self.folder / _ABOUT, msgspec.json.encode(self._about))

    def sketches(self, number: int) -> Path:
        """Return the file of the sketches that the round of a number has kept."""
        return self._path(number) / _SKETCHES

    def add(self, one: Round, scores: Path | None, sketches: Sketches | None = None) -> None:
        """Keep a round, with the file of its scores unless it failed, and with sketches if there are any."""
        with whole_folder(self._path(one.number)) as partial:
            if sketches is not None:
                save_file(sketches._asdict(), partial / _SKETCHES)
                one.sketches = file_sha256(partial / _SKETCHES)
            if scores is not None:
                shutil.copyfile(scores, partial / filenames.SCORES)
                one.scores = file_sha256(scores)
            (partial / _ROUND).write_bytes(msgspec.json.encode(one))
        self._found[one.number] = one

    def save(self, folder: Path) -> None:
        """Copy all rounds to a folder, such as a checkpoint's."""
        with whole_folder(folder) as partial:
            shutil.copyfile(self.folder / _ABOUT, partial / _ABOUT)
            for one in self:
                shutil.copytree(self._path(one.number), partial / self._path(one.number).name)

    def load(self, folder: Path, step: int, n_rounds: int) -> None:
        """Go on from the rounds before a step, which `save` has copied to a folder, or which lie in this one.

        Args:
            folder: the folder.
            step: the step.
            n_rounds: the number of rounds before that step.

        Raises:
            RunError: the folder holds no rounds, those of another selection, or damaged ones; or some are missing.
        """
        about, found = self._read(folder)
        changed = [name for name in self._about if about.get(name) != self._about[name]]
        if changed:
            raise RunError(
                f"{folder} holds rounds with another {' and '.join(changed)}; expected those of this selection. Resume "
                "with the same selection, or begin the training anew"
            )
        self._found = {one.number: one for one in found if one.start < step}
        if [*self._found] != list(range(1, n_rounds + 1)):
            raise RunError(
                f"{folder} holds the rounds {', '.join(map(str, self._found)) or 'none'} before step {step}; expected "
                f"all {n_rounds}. Resume from an earlier checkpoint"
            )
        if folder != self.folder:
            make_folder(self.folder)
            write_whole(self.folder / _ABOUT, msgspec.json.encode(self._about))
            for one in self:
                with whole_folder(self._path(one.number)) as partial:
                    shutil.copytree(folder / self._path(one.number).name, partial, dirs_exist_ok=True)
        self._remove_others()

    def _read(self, folder: Path) -> tuple[dict[str, str], list[Round]]:
        if not (folder / _ABOUT).exists():
            raise RunError(
                f"{folder} holds no rounds of selection; expected a checkpoint that a training with this selection "
                "wrote. Begin the training anew"
            )
        try:
            check_regular(folder / _ABOUT)
            about = msgspec.json.decode((folder / _ABOUT).read_bytes(), type=dict[str, str])
            found = [self._round(file) for file in sorted(folder.glob(f"round-*/{_ROUND}"))]
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RunError(f"{folder} is damaged ({error}); {_REMEDY}") from error
        return about, found

    def _round(self, file: Path) -> Round:
        check_regular(file)
        found = msgspec.json.decode(file.read_bytes(), type=Round)
        for name, expected in ((filenames.SCORES, found.scores), (_SKETCHES, found.sketches)):
            if expected and file_sha256(file.with_name(name)) != expected:
                raise RunError(f"{file.parent} is damaged ({name} has changed); {_REMEDY}")
        if not found.rows or not all(0 <= row < self._n_rows for row in (*found.rows, *found.scored)):
            raise RunError(f"{file} is damaged (it has no rows, or some that the pool has not); {_REMEDY}")
        return found

    def _remove_others(self) -> None:
        kept = {self._path(one.number) for one in self}
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name) and path.is_dir() and path not in kept:
                shutil.rmtree(path)

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:04}"
