"""Warm up a fresh LoRA briefly, so that both its matrices have gradients and Adam has moments.

An untrained LoRA has B = 0, which makes the gradient of A zero, and there are no Adam moments yet. A few AdamW steps on
random pool samples give both. The result is an adapter folder like any other, with ``optimizer.pt`` in the Trainer's
form. The run continues from these files, so a run with ``--adapter RUN/adapter`` repeats it bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import torch
from peft import PeftModel

from clusterucb.atomic import whole_folder
from clusterucb.errors import ModelError
from clusterucb.gradients.fine_tuning import Training
from clusterucb.samples.encoded import Encoded


def warm_up(
    model: PeftModel,
    batches: Sequence[Sequence[Encoded]],
    folder: Path,
    *,
    learning_rate: float,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
    checkpointing: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Train a fresh LoRA with AdamW (betas .9 and .999, no weight decay) and write it to ``folder``.

    Args:
        model: a PEFT model with trainable LoRA matrices; it stays trained.
        batches: the samples of each step; the loss is the mean over samples of their mean cross-entropy.
        folder: becomes an adapter folder with ``optimizer.pt``, written whole or not at all.
        learning_rate: the learning rate, constant over the steps.
        device: the model's device.
        autocast: the dtype that layers compute in; None for their own.
        checkpointing: whether decoder layers run again in the backward pass (`clusterucb.gradients.recompute`).
        advance: called with the number of samples that are done.

    Raises:
        ModelError: the loss became NaN or infinite, or memory is too small.
    """
    training = Training(model, device=device, autocast=autocast, checkpointing=checkpointing)
    steps = training.steps(batches, [learning_rate] * len(batches))
    for number, (samples, loss) in enumerate(zip(batches, steps, strict=True), start=1):
        if not math.isfinite(loss):
            raise ModelError(
                f"the loss is {loss} in warm-up step {number}; expected a finite number. Use a smaller --warmup-lr, "
                "or --dtype float32"
            )
        advance(len(samples))
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        config = partial / "adapter_config.json"
        config.write_text(json.dumps(_sorted_lists(json.loads(config.read_text())), indent=2, sort_keys=True))
        content = BytesIO()  # torch's own writer hides why writing to a disk fails
        torch.save(training.optimizer.state_dict(), content)
        (partial / "optimizer.pt").write_bytes(content.getbuffer())


def _sorted_lists(config: dict[str, object]) -> dict[str, object]:
    """Return the configuration with its lists sorted, because PEFT writes sets, whose order varies."""
    return {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()}
