"""Check the order of an optimiser state that has positions alone, by comparing moments with gradients.

A file without names is matched by position, and the order is an assumption: parameters of one shape could be swapped
without a trace, and every score would be wrong. Gradients tell them apart, since the second moment is an average of
the parameter's own squared gradients.

The affinity of the moments that are assumed to be parameter i's, and of parameter j's gradients on some samples, is
    a_ij = |cosine(m_i, Σ g_j)| + correlation(log v_i, log Σ g_j²)
over elements. Two parameters of one shape are compared by what they have apart from each other:
    fit_ij = correlation(log v_i - log v_j, log Σ g_i² - log Σ g_j²) + (a_ii + a_jj - a_ij - a_ji) / 2
An exchange of the two changes its sign. In layers that share their input, most of log v is the same; the difference
takes it away.

Decisions:
    - The logarithm makes scales irrelevant, which change as the loss falls. v forgets slowly, so it resembles gradients
      of a trained model too; m resembles them in short trainings, and may be their opposite in long ones.
    - Measured on LoRAs of random models of 1 and 4 layers, on 2 and 7 layers of each, after 4 and 40 steps, with norms
      of 1 and of a wide spread (5,580 pairs, 64 samples that were not trained on): fit is at least -.32 in the right
      order, and 2 at the median. So an exchange is found if fit exceeds .5: this holds for 98.9 % of the pairs. It is
      the bound of this check: an exchange of two matrices A of one layer, whose inputs are the same, may be missed if
      the samples are few or unlike the training's. With 14 samples, the worst such exchange that was accepted changed
      scores by .1 of their standard deviation.
    - With 16 samples, fit is at least -.68 in the right order, so fewer samples must show more to refute an order.
    - Who exchanges two parameters of a layer does so in all layers. So the fits of such pairs are also averaged over
      layers, which takes away noise.
    - The order is refuted if a pair fits better exchanged, by more than noise. It is confirmed if pairs fit much better
      as they are, in the mean. Otherwise it is ambiguous, and the run is refused as well: a wrong order would not be
      visible in any result. Random models and texts of random tokens, 16 parameters, 16 samples: the mean of the right
      order is 6.7 to 9.3 standard errors; of a wrong one (layers reversed, two layers swapped) at most 2.5.
    - Samples are scored alone, without moments. So the check does not change any number of a run.
"""

from __future__ import annotations

import re
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

SAMPLES = 64
_ELEMENTS = 1 << 16  # at most so many elements of a parameter are compared
_REFUTED, _FEWER = 0.5, 0.35  # a fit below -.5 (64 / samples)^.35 refutes the order
_CONFIRMED, _ERRORS = 0.5, 4.0  # the mean fit of all pairs must exceed .5, or 4 standard errors
_LAYER = re.compile(r"\.\d+\.")
_TINY = 1e-30  # added to squares before the logarithm
REMEDY = (
    "Save the state with names (AdamW(model.named_parameters()) writes `param_names`; FSDP's full state has them). If "
    "you know the order, write the names into the file: state['param_groups'][0]['param_names'] = [...], in the order "
    "of that group's `params`. Or use --preconditioner sgd, which needs no state"
)


Pair = tuple[float, Parameter, Parameter]  # the fit of two parameters


@dataclass(frozen=True)
class Fits:
    """How well the moments of parameters that have one shape fit their gradients.

    Attributes:
        parameters: L parameters.
        fits: f64[L, L], how much better the moments of i and j fit as assumed than exchanged; NaN on the diagonal, and
            where moments or gradients are constant, which resemble nothing.
    """

    parameters: Sequence[Parameter]
    fits: NDArray[np.float64]

    def pairs(self) -> list[Pair]:
        """Return the fit of each pair of parameters."""
        rows, columns = (places.tolist() for places in np.triu_indices(len(self.parameters), 1))
        return [
            (float(self.fits[i, j]), self.parameters[i], self.parameters[j])
            for i, j in zip(rows, columns, strict=True)
            if np.isfinite(self.fits[i, j])
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
    found = [_fits(parameters, moments, picked, sums) for parameters in alike]
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


def _fits(
    parameters: Sequence[Parameter],
    moments: Moments,
    picked: dict[int, NDArray[np.int64]],
    sums: dict[int, NDArray[np.float64]],
) -> Fits:
    at = [one.offset + picked[one.offset] for one in parameters]
    v, squares = (
        rows - rows.mean(1, keepdims=True)
        for rows in (
            np.log(np.stack([moments.v[places] for places in at]).astype(np.float64) + _TINY),
            np.log(np.stack([sums[one.offset][1] for one in parameters]) + _TINY),
        )
    )
    table = _unit(v) @ _unit(squares).T
    if moments.first:
        m = np.stack([moments.m[places] for places in at]).astype(np.float64)
        table += np.abs(_unit(m) @ _unit(np.stack([sums[one.offset][0] for one in parameters])).T)
    lengths = _exchanged(v @ v.T) * _exchanged(squares @ squares.T)
    with np.errstate(divide="ignore", invalid="ignore"):
        fits = _exchanged(v @ squares.T) / np.sqrt(lengths) + _exchanged(table) / 2
    constant = (np.ptp(v, axis=1) == 0) | (np.ptp(squares, axis=1) == 0)
    fits[constant[:, None] | constant[None, :] | ~(lengths > 0)] = np.nan
    return Fits(parameters, fits)


def _exchanged(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return f64[L, L], by how much the sum of a table's entries (i, i), (j, j) exceeds that of (i, j), (j, i)."""
    own = np.diag(table)
    gains: NDArray[np.float64] = own[:, None] + own[None, :] - table - table.T
    return gains


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows of norm 1; a row of zeros stays."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def _judge(found: Sequence[Fits], n_samples: int, how: str) -> None:
    """Decide whether the assumed order is right.

    Raises:
        ModelError: it is wrong, or cannot be told from chance.
    """
    said = f"{how}, and gradients of {counted(n_samples, 'sample')}"
    pairs = [pair for one in found for pair in one.pairs()]
    noise = _REFUTED * (SAMPLES / max(n_samples, 1)) ** _FEWER
    alike: dict[tuple[str, ...], list[Pair]] = {}
    for fit, i, j in pairs:
        alike.setdefault((i.name, j.name), []).append((fit, i, j))
        if _LAYER.findall(i.name) == _LAYER.findall(j.name):  # two parameters of a layer, in all layers
            alike.setdefault((_LAYER.sub(".*.", i.name), _LAYER.sub(".*.", j.name)), []).append((fit, i, j))
    wrong = [of_kind for of_kind in alike.values() if _mean(of_kind) * len(of_kind) ** 0.5 < -noise]
    if wrong:
        _, one, other = min(wrong, key=_mean)[0]
        raise ModelError(
            f"{said} do not fit this order: the moments taken for {one.name} fit the gradients of {other.name}, and "
            f"the other way round. Expected the order of the model's own parameters. {REMEDY}"
        )
    fits = [fit for fit, _, _ in pairs]
    error = float(np.std(fits, ddof=1)) / len(fits) ** 0.5 if len(fits) > 1 else np.inf
    if not fits or np.mean(fits) < min(_CONFIRMED, _ERRORS * error):
        raise ModelError(
            f"{said} cannot tell whether this order is right: the moments fit their own parameters' gradients no "
            f"better than others'. Expected samples like those of the adapter's training. {REMEDY}"
        )


def _mean(pairs: Sequence[Pair]) -> float:
    return float(np.mean([fit for fit, _, _ in pairs]))
