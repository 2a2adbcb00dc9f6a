"""Whether a job fits into memory, from shapes and the smallest passes that show how memory grows.

Decisions:
    - What a pass takes is counted for the pass that will take most, cut down to an eighth and a quarter of its tokens,
      and worked out from there: attention that keeps its weights grows with the square of the length, everything else
      in proportion. It costs three eighths of one pass.
    - Where a rough figure, that of the smallest pass, is far from what is free, no more is measured.
    - A job is refused before anything is computed or written, with the numbers and with the option that makes it fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.errors import OptionError
from clusterucb.gradients.accumulate import Checkpoint
from clusterucb.gradients.passes import Batch, single_pass
from clusterucb.gradients.peak_memory import peak_bytes
from clusterucb.gradients.scorer import HELD
from clusterucb.machine import free_disk, memory
from clusterucb.options.gradients import GradientSettings
from clusterucb.samples.encode import Encoded
from clusterucb.wording import in_bytes

_PARTS = (8, 4)  # of the tokens of a pass
_FLOAT = 4  # bytes
_MARGIN = 3  # of a rough figure
_FILLED = 0.8  # of the free memory, by passes that are as large as they may be
_MOST = 1 << 16  # tokens of a pass, beyond which nothing is gained
_SPARE = 0.05  # of the available memory, which is for what is not counted


class Counts(NamedTuple):
    """What a job has how many of.

    Attributes:
        checkpoints, subtasks: at least one, and perhaps none.
        target: samples of the largest subtask.
        moments: whether there are moments.
    """

    checkpoints: int
    subtasks: int
    target: int
    moments: bool

    @classmethod
    def of(cls, settings: GradientSettings, target: Mapping[str, Sequence[Encoded]]) -> Self:
        """Return those of a job with these settings and this target."""
        largest = max(map(len, target.values()), default=0)
        return cls(len(settings.weights), len(target), largest, settings.preconditioner != "sgd")


class Needs(msgspec.Struct):
    """What gradients need beside the model, in bytes on its device.

    Attributes:
        directions: of all subtasks at all checkpoints.
        moments: of all checkpoints.
        target: gradients of target samples that wait for their norms.
        a_pass: the largest pass of the model.
        tokens: padded tokens of that pass.
        longest: tokens of its longest sample.
    """

    directions: int
    moments: int
    target: int
    a_pass: int
    tokens: int
    longest: int

    @property
    def total(self) -> int:
        """Everything, at the peak: directions are in memory twice while they are written, when no pass is made."""
        return self.moments + self.directions + max(self.a_pass + self.target, self.directions)


def needs(checkpoint: Checkpoint, largest: Sequence[Encoded], *, counts: Counts, device: str) -> Needs:
    """Return what gradients need.

    Args:
        checkpoint: one of them; its gradients are not entered.
        largest: the samples of the pass that takes most.
        counts: of the job.
        device: where the model is.
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
    """Refuse a job that has no room, in memory or on the disk.

    Args:
        checkpoint, largest, counts, device: as of `needs`.
        per_token: bytes for each token of a small pass, which take more than those of a large one.
        folder: of the run.
        checkpointing: whether layers run again in the backward pass.

    Raises:
        OptionError: it has none.
    """
    tokens = len(largest) * max(map(len, largest))
    found = _with_pass(checkpoint, largest, int(per_token * tokens), counts)
    if _quadratic(checkpoint) or _MARGIN * found.total > available(device):
        found = needs(checkpoint, largest, counts=counts, device=device)
        check_memory(found, device, checkpointing=checkpointing)
    needed, free = found.directions + 3 * _FLOAT * checkpoint.size * counts.checkpoints, free_disk(folder)
    if needed > free:
        raise OptionError(
            f"the target's directions and the adapter need {in_bytes(needed)} of disk in {folder}, {in_bytes(free)} "
            "are free there. Give another folder, or a smaller --lora-rank, fewer --lora-targets or --parameters"
        )


