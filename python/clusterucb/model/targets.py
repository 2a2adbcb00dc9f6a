"""Find the layers of a model that a LoRA can go on.

Decisions:
    - PEFT's choice for an architecture stands wherever PEFT has one, so that scores do not change with this module.
    - For other architectures, a pass of a few tokens shows which linear layers see every token exactly once. These are
      the layers whose per-sample gradients can be computed: projections of attention and of MLPs, but no expert that
      only some tokens reach, no encoder of images, and no layer whose weight is used without calling the layer.
    - The vocabulary head and routers are never chosen. Routers are no projections, and training them moves tokens
      between experts.
    - Outside the language model (an encoder of images, say) no layer is chosen, because a text never reaches it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from clusterucb.errors import ModelError
from clusterucb.model.parameters import of_other_inputs, vocabulary_head
from clusterucb.wording import one_line

ALL_LINEAR = "all-linear"  # PEFT's name for all linear layers but the vocabulary head
_ROWS, _TOKENS = 2, 3  # of the pass that shows which layers see every token
_STACKED = re.compile(r"\.\d+\.")  # a layer of a stack of decoder layers
_PROJECTION = re.compile(
    r"attn|attention|mlp|feed_forward|ffn|shared_expert|(?:^|\.)ff(?:\.|$)", re.IGNORECASE
)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_ROUTER = re.compile(r"(?:^|_)(?:gate|router|classifier|wg)$")
# PEFT refuses this layer in these architectures, whose kernels take its weight and do not call the layer.
_UNCALLED = "out_proj"
MAMBA = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of all linear layers, also of quantised ones."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        or (hasattr(layer, "in_features") and hasattr(layer, "out_features") and hasattr(layer, "weight"))
    ]


def projections(model: nn.Module) -> list[str]:
    """Return the names of the attention and MLP projections that see every token of a pass exactly once.

    If a model has neither attention nor MLPs (Mamba), these are all such layers of its stack.

    Args:
        model: a causal language model without adapters.
    """
    head = vocabulary_head(model)
    of_head = set(head.modules()) if head else set()
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    kind = getattr(getattr(model, "config", None), "model_type", None)
    found = []
    for name in _called_once(model):
        layer = model.get_submodule(name)
        shared = any(uses[id(weight)] > 1 for weight in layer.parameters())
        last = name.rpartition(".")[2]
        uncalled = last == _UNCALLED and kind in MAMBA
        if layer in of_head or shared or uncalled or _ROUTER.search(last) or not _STACKED.search(name):
            continue
        if not of_other_inputs(model, name):
            found.append(name)
    named = [name for name in found if _PROJECTION.search(name.rpartition(".")[0])]
    return named or found


def of_attention(name: str) -> bool:
    """Return whether a layer's name says that it is a part of attention."""
    return bool(_ATTENTION.search(name.rpartition(".")[0]))


def _called_once(model: nn.Module) -> list[str]:
    """Return the names of the linear layers that get all tokens of a pass in one call.

    Raises:
        ModelError: the pass fails.
    """
    calls: Counter[str] = Counter()
    whole: set[str] = set()

    def note(name: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
        calls[name] += 1
        if args and isinstance(args[0], torch.Tensor) and has_every_token(args[0].shape, (_ROWS, _TOKENS)):
            whole.add(name)

    names = linear_layers(model)
    with ExitStack() as undo:
        for name in names:
            undo.callback(model.get_submodule(name).register_forward_pre_hook(partial(note, name)).remove)
        undo.enter_context(_evaluating(model))
        device = next(model.parameters()).device
        try:
            model(input_ids=torch.zeros(_ROWS, _TOKENS, dtype=torch.long, device=device), use_cache=False)
        except Exception as error:  # of the model's own code
            raise ModelError(
                f"the model fails on a pass of {_TOKENS} tokens ({type(error).__name__}: {one_line(error):.200}), "
                "which would show what layers a LoRA can go on; expected a causal language model that takes token "
                "ids alone. Name the layers with --lora-targets if it works otherwise"
            ) from error
    return [name for name in names if calls[name] == 1 and name in whole]


def has_every_token(shape: Sequence[int], batch: tuple[int, int]) -> bool:
    """Return whether a layer's input of this shape has the batch's tokens in order.

    It may be [B, T, features], [B T, features] as in OPT, or [B, 1, T, features] as in DeepSeek's attention.

    Args:
        shape: the shape of the input.
        batch: B and T.
    """
    *leading, _ = shape or (0,)
    rows, tokens = batch
    return leading == [rows * tokens] or [n for n in leading if n > 1] == [n for n in batch if n > 1]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def matching(model: nn.Module, pattern: str) -> list[str]:
    """Return the linear layers of the language model that a name or a pattern stands for.

    Args:
        model: the model.
        pattern: the end of a name, such as ``q_proj`` or ``self_attn.q_proj``; or a whole name, in which ``*`` stands
            for any characters, also for dots, such as ``model.layers.1*.q_proj``.
    """
    return [
        name
        for name in linear_layers(model)
        if not of_other_inputs(model, name)
        and (name == pattern or name.endswith(f".{pattern}") or fnmatchcase(name, pattern))
    ]


def short_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the ends of layer names if these stand for just the given layers; otherwise the names, sorted."""
    ends = {name.rpartition(".")[2] for name in names}
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends) if meant == set(names) else sorted(names)
