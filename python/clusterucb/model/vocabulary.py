"""Give a base model the vocabulary that its adapter was trained with.

Trainers that add tokens make the model's embeddings larger, and PEFT saves the embeddings with the adapter. The adapter
then fits no base but that one.

Decisions:
    - The base gets the adapter's embeddings, of the input and of the output, before anything is computed. Only
      embeddings of another size are taken: of the same size, they are a change of the base
      (`clusterucb.model.base_state`).
    - PEFT writes the embeddings of the base under the names of what it puts around them. ``NAME.weight`` is the trained
      copy if the layer was trained fully (``modules_to_save``), and ``NAME.original_module.weight`` the base's.
    - A layer that was trained fully needs no values of the base, because the copy takes its place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from clusterucb.errors import ModelError
from clusterucb.model.adapter_weights import AdapterWeights
from clusterucb.model.checkpoint_files import adapter_folder

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_OF_BASE = ("original_module.weight", "token_adapter.base_layer.weight")  # in layers of PEFT


class _Saved(NamedTuple):
    """Where an adapter's file has the weights of one of the model's embeddings.

    Attributes:
        layer: the layer's name.
        name: the name of the weights in the file; None if there are none.
        of_base: whether they are those of the base, and not a trained copy.
        copied: whether a trained copy takes the layer's place.
    """

    layer: str
    name: str | None
    of_base: bool
    copied: bool


def take_vocabulary(model: PreTrainedModel, adapter: Path) -> int | None:
    """Give a model the token embeddings in an adapter's folder, if their number is another one.

    Args:
        model: the base model, without adapters.
        adapter: the adapter's folder.

    Returns:
        The number of tokens, or None if the model's embeddings stay.

    Raises:
        ModelError: the adapter's file cannot be read, or lacks embeddings of the input or the output.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    weights = AdapterWeights(adapter)
    copied = _trained_fully(adapter)
    found = [_saved(_name(model, layer), weights, copied) for layer in (embedding, head) if layer is not None]
    counts = [weights.shapes[one.name][0] for one in found if one.name]
    if not counts or counts[0] == embedding.num_embeddings:
        return None
    tied = head is not None and head.weight is embedding.weight
    lacking = [one.layer for one in found if not (one.copied or one.of_base)]
    if lacking and not (tied and any(one.of_base for one in found)):
        raise ModelError(
            f"{adapter} has embeddings of {counts[0]} tokens and no weights of the base model's {lacking[0]}.weight; "
            "expected both, since the vocabulary of the model was resized. Give the resized model with --model, or "
            "save the adapter with save_embedding_layers=True"
        )
    model.resize_token_embeddings(counts[0], mean_resizing=False)
    values = weights.read([one.name for one in found if one.name])
    order = sorted(found, key=lambda one: one.of_base)  # of tied weights, those of the base stay
    with torch.no_grad():
        for one in order:
            if one.name:
                model.get_parameter(f"{one.layer}.weight").copy_(values[one.name])
    return counts[0]


def _saved(layer: str, weights: AdapterWeights, copied: set[str]) -> _Saved:
    """Return where an adapter's file has a layer's weights."""
    fully = any(layer == name or layer.endswith(f".{name}") for name in copied)
    inner = next((name for end in _OF_BASE if (name := f"{layer}.{end}") in weights.shapes), None)
    plain = f"{layer}.weight" if f"{layer}.weight" in weights.shapes else None
    return _Saved(layer, inner or plain, bool(inner or (plain and not fully)), fully)


def _trained_fully(adapter: Path) -> set[str]:
    """Return the names of the layers that an adapter's configuration says were trained fully."""
    try:
        config = json.loads((adapter_folder(adapter) / "adapter_config.json").read_text())
        return set(config.get("modules_to_save") or ())
    except (
        OSError,
        ValueError,
        AttributeError,
        TypeError,
        RecursionError,
    ):  # `load_adapter` says what is wrong
        return set()


def has_vocabulary(adapter: Path) -> bool:
    """Return whether an adapter's file may hold embeddings: weights that belong to no LoRA matrix."""
    return any(".lora_" not in name for name in AdapterWeights(adapter).shapes)


def _name(model: nn.Module, layer: nn.Module) -> str:
    names: dict[nn.Module, str] = {one: name for name, one in model.named_modules()}
    return names[layer]