def _with_pass(checkpoint: Checkpoint, largest: Sequence[Encoded], a_pass: int, counts: Counts) -> Needs:
    space = _FLOAT * checkpoint.size
    longest = max(map(len, largest))
    held = min(max(HELD, space), counts.target * space)
    return Needs(
        directions=counts.subtasks * space * counts.checkpoints,
        moments=2 * space * counts.checkpoints if counts.moments else 0,
        target=2 * held,  # of a pass, and of the one after it
        a_pass=a_pass,
        tokens=len(largest) * longest,
        longest=longest,
    )


def _quadratic(checkpoint: Checkpoint) -> bool:
    """Return whether memory grows with the square of the length."""
    return getattr(checkpoint.gradients.model.config, "_attn_implementation", "") == "eager"


def pass_bytes(checkpoint: Checkpoint, largest: Sequence[Encoded], device: str) -> int:
    """Return about how many bytes a pass over these samples takes."""
    longest = max(map(len, largest))
    sizes: list[int] = []
    peaks: list[int] = []
    with checkpoint.gradients as gradients:

        def measure(batch: Batch) -> None:
            if not sizes:
                gradients.backward(batch, lambda *_: None)  # the first pass is checked, which takes more
            sizes.append(batch.ids.shape[1])
            peaks.append(peak_bytes(lambda: gradients.backward(batch, lambda *_: None)))

        for part in _PARTS:
            single_pass([_cut(sample, -(-longest // part)) for sample in largest], device, measure)
    if len(set(sizes)) < 2:
        return int(peaks[-1] * longest / sizes[-1])
    (small, large), (low, high) = sizes, peaks
    slope = (high - low) / (large - small)
    if not _quadratic(checkpoint):
        return int(high + slope * (longest - large))
    # As a·T² + b·T: what does not grow with the length is small beside both.
    square = max((high / large - low / small) / (large - small), 0.0)
    return int(square * longest**2 + (low / small - square * small) * longest)


def _cut(sample: Encoded, length: int) -> Encoded:
    """Return a shorter sample, with the same share of labels, its last token among them."""
    kept = np.linspace(0, len(sample) - 1, min(length, len(sample))).astype(int)
    labels: NDArray[np.bool_] = sample.labels[kept].copy()
    labels[0], labels[-1] = False, True
    return Encoded(sample.tokens[kept], labels, sample.content[kept])


def available(device: str) -> int:
    """Return the bytes that are free on a device, or for this process."""
    if torch.device(device).type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + held)
    return memory()[1]


def check_memory(found: Needs, device: str, *, checkpointing: bool) -> None:
    """Refuse what does not fit.

    Raises:
        OptionError: gradients need more memory than there is.
    """
    free = int(available(device) * (1 - _SPARE))
    if found.total <= free:
        return
    where = "memory" if torch.device(device).type == "cpu" else f"memory of {device}"
    raise OptionError(
        f"gradients need {in_bytes(found.total)} of {where} beside the model: {in_bytes(found.a_pass)} for a pass of "
        f"{found.tokens:,} tokens, {in_bytes(found.directions + found.target)} for the target's gradients, "
        f"{in_bytes(found.moments)} for the optimiser's moments; {in_bytes(free)} are free. "
        f"{_remedy(found, free, checkpointing)}"
    )


def _remedy(found: Needs, free: int, checkpointing: bool) -> str:
    """Return which option makes a job fit."""
    left = free - found.directions - found.moments - found.target
    if left < max(found.directions, found.a_pass / found.tokens):
        return (
            "Differentiate less: a smaller --lora-rank, fewer --lora-targets or --parameters, fewer subtasks, or "
            "--preconditioner sgd, which has no moments"
        )
    tokens = int(left / found.a_pass * found.tokens)
    if tokens >= found.longest:
        return f"Use --batch-tokens {tokens}"
    if not checkpointing:
        return "Use --checkpointing"
    return f"Use --max-length {max(tokens, 2)}"


def tokens_that_fit(found: Needs, free: int) -> int:
    """Return how many padded tokens a pass may have: a power of two, one sample at least."""
    left = _FILLED * free - found.directions - found.moments - found.target
    tokens = min(left / found.a_pass * found.tokens, _MOST)
    return int(max(2 ** int(np.log2(max(tokens, 1))), found.longest))
