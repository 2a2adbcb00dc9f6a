"""Find out which entries of an optimiser's state belong to which parameter.

Decisions:
    - An optimiser's state identifies its parameters by name or by position (`optimizer_state`). If a file has names,
      they decide, however its writer spells wrappers and adapter. A state that has names is never matched by position.
    - Positions follow the writer's order. The Hugging Face Trainer has two groups: the parameters with weight decay
      come first, those without come second. Each group has the trainable parameters alone, in the order of
      `model.named_parameters()`. LoRA+ (of PEFT and LLaMA-Factory) has the matrices A first, then the matrices B and
      all vectors, of which biases and norms may be a group of their own. An optimiser with one group has the trainable
      parameters, or all parameters, in that order.
    - The order is rebuilt and then checked. The number of groups, their sizes and the shapes of all entries in the
      file must fit (`moments`). What shapes cannot tell apart, gradients can (`clusterucb.gradients.order`).
    - If the manifest asks for all parameters that the model trains, as with LoRA, the file must have exactly these. If
      it asks for some parameters of a run that trained more, the file must have these, and may have others that this
      model lacks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from torch import nn

from clusterucb.errors import ModelError
from clusterucb.model.optimizer_state import Key, OptimizerState
from clusterucb.model.parameters import ParameterManifest, canonical_name

# The Trainer gives no weight decay to parameters with such names, nor to the parameters of layer norms.
_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
_ANOTHER = "It is the state of another adapter, or of a run that trained other parameters"


class Match(NamedTuple):
    """Where a parameter's entries are.

    Attributes:
        key: the file's key.
        how: how this parameter was matched, for errors.
        order: how all parameters were matched, for the screen.
    """

    key: Key
    how: str
    order: str


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


def _lora_plus(model: nn.Module, trainable: Sequence[str], *, norms: bool) -> list[list[str]]:
    """Return the names of trainable parameters in the groups of LoRA+: A, B with weight decay, B without.

    Vectors, such as DoRA's magnitudes, stand with B.

    Args:
        model: the model.
        trainable: the names of all its trainable parameters.
        norms: whether the weights of all norms have no weight decay, as in LLaMA-Factory; in PEFT, those of
            `torch.nn.LayerNorm` have none.
    """
    _, plain = decay_groups(model)
    if not norms:
        plain = [
            name
            for name in plain
            if "bias" in name or isinstance(model.get_submodule(name.rpartition(".")[0]), nn.LayerNorm)
        ]
    second = [name for name in trainable if ".lora_B." in name or model.get_parameter(name).ndim == 1]
    return [
        [name for name in trainable if name not in second],
        [name for name in second if name not in plain],
        [name for name in second if name in plain],
    ]


def matched(
    path: Path, state: OptimizerState, model: nn.Module, manifest: ParameterManifest
) -> dict[str, Match]:
    """Return where the entries of the model's trained parameters are, by the parameter's name in the model.

    Args:
        path: the file, for errors.
        state: the file's content.
        model: the model, in which just the parameters that the run trained require gradients.
        manifest: the parameters whose moments are wanted; some of the trained ones, or all.

    Raises:
        ModelError: the file does not fit the model.
    """
    if state.names is None:
        return _by_position(path, state, model)
    wanted = {parameter.torch_name for parameter in manifest}
    return _by_name(path, state, state.names, model, wanted)


def _by_name(
    path: Path, state: OptimizerState, names: Mapping[Key, str], model: nn.Module, wanted: Collection[str]
) -> dict[str, Match]:
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
        known[name]: Match(key, f"by name, {names[key]}", "by name")
        for name, key in written.items()
        if name in known
    }


def _by_position(path: Path, state: OptimizerState, model: nn.Module) -> dict[str, Match]:
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
        orders = {
            "in the Trainer's order": decay_groups(model),
            "in LoRA+'s order, A before B": _lora_plus(model, trainable, norms=False),
            "in LoRA+'s order of LLaMA-Factory, A before B": _lora_plus(model, trainable, norms=True),
        }
    sizes = [len(group) for group in filled.values()]
    order = next((how for how in orders if [len(group) for group in orders[how] if group] == sizes), None)
    if order is None:
        expected = [len(group) for group in next(iter(orders.values()))]
        raise ModelError(
            f"{path} has groups of {[*map(len, state.groups)]} parameters; expected {expected} for this model and "
            f"adapter. {_ANOTHER}"
        )
    places = [
        Match(key, f"by position {place} of group {number}, {order}", f"by position, {order}")
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
