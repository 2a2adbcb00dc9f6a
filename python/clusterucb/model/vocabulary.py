"""Give a base model the vocabulary that its adapter was trained with.

Trainers that add tokens make the model's embeddings larger, and PEFT saves the embeddings with the adapter. The adapter
then fits no base but that one.

Decisions:
    - The base gets the adapter's embeddings, of the input and of the output, before anything is computed. Only
      embeddings of another size are taken: of the same size, they are a change of the base
      (`clusterucb.model.base_state`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clusterucb.errors import ModelError
from clusterucb.model.adapter_weights import AdapterWeights

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def take_vocabulary(model: PreTrainedModel, adapter: Path) -> int | None:
    """Give a model the token embeddings in an adapter's folder, if their number is another one.

    Args:
        model: the base model, without adapters.
        adapter: the adapter's folder.

    Returns:
        The number of tokens, or None if the model's embeddings stay.

    Raises:
        ModelError: the adapter's file cannot be read, or lacks the embeddings of the output.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {_name(model, layer) for layer in (embedding, head) if layer is not None}
    saved = AdapterWeights(adapter).read(names)
    given = saved.get(_name(model, embedding))
    if given is None or len(given) == embedding.num_embeddings:
        return None
    tied = head is None or head.weight is embedding.weight
    if not tied and _name(model, head) not in saved:
        raise ModelError(
            f"{adapter} has embeddings of {len(given)} tokens and no weights of {_name(model, head)}; expected both, "
            "since the vocabulary of the model was resized. Save the adapter with save_embedding_layers=True"
        )
    model.resize_token_embeddings(len(given), mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None and (values := saved.get(_name(model, layer))) is not None:
                layer.weight.copy_(values)
    return len(given)


def has_vocabulary(adapter: Path) -> bool:
    """Return whether an adapter's file may hold embeddings: weights that belong to no LoRA matrix."""
    return any(".lora_" not in name for name in AdapterWeights(adapter).shapes)


def _name(model: nn.Module, layer: nn.Module) -> str:
    return next(f"{name}.weight" for name, one in model.named_modules() if one is layer)
