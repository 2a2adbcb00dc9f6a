"""Name the options that have no meaning where gradients are those of a live model, in a training."""

from __future__ import annotations

from dataclasses import fields

from clusterucb.options.gradients import FRESH_LORA
from clusterucb.options.search import OutputSettings

# Options that name a checkpoint, or what was computed with one.
CHECKPOINT = ("adapter", "optimizer", "checkpoint", "checkpoint_weights", "store", "prior", "hold_out")
# Options about how a model is loaded.
LOADING = ("tokenizer", "device", "dtype", "quantize", "revision", "trust_remote_code", *FRESH_LORA)
# Options about how a command works, and what it writes.
COMMAND = ("workers", "no_lock", *(field.name for field in fields(OutputSettings)))
WARMUP = 30  # steps on random samples before the first round of a training
