"""Load the checkpoint's Adam moments into the flat parameter space.

Decisions:
    - An optimiser's state identifies its parameters by name or by position (`optimizer_state`). If a file has names,
      they decide, however its writer spells wrappers and adapter. A state that has names is never matched by position.
    - Positions follow the writer's order. The Hugging Face Trainer has two groups: the parameters with weight decay
      come first, those without come second. Each group has the trainable parameters alone, in the order of
      `model.named_parameters()`. An optimiser with one group has the trainable parameters, or all parameters, in that
      order.
    - The order is rebuilt and then checked. The number of groups, their sizes and the shapes of all entries in the
      file must fit. This includes entries of parameters that the run trained but the manifest does not ask for.
    - If the manifest asks for all parameters that the model trains, as with LoRA, the file must have exactly these. If
      it asks for some parameters of a run that trained more, the file must have these, and may have others that this
      model lacks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clusterucb.errors import ModelError
from clusterucb.model.checkpoint_files import PARTS
from clusterucb.model.optimizer_state import EXPECTED, Key, OptimizerState, read_state
from clusterucb.model.parameters import ParameterManifest, canonical_name

# The Trainer gives no weight decay to parameters with such names, nor to the parameters of layer norms.
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
_ANOTHER = "It is the state of another adapter, or of a run that trained other parameters"


@dataclass(frozen=True)
class Moments:
    """Adam's state after ``step`` steps.

    Attributes:
        m, v: f32[P], the first and second moments in the flat parameter space, without bias correction; 0 in the
            space's holes.
        step: the number of optimiser steps taken.
        beta1, beta2, eps: the optimiser's settings.
    """

    m: NDArray[np.float32]
    v: NDArray[np.float32]
    step: int
    beta1: float
    beta2: float
    eps: float


class _Match(NamedTuple):
    key: Key
    how: str


def decay_groups(model: nn.Module) -> list[list[str]]:
    """Return the names of the trainable parameters in the Trainer's two groups: with weight decay, and without."""
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    plain = {
        name
        for name in trainable
        if _NO_DECAY.search(name.lower())
        or isinstance(model.get_submodule(name.rpartition(".")[0]), nn.LayerNorm)
    }
    return [[name for name in trainable if name not in plain], [name for name in trainable if name in plain]]


def load_moments(path: Path, model: nn.Module, manifest: ParameterManifest) -> Moments:
    """Read the moments of AdamW or Adam from a file.

    The file may be the Trainer's, a plain ``torch.save`` of the optimiser's state, or a full state of FSDP.

    Args:
        path: the file.
        model: the model, in which just the parameters that the run trained require gradients.
        manifest: the parameters whose moments are wanted; some of the trained ones, or all.

    Raises:
        ModelError: the file cannot be read, holds another optimiser's state, or does not fit the model.
    """
    state = read_state(path)
    wanted = {parameter.torch_name for parameter in manifest}
    if state.names is None:
        matches = _by_position(path, state, model)
    else:
        matches = _by_name(path, state, state.names, model, wanted)
    for name, match in matches.items():
        shape = tuple(model.get_parameter(name).shape)
        for entry in ("exp_avg", "exp_avg_sq"):
            if match.key in state.moments:
                _check(path, entry, state.moments[match.key][entry], name, shape, match.how)
    m, v = np.zeros(manifest.size, np.float32), np.zeros(manifest.size, np.float32)
    steps = set()
    for parameter in manifest:
        key, how = matches[parameter.torch_name]
        if key not in state.moments:
            raise ModelError(f"{path} has no state for {parameter.torch_name} (matched {how}); {EXPECTED}")
        entries = state.moments[key]
        segment = slice(parameter.offset, parameter.offset + parameter.size)
        m[segment] = entries["exp_avg"].float().flatten().numpy()
        v[segment] = entries["exp_avg_sq"].float().flatten().numpy()
        if not (np.isfinite(m[segment]).all() and np.isfinite(v[segment]).all() and (v[segment] >= 0).all()):
            raise ModelError(
                f"{path} has moments for {parameter.torch_name} that are not finite, or negative squares (matched "
                f"{how}); expected the state of a run that did not diverge"
            )
        steps.add(_step(path, entries["step"], parameter.torch_name))
    if len(steps) > 1:
        raise ModelError(
            f"{path} has different step counts {sorted(steps)}; expected the state of one finished optimiser step"
        )
    if m.any() and np.array_equal(m, v):  # FSDP1 with use_orig_params writes this when it trains on a CPU
        raise ModelError(
            f"{path} has the same numbers in exp_avg and exp_avg_sq, so one of them is lost; expected different "
            "ones. Save the state again, with FullOptimStateDictConfig(offload_to_cpu=False) if FSDP trained on a CPU"
        )
    return Moments(m, v, steps.pop(), state.beta1, state.beta2, state.eps)


