"""Run a layer of DoRA so that the gradient of its magnitude vector can be told apart by sample.

DoRA (Liu et al. 2024, arXiv 2402.09353, equation 5) scales each row of W + s B A to a trained length:
y = m / n * (W x + s B A x), where n holds the row norms, which count as constants. The gradient of m for one sample is
the sum over its tokens of dloss/dy * (W x + s B A x) / n, element by element.

Decisions:
    - PEFT computes n in every pass, and calls the layers A and B for it, which would look like a second use of them.
      Here, n is computed from the matrices, once for each time that gradients are entered: no matrix changes meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.nn import functional

Keep = Callable[[Tensor, Tensor], None]


@contextmanager
def magnitude_kept(layer: DoraLinearLayer, keep: Keep) -> Iterator[None]:
    """Let a layer of DoRA pass on what the gradient of its magnitude needs, while the block runs.

    Args:
        layer: the layer that holds the magnitude m, f[out].
        keep: called in each pass with (W x + s B A x) / n, [B, T, out], and the layer's output.
    """
    norms: list[Tensor] = []

    def forward(
        x: Tensor,
        *,
        lora_A: nn.Linear,
        lora_B: nn.Linear,
        scaling: float,
        base_layer: nn.Module,
        base_result: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        if not norms:
            with torch.no_grad():
                weight = dequantize_module_weight(base_layer).to(x.dtype)
                change = (lora_B.weight @ lora_A.weight).to(x.dtype)
                norms.append(layer.get_weight_norm(weight=weight, lora_weight=change, scaling=scaling))
        if base_result is None:
            weight = dequantize_module_weight(base_layer).to(x.dtype)
            plain = functional.linear(x, weight.T if layer.fan_in_fan_out else weight)
        else:
            bias = getattr(base_layer, "bias", None)
            plain = base_result if bias is None else base_result - bias
        normed = (plain + lora_B(lora_A(x)) * scaling) / norms[0]
        output: Tensor = layer.weight * normed - plain
        keep(normed.detach(), output)
        return output

    own = vars(layer).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own
