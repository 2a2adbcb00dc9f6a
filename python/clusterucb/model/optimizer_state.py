"""Read the state of Adam or AdamW from a file; this needs no model.

Every writer keeps ``state`` (the optimiser's entries for each parameter) and ``param_groups`` (the parameters in
order, and the settings). Writers differ in how they identify a parameter:

- ``torch.save(optimizer.state_dict())``, the Trainer, and accelerate without FSDP write positions. They add
  ``param_names`` if the optimiser was made from named parameters.
- FSDP's full state (``FSDP.optim_state_dict``, ``get_optimizer_state_dict``, accelerate's ``optimizer.bin``, which
  LESS loads) has the names themselves.

Decisions:
    - A dict that has the state under ``optimizer`` is accepted too: ``dcp_to_torch_save`` makes one from accelerate's
      folder.
    - No code in a file runs (`clusterucb.model.states.safe`). If a file cannot be loaded this way, the error names the
      classes that it asks for.
    - What counts as Adam, and what is refused by name: `clusterucb.model.states.kinds`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

from clusterucb.errors import ModelError
from clusterucb.model.checkpoint_files import (
    DEEPSPEED,
    PARTS,
    WITHOUT,
    dcp_folder,
    deepspeed_folder,
    missing_state,
)
from clusterucb.model.states import dcp, deepspeed, factored, safe
from clusterucb.model.states.entries import damaged
from clusterucb.model.states.kinds import EXPECTED, Kind, as_adam

__all__ = ["EXPECTED", "Key", "OptimizerState", "read_state"]

Key = Hashable  # a file's key for a parameter: its position or its name
_OTHER_FORMS = {  # classes and keys that reveal a file of another form: what the file is, and the remedy
    r".*\.(DTensor|ShardedTensor)": ("one process's part of a state", PARTS),
    r"deepspeed\..*|ds_version|zero_stage|base_optimizer_state": ("a state of DeepSpeed", DEEPSPEED),
    r"megatron\..*|checkpoint_version|fp32_from_fp16_params": (
        "a state of Megatron",
        f"Megatron's states are not supported: train with another library, or {WITHOUT}",
    ),
}
_FILES = (
    "optimizer.pt of a Hugging Face Trainer, optimizer.bin of accelerate, or "
    "torch.save(optimizer.state_dict(), ...)"
)


@dataclass(frozen=True)
class OptimizerState:
    """The state of Adam or AdamW, as a file holds it.

    Attributes:
        groups: the keys of the parameters of each group, in order.
        moments: ``exp_avg``, ``exp_avg_sq`` and ``step`` of each parameter that the optimiser has stepped.
        names: each parameter's name in the writer's model; None if the file has positions alone.
        beta1, beta2, eps: the optimiser's settings; PyTorch's defaults if the file has none.
        kind: how the file keeps the moments. Without a first moment, the entries lack ``exp_avg``.
    """

    groups: Sequence[Sequence[Key]]
    moments: Mapping[Key, Mapping[str, Any]]
    names: Mapping[Key, str] | None
    beta1: float
    beta2: float
    eps: float
    kind: Kind


def read_state(path: Path) -> OptimizerState:
    """Read a file with an optimiser's state.

    Raises:
        ModelError: the file is missing, cannot be read, is damaged, holds one part of a state, or holds the state of
            another optimiser.
    """
    if folder := deepspeed_folder(path):
        return _of_deepspeed(folder)
    if folder := dcp_folder(path):
        return _of_fsdp(folder)
    state, groups = _parts(path, _load(path))
    if any("exp_avg_B" in entries for entries in state.values()):
        raise ModelError(
            f"{path} is the state of PEFT's optimiser for LoRA-FA: its moments are those of projected gradients; "
            f"{EXPECTED}"
        )
    members = [group["params"] for group in groups]
    keys = list(chain(*members)) if groups else list(state)
    names = _names(path, keys, groups)
    moments, kind = as_adam(path, groups, {key: state[key] for key in keys if state.get(key)})
    # Adafactor corrects no bias, as Adam would with a beta2 of 0.
    settings = _settings(path, groups) if kind.first else (0.0, 0.0, factored.EPS)
    return OptimizerState(members, moments, names, *settings, kind)


def _of_deepspeed(folder: Path) -> OptimizerState:
    _, partition = as_adam(folder, *deepspeed.sample(folder))
    if partition.name:
        raise ModelError(
            f"{folder} has a state of {partition.name} in parts; expected AdamW or Adam of torch or DeepSpeed. Train "
            f"with one, or {WITHOUT}"
        )
    state, groups, writer = deepspeed.read(folder)
    members = [group["params"] for group in groups]
    return OptimizerState(
        members, state, {name: name for name in state}, *_settings(folder, groups), Kind(writer)
    )


def _of_fsdp(folder: Path) -> OptimizerState:
    state, groups, writer = dcp.read(folder)
    moments, kind = as_adam(folder, groups, state)
    settings = _settings(folder, groups) if kind.first else (0.0, 0.0, factored.EPS)
    members = [group["params"] for group in groups]
    return OptimizerState(
        members, moments, {name: name for name in state}, *settings, kind._replace(name=writer)
    )


def _load(path: Path) -> dict[str, Any]:
    """Return the file's dict that should have ``state`` and ``param_groups``."""
    if not path.is_file():
        raise missing_state(path)
    try:
        content = safe.load(path)
    except Exception as error:  # torch.load raises many kinds; none of them is a bug of ours
        needed = safe.classes(path)
        _refuse_other_forms(path, needed)
        raise safe.unreadable(path, error, needed, _FILES) from error
    content = _dict(content)
    inner = _dict(content.get("optimizer"))
    holder = content if "state" in content else inner
    if "state" not in holder:
        of_deepspeed = _dict(content.get("optimizer_state_dict"))
        _refuse_other_forms(path, map(str, chain(content, inner, of_deepspeed)))
    return holder


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _refuse_other_forms(path: Path, marks: Iterable[str]) -> None:
    """Refuse a file if one of ``marks``, its classes or keys, reveals another form.

    Raises:
        ModelError: a mark reveals another form.
    """
    for mark, (pattern, (what, remedy)) in product(marks, _OTHER_FORMS.items()):
        if re.fullmatch(pattern, mark):
            raise ModelError(f"{path} holds {what} ({mark}). {remedy}")


