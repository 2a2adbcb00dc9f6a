"""What an earlier run knows of a pool: its scores, as something to predict new ones by.

The earlier run may be of another target, of an earlier checkpoint, or of a pool of which this one is an extension: its
scores are for other subtasks, and for some of the samples. A policy that predicts learns how far the new scores go with
them (`PoolView.prior`), and that they do not, where they do not.

Decisions:
    - Samples are the same if their ids are: those of the rows, or else hashes of their content.
    - A sample that the earlier run did not score has the scores that are predicted from the features, by those that it
      did (`clusterucb.regression`): a gap would say which samples the earlier run thought little of, and nothing else.
    - Clusterers do not see it: what clusters are does not depend on what may turn out to say nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import OptionError, RunError, counted
from clusterucb.poolview import PoolView
from clusterucb.regression import Regression

_SCORES = "scores.jsonl"


class _Line(msgspec.Struct):
    """What is needed of a line of ``scores.jsonl``."""

    id: str
    subtasks: dict[str, float]


class Earlier:
    """The scores of an earlier run.

    Args:
        folder: of the run.

    Attributes:
        subtasks: P names.
        fingerprint: of the scores.

    Raises:
        RunError: it holds no finished selection.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            content = (folder / _SCORES).read_bytes()
            lines = [msgspec.json.decode(line, type=_Line) for line in content.splitlines()]
        except (OSError, msgspec.MsgspecError) as error:
            raise RunError(
                f"--prior {folder} holds no scores of a selection ({error}); expected the --out of an earlier one"
            ) from error
        if not lines:
            raise RunError(f"--prior {folder} has scored nothing; expected a run with scores")
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.subtasks = list(lines[0].subtasks)
        self._scores = {line.id: list(line.subtasks.values()) for line in lines}

    def known(self, ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return which samples it has scored, rows i64[m], and their scores f64[m, P].

        Args:
            ids: of the N samples.

        Raises:
            OptionError: none of them.
        """
        rows = [row for row, name in enumerate(ids) if name in self._scores]
        if not rows:
            raise OptionError(
                f"--prior {self.folder} has scored {counted(len(self._scores), 'sample')}, and none of this pool; "
                "expected a run with a pool that has samples in common with it, by id or content"
            )
        return np.array(rows, np.int64), np.array([self._scores[ids[row]] for row in rows], np.float64)


def filled(
    rows: NDArray[np.int64],
    scores: NDArray[np.float64],
    features: Mapping[str, NDArray[np.float32]],
    columns: Mapping[str, NDArray[np.generic]],
) -> NDArray[np.float32]:
    """Return earlier scores of all rows, f32[N, P], those that are not known as they are predicted.

    Args:
        rows: i64[m], what was scored.
        scores: f64[m, P].
        features: blocks f32[N, k].
        columns: ``source`` among them, or not.
    """
    n_rows = len(next(iter(features.values())))
    every = np.empty((n_rows, scores.shape[1]), np.float32)
    if len(rows) < n_rows:
        source = {name: column for name, column in columns.items() if name == "source"}
        pool = PoolView(features, np.zeros(n_rows, np.int64), np.zeros(n_rows), source)
        regression = Regression(pool, scores.shape[1])
        regression.add(rows, scores)
        every[:] = regression.mean(np.arange(n_rows))
    every[rows] = scores
    return every
