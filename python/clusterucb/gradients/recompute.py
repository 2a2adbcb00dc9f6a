"""Let decoder layers keep only their inputs and run again in the backward pass: less memory, a third more time.

Transformers has its own activation checkpointing. It is not used, because it works in training mode only, where
dropout would change the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from clusterucb.errors import ModelError


@contextmanager
def recomputed_layers(model: nn.Module, differentiated: Set[nn.Module]) -> Iterator[None]:
    """Let a model's decoder layers run again in the backward pass.

    Args:
        model: a causal language model of transformers or PEFT.
        differentiated: the layers whose weights are differentiated.

    Raises:
        ModelError: the model has no decoder layers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layers that can run again in the backward pass; expected a model with "
            "decoder layers. Leave --checkpointing out"
        )
    with ExitStack() as undo:
        for layer in layers:
            starts = not differentiated.isdisjoint(layer.modules())
            undo.callback(_put_back, layer, vars(layer).get("forward"))
            layer.forward = partial(_run_again, layer.forward, starts)
        yield


def _put_back(layer: nn.Module, own: Callable[..., Any] | None) -> None:
    if own is None:
        del layer.forward
    else:
        layer.forward = own


def _run_again(forward: Callable[..., Any], starts: bool, hidden: Tensor, *args: Any, **options: Any) -> Any:
    """Run a decoder layer without keeping its intermediate tensors; its backward pass will run it again.

    The layer runs plainly if it has no backward pass: if neither an earlier layer nor a part of this one (``starts``)
    is differentiated.
    """
    if not torch.is_grad_enabled() or not (starts or hidden.requires_grad):
        return forward(hidden, *args, **options)
    if not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_(True)
    return checkpoint(
        lambda states: forward(states, *args, **options), hidden, use_reentrant=True, preserve_rng_state=False
    )
