"""Read a gradient store: the sketches of a pool's unit update directions at one checkpoint.

With a store, every further target costs only its own gradients and one inner product for each pool sample, without a
backward pass over the pool. A store is a folder like a run's:

    manifest.json             everything that affected the numbers, and their cost
    adapter/                  the LoRA whose gradients were computed, with its optimiser state
    sketches-*.safetensors    ``sketches`` f16[rows, d] in canonical order, NaN where a gradient failed
    rejected.jsonl            the rejected lines and the failed samples, with reasons

Half precision has a relative error of 5e-4 per element, far below the sketch's own error of 1 / sqrt(d).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from clusterucb.atomic import unreadable
from clusterucb.engine.draws import RowScores
from clusterucb.errors import OptionError, RunError
from clusterucb.kernels import ops
from clusterucb.kernels.projection import VERSION, Sketch
from clusterucb.model.checkpoint_files import optimizer_file
from clusterucb.options.keywords import AnySettings
from clusterucb.options.kinds import option_name
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.manifest_file import read_manifest

_FAILURES = "failures"
_REPEAT = "repeat the `clusterucb sketch` that made the store"
_REMEDY = f"remove it and {_REPEAT}, which computes it again"
SHARD = 256  # rows in one file, the most that a crash can lose
# Options and contents of a selection that must be the same as those of the store.
_SAME_OPTIONS = ("preconditioner", "parameters", "max_length", "dtype", "quantize", "autocast")
_SAME_CONTENTS = {
    "pool": "pool",
    "model": "model",
    "encoding": "tokenizer or chat template",
}


class GradientStore:
    """The sketches that `clusterucb.sketch` wrote into a folder.

    Args:
        folder: the store's folder.

    Attributes:
        folder: the store's folder.
        manifest: the store's settings and cost.
        sketch: the projection of the sketches.

    Raises:
        RunError: the folder holds no finished store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest = read_manifest(folder)
        except (FileNotFoundError, RunError) as error:
            raise RunError(
                f"{folder} is not a gradient store ({error}); make one with `clusterucb sketch`"
            ) from error
        options, projection = self.manifest.identity.options, self.manifest.identity.projection
        if self.manifest.identity.job != "sketch":
            raise RunError(f"{folder} is not a gradient store but a run; make one with `clusterucb sketch`")
        if self.manifest.status != "finished":
            raise RunError(
                f"the gradient store {folder} is not finished; repeat the `clusterucb sketch` that makes it"
            )
        if projection["version"] != VERSION:
            raise RunError(
                f"the gradient store {folder} has sketches of version {projection['version']}, this clusterucb "
                f"makes version {VERSION}; sketch the pool again"
            )
        self._files = KeptFiles(folder, self.manifest.files, remedy=_REMEDY)
        self.sketch = Sketch(options["--sketch-dim"], projection["nonzeros"], options["--seed"])

    def __len__(self) -> int:
        """Return N, the number of pool samples."""
        return self.manifest.inputs.pool_samples

    @property
    def fingerprint(self) -> str:
        """The hex SHA-256 of everything that affected the sketches."""
        return self.manifest.identity.fingerprint

    def rows(self, rows: range) -> NDArray[np.float16]:
        """Return the sketches f16[m, d] of consecutive rows; NaN where a gradient failed."""
        shards = range(rows.start // SHARD, -(-rows.stop // SHARD))
        found = np.concatenate([self._shard(number) for number in shards])
        return found[rows.start - shards.start * SHARD :][: len(rows)]

    def shards(self) -> Iterator[NDArray[np.float16]]:
        """Yield the sketches of all samples, one shard f16[m, d] at a time."""
        return map(self._shard, range(self._n_shards))

    def scores(
        self, targets: NDArray[np.float32], advance: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float64]:
        """Return the estimated scores f64[N, S] of all samples.

        Args:
            targets: f32[S, d], the finished sketches of the directions.
            advance: a function that is called with each number of samples done.
        """
        found = []
        for sketches in self.shards():
            found.append(ops.sketch_products(sketches, targets))
            advance(len(found[-1]))
        return np.concatenate(found)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        manifest = msgspec.to_builtins(self.manifest)
        return {
            "out": str(self.folder),
            "pool_samples": len(self),
            "pool_rejected": self.manifest.inputs.pool_rejected,
            "n_failed": len(self.failures()),
            "sketch": dataclasses.asdict(self.sketch),
            "cost": manifest["cost"],
        }

    def failures(self) -> dict[int, str]:
        """Return why rows have no sketch, by row."""
        found: dict[int, str] = {}
        for number in range(self._n_shards):
            path = self._files.find(shard_name(number))
            if path is None:
                raise self._missing(shard_name(number))
            try:
                found |= failures(path)
            except OSError as error:
                raise unreadable(path, error) from error
            except (SafetensorError, ValueError, RecursionError, msgspec.MsgspecError) as error:
                raise self._files.damaged(path, error) from error
        return found

    def applied_to(self, settings: AnySettings) -> AnySettings:
        """Return a selection's settings with the store's checkpoint and sketch dimension.

        Raises:
            OptionError: a checkpoint is given, or another option differs from the store's.
        """
        for name in ("adapter", "checkpoint", "checkpoint_weights", "optimizer"):
            if getattr(settings, name) is not None:
                raise OptionError(
                    f"{option_name(name)} is given with --store; leave it out: a store has its own checkpoints"
                )
        for name in _SAME_OPTIONS:
            option = option_name(name)
            given, stored = getattr(settings, name), self.manifest.identity.options.get(option)
            if given != stored:
                made, remedy = f"with {stored}", f"give {option} {stored}"
                if stored is None:
                    made, remedy = "without", "leave it out"
                raise OptionError(
                    f"{option} is {given}, but the gradient store {self.folder} was made {made}; {remedy}, or sketch "
                    "the pool again"
                )
        first, *others = self._adapters()
        own: dict[str, Any] = {"adapter": first}
        if settings.parameters is not None:
            state = optimizer_file(first)
            own = {"optimizer": state if state.exists() else None}
        elif others:
            weights = self.manifest.identity.options["--checkpoint-weights"]
            own = {"checkpoint": (first, *others), "checkpoint_weights": weights}
        return dataclasses.replace(settings, **own, sketch_dim=self.sketch.dimension)

    def _adapters(self) -> list[Path]:
        """Return the folders with the store's checkpoints, at least one."""
        folders: list[Path] = []
        while (self.folder / (name := kept_adapter(len(folders)))).exists() or not folders:
            found = self._files.find_folder(name)
            if found is None:
                raise self._missing(name)
            folders.append(found)
        return folders

    def check(self, contents: Mapping[str, Any]) -> None:
        """Check that pool, model and encoding are the same as those of the store.

        Args:
            contents: their fingerprints, by name.

        Raises:
            OptionError: a fingerprint differs.
        """
        for name, what in _SAME_CONTENTS.items():
            if contents[name] != self.manifest.identity.contents[name]:
                raise OptionError(
                    f"the gradient store {self.folder} was made with another {what}; expected the same one. "
                    "Sketch this pool with this model into another folder"
                )

    def _shard(self, number: int) -> NDArray[np.float16]:
        rows = min(SHARD, len(self) - number * SHARD)
        shapes = {"sketches": (np.float16, (rows, self.sketch.dimension))}
        arrays = self._files.arrays(shard_name(number), shapes)
        if arrays is None:
            raise self._missing(shard_name(number))
        return arrays["sketches"]

    def _missing(self, name: str) -> RunError:
        return RunError(
            f"{self.folder / name} of the gradient store is missing; {_REPEAT}, which computes it again"
        )

    @property
    def _n_shards(self) -> int:
        return -(-len(self) // SHARD)


def is_store(folder: Path) -> bool:
    """Return whether a folder holds a gradient store, which may be unfinished."""
    return any(folder.glob("sketches-*.safetensors"))


def kept_adapter(number: int) -> str:
    """Return the name of the folder with a store's checkpoint ``number``, counted from 0."""
    return f"adapter-{number + 1}" if number else "adapter"


def shard_name(number: int) -> str:
    """Return the file name of a store's shard."""
    return f"sketches-{number:05}.safetensors"


def with_failures(reasons: Mapping[int, str]) -> dict[str, str] | None:
    """Return a shard's header that says why rows have no sketch. One entry holds all: several have no fixed order."""
    return {_FAILURES: msgspec.json.encode(reasons).decode()} if reasons else None


def failures(shard: Path) -> dict[int, str]:
    """Return why rows of a shard have no sketch, by the row's number in the pool."""
    with safe_open(shard, "np") as file:
        header = file.metadata() or {}
    if _FAILURES in header:
        return msgspec.json.decode(header[_FAILURES], type=dict[int, str])
    return {int(row): reason for row, reason in header.items()}  # before format 3: an entry for each row


class StoredScores:
    """Scores pool samples by a store's sketches. The first call computes all scores at once.

    Args:
        store: the pool's gradient store.
        targets: f32[S, d], the finished sketches of the directions.
        advance: a function that is called with each number of samples done.
    """

    def __init__(
        self,
        store: GradientStore,
        targets: NDArray[np.float32],
        *,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._targets = targets
        self._advance = advance

    def __call__(self, rows: NDArray[np.int64]) -> RowScores:
        """Return the scores f64[m, S] of rows i64[m], and why rows have no sketch."""
        scores = self._all[rows]
        self._advance(len(rows))
        return RowScores(scores, self._failures)

    @cached_property
    def _failures(self) -> dict[int, str]:
        return self._store.failures()

    @cached_property
    def _all(self) -> NDArray[np.float64]:
        return self._store.scores(self._targets)
