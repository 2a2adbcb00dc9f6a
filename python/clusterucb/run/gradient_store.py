"""Read a gradient store: the sketches of samples' unit update directions at one checkpoint.

With a store, every further target costs only its own gradients and one inner product for each pool sample, without a
backward pass over the pool. A store serves every pool whose samples it holds. It is a folder like a run's:

    manifest.json             everything that affected the numbers, and their cost
    adapter/                  the LoRA whose gradients were computed, with its optimiser state
    sketches-*.safetensors    ``sketches`` f16[rows, d], NaN where a gradient failed (`clusterucb.run.store_types`)
    samples-*.safetensors     the samples of each row (`clusterucb.run.store_samples`)
    rejected.jsonl            the rejected lines and the failed samples of the last pool, with reasons

Decisions:
    - Half precision has a relative error of 5e-4 per element, far below the sketch's own error of 1 / sqrt(d). So has
      a byte for each element: it moves a score by a twentieth of that error (benchmarks/README.md).
    - The identity names the pool that the store began with, which a fresh LoRA was warmed up on. A store that grows
      keeps its LoRA, so its identity stays.
    - Stores of version 0.1 do not know their samples. They serve the pool that they were made for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb.atomic import file_sha256
from clusterucb.errors import OptionError, RunError
from clusterucb.kernels import ops
from clusterucb.kernels.projection import VERSION, Sketch
from clusterucb.model.checkpoint_files import optimizer_file
from clusterucb.options.keywords import AnySettings
from clusterucb.options.kinds import FLOAT16, STORE_DTYPES, option_name
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.manifest_file import read_manifest
from clusterucb.run.store_samples import places
from clusterucb.run.store_shards import StoreShards
from clusterucb.run.store_types import Sketches

_REPEAT = "repeat the `clusterucb sketch` that made the store"
_REMEDY = f"remove it and {_REPEAT}, which computes it again"
_TEACH = "Repeat the `clusterucb sketch` that made it once, with its pool, and it knows them"
# Options and contents of a selection that must be the same as those of the store.
_SAME_OPTIONS = ("preconditioner", "parameters", "max_length", "dtype", "quantize", "autocast")
SAME_CONTENTS = {
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
        kept: the shards with the samples and the sketches, as they lie in the folder.

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
        if self.dtype not in STORE_DTYPES:
            raise RunError(
                f"the gradient store {folder} has sketches stored as {self.dtype:.40}; expected "
                f"{' or '.join(STORE_DTYPES)}: use the version of clusterucb that made it"
            )
        self._files = KeptFiles(folder, self.manifest.files, remedy=_REMEDY)
        self.sketch = Sketch(options["--sketch-dim"], projection["nonzeros"], options["--seed"])
        self.kept = StoreShards(
            self._files,
            dimension=self.sketch.dimension,
            dtype=self.dtype,
            n_rows=self.manifest.inputs.pool_samples,
            missing=self._missing,
        )

    def __len__(self) -> int:
        """Return M, the number of samples that the store holds."""
        return int(self.kept.starts[-1])

    @property
    def fingerprint(self) -> str:
        """The hex SHA-256 of everything that affected the sketches."""
        return self.manifest.identity.fingerprint

    @property
    def dtype(self) -> str:
        """The type that keeps the sketches, ``float16`` or ``int8``."""
        return str(self.manifest.identity.options.get(option_name("store_dtype"), FLOAT16))

    @property
    def ids(self) -> list[str]:
        """The ids that the M samples had when they were sketched; empty for a store of version 0.1."""
        return [name for shard in self.kept.samples for name in shard.ids]

    @property
    def content_hashes(self) -> list[str]:
        """The hex SHA-256 of the content of each of the M samples; empty for a store of version 0.1."""
        return [contents.tobytes().hex() for contents in self.kept.contents]

    def rows(self, rows: range) -> Sketches:
        """Return the sketches of consecutive rows, f16[m, d] or f32[m, d]; NaN where a gradient failed."""
        return self.kept.rows(np.arange(rows.start, min(rows.stop, len(self))))

    def shards(self) -> Iterator[Sketches]:
        """Yield the sketches of all rows, one shard f16[m, d] or f32[m, d] at a time."""
        return self.kept.each()

    def scores(
        self, targets: NDArray[np.float32], advance: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float64]:
        """Return the estimated scores f64[M, S] of all rows.

        Args:
            targets: f32[S, d], the finished sketches of the directions.
            advance: a function that is called with each number of rows done.
        """
        found = []
        for sketches in self.shards():
            found.append(ops.sketch_products(sketches, targets))
            advance(len(found[-1]))
        return np.concatenate(found)

    def places(self, contents: NDArray[np.uint8], fingerprint: str | None) -> NDArray[np.int64]:
        """Return the store's row of each of a pool's N samples, i64[N]; -1 where the store does not hold it.

        Args:
            contents: u8[N, 32], the content hashes of the samples.
            fingerprint: the pool's fingerprint.

        Raises:
            OptionError: the store does not know its samples, and was made for another pool.
        """
        if self.kept.knows_samples:
            return places(self.kept.contents, contents)
        if fingerprint != self.manifest.identity.contents["pool"] or len(contents) != len(self):
            raise OptionError(
                f"the gradient store {self.folder} was made with another pool, by a version whose stores do not know "
                f"their samples; expected the same one. {_TEACH}, or sketch this pool into another folder"
            )
        return np.arange(len(self))

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        manifest = msgspec.to_builtins(self.manifest)
        return {
            "out": str(self.folder),
            "rows": len(self),
            "pool_samples": self.manifest.inputs.pool_samples,
            "pool_rejected": self.manifest.inputs.pool_rejected,
            "n_failed": len(self.failures()),
            "sketch": dataclasses.asdict(self.sketch),
            "dtype": self.dtype,
            "cost": manifest["cost"],
        }

    def verify(self) -> None:
        """Read every file that the store records, and check its SHA-256, its shape and its sketches.

        Raises:
            RunError: a file is damaged or missing, or does not belong to the store.
        """
        self._adapters()
        for name in sorted(self.manifest.files or ()):
            if self._files.find(name) is None:
                raise self._missing(name)
        for _ in self.shards():
            pass
        self.failures()

    @property
    def n_checkpoints(self) -> int:
        """The number of checkpoints whose gradients were sketched, at least 1."""
        return len(self._adapters())

    @property
    def adapters(self) -> list[dict[str, str]]:
        """The hex SHA-256 of each file of each checkpoint, by its name, but for PEFT's README.md."""
        return [
            {
                path.relative_to(folder).as_posix(): file_sha256(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file() and path.name != "README.md"
            }
            for folder in self._adapters()
        ]

    def failures(self) -> dict[int, str]:
        """Return why rows have no sketch, by row."""
        found: dict[int, str] = {}
        for number in range(len(self.kept)):
            found |= self.kept.failures(number)
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
        """Check that model and encoding are the same as those of the store.

        Args:
            contents: their fingerprints, by name.

        Raises:
            OptionError: a fingerprint differs.
        """
        for name, what in SAME_CONTENTS.items():
            if contents[name] != self.manifest.identity.contents[name]:
                raise OptionError(
                    f"the gradient store {self.folder} was made with another {what}; expected the same one. "
                    "Sketch the pool with this model into another folder"
                )

    def _missing(self, name: str) -> RunError:
        return RunError(
            f"{self.folder / name} of the gradient store is missing; {_REPEAT}, which computes it again"
        )


def is_store(folder: Path) -> bool:
    """Return whether a folder holds a gradient store, which may be unfinished."""
    return any(folder.glob("sketches-*.safetensors"))


def kept_adapter(number: int) -> str:
    """Return the name of the folder with a store's checkpoint ``number``, counted from 0."""
    return f"adapter-{number + 1}" if number else "adapter"