def _parts(path: Path, content: Mapping[str, Any]) -> tuple[dict[Any, dict[str, Any]], list[dict[str, Any]]]:
    """Return ``state`` and ``param_groups`` after checking their types.

    ``param_groups`` may be missing if the keys of ``state`` are names; it then counts as empty.

    Raises:
        ModelError: one of them is missing or damaged.
    """
    state, groups = content.get("state"), content.get("param_groups")
    named = isinstance(state, dict) and bool(state) and all(isinstance(key, str) for key in state)
    if state is None or (groups is None and not named):
        raise ModelError(f"{path} holds no optimiser state; expected a dict with `state` and `param_groups`")
    groups = groups if groups is not None else []
    sound = (
        isinstance(state, dict)
        and all(isinstance(entries, dict) for entries in state.values())
        and isinstance(groups, list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
        and _distinct([key for group in groups for key in group["params"]])
    )
    if not sound:
        raise damaged(path, "`state` or `param_groups` does not have torch's format")
    return state, groups


def _distinct(keys: Sequence[Any]) -> bool:
    return all(isinstance(key, int | str) for key in keys) and len(set(keys)) == len(keys)


def _names(path: Path, keys: list[Key], groups: Sequence[Mapping[str, Any]]) -> dict[Key, str] | None:
    if keys and all(isinstance(key, str) for key in keys):
        return {key: str(key) for key in keys}
    spelt = [group.get("param_names") for group in groups if group["params"]]
    if all(names is None for names in spelt):
        return None
    flat = list(chain(*(names for names in spelt if isinstance(names, list))))
    if len(flat) != len(keys) or not all(isinstance(name, str) for name in flat):
        raise damaged(path, "`param_names` does not have torch's format")
    return dict(zip(keys, flat, strict=True))


def _settings(path: Path, groups: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Return beta1, beta2 and eps.

    Raises:
        ModelError: they are not numbers, or not the same for all groups.
    """
    settings = set()
    for group in groups or [{}]:
        betas, eps = group.get("betas", (0.9, 0.999)), group.get("eps", 1e-8)
        try:
            beta1, beta2 = map(float, betas)
            settings.add((beta1, beta2, float(eps)))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{path} has betas {betas!r} and eps {eps!r}; expected three numbers") from error
    if len(settings) > 1:
        raise ModelError(f"{path} has groups with different betas or eps; expected the same for all")
    return settings.pop()
