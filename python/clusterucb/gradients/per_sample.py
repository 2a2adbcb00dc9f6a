"""Per-sample gradients of the differentiated matrices, one at a time, from batched passes.

For a linear layer y = W x, the gradient of one sample is the sum over its tokens of (dloss/dy) xᵀ.
Forward hooks keep x, hooks on the outputs deliver dloss/dy while the backward pass goes on, and one
batched product gives that matrix's gradient for every sample of the batch. It is handed on at once
and forgotten: never more than one matrix's gradients are in memory, nor more than `_PIECE` bytes of it.

Decisions:
    - The loss is the **sum** over samples of each sample's mean cross-entropy, in fp32, in evaluation
      mode. A sample's gradient then does not depend on who shares its batch.
    - Every parameter is frozen, so no weight gradient is computed twice; the graph begins at the
      first differentiated layer's output.
    - The first batch is checked against autograd: the per-sample gradients must add up to the
      gradient of the batch. It costs one small product per matrix, and finds at once what hooks
      cannot see (a matrix used outside its layer, a layer called in an unforeseen way).
    - The first batch of several samples, and the first with padding, are checked too: the gradient of the shortest
      must be the same alone. A model that sees what comes later (BERT, say), or whose layers get the samples'
      tokens in another order (experts), would give scores that depend on the batch.
    - What ran in the batch that was checked must run in every other: a layer that only some tokens reach,
      or whose hooks a compiled graph leaves out, would give zeros that look like gradients.
    - Compiled models run uncompiled here: their graphs know nothing of these hooks. `clusterucb.gradients.compiled`
      compiles what has none.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from clusterucb.errors import ModelError
from clusterucb.gradients.compiled import CompiledParts
from clusterucb.gradients.loss import sample_losses
from clusterucb.gradients.passes import Batch
from clusterucb.gradients.recompute import recomputed_layers
from clusterucb.kernels import ops
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch
from clusterucb.model.parameters import Parameter, ParameterManifest

Sink = Callable[[int, Tensor], None]

_PIECE = 1 << 26  # bytes of gradients that exist at a time, one row of a matrix at least
_ALIGNED_ROWS = 8  # pieces begin at offsets that the kernels load vectors from
# How far per-sample gradients may be from adding up to autograd's, and those of a sample from those of the same one
# alone, relative to their norm.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.05}
_PROBE = Sketch(1024, 4)  # of the gradient of one sample, which is compared
_LEAVE_OUT = "Leave that layer out (--lora-targets, --parameters)"


class PerSampleGradients:
    """Per-sample gradients of a causal language model's matrices.

    A context manager that may be entered again and again: inside, the model is frozen, in evaluation mode and has
    hooks; on exit it is as it was before, but that no adapter is in force if one is named.

    Args:
        model: a causal language model, perhaps of PEFT.
        manifest: where each matrix stands in the flat space.
        adapter: the name of the PEFT adapter that they belong to, where the model has several.
        autocast: dtype that layers compute in, where it is not their own; gradients are fp32 sums all the same.
        checkpointing: keep the inputs of decoder layers alone, and run each layer again in the backward pass.
        compiling: compile what holds no differentiated layer.

    Attributes:
        model, manifest: the same.
    """

    def __init__(
        self,
        model: nn.Module,
        manifest: ParameterManifest,
        *,
        adapter: str | None = None,
        autocast: torch.dtype | None = None,
        checkpointing: bool = False,
        compiling: bool = False,
    ) -> None:
        self.model = model
        self.manifest = manifest
        self._adapter = adapter
        self._autocast = autocast
        self._checkpointing = checkpointing
        self._compiling = compiling
        self._parts: CompiledParts | None = None
        dtype = autocast or next(model.parameters()).dtype  # of the base model; LoRA itself is fp32
        self._tolerance = _TOLERANCE.get(dtype, 0.3)
        self._sink: Sink | None = None
        self._ran: set[str] = set()
        self._shape: tuple[int, int] = (0, 0)
        self._expected: set[str] | None = None  # what ran in the batch that was checked
        self._compared: set[bool] = set()  # whether batches without padding, and with it, were compared

    def __enter__(self) -> Self:
        """Freeze the model and add the hooks."""
        with ExitStack() as undo:  # in case that something fails
            self._prepare(undo)
            self._undo = undo.pop_all()
        return self

    def _prepare(self, undo: ExitStack) -> None:
        if self._adapter is not None:
            self.model.base_model.enable_adapter_layers()  # type: ignore[union-attr,operator]
            undo.callback(self.model.base_model.disable_adapter_layers)  # type: ignore[union-attr,arg-type]
            self.model.set_adapter(self._adapter)  # type: ignore[operator]
        undo.callback(self.model.train, self.model.training)
        self.model.eval()
        for weight in self.model.parameters():
            undo.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(False)
        for parameter in self.manifest:
            module = self.model.get_submodule(parameter.module)
            undo.callback(module.register_forward_hook(partial(self._capture, parameter)).remove)
        if self._checkpointing:
            undo.enter_context(recomputed_layers(self.model, self._differentiated))
        if self._compiling:
            self._parts = self._parts or CompiledParts(self.model, self._differentiated, self._autocast)
            undo.enter_context(self._parts.active())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hooks away and restore the model."""
        self._undo.close()

    @property
    def _differentiated(self) -> set[nn.Module]:
        return {self.model.get_submodule(one.module) for one in self.manifest}

    def backward(self, batch: Batch, sink: Sink) -> Tensor:
        """Compute the gradient of each sample's loss, and hand it on piece by piece.

        Args:
            batch: B samples.
            sink: called with an offset of the flat space and the gradients f32[B, n] of the n parameters from there
                on; for each parameter at most once, in no particular order.

        Returns:
            f32[B], the losses.

        Raises:
            ModelError: the model does something that per-sample hooks cannot follow.
        """
        several, padded = len(batch.lengths) > 1, min(batch.lengths) < max(batch.lengths)
        compare = several and padded not in self._compared
        if not compare and self._expected is not None:
            return self._pass(batch, sink)
        row = batch.lengths.index(min(batch.lengths))
        together = _Probe(row)

        def both(offset: int, gradient: Tensor) -> None:
            together(offset, gradient)
            sink(offset, gradient)

        losses = self._checked_pass(batch, both) if self._expected is None else self._pass(batch, both)
        if compare and together.finite():  # or it says nothing; a later batch is compared
            self._compare(batch.alone(row), together, padded)
        return losses

    def _pass(self, batch: Batch, sink: Sink) -> Tensor:
        with self._handing_to(sink, batch):
            losses = sample_losses(self.model, batch, self._autocast)
            losses.sum().backward()
        if self._ran != self._expected:
            strange = sorted(self._ran ^ (self._expected or set()))[0]
            raise ModelError(
                f"the layer {strange} runs for some samples and not for others (or was compiled); expected every layer "
                f"in every pass. {_LEAVE_OUT}"
            )
        return losses.detach()

    @contextmanager
    def _handing_to(self, sink: Sink, batch: Batch) -> Iterator[None]:
        rows, columns = batch.ids.shape
        self._sink, self._ran, self._shape = sink, set(), (rows, columns)
        try:
            with nullcontext() if self._compiling else _uncompiled():
                yield
        finally:
            self._sink = None

    def _checked_pass(self, batch: Batch, sink: Sink) -> Tensor:
        """Do the same, and check that the gradients add up to what autograd computes."""
        totals = {one.offset: torch.zeros(one.size, device=batch.ids.device) for one in self.manifest}
        starts = sorted(totals)

        def add_up(offset: int, gradient: Tensor) -> None:
            start = starts[bisect_right(starts, offset) - 1]
            totals[start][offset - start : offset - start + gradient.shape[1]] += gradient.sum(dim=0)
            sink(offset, gradient)

        weights = [self.model.get_parameter(one.torch_name) for one in self.manifest]
        before = [weight.grad for weight in weights]
        with self._handing_to(add_up, batch):
            try:
                for weight in weights:
                    weight.grad = None
                    weight.requires_grad_(True)
                losses = sample_losses(self.model, batch, self._autocast)
                losses.sum().backward()
                expected = [weight.grad for weight in weights]
            finally:
                for weight, kept in zip(weights, before, strict=True):
                    weight.requires_grad_(False)
                    weight.grad = kept
        for one, found in zip(self.manifest, expected, strict=True):
            got = totals[one.offset]
            true = torch.zeros_like(got) if found is None else found.flatten().float()
            if not true.isfinite().all():
                return losses.detach()  # says nothing; the next batch is checked
            if not (got - true).norm() <= self._tolerance * true.norm() + 1e-12:
                raise ModelError(
                    f"the per-sample gradients of {one.name} do not add up to the gradient of the batch (they "
                    f"differ by {float((got - true).norm() / true.norm()):.2g} of its norm): this model uses "
                    f"that matrix in a way that is not supported. {_LEAVE_OUT}"
                )
        self._expected = self._ran
        return losses.detach()

    def _compare(self, batch: Batch, together: _Probe, padded: bool) -> None:
        """Check that a sample's gradients are the same alone as they were beside others."""
        alone = _Probe(0)
        with self._handing_to(alone, batch):
            sample_losses(self.model, batch, self._autocast).sum().backward()
        change = alone.distance(together)
        if not change <= self._tolerance:
            raise ModelError(
                f"{type(self.model).__name__} gives a sample other gradients beside {'longer' if padded else 'other'} "
                f"ones than alone (they differ by {change:.2g} of their norm); expected a causal language model, "
                "which does not see what follows a token, and layers that see all tokens of a batch in their order"
            )
        self._compared.add(padded)

    def _capture(
        self, parameter: Parameter, _module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        """Keep a layer's input until the gradient of its output arrives."""
        if self._sink is None or not torch.is_grad_enabled():  # it will run again
            return
        rows, columns = self._shape
        activation = args[0].detach() if args else torch.empty(0)
        flat = activation.ndim == 2 and len(activation) == rows * columns  # as OPT does
        if not (flat or activation.shape[:-1] == self._shape) or parameter.name in self._ran:
            again = parameter.name in self._ran
            what = "runs twice in a pass" if again else f"gets input of shape {tuple(activation.shape)}"
            raise ModelError(
                f"the layer {parameter.name} {what}; expected one call with all tokens of the batch, "
                f"[{rows}, {columns}, features]. {_LEAVE_OUT}"
            )
        self._ran.add(parameter.name)
        if not output.requires_grad:
            output.requires_grad_(True)
        output.register_hook(partial(self._emit, parameter, activation))

    def _emit(self, parameter: Parameter, activation: Tensor, delta: Tensor) -> None:
        """Hand on one matrix's gradients: activation [B, T, in], delta [B, T, out]."""
        assert self._sink is not None
        left, right = (delta, activation) if not parameter.transposed else (activation, delta)
        left, right = left.reshape(*self._shape, -1), right.reshape(*self._shape, -1).float()
        n_rows, width = parameter.shape
        step = _PIECE // (len(left) * width * 4) // _ALIGNED_ROWS * _ALIGNED_ROWS or _ALIGNED_ROWS
        for start in range(0, n_rows, step):
            piece = torch.bmm(left[:, :, start : start + step].float().transpose(1, 2), right)
            self._sink(parameter.offset + start * width, piece.flatten(1))


@contextmanager
def _uncompiled() -> Iterator[None]:
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled, and its import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class _Probe:
    """The sketch of one sample's gradient: as long as the gradient, within a few percent, and as far from others.

    Made on the CPU, whose kernels are always there.
    """

    def __init__(self, row: int) -> None:
        self._row = row
        self._norm2 = torch.zeros(1, dtype=torch.float64)
        self._sketched = torch.zeros(1, _PROBE.dimension)

    def __call__(self, offset: int, gradient: Tensor) -> None:
        ops.accumulate(
            gradient[self._row : self._row + 1].cpu(),
            offset,
            preconditioner=Preconditioner("sgd"),
            norm2=self._norm2,
            sketch=_PROBE,
            sketched=self._sketched,
        )

    def finite(self) -> bool:
        """Whether the gradient is finite, and not zero."""
        return bool(self._sketched.isfinite().all()) and bool(self._norm2 > 0)

    def distance(self, other: _Probe) -> float:
        """Return how far the gradient is from another, relative to its norm."""
        return float((self._sketched - other._sketched).norm() / self._sketched.norm())
