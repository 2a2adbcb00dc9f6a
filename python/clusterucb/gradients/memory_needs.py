"""Estimate whether a job fits into memory, from tensor shapes and from small passes that show how memory grows.

Decisions:
    - The memory of the largest pass is extrapolated. Its samples are cut to an eighth and to a quarter of their tokens,
      and the memory of these two passes is measured. The memory of attention that keeps its weights grows with the
      square of the length; everything else grows in proportion to it. Both passes together cost three eighths of one
      pass.
    - A rough estimate comes first, from a pass over the shortest samples. If it is far below the free memory, nothing
      more is measured.
    - A job that does not fit is refused before anything is computed or written. The message has the numbers, and the
      option that makes the job fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.errors import OptionError
from clusterucb.gradients.accumulate import Checkpoint
from clusterucb.gradients.directions import HELD
from clusterucb.gradients.passes import PaddedBatch, single_pass
from clusterucb.gradients.peak_memory import peak_bytes
from clusterucb.machine import free_disk, memory
from clusterucb.options.gradients import GradientSettings
from clusterucb.samples.encoded import Encoded
from clusterucb.wording import in_bytes

_PARTS = (8, 4)  # passes over an eighth and a quarter of the tokens are measured
_FLOAT = 4  # bytes
_MARGIN = 3  # a rough estimate times this must fit, or the memory is measured
_FILLED = 0.8  # the share of the free memory that the largest passes fill
_MOST = 1 << 16  # tokens of a pass; larger passes are not faster
_SPARE = 0.05  # the share of the available memory that is left for everything that is not counted


class Counts(NamedTuple):
    """The numbers that decide how much memory a job's directions and moments need.

    Attributes:
        checkpoints: the number of checkpoints, at least one.
        subtasks: the number of subtasks; 0 without a target.
        target: the number of samples of the largest subtask.
        moments: whether the preconditioner needs moments.
    """

    checkpoints: int
    subtasks: int
    target: int
    moments: bool

    @classmethod
    def of(cls, settings: GradientSettings, target: Mapping[str, Sequence[Encoded]]) -> Self:
        """Return the counts of a job with these settings and this target (the samples of each subtask)."""
        largest = max(map(len, target.values()), default=0)
        return cls(len(settings.weights), len(target), largest, settings.preconditioner != "sgd")


class Needs(msgspec.Struct):
    """The memory that gradients need beside the model, on the model's device.

    Attributes:
        directions: bytes for the directions of all subtasks at all checkpoints.
        moments: bytes for the moments of all checkpoints.
        target: bytes for the gradients of target samples, which are kept until their norms are known.
        a_pass: bytes for the largest pass of the model.
        tokens: the number of padded tokens of that pass.
        longest: the number of tokens of its longest sample.
    """

    directions: int
    moments: int
    target: int
    a_pass: int
    tokens: int
    longest: int

    @property
    def total(self) -> int:
        """The bytes at the peak. While directions are written, they are in memory twice, but then no pass runs."""
        return self.moments + self.directions + max(self.a_pass + self.target, self.directions)


def needs(checkpoint: Checkpoint, largest: Sequence[Encoded], *, counts: Counts, device: str) -> Needs:
    """Measure the memory that gradients need.

    Args:
        checkpoint: one of the checkpoints, whose gradients are not entered.
        largest: the samples of the pass that takes most memory.
        counts: the job's counts.
        device: the model's device.
    """
    return _with_pass(checkpoint, largest, pass_bytes(checkpoint, largest, device), counts)


def check(
    checkpoint: Checkpoint,
    largest: Sequence[Encoded],
    per_token: float,
    folder: Path,
    *,
    counts: Counts,
    device: str,
    checkpointing: bool,
) -> None:
    """Refuse a job that does not fit into memory or onto the disk.

    Args:
        checkpoint, largest, counts, device: as for `needs`.
        per_token: bytes for each token of a small pass; a token of a large pass takes less.
        folder: the run's folder.
        checkpointing: whether decoder layers run again in the backward pass.

    Raises:
        OptionError: the job needs more memory or more disk space than there is.
    """
    tokens = len(largest) * max(map(len, largest))
    needed = _with_pass(checkpoint, largest, int(per_token * tokens), counts)
    if _quadratic(checkpoint) or _MARGIN * needed.total > available(device):
        needed = needs(checkpoint, largest, counts=counts, device=device)
        check_memory(needed, device, checkpointing=checkpointing)
    disk = needed.directions + 3 * _FLOAT * checkpoint.size * counts.checkpoints - _written(folder)
    if disk > (free := free_disk(folder)):
        raise OptionError(
            f"the target's directions and the adapter need {in_bytes(disk)} of disk space in {folder}; "
            f"{in_bytes(free)} are free there. Give another folder, a smaller --lora-rank, or fewer --lora-targets or "
            "--parameters"
        )


def _written(folder: Path) -> int:
    """Return the bytes of the directions and the adapters that an earlier session has written to a run's folder."""
    files = (*folder.glob(filenames.DIRECTIONS), *folder.glob(f"{filenames.ADAPTER}*/**/*"))
    return sum(path.stat().st_size for path in files if path.is_file())


