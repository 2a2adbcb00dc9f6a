"""Prepare a job: read the files, encode the samples, and find the model and the device. Nothing is written yet.

Decisions:
    - Reading the pool may take minutes, so everything that can be checked quickly is checked before: paths that do not
      exist, the folders of the run and of the adapter, a hub id, and a device that was asked for. Only the checks of
      the hub id and the device import torch, so they come last.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

from clusterucb.errors import ModelError, OptionError, check_utf8, warn
from clusterucb.model.checkpoint_files import checkpoint_fingerprints
from clusterucb.model.loaded import LoadedModel
from clusterucb.options.gradients import GradientSettings
from clusterucb.progress import Observer
from clusterucb.run.folder import check_folder
from clusterucb.samples.hold_out import hold_out, without
from clusterucb.samples.pool import Pool, overlap, read_pool, read_target
from clusterucb.samples.sample import decode
from clusterucb.samples.sources import sources_of
from clusterucb.wording import counted, listed_names

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from clusterucb.model.source import ModelSource
    from clusterucb.samples.encode import Encoder
    from clusterucb.samples.pool_and_target import Material

# The models that a user may pass. `clusterucb.model.loaded.borrowing` turns a model in memory into a `LoadedModel`.
Model: TypeAlias = "str | PathLike[str] | LoadedModel | PreTrainedModel | PeftModel"
# Paths and patterns, or rows in memory (`clusterucb.samples.sources.sources_of`).
Rows = Any
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_LISTED = 8  # files whose contents are reported


@dataclass(frozen=True)
class Prepared:
    """The input of a job.

    Attributes:
        material: the encoded samples.
        source: the source of the base model.
        device: the device that the model runs on.
        contents: the fingerprints of everything that was read, by name.
        encoder: turned the samples into tokens.
        judges: the samples that judge a selection, or None: those that are held out, or those that were given.
    """

    material: Material
    source: ModelSource | LoadedModel
    device: str
    contents: dict[str, str | None]
    encoder: Encoder
    judges: Pool | None = None


def prepare(
    pool: Rows,
    target: Rows | None,
    model: Model,
    settings: GradientSettings,
    observer: Observer,
    held_out: Fraction | None = None,
    judges: Rows | None = None,
) -> Prepared:
    """Read and encode a pool and, if the job has one, a target.

    Args:
        pool, target: files, rows in memory, or a `Pool` that was already read.
        model: the base model.
        settings: the options.
        observer: receives the progress.
        held_out: the share of the target that is held out (`clusterucb.samples.hold_out`), or None.
        judges: files or rows of samples that judge a selection, in place of those that are held out.

    Raises:
        ClusterUCBError: a file, the model or the device cannot be used.
    """
    # a misspelt path is refused before anything slow begins
    pool = pool if isinstance(pool, Pool) else sources_of(pool, "pool")
    target = target if target is None or isinstance(target, Pool) else sources_of(target, "target")
    judges = judges if judges is None else sources_of(judges, "judges")
    checkpoints = checkpoint_fingerprints(settings.given_checkpoints)
    at_hand = (
        not isinstance(model, LoadedModel) and Path(model).is_dir() and settings.device in ("auto", "cpu")
    )
    opened = None if at_hand else _opened(model, settings, observer)
    observer.step(f"Reading the pool{' and the target' if target is not None else ''}")
    reading = partial(_read, settings=settings, observer=observer)
    aim = None if target is None else reading(read_target, target)
    read = reading(read_pool, pool)
    if not isinstance(pool, Pool):
        own = settings.target_layout.columns != settings.layout.columns
        _check_columns("--columns", read, read.unseen if own else read.unseen & (aim or read).unseen)
        if aim and own:
            _check_columns("--target-columns", aim, aim.unseen)
    source, device, tokenizer = opened or _opened(model, settings, observer)

    from clusterucb.samples.encode import Encoder
    from clusterucb.samples.pool_and_target import encode

    judging = None
    if aim and held_out is not None:
        aim, judging = hold_out(aim, held_out)
    if aim and judges is not None:
        judging = reading(read_target, judges)
        _refuse_known(aim, judging)
    if judging:
        judging = _unseen(read, judging)
    encoder = Encoder(tokenizer, max_length=settings.max_length, parsed=settings.parsed_tokens)
    if tokenizer.chat_template is None:
        observer.step(
            "The tokenizer has no chat template: a sample is a prompt, its answer and EOS; conversations of several "
            "turns are rejected"
        )
    contents = {
        "pool": read.fingerprint,
        "target": aim.fingerprint if aim else None,
        "model": source.fingerprint(),
        "encoding": encoder.fingerprint,
        **checkpoints,
    }
    material = encode(read, aim, encoder, strict=settings.strict, observer=observer)
    return Prepared(material, source, device, contents, encoder, judging)


def _check_columns(option: str, read: Pool, unseen: Collection[str]) -> None:
    if unseen:
        raise OptionError(
            f"{option} names {', '.join(sorted(unseen))}, which no row has; the columns of the first row are "
            f"{', '.join(decode(read.samples[0].raw))}"
        )


def _refuse_known(target: Pool, judges: Pool) -> None:
    """Refuse judges that stand in the target: they had a part in the selection that they would judge."""
    if known := overlap(judges, target):
        raise OptionError(
            f"--judge: {counted(len(known), 'sample')} of the judges, the first {known[0].file}:{known[0].line}, "
            "also stand in the target; expected samples that had no part in the selection"
        )


def _unseen(pool: Pool, judges: Pool) -> Pool:
    """Return the judges that do not stand in the pool. A model that trains on the others knows their answers.

    Raises:
        OptionError: all judges stand in the pool.
    """
    shared = overlap(pool, judges)
    if not shared:
        return judges
    left = without(judges, {sample.content_hash for sample in shared})
    first = min(shared, key=lambda sample: (pool.files.index(sample.file), sample.line))
    n_known = len(judges.samples) - len(left.samples)
    if not left.samples:
        raise OptionError(
            f"all {n_known:,} judges also stand in the pool, the first at {first.file}:{first.line}; expected samples "
            "that stand in none of its files"
        )
    warn(
        f"{n_known:,} of {counted(len(judges.samples), 'judge')} also stand in the pool, the first at {first.file}:"
        f"{first.line}; they are left out, because a model that trains on the pool knows the answers"
    )
    return left


def _opened(
    model: Model, settings: GradientSettings, observer: Observer
) -> tuple[ModelSource | LoadedModel, str, PreTrainedTokenizerBase]:
    """Return a model's source, the device and the tokenizer."""
    if "torch" not in sys.modules:  # it takes seconds, in which nothing else is shown
        observer.step("Loading PyTorch and transformers")
    from clusterucb.jobs.stages.tokenizer import tokenizer_for, with_given_template
    from clusterucb.model import source as checkpoint

    if isinstance(model, LoadedModel):
        return model, model.device(settings.device), with_given_template(model.tokenizer(), settings)
    device = checkpoint.resolve_device(settings.device)
    if not Path(model).is_dir():
        observer.step(f"There is no folder {model}; looking for a hub id")
    source = checkpoint.ModelSource(str(model), settings.revision, settings.trust_remote_code)
    return source, device, tokenizer_for(source, settings, observer)


