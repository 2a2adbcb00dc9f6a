"""Put a LoRA on a base model: a fresh one, or an adapter of a folder. Take it off again, and leave the base as it was.

Decisions:
    - An adapter whose weights do not all fit is an error, because the scores would be those of another model.
    - The base model must be the same after an adapter is loaded as before: the same layers, the same weights and the
      same configuration. Several adapters share one base, and a run may load it again. So an adapter that changes its
      base (copies of layers, an initialisation that subtracts from the weights, embeddings of its own) is refused by
      the name of what it changes. The base is compared before and after, because PEFT has ever more such options.
    - PEFT's ``unload`` leaves fully trained modules (``modules_to_save``) in the base; `take_off` does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from clusterucb.errors import ModelError
from clusterucb.model.checkpoint_files import adapter_folder
from clusterucb.model.parameters import ParameterManifest, canonical_name, of_other_inputs, vocabulary_head
from clusterucb.model.source import explain_errors
from clusterucb.model.targets import (
    ALL_LINEAR,
    MAMBA,
    linear_layers,
    matching,
    of_attention,
    projections,
    short_names,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_PLAIN_INIT = (
    True,
    False,
    "gaussian",
    "orthogonal",
    "eva",
)  # LoRA initialisations that leave the base unchanged
_SAMPLED = 1 << 12  # groups of eight bytes of each weight that are compared one by one
_WRAPPERS = frozenset(
    {"base_layer", "original_module"}
)  # PEFT's names for a layer of the base inside its own layer
_OWN = frozenset({"modules_to_save", "token_adapter"})  # PEFT's names for what it adds, beside lora_...


def attach_lora(
    model: PreTrainedModel, *, rank: int, alpha: float, targets: Sequence[str] | None, seed: int
) -> PeftModel:
    """Put a fresh LoRA on a model's linear layers; the same seed gives the same matrices.

    Args:
        model: the base model.
        rank, alpha: LoRA's rank and alpha; its update is scaled by alpha / rank.
        targets: names of linear layers or patterns with ``*``, or ``["all-linear"]``; None takes PEFT's choice for the
            architecture, or else the attention and MLP projections (`clusterucb.model.targets`).
        seed: the seed of the A matrices; the B matrices begin at zero.

    Raises:
        ModelError: the model has no such layers.
    """
    from peft import LoraConfig, get_peft_model

    chosen = lora_targets(model, targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=chosen,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT still reads this attribute, which transformers has deprecated.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        try:
            lora = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(_no_layer(model, targets)) from error
    adapted = {name.partition(".lora_A.")[0] for name, _ in lora.named_parameters() if ".lora_A." in name}
    names = [] if targets is None or list(targets) == [ALL_LINEAR] else targets
    for target in names:
        if "*" not in target and not any(name == target or name.endswith(f".{target}") for name in adapted):
            take_off(lora)
            raise ModelError(_no_layer(model, [target]))
    return lora


def lora_targets(model: PreTrainedModel, targets: Sequence[str] | None) -> Sequence[str] | str | None:
    """Return the ``target_modules`` of a fresh LoRA for PEFT; None for PEFT's choice.

    Args:
        model: the base model.
        targets: what the user asks for, as for `attach_lora`.

    Raises:
        ModelError: no layer fits.
    """
    reads_more = any(of_other_inputs(model, name) for name in linear_layers(model))
    if targets is None:
        known = knows_default(model)
        if known and not reads_more:
            return None
        layers = projections(model)
        if _means_experts(model, short_names(model, layers)):
            layers = [name for name in layers if of_attention(name)]
        if not layers:
            raise ModelError(_no_layer(model, None))
        return short_names(model, layers)
    kind = getattr(model.config, "model_type", None)
    if kind in MAMBA and any(target.rpartition(".")[2] == "out_proj" for target in targets):
        raise ModelError(
            f"LoRA on out_proj is not possible in {kind}: its kernels take the weight of this layer and do not call "
            f"the layer, so that a LoRA has no effect. Leave out_proj out of --lora-targets, such as "
            f"--lora-targets {','.join(short_names(model, projections(model)))}"
        )
    if list(targets) == [ALL_LINEAR]:
        return _whole_language_model(model) if reads_more else ALL_LINEAR
    if not reads_more and not any("*" in target for target in targets):
        return targets
    chosen: dict[str, None] = {}
    for target in targets:
        layers = matching(model, target)
        if not layers:
            raise ModelError(_no_layer(model, [target]))
        chosen |= dict.fromkeys(layers)
    return short_names(model, list(chosen))


def _whole_language_model(model: PreTrainedModel) -> list[str]:
    head = vocabulary_head(model)
    layers = [name for name in linear_layers(model) if not of_other_inputs(model, name)]
    return short_names(model, [name for name in layers if model.get_submodule(name) is not head])


def _means_experts(model: PreTrainedModel, names: Sequence[str]) -> bool:
    """Return whether PEFT takes these names for those of experts, as they were before transformers 5 stacked them.

    It then adapts the stacked weights, and not the dense layers of these names that the model has as well.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=list(names))
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:  # only some of the layers that were stacked together
        return True
    return bool(config.target_parameters)


