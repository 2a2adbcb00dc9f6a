"""The loss of each sample: the mean cross-entropy over its labels, in fp32.

Logits are computed at label positions only: a hook in front of the vocabulary head drops all other
positions. Over a large vocabulary they would cost more than some layers. The batch is padded on
the right and has no attention mask: under causal attention no label position sees the padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clusterucb.errors import ModelError


def vocabulary_head(model: nn.Module) -> nn.Module | None:
    """Return the layer that makes logits of hidden states, or None if the model has none."""
    find: Any = getattr(model, "get_output_embeddings", lambda: None)
    return head if isinstance(head := find(), nn.Module) else None


def sample_losses(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each sample of a batch.

    Args:
        model: a causal language model.
        ids: i64[B, T], tokens, padded on the right.
        labels: bool[B, T], true where a token counts; never in the first column, at least once in every row.

    Returns:
        f32[B], differentiable.

    Raises:
        ModelError: the model is not a causal language model that ends in its output embeddings.
    """
    counted = labels[:, 1:]
    counts = counted.sum(dim=1)
    losses = cross_entropy(label_logits(model, ids, labels), ids[:, 1:][counted], reduction="none")
    sample = torch.repeat_interleave(torch.arange(len(ids), device=ids.device), counts)
    return torch.zeros(len(ids), device=ids.device).index_add(0, sample, losses) / counts


def label_logits(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the logits that predict the labels, f32[labels.sum(), vocabulary], row by row; see `sample_losses`."""
    if (head := vocabulary_head(model)) is None:
        raise ModelError(f"{type(model).__name__} has no output embeddings; expected a causal language model")
    counted = labels[:, 1:]

    def keep_predicting(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ARG001
        return (args[0][:, :-1][counted][None], *args[1:])

    hook = head.register_forward_pre_hook(keep_predicting)
    try:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits.flatten(0, -2).float()
    finally:
        hook.remove()
    if len(logits) != (n_labels := int(counted.sum())):
        raise ModelError(
            f"{type(model).__name__} gave {len(logits)} rows of logits for {n_labels} label positions; "
            "expected a causal language model whose last layer is its output embeddings"
        )
    return logits
