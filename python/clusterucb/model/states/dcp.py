"""Read the state of a training with FSDP from a folder of torch.distributed.checkpoint.

Sources of the layout: torch 2.13 (``distributed/checkpoint/metadata.py``, ``filesystem.py``). ``.metadata`` is a pickle
that names every entry of the state, the shape of its tensor and its chunks, and where each chunk lies: a file, an
offset and a length. Such a piece of a file is what ``torch.save`` wrote. Entries are named
``optimizer.state.PARAMETER.exp_avg``, and settings ``optimizer.param_groups.0.betas`` or
``param_groups.PARAMETER.betas``.

Decisions:
    - Nothing of the pickle runs: every class in it becomes a stand-in (`clusterucb.model.states.safe`), but for sizes.
    - The pieces of a tensor are read when its moments are asked for, and joined by their offsets.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clusterucb.errors import ModelError
from clusterucb.model.checkpoint_files import WITHOUT
from clusterucb.model.states import safe
from clusterucb.model.states.entries import Entries, damaged
from clusterucb.wording import counted

_METADATA = ".metadata"
_SETTINGS = (
    "betas",
    "eps",
    "amsgrad",
    "maximize",
    "decoupled_weight_decay",
    "momentum",
    "dampening",
    "ns_steps",
)
_FAULTS = (*safe.FAULTS, pickle.UnpicklingError, OSError)


_NUMBERING = ("PUT", "BINPUT", "LONG_BINPUT")  # opcodes of pickles


class _Piece(NamedTuple):
    """Where a part of an entry lies: ``offsets`` in the entry's tensor (None for no tensor), and in a file."""

    offsets: tuple[int, ...] | None
    file: str
    start: int
    length: int


class _Entry(NamedTuple):
    """An entry of the state: the shape of its tensor (None for no tensor), and its pieces."""

    shape: tuple[int, ...] | None
    pieces: list[_Piece]


class _Unpickler(pickle.Unpickler):
    """Loads a pickle in which every class is a stand-in, but for sizes."""

    def find_class(self, module: str, name: str) -> Any:
        """Return `torch.Size`, or a stand-in."""
        return torch.Size if (module, name) == ("torch", "Size") else type(name, (safe.StandIn,), {})


def read(folder: Path) -> tuple[dict[Any, Mapping[str, Any]], list[dict[str, Any]], str]:
    """Return the state of a folder.

    Args:
        folder: holds ``.metadata`` and ``*.distcp``.

    Returns:
        The entries of each parameter by name; the groups, with names as ``params``; and the writer, for the screen.

    Raises:
        ModelError: a file is missing or damaged, or the folder holds no optimiser state.
    """
    try:
        entries = _entries(folder)
    except _FAULTS as error:
        raise damaged(folder / _METADATA, safe.reason(error)) from error
    files = {piece.file for entry in entries.values() for piece in entry.pieces}
    if missing := sorted(name for name in files if not (folder / name).is_file()):
        raise ModelError(
            f"{folder} lacks {counted(len(missing), 'file')} that its .metadata names, such as {missing[0]}; expected "
            f"those of all processes. Copy them, or {WITHOUT}"
        )
    state: dict[str, dict[str, _Entry]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        owner, _, last = name.rpartition(".")
        for mark in ("state.", "param_groups."):
            before, found, inner = owner.partition(mark)
            if found and inner and (not before or before in ("optimizer.", "optim.")):
                if mark == "state.":
                    state.setdefault(inner, {})[last] = entry
                elif last in _SETTINGS:
                    groups.setdefault(inner, {})[last] = _value(folder, name, entry)
                break
    if not state:
        raise ModelError(
            f"{folder} holds no optimiser state, only {', '.join(sorted(entries)[:3])} and the like; expected the "
            f"folder that FSDP or accelerate writes for the optimiser, such as optimizer_0. Or {WITHOUT}"
        )
    found_state: dict[Any, Mapping[str, Any]] = {
        name: Entries(
            **{last: partial(_value, folder, f"{name}.{last}", entry) for last, entry in of_one.items()}
        )
        for name, of_one in state.items()
    }
    by_name = all(group in state for group in groups)
    settings = [
        {**values, "params": [group] if by_name else list(state) if number == 0 else []}
        for number, (group, values) in enumerate(groups.items())
    ]
    return found_state, settings or [{"params": list(state)}], f"FSDP, {counted(len(files), 'file')}"


def _entries(folder: Path) -> dict[str, _Entry]:
    """Return the entries that a folder's metadata names."""
    content = (folder / _METADATA).read_bytes()
    _check_memo(content)
    metadata = _Unpickler(io.BytesIO(content)).load().state
    found = {}
    for name, kept in metadata["state_dict_metadata"].items():
        size = (kept.state or {}).get("size")
        found[str(name)] = _Entry(None if size is None else tuple(size), [])
    for index, place in metadata["storage_data"].items():
        where, at = place.state, index.state
        if where.get("transform_descriptors"):
            raise ValueError(f"it is compressed or encrypted ({where['transform_descriptors']})")
        offsets = at.get("offset")
        found[at["fqn"]].pieces.append(
            _Piece(
                None if offsets is None else tuple(offsets),
                Path(where["relative_path"]).name,
                int(where["offset"]),
                int(where["length"]),
            )
        )
    return found


def _check_memo(content: bytes) -> None:
    """Check that a pickle numbers its objects by small numbers, because Python allocates room up to the largest.

    Raises:
        ValueError: a number is larger than the pickle, or the pickle is not valid.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in _NUMBERING and argument is not None and argument > len(content):
            raise ValueError(f"it numbers an object {argument}")


def _value(folder: Path, name: str, entry: _Entry) -> Any:
    """Return an entry's tensor, joined from its pieces, or its value if it is no tensor.

    Raises:
        ModelError: a piece is missing or damaged.
    """
    try:
        parts = [(piece.offsets, _loaded(folder, piece)) for piece in entry.pieces]
        if entry.shape is None:
            ((_, value),) = parts
            return value
        whole = torch.zeros(entry.shape, dtype=parts[0][1].dtype)
        filled = 0
        for offsets, part in parts:
            whole[tuple(slice(at, at + size) for at, size in zip(offsets or (), part.shape, strict=True))] = (
                part
            )
            filled += part.numel()
    except _FAULTS as error:
        raise damaged(folder, f"{name} cannot be read ({safe.reason(error)})") from error
    if filled != whole.numel():
        raise damaged(folder, f"it has {filled} of the {whole.numel()} elements of {name}")
    return whole


def _loaded(folder: Path, piece: _Piece) -> Any:
    with (folder / piece.file).open("rb") as file:
        file.seek(piece.start)
        content = io.BytesIO(file.read(piece.length))
    return torch.load(content, map_location="cpu", weights_only=True)
