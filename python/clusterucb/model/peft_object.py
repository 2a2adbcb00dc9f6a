"""Write the adapter and the optimiser of a PEFT model in memory into files, and put the adapter aside.

Decisions:
    - The files must say what the model in memory is. PEFT's own files lack three things that a program can change:
      which weights are frozen, the scale of each layer, and which adapter is active in each layer. Frozen weights are
      written into a file beside PEFT's (`clusterucb.model.checkpoint_files.FROZEN`). Scales are written as patterns of
      PEFT's configuration, unless it says the same already. Layers that use different adapters are refused.
    - The differentiated parameters are the trainable ones. A model whose base has trainable parameters is refused by
      their names, because the gradient would be that of another training.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from clusterucb.errors import ModelError
from clusterucb.model.adapters import of_adapter, saved_name
from clusterucb.model.base_state import take_off
from clusterucb.model.checkpoint_files import FROZEN
from clusterucb.model.source import without_bars
from clusterucb.wording import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_adapter(model: Any, folder: Path, *, lora_only: bool = False) -> Path:
    """Write the active adapter into a folder, and return the adapter's own folder.

    Args:
        model: a PEFT model.
        folder: an empty folder.
        lora_only: whether trainable parameters of the base model are left out of the gradients, and not refused.

    Raises:
        ModelError: several adapters are active, or the one is merged or disabled; no weight of it is trainable, or
            a parameter beside it is.
    """
    name, *others = model.active_adapters
    if others:
        raise ModelError(f"the model has the adapters {', '.join([name, *others])} active; expected one")
    _refuse_inactive(model, name)
    frozen = _frozen(model, name, lora_only=lora_only)
    with without_bars():
        model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
    adapter = folder if name == "default" else folder / name
    path = adapter / "adapter_config.json"
    config = {
        key: sorted(value)
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        else value
        for key, value in json.loads(path.read_text()).items()
    }  # PEFT writes sets, whose order varies between processes
    config["layer_replication"] = None  # the base model in memory has the copied layers already
    config["init_lora_weights"] = True  # PiSSA and the like would subtract from the base model a second time
    config |= _patterns(model, name)
    path.write_text(json.dumps(config, indent=2, sort_keys=True))
    if frozen:
        (adapter / FROZEN).write_text(json.dumps(frozen))
    return adapter


def _refuse_inactive(model: Any, name: str) -> None:
    """Refuse a model whose adapter is merged into it, disabled, or not the active one in every layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for key, layer in model.get_base_model().named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if layer.merged:
            raise ModelError("the adapter is merged into the model; expected model.unmerge_adapter() first")
        if layer.disable_adapters:
            raise ModelError("the adapter is disabled; expected model.enable_adapter_layers() first")
        if name in layer._get_available_adapters() and list(layer.active_adapters) != [name]:
            raise ModelError(
                f"the layer {key} has the adapters {', '.join(layer.active_adapters) or 'none'} active, and the model "
                f"has {name}; expected one adapter in all layers. Call model.set_adapter({name!r})"
            )


def _frozen(model: nn.Module, name: str, *, lora_only: bool) -> list[str]:
    """Return the names of an adapter's frozen weights, as they are in its file.

    Raises:
        ModelError: all of them are frozen, or a parameter beside them is trainable.
    """
    own = {key: weight for key, weight in model.named_parameters() if of_adapter(key, name)}
    beside = [key for key, weight in model.named_parameters() if weight.requires_grad and key not in own]
    if beside and not lora_only:
        bias = " (bias='all' and bias='lora_only' train biases)" if beside[0].endswith(".bias") else ""
        raise ModelError(
            f"{counted(len(beside), 'parameter')} beside the adapter {'is' if len(beside) == 1 else 'are'} trainable, "
            f"such as {beside[0]}{bias}; expected gradients of the adapter alone. Leave them out with lora_only=True, "
            "or freeze them (requires_grad_(False)) if the training does not change them"
        )
    if own and not any(weight.requires_grad for weight in own.values()):
        raise ModelError(
            f"all {len(own)} weights of the adapter are frozen; expected those that the training changes to require "
            "gradients, because these are differentiated. Load the adapter with PeftModel.from_pretrained(..., "
            "is_trainable=True), or call model.set_requires_grad(model.active_adapter)"
        )
    return sorted(saved_name(key, name) for key, weight in own.items() if not weight.requires_grad)


def _patterns(model: Any, name: str) -> dict[str, Any]:
    """Return the ranks and alphas of an adapter's layers for PEFT's configuration, if that says something else."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper
    from peft.utils.other import get_pattern_key

    config = model.peft_config[name]
    ranks, alphas = getattr(config, "rank_pattern", {}) or {}, getattr(config, "alpha_pattern", {}) or {}
    found: dict[str, dict[str, Any]] = {"rank_pattern": {}, "alpha_pattern": {}}
    same = True
    for key, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer) or isinstance(layer, ParamWrapper) or name not in layer.scaling:
            continue
        rank, scale = layer.r[name], float(layer.scaling[name])
        divisor = math.sqrt(rank) if config.use_rslora else rank
        said = ranks.get(get_pattern_key(ranks.keys(), key), config.r)
        alpha = alphas.get(get_pattern_key(alphas.keys(), key), config.lora_alpha)
        same = same and said == rank and alpha / divisor == scale
        found["rank_pattern"][f"^{re.escape(key)}"] = rank
        found["alpha_pattern"][f"^{re.escape(key)}"] = scale * divisor
    return {} if same else found


def save_state(optimizer: Any, model: nn.Module, path: Path) -> Path:
    """Write an optimiser's state with its parameters' names, and return the path."""
    import torch

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = optimizer.state_dict()
    for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        strangers = sum(id(parameter) not in names for parameter in own["params"])
        if strangers:
            raise ModelError(
                f"{strangers} parameters of the optimizer are not in the model; expected the model's own optimizer"
            )
        group["param_names"] = [names[id(parameter)] for parameter in own["params"]]
    torch.save(state, path)
    return path


def without_lora(model: Any) -> PreTrainedModel:
    """Return the base model of a PEFT model, with every LoRA layer put aside."""
    base = take_off(model)
    refuse_adapters(base)
    return base


def refuse_adapters(model: nn.Module) -> None:
    """Refuse a model that holds modules of PEFT; the LoRA layers of a PEFT model are put aside before."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, layer in model.named_modules():
        if isinstance(layer, AuxiliaryTrainingWrapper):
            raise ModelError(
                f"{name} is a {type(layer).__name__} (modules_to_save, or trainable tokens), which is not supported; "
                "expected LoRA on linear layers only"
            )
        if isinstance(layer, BaseTunerLayer):
            raise ModelError(
                f"{name} is a layer of PEFT, but the model is not a PEFT model; expected the model that get_peft_model "
                "returned, or one without adapters"
            )
