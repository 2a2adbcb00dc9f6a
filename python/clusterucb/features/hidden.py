"""Describe a sample by the mean hidden state of one layer, after a part of a forward pass.

Decisions:
    - The pass stops at the layer; later layers are never computed.
    - A token weighs in proportion to its position: in a causal model, later tokens have seen more of the sample.
    - Template tokens are left out, and with them the attention sinks at the beginning, whose states are hundreds of
      times larger than all others and would dominate the mean.
    - An entry of a row is clipped at `_EXTREME` medians of the row's absolute values. In many models a few dimensions
      hold values tens or hundreds of times larger than the others, whatever the text ("massive activations", Sun et
      al. 2024; "rogue dimensions", Timkey and van Schijndel 2021), and would alone decide all distances. The limit
      depends on the row and not on the pool: it needs no other samples, and works in any model. On the pools of the
      benchmarks (SmolLM2-135M, layer 4, similarity to the target) one dimension has 23 and 15 % of the variance
      without clipping and 3 % with it. At budgets of 5, 10 and 20 %, clipping raises the recall of the best 5 % from
      .47, .73 and .75 to .50, .77 and .78 on the templated pool, and from .21, .28 and .42 to .21, .31 and .44 on the
      diverse one. Limits from 2 to 20 medians give about the same.
    - Samples go through the model one by one: a row must not depend on its padding, not even in its last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ModelError, OptionError
from clusterucb.features.base import Feature, FeatureBatch

if TYPE_CHECKING:
    from torch import Tensor, nn


# In medians; almost 7 standard deviations of normal values, so a row without extreme values stays as it is.
_EXTREME = 10


class _Reached(Exception):
    """Raised when the pass has reached the layer; carries the layer's output."""

    def __init__(self, state: Tensor) -> None:
        self.state = state


@dataclass
class Hidden(Feature):
    """Weighted mean hidden state of a sample's content tokens, extreme dimensions damped.

    Block: ``hidden`` f32[m, width].

    Attributes:
        depth: the position of the layer as a share of all layers: 1 is the last. Also the cost in forward passes.
    """

    depth: float = 0.15

    def __post_init__(self) -> None:
        if not isinstance(self.depth, float | int) or not 0 < self.depth <= 1:
            raise OptionError(
                f"hidden: depth is {self.depth!r}; expected a share of the layers above 0 and at most 1"
            )
        self.forward_passes = float(self.depth)

    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return the block ``hidden``."""
        import torch

        model = batch.model
        layers = _layers(model)
        layer = layers[max(round(self.depth * len(layers)), 1) - 1]
        rows = []

        def stop(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
            state = output[0] if isinstance(output, tuple) else output
            raise _Reached(state)  # type: ignore[arg-type]

        handle = layer.register_forward_hook(stop)
        try:
            for sample in batch.encoded:
                tokens = torch.from_numpy(sample.tokens)[None].to(model.device)
                try:
                    with torch.inference_mode():
                        model(input_ids=tokens, use_cache=False)
                except _Reached as reached:
                    state = reached.state[0].float().cpu().numpy()
                weight = np.where(sample.content, np.arange(1, len(sample) + 1), 0).astype(np.float64)
                if not weight.any():
                    weight[-1] = 1
                rows.append(_damped((weight / weight.sum()) @ state))
        finally:
            handle.remove()
        return {"hidden": np.array(rows, np.float32)}


def _damped(row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the row f64[k] with its entries clipped at `_EXTREME` medians of its absolute values."""
    limit = _EXTREME * np.median(np.abs(row))
    return np.clip(row, -limit, limit)


def _layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder's layers: the first list with as many modules as the configuration has layers."""
    from torch import nn

    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(
        f"feature hidden: {type(model).__name__} has no list of {count} layers; use --features embedding"
    )
