"""The pool and the target as tokens: what every later stage works on.

A sample that cannot be encoded is rejected like a line that cannot be read. What is left is still in
canonical order, and N, the number that percentages refer to, counts what is left.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.encode import Encoded, Encoder, Unusable
from clusterucb.errors import ClusterUCBWarning, InputError
from clusterucb.pool import Pool, Rejected, Sample, overlap

WARMUP_BATCH = 4  # samples in one step


@dataclass(frozen=True)
class Material:
    """Encoded samples.

    Attributes:
        samples, encoded: the pool's N samples in canonical order, and their tokens.
        target: the encoded samples of each subtask, subtasks sorted by name.
        target_samples: the same samples as they were read.
        pool_rejected, target_rejected: the lines that are not used, and why.
    """

    samples: Sequence[Sample]
    encoded: Sequence[Encoded]
    target: Mapping[str, Sequence[Encoded]]
    target_samples: Mapping[str, Sequence[Sample]]
    pool_rejected: Sequence[Rejected]
    target_rejected: Sequence[Rejected]

    @property
    def n_target(self) -> int:
        """Number of target samples over all subtasks."""
        return sum(map(len, self.target.values()))

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Return the pool's columns [N] that strategies may use beside the features."""
        return {
            "source": np.array([sample.source for sample in self.samples]),
            "tokens": np.array([len(sample) for sample in self.encoded]),
            "label_tokens": np.array([sample.n_labels for sample in self.encoded]),
        }

    def subtask_contents(self) -> dict[str, str]:
        """Return a hex SHA-256 of each subtask's samples: who has the same has the same scores."""
        return {
            name: hashlib.sha256("".join(sample.content_hash for sample in samples).encode()).hexdigest()
            for name, samples in self.target_samples.items()
        }

    def rejected_rows(self, reasons: Iterable[tuple[int, str]]) -> list[Rejected]:
        """Return where the pool samples of (row, reason) stand in their files, and why they are not used."""
        return [Rejected(self.samples[row].file, self.samples[row].line, reason) for row, reason in reasons]

    def warmup_rows(self, steps: int, seed: int) -> NDArray[np.int64]:
        """Return the rows of each warm-up step, i64[steps, 4]: epochs over the pool in random order."""
        rng = np.random.default_rng([seed, 0, 0])
        size = min(WARMUP_BATCH, len(self.encoded))
        epochs = -(-steps * size // len(self.encoded))
        order = np.concatenate([rng.permutation(len(self.encoded)) for _ in range(epochs)])
        return order[: steps * size].reshape(steps, size)


def encode(pool: Pool, target: Pool | None, encoder: Encoder) -> Material:
    """Encode a pool and perhaps a target; warn about pool samples that also stand in the target.

    Raises:
        InputError: no sample of either can be encoded.
    """
    if target and (shared := overlap(pool, target)):
        warnings.warn(
            f"samples of the pool that also stand in the target: {len(shared)}, the first is "
            f"{shared[0].file}:{shared[0].line}. They will score high without teaching anything new; take them out "
            "of one of the two",
            ClusterUCBWarning,
            stacklevel=3,
        )
    samples, encoded, pool_rejected = _encode(pool, encoder, "pool")
    if not target:
        return Material(samples, encoded, {}, {}, pool_rejected, [])
    target_samples, target_encoded, target_rejected = _encode(target, encoder, "target")
    subtasks: dict[str, list[Encoded]] = {name: [] for name in sorted({s.subtask for s in target_samples})}
    read: dict[str, list[Sample]] = {name: [] for name in subtasks}
    for sample, tokens in zip(target_samples, target_encoded, strict=True):
        subtasks[sample.subtask].append(tokens)
        read[sample.subtask].append(sample)
    return Material(samples, encoded, subtasks, read, pool_rejected, target_rejected)


def _encode(pool: Pool, encoder: Encoder, what: str) -> tuple[list[Sample], list[Encoded], list[Rejected]]:
    samples, encoded, rejected = [], [], list(pool.rejected)
    for sample in pool.samples:
        try:
            encoded.append(encoder(sample.messages))
            samples.append(sample)
        except Unusable as error:
            rejected.append(Rejected(sample.file, sample.line, str(error)))
    if not samples:
        first = rejected[len(pool.rejected)]
        raise InputError(
            f"no sample of the {what} can be encoded (first: {first.file}:{first.line}: {first.reason}); expected "
            "answers with at least one token, and a chat template that fits them"
        )
    return samples, encoded, pool.in_reading_order(rejected)
