"""Compute the cost of a job: every pass that it makes, in one unit.

The numbers of passes follow from the options, not from counters. A job that was killed and resumed therefore reports
the same cost as an uninterrupted job. Only seconds are measured.

A pass of another, smaller model (`clusterucb.features.sentence`) counts as a fraction of a pass of the base model, in
proportion to the number of parameters. Features from the cache cost a selection no pass, because the run that computed
them has already reported their cost. A comparison counts them in full, because it is about the cost of strategies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clusterucb.options.gradients import GradientSettings
from clusterucb.options.search import ScoringSettings
from clusterucb.run.cost import Cost, PhaseCost

if TYPE_CHECKING:
    from clusterucb.engine.policy import Policy
    from clusterucb.features.base import Feature
    from clusterucb.samples.pool_and_target import Material

WARM_UP = "warm-up"


def selection_cost(
    timed: Cost,
    settings: ScoringSettings,
    material: Material,
    drawn: NDArray[np.int64],
    features: Feature,
    policy: Policy,
    *,
    passes: float,
    reused: bool = False,
) -> Cost:
    """Return the cost of a selection.

    Args:
        timed: the measured seconds of each phase.
        settings: the options.
        material: the pool of N samples, and the target.
        drawn: i64[n], the rows that were drawn.
        features: the feature that described the pool; it also described the target if the policy needs the similarity.
        policy: the policy that spent the budget.
        passes: the forward passes over each sample that the features take.
        reused: whether the pool's features were taken from the cache.
    """
    pool = material.encoded.lengths
    n_checkpoints = len(settings.weights)
    gradients = 0 if settings.store else features.gradients * n_checkpoints
    tokens = sum(len(sample) for samples in material.target.values() for sample in samples)
    compared = "similarity" in policy.columns
    if settings.free_scores:
        drawn = drawn[np.isin(drawn, material.unsketched)]
    described = pool[:0] if reused else pool
    phases = {
        "features": PhaseCost(
            gradients * len(described),
            passes * (len(described) + compared * material.n_target),
            round(gradients * int(described.sum()) + passes * (int(described.sum()) + compared * tokens)),
            reused=reused,
        ),
        **_warm_up(settings, material),
        "target": PhaseCost(gradients=n_checkpoints * material.n_target, tokens=n_checkpoints * tokens),
        "clusters": PhaseCost(),
        "draws": PhaseCost(
            gradients=n_checkpoints * len(drawn), tokens=n_checkpoints * int(pool[drawn].sum())
        ),
    }
    return _summed(phases, timed, len(pool))


def store_cost(timed: Cost, settings: GradientSettings, n_rows: int, n_tokens: int) -> Cost:
    """Return the cost of a gradient store: the warm-up, and a gradient of every row at each checkpoint.

    Args:
        timed: the measured seconds of each phase, and the passes of the warm-up (`warm_up_cost`).
        settings: the options.
        n_rows: the number of samples that the store holds, whichever pools they are from.
        n_tokens: the number of their tokens.
    """
    n_checkpoints = len(settings.weights)
    phases = {
        **{name: phase for name, phase in timed.phases.items() if name == WARM_UP},
        "sketches": PhaseCost(gradients=n_checkpoints * n_rows, tokens=n_checkpoints * n_tokens),
    }
    return _summed(phases, timed, n_rows)


def warm_up_cost(timed: Cost, settings: GradientSettings, material: Material) -> PhaseCost:
    """Return the cost of warming up a fresh LoRA on a pool, with the seconds measured so far."""
    (phase,) = _warm_up(settings, material).values()
    phase.seconds = timed.phases.get(WARM_UP, phase).seconds
    return phase


def _warm_up(settings: GradientSettings, material: Material) -> dict[str, PhaseCost]:
    if not settings.warms_up:
        return {}
    rows = material.warmup_rows(settings.warmup_steps, settings.seed).ravel()
    tokens = int(material.encoded.lengths[rows].sum())
    return {WARM_UP: PhaseCost(gradients=len(rows), tokens=tokens)}


def _summed(phases: dict[str, PhaseCost], timed: Cost, n_samples: int) -> Cost:
    for name, phase in phases.items():
        phase.seconds = timed.phases.get(name, PhaseCost()).seconds
    cost = Cost(pool_samples=n_samples, phases=phases)
    cost.total = sum(map(cost.share, phases.values()))
    return cost
