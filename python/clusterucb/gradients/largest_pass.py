"""Find the pass of a job that takes most memory, and try a checkpoint on two short samples."""

from __future__ import annotations

import numpy as np

from clusterucb.gradients.accumulate import Checkpoint
from clusterucb.gradients.passes import PaddedBatch, micro_batches, single_pass
from clusterucb.gradients.peak_memory import peak_bytes
from clusterucb.options.gradients import GradientSettings
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.pool_and_target import Material
from clusterucb.samples.tokens import EncodedSamples

_LONGEST = 64  # the largest pass is sought among this many of the longest samples


def largest_pass(
    settings: GradientSettings, material: Material, limit: int, together: int = _LONGEST
) -> list[Encoded]:
    """Return the samples of the pass that takes most memory.

    Args:
        settings: the options.
        material: the encoded pool and target.
        limit: the padded tokens of a pass.
        together: how many of the pool's longest samples are grouped into passes; the target's are all.
    """
    lengths = material.encoded.lengths
    rows = material.unsketched if getattr(settings, "free_scores", False) else np.arange(len(lengths))
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    longest = [material.encoded[int(row)] for row in rows[:together]]
    passes = [
        [samples[at] for at in batch]
        for samples in (longest, *material.target.values())
        for batch in micro_batches([len(sample) for sample in samples], limit)[:1]
    ]
    return max(passes, key=lambda samples: len(samples) * max(map(len, samples)))


def try_passes(checkpoint: Checkpoint, encoded: EncodedSamples, limit: int, device: str) -> int:
    """Compute gradients of the two shortest samples, of different lengths if possible; return the bytes for each token.

    Raises:
        ModelError: gradients of this model cannot be computed correctly, or memory is too small for them.
    """
    order = np.argsort(encoded.lengths, kind="stable")
    longer = np.flatnonzero(encoded.lengths[order] > encoded.lengths[order[0]])
    rows = [order[0], *order[longer[:1] if len(longer) else slice(1, 2)]]
    shared = micro_batches(encoded.lengths[rows], limit)[0]

    def attempt(batch: PaddedBatch) -> int:
        gradients.backward(batch, lambda *_: None)
        return peak_bytes(lambda: gradients.backward(batch, lambda *_: None)) // batch.ids.numel()

    with checkpoint.gradients as gradients:
        return single_pass([encoded[int(rows[at])] for at in shared], device, attempt)