def knows_default(model: PreTrainedModel) -> bool:
    """Return whether PEFT has a choice of layers for the model's architecture."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOICES

    return getattr(model.config, "model_type", None) in CHOICES


def described_targets(lora: PeftModel) -> str:
    """Return the names of the layers that a fresh LoRA is on, such as ``down_proj, q_proj``."""
    names = {
        name.partition(".lora_A.")[0].rpartition(".")[2]
        for name, _ in lora.named_parameters()
        if ".lora_A." in name
    }
    return ", ".join(sorted(names))


def _no_layer(model: nn.Module, targets: Sequence[str] | None) -> str:
    linear = sorted({name.rpartition(".")[2] for name in linear_layers(model)})
    unknown = "PEFT knows no default for this architecture, and no linear layer gets every token exactly once"
    wanted = unknown if targets is None else f"got {', '.join(targets)}"
    return (
        f"LoRA finds no layer to adapt: {wanted}; this model's linear layers are {', '.join(linear)}. Name some of "
        "them with --lora-targets"
    )


def adapter_name(number: int) -> str:
    """Return PEFT's name for the adapter of checkpoint ``number``, counted from 0."""
    return f"checkpoint-{number + 1}" if number else "default"


def adapted_layers(adapter: Path) -> set[str]:
    """Return the names of the base model's layers that an adapter is on; empty if its weights are no safetensors."""
    path = adapter_folder(adapter) / "adapter_model.safetensors"
    if not path.is_file():
        return set()
    with explain_errors("adapter", str(adapter)), safe_open(path, "pt") as weights:
        names = list(weights.keys())
    return {canonical_name(name).partition(".lora_")[0] for name in names if ".lora_" in name}


def load_adapter(model: PreTrainedModel | PeftModel, adapter: Path, number: int = 0) -> PeftModel:
    """Load a PEFT LoRA adapter, trainable and active, in fp32 whatever the base model's dtype.

    Args:
        model: the base model, or the model with the adapters of earlier checkpoints.
        adapter: the adapter's folder.
        number: the checkpoint's number, counted from 0.

    Raises:
        ModelError: the adapter cannot be loaded, changes its base model, or does not fit the model.
    """
    from peft import PeftConfig, PeftModel

    adapter = adapter_folder(adapter)
    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} holds no adapter_config.json; expected the folder of a PEFT adapter")
    with explain_errors("adapter", str(adapter)), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = PeftConfig.from_pretrained(adapter)
        _check_kind(adapter, config)
        before = BaseState.of(model)
        with torch.random.fork_rng(devices=[]):  # PEFT draws random weights before it loads the adapter's
            name = adapter_name(number)
            if isinstance(model, PeftModel):
                loaded = model
                loaded.load_adapter(str(adapter), name, is_trainable=True)
                loaded.set_adapter(name)
            else:
                loaded = PeftModel.from_pretrained(model, adapter, name, is_trainable=True)
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise ModelError(
                f"{adapter} lacks weights that its configuration names: {warning.message!s:.300}"
            )
    if change := before.change(loaded):
        raise ModelError(
            f"loading {adapter} changes the base model ({change}), which several checkpoints share; expected an "
            "adapter that leaves its base as it is. Merge what it changes into a base model, save both again, and give "
            "that base with --model"
        )
    return loaded