def _read(
    read: Callable[..., Pool],
    given: Rows,
    *,
    settings: GradientSettings,
    observer: Observer,
) -> Pool:
    """Read a pool or a target and report the contents of each file. A `Pool` was already read, and is returned."""
    if isinstance(given, Pool):
        return given
    layout = settings.layout if read is read_pool else settings.target_layout
    pool = read(given, layout, strict=settings.strict, observer=observer)
    by_file = pool.rejected.by_file()
    for file, shapes in list(pool.shapes.items())[:_LISTED]:
        found = [f"{count:,} of {shape}" for shape, count in shapes.most_common()]
        refused = [f"{by_file[file]:,} rejected"] if by_file[file] else []
        unread = pool.unread.get(file)
        columns = f"; not read: {listed_names(unread)}" if unread else ""
        observer.step(f"  {file}: rows: {', '.join([*found, *refused]) or 'none'}{columns}")
    if len(pool.shapes) > _LISTED:
        observer.step(f"  and {len(pool.shapes) - _LISTED} more files")
    return pool


def check_paths(model: object, out: object, *, needed: bool = False, target: object = ()) -> None:
    """Refuse a model, a folder or a target that cannot be used. ``out`` may be None unless it is ``needed``."""
    if target is None:
        raise OptionError("target is None; expected the path of a file, or rows")
    check_model(model)
    if (out is not None or needed) and (not isinstance(out, str | PathLike) or not str(out)):
        raise OptionError(f"out is {out!r}; expected the path of a folder")
    if isinstance(out, str | PathLike):
        check_utf8("the name of out", out)
        check_folder(Path(out))


def check_model(model: object) -> None:
    """Refuse a model that is neither a folder, nor a hub id, nor a loaded model."""
    if not isinstance(model, str | PathLike | LoadedModel) or not str(model):
        raise OptionError(f"model is {model!r}; expected a path, a hub id or a loaded model")
    if not isinstance(model, LoadedModel):
        check_utf8("the name of the model", model)
    if not isinstance(model, LoadedModel) and not Path(model).is_dir() and not _HUB_ID.fullmatch(str(model)):
        raise ModelError(f"there is no folder {str(model)!r}; expected a model's folder, or a hub id")


@contextmanager
def folder_for(out: str | PathLike[str] | None) -> Iterator[Path]:
    """Yield the run folder: the one that was asked for, or a temporary folder that is removed when the block ends."""
    if out is not None:
        yield Path(out)
        return
    with TemporaryDirectory(prefix="clusterucb-") as folder:
        yield Path(folder)
