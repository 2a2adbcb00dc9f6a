"""Train a LoRA on samples, and measure the loss of the model's answers.

`clusterucb.jobs.trial` trains on selections in this way, to find out whether selecting pays. The warm-up
(`clusterucb.gradients.warmup`) takes the same steps.

The loss of a step is the mean over its samples of their mean cross-entropy, as in the scores. Adam's moments start at
zero. The learning rate rises linearly over the first tenth of the steps and then falls linearly to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.errors import ModelError
from clusterucb.gradients.loss import sample_losses
from clusterucb.gradients.passes import Here, PaddedBatch, Passes, memory_for, micro_batches
from clusterucb.gradients.recompute import recomputed_layers
from clusterucb.model.moments import decay_groups
from clusterucb.samples.encoded import Encoded
from clusterucb.wording import counted

_RISING = 10  # one in so many steps, with a rising learning rate


class Training:
    """The training of a PEFT model's LoRA with AdamW (betas .9 and .999, no weight decay).

    Args:
        model: a PEFT model with trainable LoRA matrices; it stays trained.
        device: the model's device.
        autocast: the dtype that layers compute in; None for their own.
        checkpointing: whether decoder layers run again in the backward pass (`clusterucb.gradients.recompute`).
        limit: the padded tokens of a pass. A step of more tokens is computed in several passes.

    Attributes:
        optimizer: the optimiser.
    """

    def __init__(
        self,
        model: PeftModel,
        *,
        device: str = "cpu",
        autocast: torch.dtype | None = None,
        checkpointing: bool = False,
        limit: int | None = None,
    ) -> None:
        self._model = model
        self._device = device
        self._autocast = autocast
        self._checkpointing = checkpointing
        self._limit = limit
        weights = dict(model.named_parameters())
        # With names, the state tells which parameter each entry belongs to.
        groups = [
            {"params": [(name, weights[name]) for name in names]} for names in decay_groups(model) if names
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self._trained = {
            model.get_submodule(name.rpartition(".")[0]) for name in weights if weights[name].requires_grad
        }

    def steps(self, batches: Sequence[Sequence[Encoded]], rates: Sequence[float]) -> Iterator[float]:
        """Take a step on each batch, and yield its loss.

        Args:
            batches: the samples of each step.
            rates: the learning rate of each step.

        Raises:
            ModelError: memory is too small. A loss that is not finite is yielded like any other.
        """
        for samples, rate in zip(batches, rates, strict=True):
            with recomputed_layers(self._model, self._trained) if self._checkpointing else nullcontext():
                loss = self._backward(samples)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.optimizer.zero_grad()
            yield loss

    def _backward(self, samples: Sequence[Encoded]) -> float:
        """Compute the gradients of a step, and return its loss.

        Raises:
            ModelError: memory is too small.
        """
        lengths = [len(sample) for sample in samples]
        parts = [np.arange(len(samples))] if self._limit is None else micro_batches(lengths, self._limit)
        total = 0.0
        with memory_for(_too_small(lengths)):
            for rows in parts:
                batch = PaddedBatch.of([samples[row] for row in rows], self._device)
                loss = sample_losses(self._model, batch, self._autocast).sum() / len(samples)
                loss.backward()
                total += float(loss.detach())
        return total


def _too_small(lengths: Sequence[int]) -> ModelError:
    return ModelError(
        f"memory is too small for a training step of {counted(len(lengths), 'sample')} of up to {max(lengths):,} "
        "tokens; expected more memory. Use a smaller --max-length, --checkpointing, or an --adapter"
    )


def rising_and_falling(rate: float, n_steps: int) -> NDArray[np.float64]:
    """Return learning rates f64[n_steps] that rise to ``rate`` over a tenth of the steps and then fall to zero."""
    n_rising = max(n_steps // _RISING, 1)
    steps = np.arange(n_steps)
    rising, falling = (steps + 1) / n_rising, (n_steps - steps) / max(n_steps - n_rising + 1, 1)
    return rate * np.minimum(rising, falling)


def answer_losses(
    model: torch.nn.Module,
    samples: Sequence[Encoded],
    passes: Passes,
    *,
    autocast: torch.dtype | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Return the mean cross-entropy over each sample's labels, f64[m], without gradients."""
    losses = np.zeros(len(samples))

    def compute(batch: PaddedBatch) -> NDArray[np.float32]:
        with torch.no_grad():
            found: NDArray[np.float32] = sample_losses(model, batch, autocast).cpu().numpy()
        return found

    for rows, found in passes.over("losses", 0, samples, Here(compute, passes.device)):
        losses[rows] = found
        advance(len(rows))
    return losses
