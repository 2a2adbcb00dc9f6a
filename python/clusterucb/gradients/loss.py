"""Compute each sample's loss: the mean cross-entropy over its labels, in fp32.

Logits are computed at label positions only: a hook in front of the vocabulary head drops all other positions. With a
large vocabulary, the logits of all positions would cost more than some layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clusterucb.errors import ModelError
from clusterucb.gradients.passes import PaddedBatch
from clusterucb.model.parameters import vocabulary_head


def sample_losses(model: nn.Module, batch: PaddedBatch, autocast: torch.dtype | None = None) -> Tensor:
    """Return the loss of each of B samples, f32[B], differentiable.

    Args:
        model: a causal language model.
        batch: B samples.
        autocast: the dtype that layers compute in, or None for their own; the loss is in fp32 either way.

    Raises:
        ModelError: the model is not a causal language model whose last layer is its output embeddings.
    """
    with torch.autocast(batch.ids.device.type, autocast, enabled=autocast is not None):
        logits = _label_logits(model, batch)
    losses = cross_entropy(logits, batch.predicted, reduction="none")
    return torch.zeros_like(batch.counts).index_add(0, batch.sample, losses) / batch.counts


def _label_logits(model: nn.Module, batch: PaddedBatch) -> Tensor:
    """Return the logits that predict the labels, f32[n, vocabulary]."""
    if (head := vocabulary_head(model)) is None:
        raise ModelError(f"{type(model).__name__} has no output embeddings; expected a causal language model")

    def keep_predicting(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ARG001
        return (args[0].flatten(0, 1)[batch.predicting][None], *args[1:])

    hook = head.register_forward_pre_hook(keep_predicting)
    try:
        logits: Tensor = model(input_ids=batch.ids, use_cache=False).logits.flatten(0, -2).float()
    finally:
        hook.remove()
    if len(logits) != len(batch.predicted):
        raise ModelError(
            f"{type(model).__name__} gave {len(logits)} rows of logits for {len(batch.predicted)} label positions; "
            "expected a causal language model whose last layer is its output embeddings"
        )
    return logits