def _check_kind(adapter: Path, config: Any) -> None:
    """Refuse an adapter that is no LoRA, or that is known to change its base model."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise ModelError(f"{adapter} is an adapter of type {kind}; expected LORA")
    if config.init_lora_weights not in _PLAIN_INIT:
        raise ModelError(
            f"{adapter} was initialised by {config.init_lora_weights!r}, which changes the base model as well; "
            "expected plain LoRA. Save it with path_initial_model_for_weight_conversion"
        )
    if config.layer_replication:
        raise ModelError(
            f"{adapter} has layer_replication {list(config.layer_replication)}, which makes another model of the base: "
            "layers are copied. Expected an adapter that leaves its base as it is. Give the PEFT model itself, which "
            "has the copied layers (cu.select(model=peft_model, ...)), or leave layer_replication out of the training"
        )


def left_out(model: nn.Module, manifest: ParameterManifest) -> list[str]:
    """Return the names of the first adapter's weights that are not differentiated.

    Args:
        model: a model, which may have adapters.
        manifest: the differentiated matrices.
    """
    known, mark = {parameter.torch_name for parameter in manifest}, f".{adapter_name(0)}"
    own = [name for name, _ in model.named_parameters() if f"{mark}." in name or name.endswith(mark)]
    return [name for name in own if name not in known] if hasattr(model, "peft_config") else []


@dataclass(frozen=True)
class BaseState:
    """What a base model is, without the layers that PEFT puts around its own.

    Attributes:
        layers: each layer's name, and the name of its class.
        weights: each weight's name, with its shape and what reveals a change of its values.
        config: the configuration.
    """

    layers: dict[str, str]
    weights: dict[str, Tensor]
    config: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> BaseState:
        """Return the state of a base model, which may have adapters."""
        base = _base(model)
        layers = {own: type(layer).__name__ for own, layer in _without_peft(base.named_modules())}
        tensors = [
            *base.named_parameters(remove_duplicate=False),
            *base.named_buffers(remove_duplicate=False),
        ]
        weights = {own: _some(values) for own, values in _without_peft(tensors)}
        return cls(layers, weights, base.config.to_dict())  # type: ignore[union-attr,operator]

    def change(self, model: nn.Module) -> str:
        """Return what is different in a model now, in words; empty if nothing is.

        Args:
            model: the base model, or a PEFT model of it.
        """
        now = BaseState.of(model)
        if changed := sorted(self.layers.keys() ^ now.layers.keys()):
            verb = "adds" if changed[0] in now.layers else "removes"
            return f"it {verb} {len(changed)} layers, such as {changed[0]}"
        for name, values in self.weights.items():
            other = now.weights.get(name)
            if other is None or other.shape != values.shape or not torch.equal(other, values):
                return f"the weight {name} is another one"
        for key, value in self.config.items():
            if now.config.get(key) != value:
                return f"{key} of its configuration is {now.config.get(key)!r}, and was {value!r}"
        return ""


def _some(values: Tensor) -> Tensor:
    """Return the shape of a weight, the sum of all its bytes in groups of eight, and its values in part, i64[n].

    NaN equals NaN. The sum reveals a change anywhere, the values one that keeps the sum.
    """
    if hasattr(values, "__tensor_flatten__"):  # a quantised weight: packed values, scales, ...
        names, _ = values.__tensor_flatten__()
        return torch.cat([_some(getattr(values, name)) for name in names])
    data = values.detach().contiguous().reshape(-1).view(torch.uint8)
    padded = torch.nn.functional.pad(data, (0, -len(data) % 8)) if len(data) % 8 else data
    words = padded.view(torch.int64)
    some = words[:: max(len(words) // _SAMPLED, 1)]
    parts = (torch.tensor(values.shape, dtype=torch.int64), words.sum().reshape(1).cpu(), some.cpu())
    return torch.cat(parts)


def _base(model: nn.Module) -> nn.Module:
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _without_peft(named: Any) -> Iterator[tuple[str, Any]]:
    """Yield what belongs to the base model, by its name there."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, value in named:
        parts = name.split(".")
        if "token_adapter" in parts and "base_layer" in parts:
            parts.remove("token_adapter")
        if any(part in _OWN or part.startswith("lora_") for part in parts):
            continue
        if not isinstance(value, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield ".".join(part for part in parts if part not in _WRAPPERS), value


def take_off(model: PeftModel) -> PreTrainedModel:
    """Remove all adapters from a PEFT model, and return its base model with its own layers.

    Fully trained modules are removed too: the base gets its original ones back.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    base: PreTrainedModel = model.get_base_model()
    for name, layer in list(base.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            inner: Any = layer.get_base_layer()
        elif isinstance(layer, AuxiliaryTrainingWrapper):
            inner = layer.original_module
        else:
            continue
        parent, _, attribute = name.rpartition(".")
        holder = base.get_submodule(parent)
        if not isinstance(holder, BaseTunerLayer | AuxiliaryTrainingWrapper) and not (
            {*parent.split(".")} & _OWN
        ):
            setattr(holder, attribute, inner)
    vars(base).pop("peft_config", None)  # otherwise PEFT warns that the model already has an adapter
    return base
