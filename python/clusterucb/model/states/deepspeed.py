"""Read the state of a training with DeepSpeed's ZeRO, stages 1 to 3, from its folder.

Sources of the layout: DeepSpeed 0.19 (``runtime/zero/stage_1_and_2.py``, ``stage3.py``, ``utils/zero_to_fp32.py``).
Each process r writes ``*_zero_pp_rank_r_mp_rank_00_optim_states.pt``. In stages 1 and 2, each group's parameters are
laid end to end and cut into one partition for each process; ``param_slice_mappings`` says which elements of which
parameter lie where in a partition. In stage 3, each parameter of n elements is cut into pieces of ceil(n / processes)
elements; a process's pieces lie end to end in the order of ``param_shapes``, in one or several sub-groups. The shapes
are in a file ``*_model_states.pt``.

Decisions:
    - In stage 3, nothing in a file says which process wrote it, only the file's name. The files hold the parameters,
      too (`_OF_WEIGHTS`, in the layout of the moments). They are read with the moments, so that files that were swapped
      or copied over each other differ from the adapter (`clusterucb.model.moments`).
    - Files are mapped, and only the pieces of a parameter are read when its moments are asked for.
    - DeepSpeed's own objects in the files (a loss scaler, an enumeration, slices) become stand-ins; nothing of them
      runs (`clusterucb.model.states.safe`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clusterucb.errors import ModelError
from clusterucb.model.checkpoint_files import WITHOUT
from clusterucb.model.states import safe
from clusterucb.model.states.entries import WEIGHTS, Entries, damaged
from clusterucb.wording import counted

_EXPECTED = "the files of all processes of one DeepSpeed checkpoint (ZeRO stage 1, 2 or 3)"
_OF_WEIGHTS = ("fp32_flat_groups", "single_partition_of_fp32_groups")  # of stage 3; of stages 1 and 2
_FAULTS = (*safe.FAULTS, StopIteration)


class _Piece(NamedTuple):
    """Elements of a parameter: ``size`` of them from ``start`` on in an optimiser's flat state of one process."""

    process: int
    flat: Any  # the key of the optimiser's state
    start: int
    size: int


def read(folder: Path) -> tuple[dict[Any, Mapping[str, Any]], list[dict[str, Any]], str]:
    """Return the state of a folder with the files of all processes.

    Args:
        folder: holds ``*_optim_states.pt`` and ``*_model_states.pt``.

    Returns:
        The entries of each parameter by name; the groups, with names as ``params``; and the writer, for the screen.

    Raises:
        ModelError: a file is missing, damaged or of an unknown layout, or the training was split otherwise, too.
    """
    files = sorted(folder.glob("*_optim_states.pt"), key=_numbers)
    states = [_load(file)["optimizer_state_dict"] for file in files]
    try:
        stage = int(_plain(states[0]["zero_stage"]))
        count = states[0]["partition_count"]
        world = max(count) if isinstance(count, list) else int(count)
        if world != len(files) or any("mp_rank_00" not in file.name for file in files):
            raise ModelError(
                f"{folder} has {counted(len(files), 'file')} *_optim_states.pt, of a training with "
                f"{counted(world, 'process', 'processes')}; expected one for each, without tensor or pipeline "
                f"parallelism. Copy the missing files, or {WITHOUT}"
            )
        shapes = _load(_model_file(folder))["param_shapes"]
        bases = [state["optimizer_state_dict" if stage == 3 else "base_optimizer_state"] for state in states]
        if not all(isinstance(base, dict) for base in bases):
            raise ModelError(
                f"{folder} is an elastic checkpoint of DeepSpeed, which is not supported; expected one that was saved "
                f"with zero_optimization.elastic_checkpoint false. Save it so, or {WITHOUT}"
            )
        for kept, base in zip(states, bases, strict=True):
            _add_weights(kept, base)
        pieces = _of_stage_3(bases, shapes) if stage == 3 else _of_stages_1_and_2(states, bases)
        named = {name: torch.Size(shape) for group in shapes for name, shape in group.items()}
        state: dict[Any, Mapping[str, Any]] = {
            name: _entries(folder, bases, name, shape, pieces[name]) for name, shape in named.items()
        }
        settings = [dict(group) for group in bases[0]["param_groups"]]
        groups = [
            {**of_group, "params": list(group)}
            for of_group, group in zip(settings, shapes, strict=len(shapes) > 1)
        ]
    except _FAULTS as error:
        raise damaged(
            folder, f"it lacks a part of DeepSpeed's layout ({type(error).__name__}: {error})"
        ) from error
    return state, groups, f"DeepSpeed ZeRO-{stage}, {counted(world, 'process', 'processes')}"


def sample(folder: Path) -> tuple[list[dict[str, Any]], dict[Any, Mapping[str, Any]]]:
    """Return the groups and the first flat state of one process, which tell what the optimiser was.

    Raises:
        ModelError: a file is damaged.
    """
    state = _load(min(folder.glob("*_optim_states.pt"), key=_numbers))["optimizer_state_dict"]
    try:
        base = state["optimizer_state_dict" if "optimizer_state_dict" in state else "base_optimizer_state"]
        groups = base["param_groups"]
        _ = {key for group in groups for key in group["params"]}  # as `as_adam` reads them
        return groups, dict(list(base["state"].items())[:1])
    except _FAULTS:
        return [], {}  # `read` says what is wrong


