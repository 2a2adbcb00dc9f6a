"""Where a folder keeps its optimiser state, and what to do if that is not one file.

Apart from `optimizer_state`, which reads the file, so that a path is checked before torch is imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from clusterucb.errors import ModelError

_NAMES = ("optimizer.pt", "optimizer.bin")  # of the Hugging Face Trainer; of accelerate, and so of LESS
WITHOUT = "use --preconditioner sgd, which needs none"
PARTS = (
    "Expected one file with all of it: save with FSDP's FULL_STATE_DICT, or join the folder of .distcp files with "
    f"torch.distributed.checkpoint.format_utils.dcp_to_torch_save and give that with --optimizer, or {WITHOUT}"
)
DEEPSPEED = (
    "DeepSpeed's states are not read, and zero_to_fp32 joins weights alone: train with FSDP or without ZeRO, or "
    f"{WITHOUT}"
)
_IN_PARTS = {
    PARTS: ("*.distcp", "optimizer*/*.distcp", "optimizer_*_rank*.bin"),
    DEEPSPEED: ("global_step*", "*_optim_states.pt", "*/*_optim_states.pt"),
}


def optimizer_file(folder: Path) -> Path:
    """Return where a checkpoint's folder has its optimiser state, or would have it if it has none."""
    files = [folder / name for name in _NAMES]
    return next((file for file in files if file.is_file()), files[0])


def missing_state(path: Path) -> ModelError:
    """Return what to say of a path that is no file: what lies there in its place, and how to get one file."""
    folder = path if path.is_dir() else path.parent
    if folder == path and (file := optimizer_file(folder)).is_file():
        return ModelError(f"{path} is a folder; expected its file of the optimiser state: give {file}")
    for remedy, patterns in _IN_PARTS.items():
        if part := min(chain.from_iterable(map(folder.glob, patterns)), default=None):
            return ModelError(
                f"there is no optimiser state {path}; it lies in parts, such as {part}. {remedy}"
            )
    return ModelError(f"there is no optimiser state {path}; give it with --optimizer, or {WITHOUT}")


def checkpoint_fingerprints(
    checkpoints: Sequence[tuple[Path | None, Path | None]],
) -> dict[str, str | None]:
    """Return a hex SHA-256 of adapters (configurations and weights) and of optimiser states, None for none.

    Raises:
        ModelError: one of the files is missing.
    """
    weights = [path for adapter, _ in checkpoints if adapter for path in adapter_files(adapter)]
    states = [state for _, state in checkpoints if state]
    for state in states:
        if not state.is_file():
            raise missing_state(state)
    return {
        "adapter content": _hash(weights) if weights else None,
        "optimizer content": _hash(states) if states else None,
    }


def adapter_files(adapter: Path) -> list[Path]:
    """Return an adapter's configuration and weights.

    Raises:
        ModelError: one of the files is missing.
    """
    weights = [adapter / "adapter_model.safetensors", adapter / "adapter_model.bin"]
    files = [adapter / "adapter_config.json", *[path for path in weights if path.is_file()][:1]]
    if len(files) < 2 or not files[0].is_file():
        missing = files[0] if not files[0].is_file() else weights[0]
        raise ModelError(f"there is no {missing}; expected the folder of a trained PEFT adapter")
    return files


def _hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