def _check(path: Path, entry: str, values: Any, name: str, shape: tuple[int, ...], how: str) -> None:
    """Check that an entry is a whole, dense floating-point tensor of the parameter's shape.

    Raises:
        ModelError: it is not.
    """
    if type(values) is not torch.Tensor or values.layout != torch.strided or not values.is_floating_point():
        kind = type(values).__name__
        if kind in ("DTensor", "ShardedTensor"):
            raise ModelError(f"{path} has a {kind} as {entry} of {name}, one process's part of it. {PARTS}")
        kind = f"a {values.layout} tensor of {values.dtype}" if isinstance(values, torch.Tensor) else kind
        raise ModelError(
            f"{path} has {kind} as {entry} of {name} (matched {how}); expected a tensor of floats"
        )
    got = tuple(values.shape)
    if len(got) == 1 < len(shape):
        raise ModelError(
            f"{path} has {entry} of shape {got} for {name}, which is of shape {shape} in the model (matched {how}): "
            f"this is one FSDP process's part. {PARTS}"
        )
    if got != shape:
        raise ModelError(
            f"{path} has {entry} of shape {got} for {name}, which is of shape {shape} in the model (matched {how}); "
            "expected the optimiser state of the run that trained this very model or adapter"
        )


def _step(path: Path, value: object, name: str) -> int:
    try:
        step = int(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        step = 0
    if step < 1:
        raise ModelError(
            f"{path} has step {value!r} for {name}; expected the state after at least one optimiser step"
        )
    return step


def _by_name(
    path: Path, state: OptimizerState, names: Mapping[Key, str], model: nn.Module, wanted: Collection[str]
) -> dict[str, _Match]:
    """Match the model's trainable parameters to the file's keys by name; leave out those that the file lacks.

    Raises:
        ModelError: a parameter of ``wanted`` is not in the file, the file names one twice, or has too many.
    """
    known = {canonical_name(name): name for name, weight in model.named_parameters() if weight.requires_grad}
    written: dict[str, Key] = {}
    for key, spelt in names.items():
        name = canonical_name(spelt)
        if name in written:
            raise ModelError(f"{path} names {name} twice; expected the state of one adapter. {_ANOTHER}")
        if name in known or key in state.moments:  # a frozen parameter given to the optimiser has no moments
            written[name] = key
    needed = {name for name, own in known.items() if own in wanted}
    if lacking := needed - written.keys():
        raise ModelError(
            f"{path} names {len(written)} parameters, but not {min(lacking)}; expected all {len(needed)} parameters to "
            f"differentiate. {_ANOTHER}"
        )
    if needed == known.keys() and (surplus := written.keys() - needed):
        raise ModelError(
            f"{path} names {len(written)} parameters, including {min(surplus)}; expected only the {len(needed)} that "
            f"the model trains. {_ANOTHER}"
        )
    return {
        known[name]: _Match(key, f"by name, {names[key]}") for name, key in written.items() if name in known
    }


def _by_position(path: Path, state: OptimizerState, model: nn.Module) -> dict[str, _Match]:
    """Match the parameters that the run's optimiser was given to the file's keys by position.

    Raises:
        ModelError: the sizes of the file's groups do not fit, or the file has moments of a frozen parameter.
    """
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    own = {canonical_name(name) for name in trainable}
    everything = [
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad or canonical_name(name) not in own  # leave out other checkpoints' adapters
    ]
    orders = {
        "in the order of model.named_parameters(), trainable ones": [trainable],
        "in the order of model.named_parameters(), frozen ones too": [everything],
    }
    filled = {number: group for number, group in enumerate(state.groups) if group}
    if len(filled) > 1:
        orders = {"in the Trainer's order": decay_groups(model)}
    sizes = [len(group) for group in filled.values()]
    order = next((how for how in orders if [len(group) for group in orders[how] if group] == sizes), None)
    if order is None:
        expected = [len(group) for group in next(iter(orders.values()))]
        raise ModelError(
            f"{path} has groups of {[*map(len, state.groups)]} parameters; expected {expected} for this model and "
            f"adapter. {_ANOTHER}"
        )
    places = [
        _Match(key, f"by position {place} of group {number}, {order}")
        for number, group in filled.items()
        for place, key in enumerate(group)
    ]
    matches = dict(zip(chain(*orders[order]), places, strict=True))
    for name, match in matches.items():
        if match.key in state.moments and not model.get_parameter(name).requires_grad:
            raise ModelError(
                f"{path} has a state for {name} (matched {match.how}), which is frozen. {_ANOTHER}"
            )
    return matches
