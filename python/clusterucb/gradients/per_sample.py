"""Compute per-sample gradients of the differentiated matrices from batched passes, one matrix at a time.

For a linear layer y = W x, the gradient of one sample is the sum over its tokens of (dloss/dy) xᵀ. Forward hooks keep
x. Hooks on the outputs deliver dloss/dy during the backward pass. One batched product then gives the matrix's gradients
for all samples of the batch. They are passed to the caller at once and freed: the gradients of at most one matrix are
in memory, and at most `_PIECE` bytes of them.

Decisions:
    - The loss is the **sum** over samples of each sample's mean cross-entropy, in fp32, in evaluation mode. So a
      sample's gradient does not depend on the other samples of its batch.
    - All parameters are frozen, so that autograd computes no weight gradient a second time. The graph begins at the
      output of the first differentiated layer.
    - The first batch is checked against autograd: the per-sample gradients must add up to the gradient of the batch.
      This costs one small product for each matrix. It finds at once what hooks cannot see: a matrix that is used
      outside its layer, or a layer that is called in an unforeseen way.
    - The first batch of several samples and the first batch with padding are checked too: the gradient of the shortest
      sample must be the same when the sample is alone. A model that sees later tokens (BERT, say), or whose layers get
      the tokens in another order (experts), would give scores that depend on the batch.
    - The layers that ran in the checked batch must run in every other batch. A layer that only some tokens reach, or
      whose hooks a compiled graph leaves out, would give zeros that look like gradients.
    - Compiled models run uncompiled here, because their graphs ignore these hooks. `clusterucb.gradients.compiled`
      compiles the parts without hooks.
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
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn

from clusterucb.errors import ModelError
from clusterucb.gradients.compiled import CompiledParts
from clusterucb.gradients.dora import magnitude_kept
from clusterucb.gradients.loss import sample_losses
from clusterucb.gradients.passes import PaddedBatch
from clusterucb.gradients.recompute import recomputed_layers
from clusterucb.kernels import ops
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch
from clusterucb.model.parameters import Parameter, ParameterManifest
from clusterucb.model.targets import has_every_token

Sink = Callable[[int, Tensor], None]

_PIECE = (
    1 << 26
)  # bytes of gradients in memory at a time; a piece has at least `_ALIGNED_ROWS` rows of a matrix
_ALIGNED_ROWS = 8  # a piece has a multiple of this many rows, so that the kernels' vector loads are aligned
# The tolerated relative difference of norms, between the sum of per-sample gradients and autograd's gradient, and
# between a sample's gradient in a batch and alone.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.05}
_PROBE = Sketch(1024, 4)  # sketches the gradient of the sample that is compared
_LEAVE_OUT = "Leave that layer out (--lora-targets, --parameters)"


class PerSampleGradients:
    """Computes per-sample gradients of a causal language model's matrices.

    A context manager that may be entered repeatedly. Inside it, the model is frozen, in evaluation mode, and has hooks.
    The exit restores the model, except that its adapters are then disabled if ``adapter`` is given.

    Args:
        model: a causal language model, perhaps a PEFT model.
        manifest: the differentiated matrices and their offsets in the flat space.
        adapter: the name of the PEFT adapter that the matrices belong to; None for a model without adapters.
        autocast: the dtype that layers compute in, or None for their own; gradients are summed in fp32 either way.
        checkpointing: keep only the inputs of decoder layers, and run each layer again in the backward pass.
        compiling: compile the parts that hold no differentiated layer.

    Attributes:
        model: the model.
        manifest: the differentiated matrices.
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
        dtype = autocast or next(model.parameters()).dtype  # the base model's dtype; LoRA itself is in fp32
        self._tolerance = _TOLERANCE.get(dtype, 0.3)
        self._sink: Sink | None = None
        self._ran: set[str] = set()
        self._shape: tuple[int, int] = (0, 0)
        self._expected: set[str] | None = None  # the layers that ran in the checked batch
        self._compared: set[bool] = (
            set()
        )  # holds False once a batch without padding was compared, True with padding

    def __enter__(self) -> Self:
        """Freeze the model and add the hooks."""
        with ExitStack() as undo:  # restores the model if a step fails
            self._prepare(undo)
            self._undo = undo.pop_all()
        return self

    def activate_adapter(self) -> None:
        """Switch the adapter on and make its matrices trainable. It stays so, unlike in a ``with`` block."""
        self.model.base_model.enable_adapter_layers()  # type: ignore[union-attr,operator]
        self.model.set_adapter(self._adapter)  # type: ignore[operator]

    def _prepare(self, undo: ExitStack) -> None:
        if self._adapter is not None:
            undo.callback(self.model.base_model.disable_adapter_layers)  # type: ignore[union-attr,arg-type]
            self.activate_adapter()
        undo.callback(self.model.train, self.model.training)
        self.model.eval()
        for weight in self.model.parameters():
            undo.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(False)
        for parameter in self.manifest:
            module = self.model.get_submodule(parameter.module)
            if isinstance(module, DoraLinearLayer):
                undo.enter_context(magnitude_kept(module, partial(self._keep, parameter)))
            else:
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
        return {self.model.get_submodule(parameter.module) for parameter in self.manifest}

    def backward(self, batch: PaddedBatch, sink: Sink) -> Tensor:
        """Compute the gradient of each sample's loss, and pass it to ``sink`` piece by piece.

        Args:
            batch: B samples.
            sink: called with an offset in the flat space and the gradients f32[B, n] of the n parameters from that
                offset on. Each parameter comes at most once; the pieces come in no particular order.

        Returns:
            f32[B], the losses.

        Raises:
            ModelError: the per-sample gradients would be wrong, because the model uses a layer or a matrix in a way
                that hooks cannot follow, or because a sample's gradient depends on its batch.
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
        if (
            compare and together.finite()
        ):  # a gradient that is zero or not finite proves nothing: compare a later batch
            self._compare(batch.alone(row), together, padded)
        return losses

    def _pass(self, batch: PaddedBatch, sink: Sink) -> Tensor:
        with self._hooks_feeding(sink, batch):
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
    def _hooks_feeding(self, sink: Sink, batch: PaddedBatch) -> Iterator[None]:
        """Let the hooks pass the gradients of a batch to ``sink`` while the block runs."""
        rows, columns = batch.ids.shape
        self._sink, self._ran, self._shape = sink, set(), (rows, columns)
        try:
            with nullcontext() if self._compiling else _uncompiled():
                yield
        finally:
            self._sink = None

    def _checked_pass(self, batch: PaddedBatch, sink: Sink) -> Tensor:
        """Run a pass, and check that the per-sample gradients add up to the gradient that autograd computes."""
        totals = {
            parameter.offset: torch.zeros(parameter.size, device=batch.ids.device)
            for parameter in self.manifest
        }
        starts = sorted(totals)

        def add_up(offset: int, gradient: Tensor) -> None:
            start = starts[bisect_right(starts, offset) - 1]
            totals[start][offset - start : offset - start + gradient.shape[1]] += gradient.sum(dim=0)
            sink(offset, gradient)

        weights = [self.model.get_parameter(parameter.torch_name) for parameter in self.manifest]
        before = [weight.grad for weight in weights]
        with self._hooks_feeding(add_up, batch):
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
        for parameter, gradient in zip(self.manifest, expected, strict=True):
            got = totals[parameter.offset]
            true = torch.zeros_like(got) if gradient is None else gradient.flatten().float()
            if not true.isfinite().all():
                return losses.detach()  # proves nothing: the next batch is checked
            if not (got - true).norm() <= self._tolerance * true.norm() + 1e-12:
                raise ModelError(
                    f"the per-sample gradients of {parameter.name} do not add up to the gradient of the batch (they "
                    f"differ by {float((got - true).norm() / true.norm()):.2g} of its norm): the model's use of "
                    f"this matrix is not supported. {_LEAVE_OUT}"
                )
        self._expected = self._ran
        return losses.detach()

    def _compare(self, batch: PaddedBatch, together: _Probe, padded: bool) -> None:
        """Check that a sample's gradient is the same alone as together with others.

        Args:
            batch: the sample alone.
            together: the sample's gradient together with others.
            padded: whether the sample was padded then.
        """
        alone = _Probe(0)
        with self._hooks_feeding(alone, batch):
            sample_losses(self.model, batch, self._autocast).sum().backward()
        change = alone.distance(together)
        if not change <= self._tolerance:
            raise ModelError(
                f"{type(self.model).__name__} gives a sample different gradients beside "
                f"{'longer' if padded else 'other'} samples than alone (they differ by {change:.2g} of their norm); "
                "expected a causal language model, in which a token sees only earlier tokens, and layers that get all "
                "tokens of a batch in order"
            )
        self._compared.add(padded)

    def _capture(
        self, parameter: Parameter, _module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        """Keep a layer's input until the gradient of its output arrives."""
        self._keep(parameter, args[0] if args else torch.empty(0), output)

    def _keep(self, parameter: Parameter, factor: Tensor, output: Tensor) -> None:
        """Keep what the gradient of a layer's output is multiplied by, until that gradient arrives."""
        if self._sink is None or not torch.is_grad_enabled():  # a recomputed layer will run again
            return
        rows, columns = self._shape
        activation = factor.detach()
        if not has_every_token(activation.shape, self._shape) or parameter.name in self._ran:
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
        """Pass one matrix's gradients to the sink.

        Args:
            parameter: the matrix.
            activation: [B, T, in], the layer's input; for a magnitude of DoRA [B, T, out], its factor.
            delta: [B, T, out], the gradient of the loss with respect to the layer's output.
        """
        assert self._sink is not None
        if parameter.magnitude:
            product = delta.reshape(*self._shape, -1).float() * activation.reshape(*self._shape, -1).float()
            self._sink(parameter.offset, product.sum(dim=1))
            return
        left, right = (delta, activation) if not parameter.transposed else (activation, delta)
        left, right = left.reshape(*self._shape, -1), right.reshape(*self._shape, -1).float()
        n_rows, width = parameter.shape
        step = _PIECE // (len(left) * width * 4) // _ALIGNED_ROWS * _ALIGNED_ROWS or _ALIGNED_ROWS
        for start in range(0, n_rows, step):
            piece = torch.bmm(left[:, :, start : start + step].float().transpose(1, 2), right)
            self._sink(parameter.offset + start * width, piece.flatten(1))


@contextmanager
def _uncompiled() -> Iterator[None]:
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled; importing it would take seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class _Probe:
    """The sketch of one sample's gradient; it keeps the gradient's norm and distances to a few percent.

    It is computed on the CPU, whose kernels are always there.

    Args:
        row: the sample's row in the batch.
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
        """Return whether the gradient is finite and not zero."""
        return bool(self._sketched.isfinite().all()) and bool(self._norm2 > 0)

    def distance(self, other: _Probe) -> float:
        """Return the distance between this gradient and another, relative to this gradient's norm."""
        return float((self._sketched - other._sketched).norm() / self._sketched.norm())
