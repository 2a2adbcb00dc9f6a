"""Put a LoRA on a base model: a fresh one, or an adapter of a folder.

Decisions:
    - Every weight in an adapter's file must have its place in the model, and every weight of the adapter must be in the
      file. Otherwise the scores would be those of another model, or of another adapter.
    - An adapter that changes its base (copies of layers, an initialisation that subtracts from the weights, embeddings
      of its own) is refused by the name of what it changes (`clusterucb.model.base_state`).
    - What PEFT freezes stays frozen: MiCA trains the A matrices alone. What a caller froze in memory is in a file
      of the adapter's folder, because PEFT's own files do not say it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import nn

from clusterucb.errors import ModelError
from clusterucb.model.adapter_weights import AdapterWeights, copies, lacking, misfit, strangers
from clusterucb.model.base_state import BaseState, base_of, take_off
from clusterucb.model.checkpoint_files import FROZEN, adapter_folder
from clusterucb.model.parameters import ParameterManifest, canonical_name, of_other_inputs, vocabulary_head
from clusterucb.model.patterns import check_patterns
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
from clusterucb.wording import counted, one_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_PLAIN_INIT = (
    True,
    False,
    "gaussian",
    "orthogonal",
    "eva",
    "mica",
)  # LoRA initialisations that leave the base unchanged

_VARIANTS = {  # fields of PEFT's configuration that change what a LoRA computes
    "use_bdlora": "a BD-LoRA, whose matrices are block-diagonal",
    "alora_invocation_tokens": "an activated LoRA (aLoRA), which only some tokens reach",
    "monteclora_config": "a MonteCLoRA, which draws its matrices at random",
    "kasa_config": "a KaSA adapter, which changes the base model",
    "arrow_config": "an Arrow router of several LoRAs",
}


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
            if not isinstance(chosen, str) and _means_experts(model, chosen):
                raise ModelError(_experts(model, chosen)) from error
            raise ModelError(_no_layer(model, targets)) from error
    adapted = {name.partition(".lora_A.")[0] for name, _ in lora.named_parameters() if ".lora_A." in name}
    names = [] if targets is None or list(targets) == [ALL_LINEAR] else targets
    for target in names:
        if "*" not in target and not any(name == target or name.endswith(f".{target}") for name in adapted):
            take_off(lora)
            raise ModelError(_no_layer(model, [target]))
    return lora


def lora_targets(model: PreTrainedModel, targets: Sequence[str] | None) -> Sequence[str] | str:
    """Return the ``target_modules`` of a fresh LoRA for PEFT.

    PEFT's choice for an architecture is spelt out: without a name, PEFT finds nothing in some of them (Mixtral).

    Args:
        model: the base model.
        targets: what the user asks for, as for `attach_lora`.

    Raises:
        ModelError: no layer fits.
    """
    reads_more = any(of_other_inputs(model, name) for name in linear_layers(model))
    if targets is None:
        if not reads_more and (known := _peft_choice(model)):
            return known
        layers = projections(model)
        if _means_experts(model, short_names(model, layers)):
            layers = [name for name in layers if of_attention(name)]
            ends = {name.rpartition(".")[2] for name in layers}
            experts = {
                end for end in ends if _means_experts(model, [end])
            }  # attention may have a gate_proj too
            layers = [name for name in layers if name.rpartition(".")[2] not in experts]
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
    return _peft_choice(model) is not None


def _peft_choice(model: PreTrainedModel) -> Sequence[str] | str | None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOICES

    choice: Sequence[str] | str | None = CHOICES.get(getattr(model.config, "model_type", None))
    return choice


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


def _experts(model: PreTrainedModel, targets: Sequence[str]) -> str:
    known = [target for target in targets if _means_experts(model, [target])]
    return (
        f"in the architecture {model.config.model_type} PEFT takes {', '.join(known)} for projections of experts, each "
        "of which only some tokens reach; expected layers that every token reaches. Leave "
        f"{'it' if len(known) == 1 else 'them'} out of --lora-targets"
    )


def adapter_name(number: int) -> str:
    """Return PEFT's name for the adapter of checkpoint ``number``, counted from 0."""
    return f"checkpoint-{number + 1}" if number else "default"


