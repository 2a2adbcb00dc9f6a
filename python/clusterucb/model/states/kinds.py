"""Tell optimisers apart by what they keep, and turn the states of Adam's kin into Adam's own entries.

Decisions:
    - An optimiser is recognised by the names of a parameter's entries, and by its settings where the names are those of
      several optimisers. Class names are not in a file.
    - Adam and AdamW keep exactly ``exp_avg``, ``exp_avg_sq`` and ``step``. This holds for fused, capturable, foreach
      and plain variants, with coupled or decoupled weight decay, and for torchao's of few bits. With Adam's coupled
      weight decay (L2), the moments are those of the gradient plus the decay. They are used as they are, because that
      optimiser steps along them.
    - RAdam has the same entries. It is recognised by its settings, which lack ``amsgrad``; in a file without settings
      it cannot be recognised. LAMB and AdEMAMix of bitsandbytes have Adam's two states and more, and are refused.
    - Muon, Lion and SGD keep no second moment, so no formula here fits them. The message says what remains: raw
      gradients, or the second moment of a short training with AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from clusterucb.errors import ModelError
from clusterucb.model.checkpoint_files import WITHOUT
from clusterucb.model.states import factored, low_bit
from clusterucb.model.states.entries import ADAM, check_tensors, damaged

EXPECTED = (
    "expected AdamW's exp_avg, exp_avg_sq and step. Save it after at least one step of AdamW or Adam, or use "
    "--preconditioner sgd"
)
INSTEAD = (
    "it keeps no second moment. Use --preconditioner sgd, which needs no state; or train the adapter for a few steps "
    "with AdamW, give that state with --optimizer, and use --preconditioner second_moment"
)
_OTHER_ENTRIES = {  # entries that only other optimisers keep for a parameter
    "max_exp_avg_sq": "Adam with amsgrad",
    "mu_product": "NAdam",
    "exp_inf": "Adamax",
    "square_avg": "RMSprop or Adadelta",
    "sum": "Adagrad",
    "z": "a schedule-free optimiser",
    "exp_avg_slow": "AdEMAMix",
    "exp_avg_diff": "Adan",
    "hessian": "Sophia",
    "projector": "GaLore or APOLLO",
    "GG": "SOAP",
    "p0": "Prodigy",
}
_OF_MUON = ("ns_steps", "ns_coefficients", "use_muon", "backend_steps")  # settings of Muon's variants


class Kind(NamedTuple):
    """How a state was kept.

    Attributes:
        name: what wrote it, for the screen; empty for PyTorch's own Adam.
        first: whether there is a first moment.
    """

    name: str = ""
    first: bool = True


def as_adam(
    path: Path, groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Mapping[str, Any]]
) -> tuple[dict[Any, Mapping[str, Any]], Kind]:
    """Return Adam's entries for each parameter, and how the file keeps them.

    Args:
        path: the file, for errors.
        groups: the groups of parameters with their settings; none if the file has none.
        state: the entries of each parameter that the optimiser has stepped.

    Raises:
        ModelError: the state is of another optimiser, or of one that steps in another direction.
    """
    for variant, group in product(("amsgrad", "maximize"), groups):
        if _is_set(path, variant, group.get(variant)):
            raise ModelError(
                f"{path} is the state of an optimiser with {variant}=True; expected plain AdamW or Adam"
            )
    adam: dict[Any, Mapping[str, Any]] = {}
    kinds: dict[str, Kind] = {}
    own = {key: group for group in groups for key in group["params"]}
    for key, kept in state.items():
        entries = low_bit.revealed(kept)
        if isinstance(entries, dict):  # not those that are computed when they are asked for
            check_tensors(path, key, entries)
        kind, adam[key] = _one(path, own.get(key, {}), key, entries)
        kinds[kind.name] = kind
    if any("decoupled_weight_decay" in group and "amsgrad" not in group for group in groups):
        raise ModelError(
            f"{path} is the state of RAdam; expected AdamW or Adam. Train with one, or {WITHOUT}"
        )
    names = sorted(name for name in kinds if name)
    return adam, Kind(" and ".join(names), all(kind.first for kind in kinds.values()))


def _is_set(path: Path, variant: str, value: object) -> bool:
    try:
        return bool(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor without data or of several numbers
        raise damaged(path, f"{variant} is {type(value).__name__} and not true or false") from error


def _one(
    path: Path, group: Mapping[str, Any], key: object, entries: Mapping[str, Any]
) -> tuple[Kind, Mapping[str, Any]]:
    """Return one parameter's kind and its entries as Adam has them.

    Raises:
        ModelError: the entries are of another optimiser.
    """
    if "state1" in entries:
        _refuse_others_of_bitsandbytes(path, group, key, entries)
        bits = 8 if "qmap1" in entries else 32
        return Kind(f"bitsandbytes, {bits} bits"), low_bit.of_bitsandbytes(path, key, entries)
    if factored.is_factored(entries):
        return Kind("Adafactor", first=False), factored.of_adafactor(path, key, entries)
    if entries.keys() == ADAM:
        if isinstance(entries, dict) and any(
            low_bit.is_packed(entries[name]) for name in ("exp_avg", "exp_avg_sq")
        ):
            return Kind("torchao"), low_bit.of_torchao(path, key, entries)
        return Kind(), entries
    kept = f"for parameter {key} it has {', '.join(sorted(map(str, entries)))}"
    if momentum := _momentum_alone(group, entries):
        raise ModelError(f"{path} is the state of {momentum}: {kept}; {INSTEAD}")
    name = next((name for entry, name in _OTHER_ENTRIES.items() if entry in entries), "another optimiser")
    raise ModelError(f"{path} is the state of {name}: {kept}; {EXPECTED}")


def _momentum_alone(group: Mapping[str, Any], entries: Mapping[str, Any]) -> str | None:
    """Return the name of an optimiser that keeps a momentum and nothing else, or None for another one."""
    if "momentum_buffer" in entries:
        if any(setting in group for setting in _OF_MUON):
            return "Muon"
        return "SGD with momentum" if "dampening" in group else "SGD or Muon"
    if entries.keys() - {"step"} == {"exp_avg"} and "betas" in group and "eps" not in group:
        return "Lion"
    return None


def _refuse_others_of_bitsandbytes(
    path: Path, group: Mapping[str, Any], key: object, entries: Mapping[str, Any]
) -> None:
    """Refuse an optimiser of bitsandbytes that is not Adam; its entries have the names of Adam's.

    Raises:
        ModelError: the optimiser is another one, or the entries of one state are missing.
    """
    betas = group.get("betas", (0.9, 0.999))
    betas = betas if isinstance(betas, list | tuple) else ()
    if len(betas) > 2:
        raise ModelError(f"{path} is the state of AdEMAMix (bitsandbytes): it has betas {betas}; {EXPECTED}")
    if "state2" not in entries:
        if group and len(betas) == 2 and betas[1] and not group.get("eps"):
            raise ModelError(f"{path} is the state of Lion (bitsandbytes): for parameter {key}, {INSTEAD}")
        if group and len(betas) == 2 and not betas[1]:
            raise ModelError(
                f"{path} is the state of SGD, RMSprop, Adagrad or LARS (bitsandbytes): for parameter {key} it has "
                f"state1 alone; {EXPECTED}"
            )
        raise damaged(path, f"parameter {key} has state1 and no state2")
    if "unorm_vec" in entries:
        raise ModelError(
            f"{path} is the state of LAMB (bitsandbytes): for parameter {key} it has unorm_vec; {EXPECTED}"
        )
