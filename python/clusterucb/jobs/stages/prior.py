"""Load the prior of a pool, which helps to predict new scores: an earlier run's scores or a gradient store's sketches.

The earlier run may have had another target, an earlier checkpoint, or a pool that this pool extends. Its scores are
then for other subtasks, or for only some of the samples. The store may have been made at another checkpoint. A policy
that predicts scores learns how well the prior (`PoolView.prior`) predicts the new ones, and ignores it if it does not.

Decisions:
    - Two samples are the same if their ids are equal. An id is the row's own id, or else the hash of its content. In
      a store, they are the same if their contents are equal. A sample without a sketch counts as the zero vector.
    - A sample that the earlier run did not score gets scores that a regression (`clusterucb.engine.regression`)
      predicts from the features. The regression is fitted on the samples that the run did score. A gap would only say
      which samples the earlier run considered unpromising.
    - Sketches are reduced to their principal components while they are read, because the sketches of a million samples
      take 16 GB.
    - Clusterers do not see the prior, because clusters should not depend on knowledge that may turn out to be useless.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.atomic import check_regular
from clusterucb.engine.components import SPREAD, principal
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.regression import Regression
from clusterucb.errors import OptionError, RunError
from clusterucb.run.gradient_store import GradientStore, is_store
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.manifest_file import read_manifest
from clusterucb.run.pool_sketches import PoolSketches
from clusterucb.run.store_types import Sketches
from clusterucb.wording import counted

_SCORES = filenames.SCORES
_LARGEST = 1e30  # the largest score; the squares of larger ones are no numbers
_REPEAT = "repeat the command of that run, which writes the file again"

Blocks = Mapping[str, NDArray[np.float32]]
Columns = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Known:
    """The prior of a pool.

    Attributes:
        description: where the prior comes from, as a sentence.
        fingerprint: a hex SHA-256 of what the block is made of.
        block: a function that returns the prior's block, f32[N, P], from the pool's feature blocks and columns.
    """

    description: str
    fingerprint: str
    block: Callable[[Blocks, Columns], NDArray[np.float32]]


class _Line(msgspec.Struct):
    """The fields that are needed from a line of ``scores.jsonl``."""

    id: str
    subtasks: dict[str, float]


def _found(folder: Path) -> Path:
    """Return the path of an earlier run's scores, which are verified if the run recorded them.

    Raises:
        RunError: the scores, or the manifest, are damaged.
    """
    path = folder / _SCORES
    with suppress(FileNotFoundError):
        files = KeptFiles(folder, read_manifest(folder).files, remedy=_REPEAT)
        return files.path(_SCORES)
    check_regular(path)
    return path


class EarlierScores:
    """The scores of an earlier run.

    Args:
        folder: the run folder.

    Attributes:
        subtasks: the names of the earlier run's P subtasks.
        fingerprint: the hash of the scores.

    Raises:
        RunError: the folder holds no finished selection with scores.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = _found(folder)
        try:
            content = path.read_bytes()
            lines = [msgspec.json.decode(line, type=_Line) for line in content.splitlines()]
        except OSError as error:
            raise RunError(
                f"--prior {folder} holds neither scores of a selection nor a gradient store ({error.strerror}); "
                "expected the --out of an earlier job"
            ) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RunError(f"{path} is damaged ({error}); {_REPEAT}") from error
        if not lines:
            raise RunError(f"--prior {folder} has scored nothing; expected a run with scores")
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.subtasks = list(lines[0].subtasks)
        if any(line.subtasks.keys() != lines[0].subtasks.keys() for line in lines):
            raise RunError(f"{path} is damaged (its lines have different subtasks); {_REPEAT}")
        if not all(abs(score) <= _LARGEST for line in lines for score in line.subtasks.values()):
            raise RunError(f"{path} is damaged (it has scores above {_LARGEST:g}); {_REPEAT}")
        self._scores = {line.id: [line.subtasks[name] for name in self.subtasks] for line in lines}

    def of_pool(
        self,
        ids: Sequence[str],
        hashes: NDArray[np.uint8],  # noqa: ARG002
        contents: Mapping[str, Any],  # noqa: ARG002
    ) -> Known:
        """Return the prior of a pool.

        Args:
            ids: the ids of its N samples.
            hashes: their content hashes, u8[N, 32]; not used.
            contents: the job's fingerprints, as in `GradientStore.check`; not used.

        Raises:
            OptionError: the earlier run has scored no sample of the pool.
        """
        rows = [row for row, name in enumerate(ids) if name in self._scores]
        if not rows:
            raise OptionError(
                f"--prior {self.folder} has scored {counted(len(self._scores), 'sample')}, but none of this pool; "
                "expected a run whose pool shares samples with this one, by id or content"
            )
        scores = np.array([self._scores[ids[row]] for row in rows], np.float64)
        subtasks = ", ".join(self.subtasks)
        description = (
            f"{len(rows):,} of {counted(len(ids), 'sample')} have scores in {self.folder}, for {subtasks}"
        )
        return Known(description, self.fingerprint, partial(filled, np.array(rows, np.int64), scores))


