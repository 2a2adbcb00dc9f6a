"""Compute the directions of the target's subtasks.

A subtask's direction is the mean of its samples' unit gradients (LESS, Xia et al. 2024). The unit gradients of a pass
are summed where the pass is computed; the driver adds the sums up in the order of the passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.errors import InputError
from clusterucb.gradients.accumulate import AtCheckpoint, Step, fault
from clusterucb.gradients.passes import PaddedBatch, Passes
from clusterucb.kernels import ops
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch
from clusterucb.progress import Advance
from clusterucb.samples.encoded import Encoded

HELD = 1 << 27  # bytes of a pass's target gradients, which are kept until their norms are known


class UnitSum(Protocol):
    """The sum of the unit gradients of a pass's B samples."""

    def faults(self) -> list[str | None]:
        """Return for each of the B samples why its gradient cannot be used, or None if it can."""

    def parts(self) -> Iterable[tuple[int, NDArray[np.float64]]]:
        """Return the sum over the usable gradients in parts, each with its offset in the flat space."""


class _Pieces:
    """The unit sum of gradients that are kept on the model's device.

    Args:
        pieces: the gradients in pieces, each f32[B, n] with its offset in the flat space.
    """

    def __init__(self, pieces: list[tuple[int, torch.Tensor]]) -> None:
        self._pieces = pieces

    @cached_property
    def _norms(self) -> NDArray[np.float64]:
        squares = [piece.double().square().sum(dim=1).cpu().numpy() for _, piece in self._pieces]
        norms: NDArray[np.float64] = np.sqrt(sum(squares))
        return norms

    def faults(self) -> list[str | None]:
        return [fault(norm) for norm in self._norms.tolist()]

    def parts(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        usable = [at for at, reason in enumerate(self.faults()) if reason is None]
        weights = torch.from_numpy(1 / self._norms[usable])
        for offset, piece in self._pieces:
            yield offset, (weights.to(piece.device) @ piece[usable].double()).cpu().numpy()


@dataclass(frozen=True)
class Summed:
    """A unit sum that a worker has computed."""

    _parts: list[tuple[int, NDArray[np.float64]]]
    _faults: list[str | None]

    @classmethod
    def of(cls, found: UnitSum) -> Self:
        """Return a copy of a unit sum that does not need the model's device."""
        return cls(list(found.parts()), found.faults())

    def faults(self) -> list[str | None]:
        """Return for each of the B samples why its gradient cannot be used, or None if it can."""
        return self._faults

    def parts(self) -> Iterable[tuple[int, NDArray[np.float64]]]:
        """Return the sum over the usable gradients in parts, each with its offset in the flat space."""
        return self._parts


class UnitGradients(AtCheckpoint[UnitSum]):
    """Sums the unit gradients of passes at one checkpoint."""

    def __call__(self, batch: PaddedBatch) -> UnitSum:
        """Run one backward pass over B samples, and return the sum of their unit gradients."""
        pieces: list[tuple[int, torch.Tensor]] = []
        self.checkpoint.gradients.backward(batch, lambda *piece: pieces.append(piece))
        return _Pieces(pieces)


def compute_directions(
    step: Step[UnitSum],
    target: Mapping[str, Sequence[Encoded]],
    passes: Passes,
    *,
    advance: Advance = lambda _: None,
) -> tuple[NDArray[np.float32], dict[str, list[str]]]:
    """Return the direction of every subtask at a checkpoint, and the reasons why samples failed.

    Args:
        step: sums unit gradients at the checkpoint, with P parameters.
        target: the encoded samples of each of S subtasks.
        passes: groups the samples into passes of the model.
        advance: called with the number of samples that are done.

    Returns:
        f32[S, P], the means of the unit gradients; and for each subtask, the reason of each sample that failed and
        was left out of the mean.

    Raises:
        InputError: no sample of a subtask has a usable gradient.
    """
    directions = np.zeros((len(target), step.size), np.float32)
    failures: dict[str, list[str]] = {}
    most = max(HELD // (4 * step.size), 1)
    with step:
        for number, (subtask, samples) in enumerate(target.items(), step.number * len(target)):
            direction = directions[number % len(target)]
            reasons = failures.setdefault(subtask, [])

            def killed(_: int, how: str, reasons: list[str] = reasons) -> None:
                reasons.append(f"workers die of the sample: {how}")

            for rows, found in passes.over("target", number, samples, step.lane, most=most, killed=killed):
                for offset, part in found.parts():
                    direction[offset : offset + len(part)] += part
                reasons += [reason for reason in found.faults() if reason]
                advance(len(rows))
            if len(reasons) == len(samples):
                raise InputError(
                    f"no target sample of subtask {subtask!r} has a usable gradient ({reasons[0]}); expected at "
                    "least one. Warm the adapter up for longer, or use other target samples"
                )
            direction /= len(samples) - len(reasons)
    return directions, failures


def sketch_directions(
    directions: Sequence[NDArray[np.float32]], weights: Sequence[float], sketch: Sketch
) -> NDArray[np.float32]:
    """Return the finished sketches f32[S, d] of the subtasks' directions.

    Args:
        directions: f32[S, P] for each checkpoint.
        weights: the weight of each checkpoint. The checkpoints' sketches are added up as in `unit_sketches`.
        sketch: the projection for the first checkpoint.
    """
    total = np.zeros((len(directions[0]), sketch.dimension), np.float32)
    for number, (own, weight) in enumerate(zip(directions, weights, strict=True)):
        sketched = np.zeros_like(total)
        ops.accumulate(
            own,
            0,
            preconditioner=Preconditioner("sgd"),
            norm2=np.zeros(len(own)),
            sketch=sketch.of_checkpoint(number),
            sketched=sketched,
        )
        total += sketched * np.float32(sketch.scale * math.sqrt(weight))
    return total
