"""What is known of a pool beforehand: an earlier run's scores, or a store's sketches, to predict new scores by.

The earlier run may be of another target, of an earlier checkpoint, or of a pool of which this one is an extension: its
scores are for other subtasks, and for some of the samples. The store may be of another checkpoint. A policy that
predicts learns how far the new scores go with them (`PoolView.prior`), and that they do not, where they do not.

Decisions:
    - Samples are the same if their ids are: those of the rows, or else hashes of their content. A store has no ids,
      and is of the same pool.
    - A sample that the earlier run did not score has the scores that are predicted from the features, by those that it
      did (`clusterucb.engine.regression`): a gap would say which samples the earlier run thought little of, and
      nothing else.
    - Sketches are brought down to their principal components as they are read: a million of them are 16 GB.
    - Clusterers do not see it: what clusters are does not depend on what may turn out to say nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.engine.gaussian import SPREAD, principal
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.regression import Regression
from clusterucb.errors import OptionError, RunError
from clusterucb.run.gradient_store import GradientStore, is_store
from clusterucb.wording import counted

_SCORES = filenames.SCORES

Blocks = Mapping[str, NDArray[np.float32]]
Columns = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Known:
    """What is known of a pool.

    Attributes:
        said: what it is, in words.
        block: returns it, f32[N, P], from the pool's feature blocks and columns.
    """

    said: str
    block: Callable[[Blocks, Columns], NDArray[np.float32]]


class _Line(msgspec.Struct):
    """What is needed of a line of ``scores.jsonl``."""

    id: str
    subtasks: dict[str, float]


class EarlierScores:
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
                f"--prior {folder} holds neither scores of a selection nor a gradient store ({error}); expected the "
                "--out of an earlier one"
            ) from error
        if not lines:
            raise RunError(f"--prior {folder} has scored nothing; expected a run with scores")
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.subtasks = list(lines[0].subtasks)
        self._scores = {line.id: list(line.subtasks.values()) for line in lines}

    def of_pool(self, ids: Sequence[str], contents: Mapping[str, Any]) -> Known:  # noqa: ARG002
        """Return what is known of a pool.

        Args:
            ids: of its N samples.
            contents: fingerprints, as of `GradientStore.check`.

        Raises:
            OptionError: nothing.
        """
        rows = [row for row, name in enumerate(ids) if name in self._scores]
        if not rows:
            raise OptionError(
                f"--prior {self.folder} has scored {counted(len(self._scores), 'sample')}, and none of this pool; "
                "expected a run with a pool that has samples in common with it, by id or content"
            )
        scores = np.array([self._scores[ids[row]] for row in rows], np.float64)
        subtasks = ", ".join(self.subtasks)
        said = f"{len(rows):,} of {counted(len(ids), 'sample')} have scores of {self.folder}, for {subtasks}"
        return Known(said, partial(filled, np.array(rows, np.int64), scores))


class EarlierSketches:
    """The sketches of a gradient store.

    Args:
        folder: of the store.

    Attributes:
        fingerprint: of the sketches.

    Raises:
        RunError: it holds no finished store.
    """

    def __init__(self, folder: Path) -> None:
        self._store = GradientStore(folder)
        self.fingerprint = self._store.fingerprint

    def of_pool(self, ids: Sequence[str], contents: Mapping[str, Any]) -> Known:
        """Return what is known of a pool.

        Args:
            ids: of its N samples.
            contents: fingerprints, as of `GradientStore.check`.

        Raises:
            OptionError: the store is of another.
        """
        name = "pool content"
        if contents[name] != self._store.manifest.settings[name]:
            raise OptionError(
                f"--prior {self._store.folder} is a gradient store of another pool; expected one of this, or the "
                "folder of a selection, whose scores are known by the samples' ids"
            )
        said = f"{counted(len(ids), 'sample')} have sketches in {self._store.folder}"
        return Known(said, lambda *_: self.components())

    def components(self) -> NDArray[np.float32]:
        """Return principal components of the sketches, f32[N, k]; of those that failed, as of a zero."""
        first = self._store.rows(
            range(min(len(self._store), SPREAD))
        )  # in canonical order: as good as random ones
        mean, directions = principal(_as_floats(first))
        return np.concatenate([(one - mean) @ directions for one in map(_as_floats, self._store.shards())])


Earlier = EarlierScores | EarlierSketches


def earlier_runs(folders: Sequence[Path] | None, policy: Policy) -> list[Earlier]:
    """Open the earlier runs and gradient stores that a selection learns from.

    Raises:
        OptionError: the policy cannot use them.
        RunError: a folder holds neither scores nor a store.
    """
    if folders and not policy.predicts:
        raise OptionError(
            f"--prior is given, and {type(policy).__name__} does not predict scores; expected a policy that does, such "
            "as Surrogate"
        )
    return [
        EarlierSketches(folder) if is_store(folder) else EarlierScores(folder) for folder in folders or ()
    ]


def filled(
    rows: NDArray[np.int64], scores: NDArray[np.float64], features: Blocks, columns: Columns
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


def _as_floats(sketches: NDArray[np.float16]) -> NDArray[np.float32]:
    return np.nan_to_num(sketches.astype(np.float32), copy=False, nan=0.0)
