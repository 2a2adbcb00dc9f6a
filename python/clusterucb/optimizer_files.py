"""Where a folder keeps its optimiser state, and what to do if that is not one file.

Apart from `optimizer_state`, which reads the file, so that a path is checked before torch is imported.
"""

from __future__ import annotations

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
