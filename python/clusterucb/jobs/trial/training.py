"""Train the same LoRA on the samples of an arm, and measure the judges' losses on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from peft import PeftModel

from clusterucb.errors import ModelError
from clusterucb.gradients.fine_tuning import Training, answer_losses, rising_and_falling
from clusterucb.gradients.passes import CPU_TOKENS, Passes
from clusterucb.jobs.trial.cells import BATCH, Cell, Rows
from clusterucb.model.source import DTYPES
from clusterucb.options.gradients import GradientSettings
from clusterucb.samples.encoded import Encoded

_POINTS = 3  # measurements during a training


class Trainer:
    """Trains a model again and again from the same start.

    Args:
        model: a PEFT model whose LoRA matrices are trainable.
        pool: the encoded samples of the pool.
        judges: the encoded judges of each subtask.
        elsewhere: random samples of the pool on which no arm trains.
        settings: the options of the run, such as the data type of a pass.
        device: the model's device.
    """

    def __init__(
        self,
        model: PeftModel,
        pool: Sequence[Encoded],
        judges: Mapping[str, Sequence[Encoded]],
        elsewhere: Sequence[Encoded],
        settings: GradientSettings,
        device: str,
    ) -> None:
        self._model = model
        self._pool = pool
        self._judges = judges
        self._elsewhere = elsewhere
        self._limit, self._device = settings.batch_tokens or CPU_TOKENS, device
        self._autocast = DTYPES.get(settings.autocast or "")
        self._training = partial(
            Training,
            model,
            device=device,
            autocast=self._autocast,
            checkpointing=settings.checkpointing,
            limit=self._limit,
        )
        weights = model.named_parameters()
        self._start = {name: weight.detach().clone() for name, weight in weights if weight.requires_grad}

    def untrained(self) -> Cell:
        """Measure the losses before any training."""
        self._reset()
        return Cell(
            [0], {name: [losses] for name, losses in self._judged().items()}, self._losses(self._elsewhere)
        )

    def trained(
        self,
        order: Rows,
        rate: float,
        advance: Callable[[int], None] = lambda _: None,
        *,
        points: int = _POINTS,
    ) -> Cell:
        """Train on samples, and measure the losses.

        Args:
            order: i64[n], the rows of the pool in the order of the training.
            rate: the largest learning rate.
            advance: called with the number of samples of each step.
            points: the number of measurements, the last one at the end.

        Raises:
            ModelError: the loss became NaN or infinite, or memory is too small.
        """
        self._reset()
        batches = [
            [self._pool[int(row)] for row in order[start : start + BATCH]]
            for start in range(0, len(order), BATCH)
        ]
        measured = sorted({-(-len(batches) * point // points) for point in range(1, points + 1)})
        tokens = sum(len(sample) for batch in batches for sample in batch)
        cell = Cell([], {name: [] for name in self._judges}, [], len(order), tokens)
        steps = self._training().steps(batches, rising_and_falling(rate, len(batches)).tolist())
        began = time.monotonic()
        for step, loss in enumerate(steps, start=1):
            if not np.isfinite(loss):
                raise ModelError(
                    f"the loss is {loss} in training step {step}; expected a finite number. Use a smaller "
                    "--learning-rate"
                )
            advance(len(batches[step - 1]))
            if step not in measured:
                continue
            cell.seconds += time.monotonic() - began
            cell.steps.append(step)
            for name, losses in self._judged().items():
                cell.losses[name].append(losses)
            began = time.monotonic()
        cell.elsewhere = self._losses(self._elsewhere)
        return cell

    def _reset(self) -> None:
        with torch.no_grad():
            for name, value in self._start.items():
                self._model.get_parameter(name).copy_(value)

    def _judged(self) -> dict[str, list[float]]:
        return {name: self._losses(samples) for name, samples in self._judges.items()}

    def _losses(self, samples: Sequence[Encoded]) -> list[float]:
        passes = Passes(self._limit, self._device)
        found: list[float] = answer_losses(self._model, samples, passes, autocast=self._autocast).tolist()
        return found