def load_adapter(model: PreTrainedModel | PeftModel, adapter: Path, number: int = 0) -> PeftModel:
    """Load a PEFT LoRA adapter, active, in fp32 whatever the base model's dtype.

    Its weights are trainable, but for those that PEFT's method or the adapter's folder (`FROZEN`) freezes.

    Args:
        model: the base model, or the model with the adapters of earlier checkpoints.
        adapter: the adapter's folder.
        number: the checkpoint's number, counted from 0.

    Raises:
        ModelError: the adapter cannot be loaded, changes its base model, or does not fit the model.
    """
    from peft import PeftConfig

    adapter = adapter_folder(adapter)
    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} holds no adapter_config.json; expected the folder of a PEFT adapter")
    with explain_errors("adapter", str(adapter)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = PeftConfig.from_pretrained(adapter)
        _check_kind(adapter, config)
        check_patterns(base_of(model), adapter, config)
        weights = AdapterWeights(adapter)
        biases = [name for name in weights.shapes if name.endswith(".bias") and ".lora_" not in name]
        if config.bias != "none" and biases:
            raise ModelError(
                f"{adapter} was trained with bias={config.bias!r}: it holds {counted(len(biases), 'bias', 'biases')} "
                f"of the base model, such as {biases[0]}; expected bias='none', which leaves the base as it is. Train "
                "without biases, or merge these into a base model and give that with --model"
            )
        if fault := misfit(base_of(model), adapter, weights, config):
            raise ModelError(fault)
        before = BaseState.of(model)
        loaded = _loaded(model, adapter, weights, adapter_name(number))
    if change := before.change(loaded):
        raise ModelError(
            f"loading {adapter} changes the base model ({change}), which several checkpoints share; expected an "
            "adapter that leaves its base as it is. Merge what it changes into a base model, save both again, and give "
            "that base with --model"
        )
    _freeze(loaded, adapter, adapter_name(number))
    return loaded


def _loaded(
    model: PreTrainedModel | PeftModel, adapter: Path, weights: AdapterWeights, name: str
) -> PeftModel:
    """Let PEFT load an adapter.

    Raises:
        ModelError: a weight of the file has no place in the model, or the file lacks a weight.
    """
    from peft import PeftModel

    try:
        with torch.random.fork_rng(devices=[]):  # PEFT draws random weights before it loads the adapter's
            if isinstance(model, PeftModel):
                loaded = model
                found = loaded.load_adapter(str(adapter), name, is_trainable=True)
                loaded.set_adapter(name)
            else:
                loaded = PeftModel.from_pretrained(model, adapter, name, is_trainable=True)
                # Only this method tells what did not fit. The adapter is there now, so it copies the weights again.
                found = loaded.load_adapter(str(adapter), name, is_trainable=True)
    except KeyError as error:  # PEFT looks fully trained modules up in the file, by their names
        if isinstance(key := error.args[0], str) and key.startswith("base_model."):
            raise lacking([key], adapter) from error
        raise
    if found.missing_keys:
        raise lacking(found.missing_keys, adapter)
    unknown = set(found.unexpected_keys)
    if unknown := unknown - copies(unknown, loaded, weights):
        raise strangers(unknown, adapter)
    for own, weight in loaded.named_parameters():
        if of_adapter(own, name) and not weight.isfinite().all():
            raise ModelError(
                f"{adapter} has numbers in {canonical_name(own)} that are not finite; expected the adapter of a "
                "training that did not diverge. Give an earlier checkpoint"
            )
    return loaded


def _freeze(model: PeftModel, adapter: Path, name: str) -> None:
    """Freeze those weights of an adapter that its folder names as frozen (`FROZEN`).

    Raises:
        ModelError: the file with the names is damaged.
    """
    path = adapter / FROZEN
    try:
        frozen = set(msgspec.json.decode(path.read_bytes(), type=list[str])) if path.is_file() else set()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(
            f"{path} is damaged ({one_line(error):.200}); expected a list of names of weights. Save the adapter again"
        ) from error
    for own, weight in model.named_parameters():
        if of_adapter(own, name) and saved_name(own, name) in frozen:
            weight.requires_grad_(False)


def of_adapter(name: str, adapter: str) -> bool:
    """Return whether a parameter's name in a PEFT model says that it belongs to an adapter.

    Args:
        name: the parameter's name.
        adapter: the adapter's name.
    """
    return f".{adapter}." in name or name.endswith(f".{adapter}")


def saved_name(name: str, adapter: str) -> str:
    """Return the canonical name of an adapter's weight, without the adapter's name.

    Args:
        name: the weight's name in a PEFT model.
        adapter: the adapter's name.
    """
    before, mark, after = name.rpartition(f".{adapter}")
    return canonical_name(f"{before}{after}" if mark and after[:1] in ("", ".") else name)


def _check_kind(adapter: Path, config: Any) -> None:
    """Refuse an adapter that is no LoRA, or that is known to change its base model."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise ModelError(
            f"{adapter} is an adapter of type {kind}; expected LORA. Train a LoRA on this base, or merge the adapter "
            "into the base (merge_and_unload), and give the merged model with --model, for a fresh LoRA"
        )
    for field, variant in _VARIANTS.items():
        if getattr(config, field, None):
            raise ModelError(
                f"{adapter} is {variant} ({field}), which is not supported; expected plain LoRA, rsLoRA or DoRA. Train "
                f"without {field}"
            )
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
    known = {parameter.torch_name for parameter in manifest}
    own = [name for name, _ in model.named_parameters() if of_adapter(name, adapter_name(0))]
    return [name for name in own if name not in known] if hasattr(model, "peft_config") else []
