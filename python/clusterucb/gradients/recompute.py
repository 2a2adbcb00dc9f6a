"""Decoder layers that keep their inputs alone and run again in the backward pass: less memory, a third more time.

Apart from what transformers has for it (activation checkpointing), which works in training mode only, where dropout
would change the gradients.
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
        model: a causal language model of transformers, perhaps of PEFT.
        differentiated: its layers whose weights' gradients are wanted.

    Raises:
        ModelError: it has no decoder layers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layers that can run again in the backward pass; expected none of "
            "--checkpointing"
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
    """Run a decoder layer without keeping what its backward pass needs, which will run it again.

    Not where nothing before it and nothing in it (``starts``) is differentiated: then there is no backward pass.
    """
    if not torch.is_grad_enabled() or not (starts or hidden.requires_grad):
        return forward(hidden, *args, **options)
    if not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_(True)
    return checkpoint(
        lambda states: forward(states, *args, **options), hidden, use_reentrant=True, preserve_rng_state=False
    )
