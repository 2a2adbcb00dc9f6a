"""Files of optimiser states: pickles inside ZIP files, folders of FSDP and DeepSpeed, and odd values in good files."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from clusterucb.model.checkpoint_files import checkpoint_fingerprints, optimizer_file
from clusterucb.model.moments import load_moments
from clusterucb.model.parameters import ParameterManifest
from whole.adversary.harnesses.choices import Choices
from whole.adversary.harnesses.judged import outcome, scratch

DATA = Path(__file__).parents[3] / "data"
sys.path.append(str(DATA))
import make_optimizer_states as made  # noqa: E402

_FSDP = DATA / "dcp_states" / "torch"
_ZERO = [DATA / "deepspeed_states" / kind / "global_step3" for kind in ("zero1", "zero3")]
_DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.uint8,
)
_ENTRIES = (
    *(
        "exp_avg",
        "exp_avg_sq",
        "step",
        "max_exp_avg_sq",
        "state1",
        "state2",
        "qmap1",
        "qmap2",
        "absmax1",
        "absmax2",
    ),
    *(
        "exp_avg_sq_row",
        "exp_avg_sq_col",
        "momentum_buffer",
        "exp_avg_B",
        "z",
        "RMS",
        "new_map1",
        "quantiles1",
    ),
)
_SETTINGS = (
    "betas",
    "eps",
    "amsgrad",
    "maximize",
    "lr",
    "param_names",
    "params",
    "decoupled_weight_decay",
    "step",
)


@cache
def _asked() -> tuple[Any, ParameterManifest]:
    model = made.model(whole=False)
    return model, ParameterManifest.of(model)


def zipped(pickled: bytes, storages: dict[str, bytes]) -> bytes:
    """Return a file of ``torch.save`` with a pickle and the bytes of storages by key."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values)
        archive.writestr("archive/version", "3\n")
    return content.getvalue()


def _tensor(choices: Choices) -> torch.Tensor:
    shape = [choices.below(5) for _ in range(choices.below(4))]
    tensor = torch.full(shape, choices.below(7) - 3).to(choices.one_of(_DTYPES))
    kind = choices.below(12)
    if kind == 0:
        return tensor.to("meta")
    if kind == 1:
        return tensor.to_sparse()
    if kind == 2:
        return tensor.float() * float("nan")
    return tensor


def _value(choices: Choices) -> Any:
    return _tensor(choices) if choices.below(3) else choices.value()


@cache
def _files() -> list[bytes]:
    """Return the contents of good files, those of the small adapter first."""
    found = [
        DATA / "optimizer_states" / name for name in ("adamw-fused.pt", "fsdp2.bin", "accelerate-fsdp1.bin")
    ]
    found += [DATA / "low_bit_states" / f"{name}.pt" for name in ("bitsandbytes-8", "torchao-8", "torchao-4")]
    return [path.read_bytes() for path in (*found, DATA / "optimizer_states" / "fsdp1-sharded.bin")]


def _changed(choices: Choices, content: bytes) -> bytes:
    """Return a file of ``torch.save`` with some bytes changed: any, or those of its pickle, in a sound ZIP file."""
    if not choices.flag():
        return _with_other_bytes(choices, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    pickled = _with_other_bytes(choices, parts["data.pkl"])
    return zipped(
        pickled,
        {name.removeprefix("data/"): part for name, part in parts.items() if name.startswith("data/")},
    )


def _with_other_bytes(choices: Choices, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(1 + choices.below(4)):
        at = choices.below(65536) % len(changed)
        piece = choices.bytes(1 + choices.below(4))
        changed[at : at + len(piece)] = piece
    return bytes(changed)


def _odd_state(choices: Choices) -> Any:
    """Return a good state of AdamW, some of whose parts are odd."""
    content = torch.load(io.BytesIO(choices.one_of(_files()[:4])), weights_only=True)
    for _ in range(1 + choices.below(4)):
        kind = choices.below(6)
        if kind == 0:
            content[choices.one_of(("state", "param_groups", "optimizer"))] = choices.value()
        elif kind == 1 and isinstance(content.get("state"), dict) and content["state"]:
            keys = list(content["state"])
            content["state"][choices.one_of(keys)] = choices.value()
        elif kind == 2 and isinstance(content.get("param_groups"), list) and content["param_groups"]:
            group = content["param_groups"][0]
            if isinstance(group, dict):
                group[choices.one_of(_SETTINGS)] = _value(choices)
        elif kind == 3:
            return {"optimizer": content, choices.text(): choices.value()}
        elif isinstance(content.get("state"), dict):
            _change_entries(choices, content["state"])
    return content


def _change_entries(choices: Choices, state: dict[Any, Any]) -> None:
    """Put odd values into the entries of one parameter, or of all."""
    names = [(choices.one_of(_ENTRIES), choices.flag()) for _ in range(1 + choices.below(3))]
    value = _value(choices)
    for key in [choices.one_of(list(state))] if state and choices.flag() else list(state):
        if isinstance(state[key], dict):
            for name, kept in names:
                state[key].pop(name, None)
                if kept:
                    state[key][name] = value


def _raw(choices: Choices, folder: Path) -> Path:
    (folder / "optimizer.pt").write_bytes(choices.rest())
    return folder / "optimizer.pt"


def _pickled(choices: Choices, folder: Path) -> Path:
    storages = {str(at): bytes(16) for at in range(3)}
    (folder / "optimizer.pt").write_bytes(zipped(choices.rest(), storages))
    return folder / "optimizer.pt"


def _odd(choices: Choices, folder: Path) -> Path:
    torch.save(_odd_state(choices), folder / "optimizer.pt", _use_new_zipfile_serialization=choices.flag())
    return folder / "optimizer.pt"


def _metadata(choices: Choices, folder: Path) -> Path:
    (folder / "__0_0.distcp").symlink_to(_FSDP / "__0_0.distcp")
    (folder / ".metadata").write_bytes(choices.rest())
    return folder


def _odd_file(choices: Choices, folder: Path) -> Path:
    (folder / "optimizer.pt").write_bytes(_changed(choices, choices.one_of(_files())))
    return folder / "optimizer.pt"


@cache
def _fsdp_metadata() -> bytes:
    return (_FSDP / ".metadata").read_bytes()


def _odd_metadata(choices: Choices, folder: Path) -> Path:
    """Write FSDP's metadata with some bytes changed, beside the files that it names."""
    (folder / ".metadata").write_bytes(_with_other_bytes(choices, _fsdp_metadata()))
    for name in ("__0_0.distcp", "__1_0.distcp"):
        (folder / name).symlink_to(_FSDP / name)
    return folder


def _zero(choices: Choices, folder: Path) -> Path:
    """Write one of DeepSpeed's folders, one of whose files has some bytes changed."""
    whole = choices.one_of(_ZERO)
    names = sorted(file.name for file in whole.iterdir())
    odd = choices.one_of(names)
    for name in names:
        content = (whole / name).read_bytes()
        (folder / name).write_bytes(_changed(choices, content) if name == odd else content)
    return folder


KINDS: tuple[Callable[[Choices, Path], Path], ...] = (
    _raw, _pickled, _odd, _metadata, _odd_metadata, _zero, _odd_file,
)  # fmt: skip


def case(data: bytes) -> str:
    """Write a state of the kind that the first byte names, and load its moments for a small adapter."""
    choices = Choices(data)
    kind = choices.one_of(KINDS)
    with scratch() as folder:
        path = kind(choices, folder)

        def use() -> None:
            optimizer_file(folder)
            checkpoint_fingerprints([(None, path)])
            load_moments(path, *_asked())

        return outcome(use)
