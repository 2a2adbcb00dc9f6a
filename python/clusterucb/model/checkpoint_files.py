"""Find and hash a checkpoint's files, and explain what to do where the optimiser state is not one file.

`optimizer_state` reads the state. This module stands apart from it, so that paths are checked before torch is
imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from clusterucb.atomic import file_sha256
from clusterucb.errors import ModelError

FROZEN = "clusterucb_frozen.json"  # names the weights of an adapter that a caller froze, as canonical names
_NAMES = ("optimizer.pt", "optimizer.bin")  # the Hugging Face Trainer's; accelerate's, and so LESS's
WITHOUT = "use --preconditioner sgd, which needs none"
PARTS = (
    "Expected one file with the whole state (FSDP's FULL_STATE_DICT), or FSDP's folder with .metadata and all .distcp "
    f"files (SHARDED_STATE_DICT): give it with --optimizer, or {WITHOUT}"
)
DEEPSPEED = (
    "Expected the folder with the files of all processes (*_optim_states.pt and *_model_states.pt), such as "
    f"global_step100: give it with --optimizer, or {WITHOUT}"
)
_OF_PROCESSES = "*_optim_states.pt"
_IN_PARTS = {
    PARTS: ("*.distcp", "optimizer*/*.distcp", "optimizer_*_rank*.bin"),
    DEEPSPEED: ("global_step*", "*/*_optim_states.pt"),
}


def adapter_folder(folder: Path) -> Path:
    """Return the folder with an adapter's files: the given one, or its only sub-folder with an adapter.

    PEFT writes an adapter with a name of its own, such as ``task``, into a sub-folder of that name.

    Raises:
        ModelError: several sub-folders hold an adapter.
    """
    if (folder / "adapter_config.json").is_file() or not folder.is_dir():
        return folder
    named = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    if len(named) > 1:
        raise ModelError(
            f"{folder} holds {len(named)} adapters, in {', '.join(path.name for path in named)}; expected one. Give "
            f"the folder of one of them, such as {named[0]}"
        )
    return named[0] if named else folder


def optimizer_file(folder: Path) -> Path:
    """Return the path of the optimiser state in a checkpoint's folder, or ``optimizer.pt`` if there is no state.

    The state of a named adapter lies beside its sub-folder. That of DeepSpeed or FSDP is a folder in the checkpoint's.
    """
    folders = [folder] if folder == (own := adapter_folder(folder)) else [folder, own]
    if (folder.parent / "trainer_state.json").is_file():  # the sub-folder itself is given
        folders.append(folder.parent)
    files = [place / name for place in folders for name in _NAMES]
    found = (file for file in files if file.is_file())
    joined = (inner for place in folders if (inner := deepspeed_folder(place) or dcp_folder(place)))
    return next(found, None) or next(joined, files[0])


def deepspeed_folder(path: Path) -> Path | None:
    """Return the folder with the files of DeepSpeed's processes, or None if there is none.

    Args:
        path: that folder itself, or one that holds it. Of several in it, the one that the file ``latest`` names counts.
    """
    if not path.is_dir():
        return None
    if any(path.glob(_OF_PROCESSES)):
        return path
    inner = sorted({file.parent for file in path.glob(f"*/{_OF_PROCESSES}")})
    latest = path / "latest"
    if len(inner) > 1 and latest.is_file():
        name = latest.read_text(errors="replace").strip()
        inner = [folder for folder in inner if folder.name == name]
    return inner[0] if len(inner) == 1 else None


def dcp_folder(path: Path) -> Path | None:
    """Return the folder that FSDP wrote an optimiser state to, or None if there is none.

    Args:
        path: that folder itself, with ``.metadata`` and ``*.distcp``, or one that holds it as ``optimizer*``.
    """
    if not path.is_dir():
        return None
    if (path / ".metadata").is_file():
        return path
    inner = sorted(file.parent for file in path.glob("optim*/.metadata"))
    return inner[0] if len(inner) == 1 else None


def state_files(path: Path) -> list[Path]:
    """Return the files of an optimiser state, which is a file, or a folder of DeepSpeed or FSDP.

    Raises:
        ModelError: there is no state.
    """
    if folder := deepspeed_folder(path):
        return sorted([*folder.glob(_OF_PROCESSES), *folder.glob("*_model_states.pt")])
    if folder := dcp_folder(path):
        return [folder / ".metadata", *sorted(folder.glob("*.distcp"))]
    if not path.is_file():
        raise missing_state(path)
    return [path]


def missing_state(path: Path) -> ModelError:
    """Return the error for an optimiser state's path that is not a file.

    The message says what lies there instead, and how to get one file.
    """
    folder = path if path.is_dir() else path.parent
    if folder == path and (file := optimizer_file(folder)).is_file():
        return ModelError(f"{path} is a folder; expected a file with the optimiser state, here {file}")
    for remedy, patterns in _IN_PARTS.items():
        if part := min(chain.from_iterable(map(folder.glob, patterns)), default=None):
            return ModelError(
                f"there is no optimiser state {path}; it is split into parts, such as {part}. {remedy}"
            )
    return ModelError(f"there is no optimiser state {path}; give it with --optimizer, or {WITHOUT}")


def checkpoint_fingerprints(
    checkpoints: Sequence[tuple[Path | None, Path | None]],
) -> dict[str, str | None]:
    """Return fingerprints of the content of checkpoints.

    Args:
        checkpoints: the adapter's folder and the optimiser state's file of each checkpoint; either may be None.

    Returns:
        Under ``adapter`` a hex SHA-256 of all adapters' configurations and weights, and under
        ``optimizer`` one of all optimiser states; None where there are none.

    Raises:
        ModelError: a file is missing.
    """
    weights = [path for adapter, _ in checkpoints if adapter for path in adapter_files(adapter)]
    states = [file for _, state in checkpoints if state for file in state_files(state)]
    return {
        "adapter": _hash(weights) if weights else None,
        "optimizer": _hash(states) if states else None,
    }


def adapter_files(adapter: Path) -> list[Path]:
    """Return the files of an adapter's configuration and weights, and of what is frozen of it.

    Raises:
        ModelError: a file is missing.
    """
    adapter = adapter_folder(adapter)
    weights = [adapter / "adapter_model.safetensors", adapter / "adapter_model.bin"]
    files = [adapter / "adapter_config.json", *[path for path in weights if path.is_file()][:1]]
    if len(files) < 2 or not files[0].is_file():
        missing = files[0] if not files[0].is_file() else weights[0]
        raise ModelError(f"there is no {missing}; expected the folder of a trained PEFT adapter")
    return [*files, adapter / FROZEN] if (adapter / FROZEN).is_file() else files


def _hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()
