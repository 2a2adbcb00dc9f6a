"""The checkpoint's Adam moments, in the flat parameter space.

An optimiser's state names its parameters by position alone. The positions are those of the writer:
the Hugging Face Trainer puts the parameters with weight decay first and those without after them,
each group in the order of `model.named_parameters()`, trainable ones only. That order is rebuilt
here and then checked: the number of groups, their sizes and every shape must fit, and where the file
carries names (PyTorch writes them for named parameters) they decide instead, or refuse: a state is never
matched by position against its own names. Files are loaded with
``weights_only``: nothing in them runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clusterucb.errors import ModelError
from clusterucb.parameters import ParameterManifest, canonical_name

# The Trainer gives no weight decay to these, and to the parameters of layer norms.
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
_PLAIN = {"exp_avg", "exp_avg_sq", "step"}


@dataclass(frozen=True)
class Moments:
    """Adam's state after ``step`` steps.

    Attributes:
        m, v: f32[P], first and second moment in the flat parameter space, without bias correction; 0 in
            its holes.
        step: optimiser steps taken.
        beta1, beta2, eps: the optimiser's settings.
    """

    m: NDArray[np.float32]
    v: NDArray[np.float32]
    step: int
    beta1: float
    beta2: float
    eps: float


def decay_groups(model: nn.Module) -> list[list[str]]:
    """Return the names of the trainable parameters as the Trainer groups them: with decay, without."""
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    plain = {
        name
        for name in trainable
        if _NO_DECAY.search(name.lower())
        or isinstance(model.get_submodule(name.rpartition(".")[0]), nn.LayerNorm)
    }
    return [[name for name in trainable if name not in plain], [name for name in trainable if name in plain]]


def load_moments(path: Path, model: nn.Module, manifest: ParameterManifest) -> Moments:
    """Read an AdamW or Adam state: the Trainer's ``optimizer.pt``, or a plain ``torch.save`` of one.

    Args:
        path: the file.
        model: the PEFT model, with the parameters that were trained requiring gradients.
        manifest: of ``model``.

    Raises:
        ModelError: the file cannot be read, is of another optimiser, or does not fit the model.
    """
    groups, state = _read(path)
    names = _names(path, groups, model)
    expected = {one.torch_name: one for one in manifest}
    m, v = np.zeros(manifest.size, np.float32), np.zeros(manifest.size, np.float32)
    steps = set()
    for index, name in names.items():
        moments = state.get(index)
        if moments is None or not moments.keys() >= _PLAIN or "mu_product" in moments:  # NAdam has that too
            kind = (
                "no state"
                if moments is None
                else f"state {', '.join(map(str, moments)) or 'without entries'}"
            )
            raise ModelError(
                f"{path} has {kind} for {name}; expected AdamW's exp_avg, exp_avg_sq and step. Save it after "
                "at least one step of AdamW or Adam, or use --preconditioner sgd"
            )
        one = expected[name]
        for flat, key in ((m, "exp_avg"), (v, "exp_avg_sq")):
            values = torch.as_tensor(moments[key])
            if tuple(values.shape) != one.shape:
                raise ModelError(
                    f"{path} has {key} of shape {tuple(values.shape)} for parameter {index}, which is {name} of "
                    f"shape {one.shape} in the model; expected the optimiser state of this very adapter"
                )
            flat[one.offset : one.offset + one.size] = values.float().flatten().numpy()
        steps.add(_step(path, moments["step"]))
    if len(steps) > 1 or not (np.isfinite(m).all() and np.isfinite(v).all() and (v >= 0).all()):
        fault = f"different step counts {sorted(steps)}" if len(steps) > 1 else "moments that are not finite"
        raise ModelError(f"{path} has {fault}; expected the state of one finished optimiser step")
    if variant := next(
        (name for name in ("amsgrad", "maximize") for group in groups if group.get(name)), None
    ):
        raise ModelError(f"{path} is of an optimiser with {variant}=True; expected plain AdamW or Adam")
    settings = {(tuple(group.get("betas", (0.9, 0.999))), group.get("eps", 1e-8)) for group in groups}
    if len(settings) > 1:
        raise ModelError(f"{path} has groups with different betas or eps; expected the same for all")
    betas, eps = settings.pop()
    try:
        beta1, beta2 = map(float, betas)
        return Moments(m, v, steps.pop(), beta1, beta2, float(eps))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path} has betas {betas!r} and eps {eps!r}; expected three numbers") from error


def _step(path: Path, value: object) -> int:
    try:
        step = int(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        step = 0
    if step < 1:
        raise ModelError(f"{path} has step {value!r}; expected the state after at least one optimiser step")
    return step


def _read(path: Path) -> tuple[Sequence[Mapping[str, Any]], Mapping[Any, Mapping[str, Any]]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no optimiser state {path}; give it with --optimizer, or use --preconditioner sgd, which "
            "needs none"
        ) from error
    except Exception as error:  # torch.load raises many kinds; none of them is a bug of ours
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{path} cannot be read as an optimiser state ({type(error).__name__}: {reason:.200}); expected the "
            "optimizer.pt of a Hugging Face Trainer, or torch.save(optimizer.state_dict(), ...)"
        ) from error
    if not isinstance(content, dict) or not {"state", "param_groups"} <= content.keys():
        raise ModelError(f"{path} holds no optimiser state; expected a dict with `state` and `param_groups`")
    groups, state = content["param_groups"], content["state"]
    sound = (
        isinstance(state, dict)
        and all(isinstance(moments, dict) for moments in state.values())
        and isinstance(groups, list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
        and all(isinstance(group.get("param_names", []), list) for group in groups)
    )
    if not sound:
        raise ModelError(
            f"{path} is damaged: `state` or `param_groups` is not as torch writes them; save it again"
        )
    return groups, state


def _named(path: Path, written: list[list[str]], everything: Sequence[str]) -> list[list[str]]:
    """Return the model's names for those in the file, which may spell adapter and wrappers otherwise."""
    known = {canonical_name(name): name for name in everything}
    named = [[canonical_name(name) for name in group] for group in written]
    if sorted(chain(*named)) != sorted(known):
        strange = sorted(set(chain(*named)) ^ set(known)) or ["the same one twice"]
        raise ModelError(
            f"{path} names {len(list(chain(*named)))} parameters, the model trains {len(known)}; expected the same "
            f"(they differ in {strange[0]}). It is the state of another adapter, or of a run that trained other "
            "parameters"
        )
    return [[known[name] for name in group] for group in named]


def _names(path: Path, groups: Sequence[Mapping[str, Any]], model: nn.Module) -> dict[Any, str]:
    """Return the parameter's name for each index of the optimiser state."""
    written = [list(group["params"]) for group in groups]
    ours = decay_groups(model)
    everything = [name for name, weight in model.named_parameters() if weight.requires_grad]
    if all("param_names" in group for group in groups):
        ours = _named(path, [list(group["param_names"]) for group in groups], everything)
    elif len(groups) == 1:
        ours = [everything]
    sizes, expected = [len(group) for group in written], [len(group) for group in ours]
    if [size for size in sizes if size] != [size for size in expected if size]:
        raise ModelError(
            f"{path} has groups of {sizes} parameters; expected {expected} for this model and adapter. It is the "
            "state of another adapter, or of a run that trained other parameters"
        )
    return dict(zip(chain(*written), chain(*ours), strict=True))