class EarlierSketches:
    """The sketches of a gradient store.

    Args:
        folder: the store's folder.

    Raises:
        RunError: the folder holds no finished store.
    """

    def __init__(self, folder: Path) -> None:
        self._store = GradientStore(folder)

    def of_pool(self, ids: Sequence[str], hashes: NDArray[np.uint8], contents: Mapping[str, Any]) -> Known:
        """Return the prior of a pool.

        Args:
            ids: the ids of its N samples.
            hashes: their content hashes, u8[N, 32].
            contents: the job's fingerprints, as in `GradientStore.check`.

        Raises:
            OptionError: the store holds no sample of the pool.
        """
        store = self._store
        found = PoolSketches(store, store.places(hashes, contents["pool"]))
        if not found.covered.any():
            raise OptionError(
                f"--prior {store.folder} is a gradient store of another pool; expected a store that holds samples of "
                "this pool, or the folder of a selection, which matches samples by id"
            )
        n_covered = len(ids) - found.n_uncovered
        some = f"{n_covered:,} of " if found.n_uncovered else ""
        description = f"{some}{counted(len(ids), 'sample')} have sketches in {store.folder}"
        return Known(description, found.fingerprint, lambda *_: components(found))


def components(sketches: PoolSketches) -> NDArray[np.float32]:
    """Return the sketches' principal components, f32[N, k]; a sample without a sketch counts as the zero vector."""
    # Rows are in canonical order, so the first ones are as good as random ones.
    first = sketches.rows(range(min(len(sketches), SPREAD)))
    mean, directions = principal(_as_floats(first))
    return np.concatenate([(one - mean) @ directions for one in map(_as_floats, sketches.each())])


Earlier = EarlierScores | EarlierSketches


def earlier_runs(folders: Sequence[Path] | None, policy: Policy) -> list[Earlier]:
    """Open the earlier runs and gradient stores that a selection uses as its prior.

    Raises:
        OptionError: folders are given, but the policy does not predict scores.
        RunError: a folder holds neither scores nor a store.
    """
    if folders and not policy.predicts:
        raise OptionError(
            f"--prior is given, but {type(policy).__name__} does not predict scores; expected a policy that does, such "
            "as Surrogate"
        )
    return [
        EarlierSketches(folder) if is_store(folder) else EarlierScores(folder) for folder in folders or ()
    ]


def filled(
    rows: NDArray[np.int64], scores: NDArray[np.float64], features: Blocks, columns: Columns
) -> NDArray[np.float32]:
    """Return the earlier scores of all rows, f32[N, P]. Unknown scores are predicted from the features.

    Args:
        rows: i64[m], the rows that the earlier run scored.
        scores: f64[m, P], their scores.
        features: the pool's blocks, each f32[N, k].
        columns: the pool's columns. Only ``source`` is used, if it is there.
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


def _as_floats(sketches: Sketches) -> NDArray[np.float32]:
    return np.nan_to_num(sketches.astype(np.float32), copy=False, nan=0.0)
