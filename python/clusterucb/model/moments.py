"""Load the checkpoint's Adam moments into the flat parameter space.

Decisions:
    - Which of the file's entries belongs to which parameter: `clusterucb.model.matching`.
    - The shapes of all entries in the file must fit. This includes entries of parameters that the run trained but the
      manifest does not ask for.
    - An entry is read once, and dropped before the next one is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clusterucb.errors import ModelError
from clusterucb.model.checkpoint_files import PARTS
from clusterucb.model.matching import Match, decay_groups, matched
from clusterucb.model.optimizer_state import EXPECTED, OptimizerState, read_state
from clusterucb.model.parameters import ParameterManifest
from clusterucb.model.states.entries import WEIGHTS, unusable
from clusterucb.wording import counted

__all__ = ["Moments", "decay_groups", "load_moments"]

_ROUNDING, _SMALLEST = 2.0**-7, 1e-7  # the largest relative and absolute difference of a weight and its copy


@dataclass(frozen=True)
class Moments:
    """Adam's state after ``step`` steps.

    Attributes:
        m, v: f32[P], the first and second moments in the flat parameter space, without bias correction; 0 in the
            space's holes.
        step: the number of optimiser steps taken.
        beta1, beta2, eps: the optimiser's settings.
        first: whether the optimiser keeps a first moment; without one, m is 0.
        matched: how parameters were found in the file, and what wrote it, as text for the screen.
        by_position: whether the file has no names, so that the order of the parameters is an assumption.
    """

    m: NDArray[np.float32]
    v: NDArray[np.float32]
    step: int
    beta1: float
    beta2: float
    eps: float
    first: bool = True
    matched: str = ""
    by_position: bool = False


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
    matches = matched(path, state, model, manifest)
    offsets = {parameter.torch_name: parameter.offset for parameter in manifest}
    m, v = np.zeros(manifest.size, np.float32), np.zeros(manifest.size, np.float32)
    steps = set()
    for name, match in matches.items():
        if match.key not in state.moments:
            if name in offsets:
                raise ModelError(f"{path} has no state for {name} (matched {match.how}); {EXPECTED}")
            continue
        entries = state.moments[match.key]
        shape = tuple(model.get_parameter(name).shape)
        for entry, moments in (
            (("exp_avg", m), ("exp_avg_sq", v)) if state.kind.first else (("exp_avg_sq", v),)
        ):
            values = entries[entry]
            _check(path, entry, values, name, shape, match.how)
            if name in offsets:
                flat = values.detach().float().flatten().numpy()
                _check_numbers(path, flat, name, match.how, squares=moments is v)
                moments[offsets[name] : offsets[name] + flat.size] = flat
        if WEIGHTS in entries:
            _check_weights(path, entries[WEIGHTS], model.get_parameter(name), name)
        if name in offsets:
            steps.add(_step(path, entries["step"], name))
    if len(steps) > 1:
        raise ModelError(
            f"{path} has different step counts {sorted(steps)}; expected the state of one finished optimiser step"
        )
    if m.any() and np.array_equal(m, v):  # FSDP1 with use_orig_params writes this when it trains on a CPU
        raise ModelError(
            f"{path} has the same numbers in exp_avg and exp_avg_sq, so one of them is lost; expected different "
            "ones. Save the state again, with FullOptimStateDictConfig(offload_to_cpu=False) if FSDP trained on a CPU"
        )
    settings = state.beta1, state.beta2, state.eps
    return Moments(
        m, v, steps.pop(), *settings, state.kind.first, _told(state, matches, offsets), state.names is None
    )


def _check_weights(path: Path, stored: torch.Tensor, weight: torch.Tensor, name: str) -> None:
    """Check that a parameter in a file of moments is that of the model, up to the rounding of bfloat16.

    Raises:
        ModelError: it is another one.
    """
    own = weight.detach().cpu().float()
    same = (own - stored.float()).abs() <= _ROUNDING * own.abs() + _SMALLEST
    if not same.all():
        raise ModelError(
            f"{path} has other values of {name} than the model: {int((~same).sum()):,} of {same.numel():,} differ. "
            "Expected the state that was saved with this adapter, with the files of all processes under their own "
            "names. Copy the files again from one checkpoint"
        )


def _told(state: OptimizerState, matches: Mapping[str, Match], wanted: Collection[str]) -> str:
    """Return how the parameters were matched, and what wrote the state, in a few words."""
    order = next(iter(matches.values())).order
    kind = f"; {state.kind.name}" if state.kind.name else ""
    return f"{counted(len(wanted), 'parameter')} matched {order}{kind}"


def _check_numbers(path: Path, flat: NDArray[np.float32], name: str, how: str, *, squares: bool) -> None:
    """Check that moments are finite, and squares not negative.

    Raises:
        ModelError: they are not.
    """
    if not np.isfinite(flat).all() or (squares and not (flat >= 0).all()):
        raise ModelError(
            f"{path} has moments for {name} that are not finite, or negative squares (matched {how}); expected the "
            "state of a run that did not diverge"
        )


def _check(path: Path, entry: str, values: Any, name: str, shape: tuple[int, ...], how: str) -> None:
    """Check that an entry is a whole, dense floating-point tensor of the parameter's shape.

    Raises:
        ModelError: it is not.
    """
    kind = unusable(values)
    if kind or type(values) is not torch.Tensor or not values.is_floating_point():
        name_of_type = type(values).__name__
        if name_of_type in ("DTensor", "ShardedTensor"):
            raise ModelError(
                f"{path} has a {name_of_type} as {entry} of {name}, one process's part of it. {PARTS}"
            )
        if not kind:
            kind = f"a tensor of {values.dtype}" if isinstance(values, torch.Tensor) else name_of_type
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
