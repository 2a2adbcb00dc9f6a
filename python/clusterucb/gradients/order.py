"""Check the order of an optimiser state that has positions alone, by comparing moments with gradients.

A file without names is matched by position, and the order is an assumption: parameters of one shape could be swapped
without a trace, and every score would be wrong. Gradients tell them apart, since the second moment is an average of
the parameter's own squared gradients.

The affinity of the moments that are assumed to be parameter i's, and of parameter j's gradients on some samples, is
    |cosine(m_i, Σ g_j)| + correlation(log v_i, log Σ g_j²)
over elements. It is computed for all pairs of one shape; the assumed order is the diagonal.

Decisions:
    - The logarithm makes scales irrelevant, which change as the loss falls. v forgets slowly, so it resembles gradients
      of a trained model too; m resembles them in short trainings, and may be their opposite in long ones. Measured on
      LoRAs of a random model of 3 layers, after 6 to 60 steps, with 16 samples that were not trained on: the diagonal
      exceeds the entries beside it by 0.56 to 0.92, 4.3 to 9.4 standard errors. If layers are reversed or two of them
      swapped, it exceeds them by at most 1.6 standard errors, and 3 to 8 of 12 parameters are displaced.
    - The order is refuted if moments resemble the gradients of other parameters much more than of their own, and these
      other gradients resemble no moments more. It is confirmed if the diagonal stands out from chance. Otherwise it is
      ambiguous, and the run is refused as well: a wrong order would not be visible in any result.
    - Samples are scored alone, without moments. So the check does not change any number of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.errors import ModelError
from clusterucb.gradients.accumulate import Checkpoint
from clusterucb.gradients.passes import single_pass
from clusterucb.model.moments import Moments
from clusterucb.model.parameters import Parameter
from clusterucb.progress import Observer
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.pool_and_target import Material
from clusterucb.wording import counted

SAMPLES = 16
_ELEMENTS = 1 << 16  # at most so many elements of a parameter are compared
_CONFIRMED = 3.0  # standard errors by which the diagonal must exceed chance
# Moments are displaced if they fit others' gradients better than their own by this share of the typical best affinity,
# and by more than chance makes of short parameters.
_REFUTED, _CHANCE = 0.5, 0.3
_TINY = 1e-30  # added to squares before the logarithm
REMEDY = (
    "Save the state with names (AdamW(model.named_parameters()) writes `param_names`; FSDP's full state has them), or "
    "use --preconditioner sgd, which needs no state"
)


@dataclass(frozen=True)
class Affinities:
    """Affinities of the moments and gradients of parameters that have one shape.

    Attributes:
        parameters: L parameters.
        table: f64[L, L], the affinity of the moments that are assumed to be parameter i's, and j's gradients.
    """

    parameters: Sequence[Parameter]
    table: NDArray[np.float64]

    def excess(self) -> NDArray[np.float64]:
        """Return by how much diagonal entries exceed the mean of their rows and columns beside them.

        Parameters whose moments or gradients are constant are left out: they resemble nothing.
        """
        own = np.diag(self.table)
        n = len(own)
        beside = (self.table.sum(0) + self.table.sum(1) - 2 * own) / (2 * (n - 1))
        excess: NDArray[np.float64] = (own - beside)[self.table.any(axis=0) & self.table.any(axis=1)]
        return excess

    def displaced(self) -> list[tuple[Parameter, Parameter, float]]:
        """Return pairs (i, j, gain): i's moments and j's gradients fit each other best, and better than their own."""
        best, back = self.table.argmax(1), self.table.argmax(0)
        own = np.diag(self.table)
        return [
            (self.parameters[i], self.parameters[j], float(self.table[i, j] - max(own[i], own[j])))
            for i, j in enumerate(best)
            if i != j and back[j] == i
        ]


def say_how_states_match(
    checkpoints: Sequence[Checkpoint],
    given: Sequence[tuple[Path | None, Path | None]],
    material: Material,
    device: str,
    observer: Observer,
) -> None:
    """Say how each optimiser state was matched to the parameters; check the order of those without names.

    Args:
        checkpoints: the checkpoints.
        given: the adapter's folder and the optimiser state of each checkpoint, each None if there is none.
        material: the encoded pool, whose shorter samples stand for those of the training.
        device: the model's device.
        observer: shows one line for each state.

    Raises:
        ModelError: an order is wrong or ambiguous.
    """
    for checkpoint, (_, state) in zip(checkpoints, given, strict=True):
        if checkpoint.moments is None or state is None:
            continue
        order = ""
        if checkpoint.moments.by_position:
            lengths = material.encoded.lengths
            some = np.unique(np.linspace(0, len(lengths) - 1, 4 * SAMPLES).astype(np.int64))
            short = some[np.argsort(lengths[some], kind="stable")[:SAMPLES]]
            samples = [material.encoded[int(row)] for row in short]
            order = f" ({check_order(checkpoint, state, samples, device)})"
        observer.step(f"{state.name}: {checkpoint.moments.matched}{order}")


def check_order(checkpoint: Checkpoint, state: Path, samples: Sequence[Encoded], device: str) -> str:
    """Check that moments matched by position belong to their parameters.

    Args:
        checkpoint: a checkpoint with moments.
        state: the file of the moments, for errors.
        samples: samples like those of the training.
        device: the model's device.

    Returns:
        What was found, for the screen.

    Raises:
        ModelError: moments fit the gradients of other parameters, or the order cannot be told from chance.
    """
    moments, manifest = checkpoint.moments, checkpoint.gradients.manifest
    classes: dict[tuple[int, int], list[Parameter]] = {}
    for parameter in manifest:
        classes.setdefault(parameter.shape, []).append(parameter)
    alike = [parameters for parameters in classes.values() if len(parameters) > 1]
    if moments is None or not alike:
        return "every shape occurs once"
    picked = {one.offset: _picked(one) for parameters in alike for one in parameters}
    sums = _gradient_sums(checkpoint, samples, device, picked)
    found = [_affinities(parameters, moments, picked, sums) for parameters in alike]
    _judge(found, len(samples), f"{state} has no names ({moments.matched})")
    return f"order confirmed by gradients of {counted(len(samples), 'sample')}"


def _picked(parameter: Parameter) -> NDArray[np.int64]:
    """Return the elements of a parameter that are compared, by their place in the parameter."""
    return np.arange(0, parameter.size, -(-parameter.size // _ELEMENTS))


def _gradient_sums(
    checkpoint: Checkpoint, samples: Sequence[Encoded], device: str, picked: dict[int, NDArray[np.int64]]
) -> dict[int, NDArray[np.float64]]:
    """Return f64[2, n] for each offset: the sums of gradients and of their squares at the picked elements."""
    offsets = np.array(sorted(picked))
    places = {offset: torch.from_numpy(offset + picked[offset]) for offset in picked}
    sums = {offset: np.zeros((2, len(picked[offset]))) for offset in picked}

    def add(offset: int, gradient: torch.Tensor) -> None:
        end = offset + gradient.shape[1]
        first = max(int(np.searchsorted(offsets, offset, side="right")) - 1, 0)
        for start in offsets[first : np.searchsorted(offsets, end)].tolist():
            inside = (places[start] >= offset) & (places[start] < end)
            if inside.any():
                part = (
                    gradient[:, (places[start][inside] - offset).to(gradient.device)].double().cpu().numpy()
                )
                sums[start][:, inside.numpy()] += np.stack([part.sum(0), (part**2).sum(0)])

    with checkpoint.gradients as gradients:
        for sample in samples:
            single_pass([sample], device, lambda batch: gradients.backward(batch, add))
    return sums


def _affinities(
    parameters: Sequence[Parameter],
    moments: Moments,
    picked: dict[int, NDArray[np.int64]],
    sums: dict[int, NDArray[np.float64]],
) -> Affinities:
    at = [one.offset + picked[one.offset] for one in parameters]
    v, squares = (
        _unit(np.log(rows + _TINY), centred=True)
        for rows in (
            np.stack([moments.v[places] for places in at]).astype(np.float64),
            np.stack([sums[one.offset][1] for one in parameters]),
        )
    )
    table = v @ squares.T
    if moments.first:
        m = np.stack([moments.m[places] for places in at]).astype(np.float64)
        table += np.abs(_unit(m) @ _unit(np.stack([sums[one.offset][0] for one in parameters])).T)
    return Affinities(parameters, table)


def _unit(rows: NDArray[np.float64], *, centred: bool = False) -> NDArray[np.float64]:
    """Return rows of norm 1, after taking away their means if ``centred``; a row of zeros stays."""
    if centred:
        rows = np.where(np.ptp(rows, axis=1, keepdims=True) > 0, rows - rows.mean(1, keepdims=True), 0.0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def _judge(found: Sequence[Affinities], n_samples: int, how: str) -> None:
    """Decide whether the assumed order is right.

    Raises:
        ModelError: it is wrong, or cannot be told from chance.
    """
    said = f"{how}, and gradients of {counted(n_samples, 'sample')}"
    pairs = [pair for one in found for pair in one.displaced()]
    typical = float(np.mean([one.table.max(1).mean() - np.median(one.table) for one in found]))
    far = [(i, j) for i, j, gain in pairs if gain > max(_REFUTED * typical, _CHANCE)]
    if len(far) > 1:
        i, j = far[0]
        raise ModelError(
            f"{said} do not fit this order: the moments taken for {i.name} fit the gradients of {j.name}, and those "
            f"of {len(far)} parameters fit others'. Expected the order of the model's own parameters. {REMEDY}"
        )
    excess = np.concatenate([one.excess() for one in found])
    error = float(excess.std(ddof=1)) / len(excess) ** 0.5 if len(excess) > 1 else np.inf
    if not (len(excess) and excess.mean() > _CONFIRMED * error):
        raise ModelError(
            f"{said} cannot tell whether this order is right: the moments fit their own parameters' gradients no "
            f"better than others'. Expected samples like those of the adapter's training. {REMEDY}"
        )
