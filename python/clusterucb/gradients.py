"""Per-sample gradients of the LoRA matrices, one matrix at a time, from batched passes.

For a linear layer y = W x, the gradient of one sample is the sum over its tokens of (dloss/dy) xᵀ.
Forward hooks keep x, hooks on the outputs deliver dloss/dy while the backward pass goes on, and one
batched product gives that matrix's gradient for every sample of the batch. It is handed on at once
and forgotten: never more than one matrix's gradients are in memory.

Decisions:
    - The loss is the **sum** over samples of each sample's mean cross-entropy, in fp32, in evaluation
      mode. A sample's gradient then does not depend on who shares its batch.
    - Every parameter is frozen, so no weight gradient is computed twice; the graph begins at the
      first LoRA layer's output.
    - The first batch is checked against autograd: the per-sample gradients must add up to the
      gradient of the batch. It costs one small product per matrix, and finds at once what hooks
      cannot see (a matrix used outside its layer, a layer called in an unforeseen way).
    - The first batch with padding is checked too: its shortest sample must have the same logits alone.
      A model that sees what comes later (BERT, say) would give scores that depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from clusterucb.errors import ModelError
from clusterucb.loss import label_logits, sample_losses
from clusterucb.parameters import Parameter, ParameterManifest

Sink = Callable[[int, Tensor], None]

# How far per-sample gradients may be from adding up to autograd's, relative to its norm.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
# How far a sample's logits may change with padding, relative to their spread: rounding alone.
_PADDING_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


class PerSampleGradients:
    """Per-sample gradients of a causal language model's LoRA matrices.

    A context manager: inside, the model is frozen, in evaluation mode and has hooks; on exit it is as
    it was before.

    Args:
        model: a PEFT model with LoRA on linear layers.
        manifest: where each matrix stands in the flat space.
    """

    def __init__(self, model: nn.Module, manifest: ParameterManifest) -> None:
        self._model = model
        self._manifest = manifest
        self._dtype = next(model.parameters()).dtype  # of the base model; LoRA itself is fp32
        self._sink: Sink | None = None
        self._calls: set[str] = set()
        self._batch: tuple[int, ...] = ()
        self._verified = False
        self._padding_verified = False

    def __enter__(self) -> Self:
        """Freeze the model and add the hooks."""
        self._undo = ExitStack()
        self._undo.callback(self._model.train, self._model.training)
        self._model.eval()
        for weight in self._model.parameters():
            self._undo.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(False)
        for parameter in self._manifest:
            module = self._model.get_submodule(parameter.module)
            self._undo.callback(module.register_forward_hook(partial(self._capture, parameter)).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hooks away and restore the model."""
        self._undo.close()

    def backward(self, ids: Tensor, labels: Tensor, sink: Sink) -> Tensor:
        """Compute the gradient of each sample's loss, and hand it on matrix by matrix.

        Args:
            ids: i64[B, T], tokens, padded on the right.
            labels: bool[B, T], true where a token counts in the loss; never in the first column, and at
                least once in every row.
            sink: called once for each LoRA matrix with its offset in the flat space and its gradients
                f32[B, n], in no particular order.

        Returns:
            f32[B], the losses.

        Raises:
            ModelError: the model does something that per-sample hooks cannot follow.
        """
        try:
            self._sink, self._calls, self._batch = sink, set(), tuple(ids.shape)
            if self._verified:
                losses = sample_losses(self._model, ids, labels)
                losses.sum().backward()
            else:
                losses = self._checked_backward(ids, labels, sink)
        finally:
            self._sink = None
        if not self._padding_verified:
            self._check_padding(ids, labels)
        return losses.detach()

    @torch.no_grad()
    def _check_padding(self, ids: Tensor, labels: Tensor) -> None:
        """Check, once there is padding, that the shortest sample has the same logits with and without it."""
        ends = (labels * torch.arange(1, ids.shape[1] + 1, device=ids.device)).amax(dim=1)
        row, end = int(ends.argmin()), int(ends.min())
        if end == ids.shape[1]:
            return
        padded = label_logits(self._model, ids[row : row + 1], labels[row : row + 1])
        if not padded.isfinite().all():
            return  # says nothing; a later batch is checked
        alone = label_logits(self._model, ids[row : row + 1, :end], labels[row : row + 1, :end])
        change = float((alone - padded).norm() / (alone - alone.mean(dim=1, keepdim=True)).norm())
        if not change <= _PADDING_TOLERANCE.get(self._dtype, 0.05):
            raise ModelError(
                f"{type(self._model).__name__} predicts otherwise beside longer samples (its logits change by "
                f"{change:.2g} of their size); expected a causal language model: it does not see what follows a token"
            )
        self._padding_verified = True

    def _checked_backward(self, ids: Tensor, labels: Tensor, sink: Sink) -> Tensor:
        """Do the same, and check that the gradients add up to what autograd computes."""
        totals: dict[int, Tensor] = {}

        def add_up(offset: int, gradient: Tensor) -> None:
            totals[offset] = gradient.sum(dim=0)
            sink(offset, gradient)

        self._sink = add_up
        weights = [self._model.get_parameter(one.torch_name) for one in self._manifest]
        try:
            for weight in weights:
                weight.requires_grad_(True)
            losses = sample_losses(self._model, ids, labels)
            expected = torch.autograd.grad(losses.sum(), weights, materialize_grads=True, allow_unused=True)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
        for one, true in zip(self._manifest, expected, strict=True):
            if not true.isfinite().all():
                return losses  # says nothing; the next batch is checked
            got = totals.get(one.offset, torch.zeros_like(true)).view_as(true)
            if not (got - true).norm() <= _TOLERANCE.get(self._dtype, 0.1) * true.norm() + 1e-12:
                raise ModelError(
                    f"the per-sample gradients of {one.name} do not add up to the gradient of the batch (they "
                    f"differ by {float((got - true).norm() / true.norm()):.2g} of its norm): this model uses "
                    "that matrix in a way that is not supported. Take an adapter without it (--lora-targets)"
                )
        self._verified = True
        return losses

    def _capture(
        self, parameter: Parameter, _module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        """Keep a layer's input until the gradient of its output arrives."""
        if self._sink is None:
            return
        activation = args[0].detach()
        shape = tuple(activation.shape)
        if shape[:-1] != self._batch or parameter.name in self._calls:
            what = "runs twice in a pass" if parameter.name in self._calls else f"gets input of shape {shape}"
            raise ModelError(
                f"the LoRA layer {parameter.name} {what}; expected one call with all tokens of the batch, "
                f"[{', '.join(map(str, self._batch))}, features]. Take an adapter without it (--lora-targets)"
            )
        self._calls.add(parameter.name)
        if not output.requires_grad:
            output.requires_grad_(True)
        output.register_hook(partial(self._emit, parameter, activation))

    def _emit(self, parameter: Parameter, activation: Tensor, delta: Tensor) -> None:
        """Hand on one matrix's gradients: activation [B, T, in], delta [B, T, out]."""
        gradient = torch.bmm(delta.float().transpose(1, 2), activation.float())
        assert self._sink is not None
        self._sink(parameter.offset, gradient.flatten(1))
