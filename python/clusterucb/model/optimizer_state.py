"""Read a file with the state of Adam or AdamW; this needs no model.

Every writer keeps ``state`` (the optimiser's entries for each parameter) and ``param_groups`` (the parameters in
order, and the settings). Writers differ in how they identify a parameter:

- ``torch.save(optimizer.state_dict())``, the Trainer, and accelerate without FSDP write positions. They add
  ``param_names`` if the optimiser was made from named parameters.
- FSDP's full state (``FSDP.optim_state_dict``, ``get_optimizer_state_dict``, accelerate's ``optimizer.bin``, which
  LESS loads) has the names themselves.

Decisions:
    - A dict that has the state under ``optimizer`` is accepted too: ``dcp_to_torch_save`` makes one from accelerate's
      folder.
    - Files are loaded with ``weights_only``, and no further class is allowed, so that no code in a file runs. If a file
      cannot be loaded this way, the error names the classes that it asks for.
    - Adam and AdamW are recognised by their entries, which are exactly ``exp_avg``, ``exp_avg_sq`` and ``step``. This
      holds for fused, capturable, foreach and plain variants, with coupled or decoupled weight decay.
    - With Adam's coupled weight decay (L2), the moments are those of the gradient plus the decay. They are used as they
      are, because that optimiser steps along them.
    - RAdam has the same entries. It is recognised by its settings, which lack ``amsgrad``; in a file without settings
      it cannot be recognised.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch

from clusterucb.errors import ModelError
from clusterucb.model.checkpoint_files import DEEPSPEED, PARTS, WITHOUT, missing_state
from clusterucb.wording import one_line

Key = Hashable  # a file's key for a parameter: its position or its name
ENTRIES = frozenset({"exp_avg", "exp_avg_sq", "step"})
EXPECTED = (
    "expected AdamW's exp_avg, exp_avg_sq and step. Save it after at least one step of AdamW or Adam, or use "
    "--preconditioner sgd"
)
_BITSANDBYTES = "a bitsandbytes optimiser (8-bit, 32-bit or paged)"
_OTHER_ENTRIES = {  # entries that only other optimisers keep for a parameter
    "state1": _BITSANDBYTES,
    "__bnb_optimizer_quant_state__": _BITSANDBYTES,
    "max_exp_avg_sq": "Adam with amsgrad",
    "mu_product": "NAdam",
    "exp_inf": "Adamax",
    "exp_avg_sq_row": "Adafactor",
    "row_var": "Adafactor",
    "momentum_buffer": "SGD or Muon",
    "square_avg": "RMSprop or Adadelta",
    "sum": "Adagrad",
}
_OTHER_FORMS = {  # classes and keys that reveal a file of another form: what the file is, and the remedy
    r".*\.(DTensor|ShardedTensor)": ("one process's part of a state", PARTS),
    r"deepspeed\..*|ds_version|zero_stage|base_optimizer_state": ("a state of DeepSpeed", DEEPSPEED),
    r"megatron\..*|checkpoint_version|fp32_from_fp16_params": (
        "a state of Megatron",
        f"Megatron's states are not supported: train with another library, or {WITHOUT}",
    ),
}


@dataclass(frozen=True)
class OptimizerState:
    """The state of Adam or AdamW, as a file holds it.

    Attributes:
        groups: the keys of the parameters of each group, in order.
        moments: ``exp_avg``, ``exp_avg_sq`` and ``step`` of each parameter that the optimiser has stepped.
        names: each parameter's name in the writer's model; None if the file has positions alone.
        beta1, beta2, eps: the optimiser's settings; PyTorch's defaults if the file has none.
    """

    groups: Sequence[Sequence[Key]]
    moments: Mapping[Key, Mapping[str, Any]]
    names: Mapping[Key, str] | None
    beta1: float
    beta2: float
    eps: float


def read_state(path: Path) -> OptimizerState:
    """Read a file with an optimiser's state.

    Raises:
        ModelError: the file is missing, cannot be read, is damaged, holds one part of a state, or holds the state of
            another optimiser.
    """
    state, groups = _parts(path, _load(path))
    members = [group["params"] for group in groups]
    keys = list(chain(*members)) if groups else list(state)
    names = _names(path, keys, groups)
    moments = {key: state[key] for key in keys if state.get(key)}
    _refuse_others(path, groups, moments)
    return OptimizerState(members, moments, names, *_settings(path, groups))


def _load(path: Path) -> dict[str, Any]:
    """Return the file's dict that should have ``state`` and ``param_groups``."""
    if not path.is_file():
        raise missing_state(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds; none of them is a bug of ours
        classes = _classes(path)
        _refuse_other_forms(path, classes)
        reason = f"{type(error).__name__}: {one_line(error):.200}"
        if classes:
            reason = f"it needs {', '.join(classes)}, and code from a file is never run"
        elif isinstance(
            error, pickle.UnpicklingError
        ):  # torch's own text advises to run the code in the file
            reason = "it is damaged or holds more than tensors and numbers, and code from a file is never run"
        raise ModelError(
            f"{path} cannot be read as an optimiser state ({reason}); expected optimizer.pt of a Hugging Face Trainer, "
            "optimizer.bin of accelerate, or torch.save(optimizer.state_dict(), ...)"
        ) from error
    content = _dict(content)
    inner = _dict(content.get("optimizer"))
    holder = content if "state" in content else inner
    if "state" not in holder:
        of_deepspeed = _dict(content.get("optimizer_state_dict"))
        _refuse_other_forms(path, map(str, chain(content, inner, of_deepspeed)))
    return holder


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _classes(path: Path) -> list[str]:
    """Return the classes and functions, other than tensors, that a file asks for, without importing them."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # torch.save did not write the file
        return []


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
        raise _damaged(path, "`state` or `param_groups` does not have torch's format")
    return state, groups


def _distinct(keys: Sequence[Any]) -> bool:
    return all(isinstance(key, int | str) for key in keys) and len(set(keys)) == len(keys)


def _damaged(path: Path, fault: str) -> ModelError:
    return ModelError(f"{path} is damaged: {fault}; save it again")


def _names(path: Path, keys: list[Key], groups: Sequence[Mapping[str, Any]]) -> dict[Key, str] | None:
    if keys and all(isinstance(key, str) for key in keys):
        return {key: str(key) for key in keys}
    spelt = [group.get("param_names") for group in groups if group["params"]]
    if all(names is None for names in spelt):
        return None
    flat = list(chain(*(names for names in spelt if isinstance(names, list))))
    if len(flat) != len(keys) or not all(isinstance(name, str) for name in flat):
        raise _damaged(path, "`param_names` does not have torch's format")
    return dict(zip(keys, flat, strict=True))


def _refuse_others(
    path: Path, groups: Sequence[Mapping[str, Any]], moments: Mapping[Key, Mapping[str, Any]]
) -> None:
    """Refuse the state of an optimiser that is neither Adam nor AdamW, or that steps in another direction.

    Raises:
        ModelError: the state is of such an optimiser.
    """
    for variant, group in product(("amsgrad", "maximize"), groups):
        if group.get(variant):
            raise ModelError(
                f"{path} is the state of an optimiser with {variant}=True; expected plain AdamW or Adam"
            )
    for key, entries in moments.items():
        if entries.keys() != ENTRIES:
            kind = next(
                (name for entry, name in _OTHER_ENTRIES.items() if entry in entries), "another optimiser"
            )
            raise ModelError(
                f"{path} is the state of {kind}: for parameter {key} it has {', '.join(sorted(map(str, entries)))}; "
                f"{EXPECTED}"
            )
    if any("decoupled_weight_decay" in group and "amsgrad" not in group for group in groups):
        raise ModelError(
            f"{path} is the state of RAdam; expected AdamW or Adam. Train with one, or {WITHOUT}"
        )


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