def _numbers(file: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", file.name.partition("zero_pp_rank")[2])]


def _plain(value: Any) -> Any:
    return value.arguments[0] if isinstance(value, safe.StandIn) else value


def _model_file(folder: Path) -> Path:
    file = min(folder.glob("*_model_states.pt"), key=lambda file: (len(file.name), file.name), default=None)
    if file is None:
        raise ModelError(
            f"{folder} has no *_model_states.pt, which has the parameters' shapes; expected {_EXPECTED}"
        )
    return file


def _load(file: Path) -> dict[str, Any]:
    """Return the content of one of DeepSpeed's files.

    Raises:
        ModelError: it cannot be read, or is no dict of ZeRO's layout.
    """
    try:
        content = safe.load(file, deepspeed=True, mapped=True)
    except Exception as error:  # torch.load raises many kinds; none of them is a bug of ours
        needed = [name for name in safe.classes(file) if not safe.is_known(name, deepspeed=True)]
        raise safe.unreadable(file, error, needed, _EXPECTED) from error
    layouts = {"optimizer_state_dict": dict, "param_shapes": list}
    if not isinstance(content, dict) or not any(
        isinstance(content.get(key), layouts[key]) for key in layouts
    ):
        raise ModelError(f"{file} is not of ZeRO's layout; expected {_EXPECTED}. Or {WITHOUT}")
    return content


def _of_stages_1_and_2(
    states: Sequence[Mapping[str, Any]], bases: Sequence[Mapping[str, Any]]
) -> dict[str, list[_Piece]]:
    """Return the pieces of each parameter in the order of its elements."""
    pieces: dict[str, list[_Piece]] = {}
    for process, (state, base) in enumerate(zip(states, bases, strict=True)):
        flats = chain.from_iterable(group["params"] for group in base["param_groups"])
        for flat, slices in zip(flats, state["param_slice_mappings"], strict=True):
            for name, at in slices.items():
                pieces.setdefault(name, []).append(
                    _Piece(process, flat, int(at.state["start"]), int(at.state["numel"]))
                )
    return pieces


def _of_stage_3(
    bases: Sequence[Mapping[str, Any]], shapes: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, list[_Piece]]:
    """Return the pieces of each parameter in the order of its elements."""
    pieces: dict[str, list[_Piece]] = {}
    flats = list(bases[0]["state"])
    ends = list(accumulate(bases[0]["state"][flat]["exp_avg"].numel() for flat in flats))
    offset = 0
    for name, shape in chain.from_iterable(group.items() for group in shapes):
        size = -(-math.prod(shape) // len(bases))
        number = next(number for number, end in enumerate(ends) if offset + size <= end)
        start = offset - (ends[number - 1] if number else 0)
        pieces[name] = [_Piece(process, flats[number], start, size) for process in range(len(bases))]
        offset += size
    return pieces


def _add_weights(state: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Put a process's parameters beside its moments, if its file has them in the same layout."""
    moments = base.get("state", {})
    in_groups = chain.from_iterable(group["params"] for group in base.get("param_groups", ()))
    stored = next((state[name] for name in _OF_WEIGHTS if name in state), None)
    keys = [flat for flat in (moments if _OF_WEIGHTS[0] in state else in_groups) if flat in moments]
    if not isinstance(stored, list) or len(stored) != len(keys):
        return
    for flat, weights in zip(keys, stored, strict=True):
        own = moments[flat].get("exp_avg")
        if isinstance(weights, torch.Tensor) and weights.shape == getattr(own, "shape", None):
            moments[flat][WEIGHTS] = weights


def _entries(
    folder: Path, bases: Sequence[Mapping[str, Any]], name: str, shape: torch.Size, pieces: Sequence[_Piece]
) -> Entries:
    flat = bases[pieces[0].process]["state"][pieces[0].flat]
    steps = [group["step"] for group in bases[0]["param_groups"] if "step" in group]
    step = flat["step"] if "step" in flat else steps[0]  # DeepSpeed's FusedAdam had it in the group
    names = ["exp_avg", "exp_avg_sq"]
    if all(WEIGHTS in bases[one.process].get("state", {}).get(one.flat, ()) for one in pieces):
        names.append(WEIGHTS)
    return Entries(
        **{entry: partial(_joined, folder, bases, name, shape, pieces, entry) for entry in names},
        step=lambda: step,
    )


def _joined(
    folder: Path,
    bases: Sequence[Mapping[str, Any]],
    name: str,
    shape: torch.Size,
    pieces: Sequence[_Piece],
    entry: str,
) -> torch.Tensor:
    """Return an entry of a parameter, of the parameter's shape.

    Raises:
        ModelError: pieces are missing.
    """
    try:
        parts = [
            bases[one.process]["state"][one.flat][entry][one.start : one.start + one.size] for one in pieces
        ]
        whole = torch.cat(parts)[: shape.numel()]
    except _FAULTS as error:
        raise damaged(folder, f"it lacks {entry} of {name} ({type(error).__name__}: {error})") from error
    if whole.numel() != shape.numel():
        raise damaged(folder, f"it has {whole.numel()} of the {shape.numel()} elements of {entry} of {name}")
    return whole.reshape(shape)
