"""What a job begins with: files read, samples encoded, a model and a device named. Nothing is written yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from clusterucb.errors import OptionError
from clusterucb.loaded import LoadedModel
from clusterucb.pool import Pool, read_pool, read_target
from clusterucb.progress import Observer
from clusterucb.sample import decode
from clusterucb.settings import GradientSettings

if TYPE_CHECKING:
    from clusterucb.checkpoint import ModelSource
    from clusterucb.material import Material

# Paths and patterns, or rows in memory: `clusterucb.sources.sources_of`.
Rows = Any
Model = str | PathLike[str] | LoadedModel
_LISTED = 8  # files of which is said what was found in them


@dataclass(frozen=True)
class Prepared:
    """What a job works on.

    Attributes:
        material: the encoded samples.
        source: the base model.
        device: where it runs.
        contents: the fingerprints of everything that was read.
        pool_files, target_files: as they were given.
    """

    material: Material
    source: ModelSource | LoadedModel
    device: str
    contents: dict[str, str | None]
    pool_files: list[str]
    target_files: list[str]


def prepare(
    pool: Rows,
    target: Rows | None,
    model: Model,
    settings: GradientSettings,
    observer: Observer,
) -> Prepared:
    """Read and encode a pool and perhaps a target.

    Args:
        pool, target: files, or rows in memory; or what was read of them.
        model: the base model.
        settings: the options.
        observer: who is told how it gets on.

    Raises:
        ClusterUCBError: a file, the model or the device cannot be used.
    """
    observer.step(f"Reading the pool{' and the target' if target is not None else ''}")
    reading = partial(_read, settings=settings, observer=observer)
    held_out = None if target is None else reading(read_target, target)
    read = reading(read_pool, pool)
    if (unseen := read.unseen & (held_out or read).unseen) and not isinstance(pool, Pool):
        raise OptionError(
            f"--columns names {', '.join(sorted(unseen))}, which no row has; the columns of the first row are "
            f"{', '.join(decode(read.samples[0].raw))}"
        )

    # torch takes seconds to import; bad options and files are told before.
    from clusterucb import checkpoint
    from clusterucb.encode import Encoder
    from clusterucb.material import encode

    source: ModelSource | LoadedModel
    if isinstance(model, LoadedModel):
        source, device = model, model.device(settings.device)
    else:
        if not Path(model).is_dir():
            observer.step(f"There is no folder {model}, so it is looked for as a hub id")
        source = checkpoint.ModelSource(str(model), settings.revision, settings.trust_remote_code)
        device = checkpoint.resolve_device(settings.device)
    encoder = Encoder(source.tokenizer(), max_length=settings.max_length)
    contents = {
        "pool content": read.fingerprint(),
        "target content": held_out.fingerprint() if held_out else None,
        "model content": source.fingerprint(),
        "encoding content": encoder.fingerprint,
        **checkpoint.adapter_fingerprints(settings.adapter, settings.optimizer_file),
    }
    material = encode(read, held_out, encoder, strict=settings.strict, observer=observer)
    return Prepared(
        material, source, device, contents, list(read.files), list(held_out.files if held_out else ())
    )


def _read(
    read: Callable[..., Pool],
    given: Rows,
    *,
    settings: GradientSettings,
    observer: Observer,
) -> Pool:
    """Read a pool or a target, unless that has been done, and say what was found in each file."""
    if isinstance(given, Pool):
        return given
    pool = read(given, settings.layout, strict=settings.strict, observer=observer)
    by_file = Counter(line.file for line in pool.rejected)
    for file, shapes in list(pool.shapes.items())[:_LISTED]:
        found = [f"{count:,} of {shape}" for shape, count in shapes.most_common()]
        refused = [f"{by_file[file]:,} not used"] if by_file[file] else []
        observer.step(f"  {file}: rows: {', '.join([*found, *refused]) or 'none'}")
    if len(pool.shapes) > _LISTED:
        observer.step(f"  and {len(pool.shapes) - _LISTED} more files")
    return pool


def check_paths(model: object, out: object, *, needed: bool = False, target: object = ()) -> None:
    """Refuse a model, a folder or a target that cannot be one; ``out`` may be None unless it is needed."""
    if target is None:
        raise OptionError("target is None; expected the path of a file, or rows")
    if not isinstance(model, str | PathLike | LoadedModel) or not str(model):
        raise OptionError(f"model is {model!r}; expected a path, a hub id or a loaded model")
    if (out is not None or needed) and (not isinstance(out, str | PathLike) or not str(out)):
        raise OptionError(f"out is {out!r}; expected the path of a folder")


@contextmanager
def folder_for(out: str | PathLike[str] | None) -> Iterator[Path]:
    """Yield the folder of a run: the one that was asked for, or one that is gone when the block ends."""
    if out is not None:
        yield Path(out)
        return
    with TemporaryDirectory(prefix="clusterucb-") as folder:
        yield Path(folder)
