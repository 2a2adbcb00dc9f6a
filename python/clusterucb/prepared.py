"""What a job begins with: files read, samples encoded, a model and a device named. Nothing is written yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from clusterucb.errors import OptionError
from clusterucb.pool import read_pool, read_target
from clusterucb.progress import Observer
from clusterucb.settings import GradientSettings

if TYPE_CHECKING:
    from clusterucb.checkpoint import ModelSource
    from clusterucb.material import Material

Files = str | PathLike[str] | Sequence[str | PathLike[str]]


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
    source: ModelSource
    device: str
    contents: dict[str, str | None]
    pool_files: list[str]
    target_files: list[str]


def prepare(
    pool: Files,
    target: Files | None,
    model: str | PathLike[str],
    settings: GradientSettings,
    observer: Observer,
) -> Prepared:
    """Read and encode a pool and perhaps a target.

    Raises:
        ClusterUCBError: a file, the model or the device cannot be used.
    """
    observer.step(f"Reading the pool{' and the target' if target is not None else ''}")
    pool_files = _paths("pool", pool)
    target_files = [] if target is None else _paths("target", target)
    read = read_pool(pool_files)
    held_out = read_target(target_files) if target_files else None

    # torch takes seconds to import; bad options and files are told before.
    from clusterucb import checkpoint
    from clusterucb.encode import Encoder
    from clusterucb.material import encode

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
    return Prepared(encode(read, held_out, encoder), source, device, contents, pool_files, target_files)


def check_paths(model: object, out: object) -> None:
    """Refuse a model or a folder that cannot be one."""
    for name, value in (("model", model), ("out", out)):
        if not isinstance(value, str | PathLike) or not str(value):
            raise OptionError(
                f"{name} is {value!r}; expected a path{' or a hub id' if name == 'model' else ''}"
            )


def _paths(what: str, files: Any) -> list[str]:
    given = [files] if isinstance(files, str | PathLike) else files
    if not isinstance(given, Sequence) or not all(isinstance(one, str | PathLike) for one in given):
        raise OptionError(f"{what} is {files!r:.80}; expected the path of a JSONL file, or several")
    return [str(path) for path in given]