def _with_pass(checkpoint: Checkpoint, largest: Sequence[Encoded], a_pass: int, counts: Counts) -> Needs:
    space = _FLOAT * checkpoint.size
    longest = max(map(len, largest))
    held = min(max(HELD, space), counts.target * space)
    return Needs(
        directions=counts.subtasks * space * counts.checkpoints,
        moments=2 * space * counts.checkpoints if counts.moments else 0,
        target=2 * held,  # for a pass, and for the next one, which begins before the first is read
        a_pass=a_pass,
        tokens=len(largest) * longest,
        longest=longest,
    )


def _quadratic(checkpoint: Checkpoint) -> bool:
    """Return whether a pass's memory grows with the square of its length."""
    return getattr(checkpoint.gradients.model.config, "_attn_implementation", "") == "eager"


def pass_bytes(checkpoint: Checkpoint, largest: Sequence[Encoded], device: str) -> int:
    """Return an estimate of the bytes that a pass over these samples takes."""
    longest = max(map(len, largest))
    sizes: list[int] = []
    peaks: list[int] = []
    with checkpoint.gradients as gradients:

        def measure(batch: PaddedBatch) -> None:
            if not sizes:
                gradients.backward(
                    batch, lambda *_: None
                )  # the first pass also runs the checks, which take more
            sizes.append(batch.ids.shape[1])
            peaks.append(peak_bytes(lambda: gradients.backward(batch, lambda *_: None)))

        for part in _PARTS:
            single_pass([_thinned(sample, -(-longest // part)) for sample in largest], device, measure)
    if len(set(sizes)) < 2:
        return int(peaks[-1] * longest / sizes[-1])
    (small, large), (low, high) = sizes, peaks
    slope = (high - low) / (large - small)
    if not _quadratic(checkpoint):
        return int(high + slope * (longest - large))
    # Fit a·T² + b·T; the constant part is small beside both terms.
    square = max((high / large - low / small) / (large - small), 0.0)
    return int(square * longest**2 + (low / small - square * small) * longest)


def _thinned(sample: Encoded, length: int) -> Encoded:
    """Return a sample cut to at most ``length`` tokens, with about the same share of labels; the last is a label."""
    kept = np.linspace(0, len(sample) - 1, min(length, len(sample))).astype(int)
    labels: NDArray[np.bool_] = sample.labels[kept].copy()
    labels[0], labels[-1] = False, True
    return Encoded(sample.tokens[kept], labels, sample.content[kept])


def available(device: str) -> int:
    """Return the bytes of free memory: on the GPU, or for this process if the device is a CPU."""
    if torch.device(device).type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + held)
    return memory()[1]


def check_memory(needed: Needs, device: str, *, checkpointing: bool) -> None:
    """Refuse gradients that do not fit into memory.

    Args:
        needed: the memory that the gradients need.
        device: the model's device.
        checkpointing: whether decoder layers run again in the backward pass.

    Raises:
        OptionError: gradients need more memory than there is.
    """
    free = int(available(device) * (1 - _SPARE))
    if needed.total <= free:
        return
    where = "memory" if torch.device(device).type == "cpu" else f"memory of {device}"
    raise OptionError(
        f"gradients need {in_bytes(needed.total)} of {where} beside the model: {in_bytes(needed.a_pass)} for a pass of "
        f"{needed.tokens:,} tokens, {in_bytes(needed.directions + needed.target)} for the target's gradients, "
        f"{in_bytes(needed.moments)} for the optimiser's moments; {in_bytes(free)} are free. "
        f"{_remedy(needed, free, checkpointing)}"
    )


def _remedy(needed: Needs, free: int, checkpointing: bool) -> str:
    """Return the option that makes the job fit, for the message."""
    left = free - needed.directions - needed.moments - needed.target
    if left < max(needed.directions, needed.a_pass / needed.tokens):
        return (
            "Use a smaller --lora-rank, fewer --lora-targets or --parameters, fewer subtasks, or "
            "--preconditioner sgd, which has no moments"
        )
    tokens = int(left / needed.a_pass * needed.tokens)
    if tokens >= needed.longest:
        return f"Use --batch-tokens {tokens}"
    if not checkpointing:
        return "Use --checkpointing"
    return f"Use --max-length {max(tokens, 2)}"


def tokens_that_fit(needed: Needs, free: int) -> int:
    """Return the padded tokens that a pass may have: a power of two, or the longest sample's tokens if these are more.

    Args:
        needed: the memory that gradients need.
        free: the bytes of free memory.
    """
    left = _FILLED * free - needed.directions - needed.moments - needed.target
    tokens = min(left / needed.a_pass * needed.tokens, _MOST)
    return int(max(2 ** int(np.log2(max(tokens, 1))), needed.longest))
