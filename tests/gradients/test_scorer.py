"""Scores equal an independent computation, one sample at a time, in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from clusterucb.errors import InputError
from clusterucb.gradients.accumulate import Accumulator, Checkpoint, unit_sketches
from clusterucb.gradients.directions import UnitGradients, compute_directions, sketch_directions
from clusterucb.gradients.passes import Passes
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.gradients.scorer import Scorer
from clusterucb.kernels import ops
from clusterucb.kernels.preconditioner import PRECONDITIONERS, Preconditioner
from clusterucb.kernels.projection import Sketch
from clusterucb.model.moments import Moments
from clusterucb.model.parameters import ParameterManifest
from clusterucb.samples.encoded import Encoded
from helpers.encoding import encoded
from helpers.models import tiny_llama, with_lora

MODEL = with_lora(tiny_llama())
MANIFEST = ParameterManifest.of(MODEL)


POOL = encoded(1, [5, 30, 8, 12, 3, 22])
TARGET = {"a": encoded(2, [6, 9, 14]), "b": encoded(3, [4])}


def true_gradient(sample):
    """Return one sample's gradient in the flat space, f64[P]."""
    weights = [MODEL.get_parameter(one.torch_name) for one in MANIFEST]
    ids, labels = torch.from_numpy(sample.tokens), torch.from_numpy(sample.labels)
    logits = MODEL(input_ids=ids[None]).logits[0, :-1][labels[1:]]
    flat = np.zeros(MANIFEST.size)
    gradients = torch.autograd.grad(cross_entropy(logits, ids[1:][labels[1:]]), weights)
    for one, gradient in zip(MANIFEST, gradients, strict=True):
        flat[one.offset : one.offset + one.size] = gradient.flatten().double().numpy()
    return flat


def true_scores(preconditioner, m, v):
    """Return the cosine of every pool sample's update with every target sample's gradient, averaged."""
    scores = np.zeros((len(POOL), len(TARGET)))
    unit = {name: [g / np.linalg.norm(g) for g in map(true_gradient, TARGET[name])] for name in TARGET}
    b1, b2, eps, t = preconditioner.beta1, preconditioner.beta2, preconditioner.eps, preconditioner.step
    for row, sample in enumerate(POOL):
        g = true_gradient(sample)
        first, second = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        update = {
            "adam_less": first / np.sqrt(second + eps),
            "adam": first / (1 - b1 ** (t + 1)) / (np.sqrt(second / (1 - b2 ** (t + 1))) + eps),
            "second_moment": g / (np.sqrt(v / (1 - b2**t)) + eps),
            "sgd": g,
        }[preconditioner.kind]
        for column, name in enumerate(TARGET):
            scores[row, column] = np.mean([update @ one / np.linalg.norm(update) for one in unit[name]])
    return scores


@pytest.mark.parametrize("kind", PRECONDITIONERS)
@pytest.mark.parametrize("batch_tokens", [1, 40, 1000])
def test_scores_are_mean_cosines_whatever_the_batch(kind, batch_tokens):
    rng = np.random.default_rng(0)
    holes = np.ones(MANIFEST.size, np.float32)
    for one in MANIFEST:
        holes[one.offset : one.offset + one.size] = 0
    m = (rng.normal(size=MANIFEST.size) * 1e-2).astype(np.float32) * (1 - holes)
    v = (rng.random(MANIFEST.size) * 1e-3).astype(np.float32) * (1 - holes)
    chosen = Preconditioner(kind, step=9)
    checkpoint = at_checkpoint(chosen, Moments(m, v, 9, 0.9, 0.999, 1e-8))
    directions, failures = compute_directions(UnitGradients(checkpoint), TARGET, Passes(batch_tokens))
    scorer = Scorer([Accumulator(checkpoint, directions=directions)], POOL, Passes(batch_tokens))
    rows = np.array([3, 0, 5, 1, 4, 2])
    found = scorer(rows)
    assert failures == {"a": [], "b": []}
    assert not found.failures
    assert np.allclose(found.values, true_scores(chosen, m.astype(float), v.astype(float))[rows], atol=2e-5)


def at_checkpoint(*kind, **rest):
    return Checkpoint(PerSampleGradients(MODEL, MANIFEST), MANIFEST.size, *kind, **rest)


def test_scores_do_not_depend_on_the_call():
    checkpoint = at_checkpoint()
    directions, _ = compute_directions(UnitGradients(checkpoint), TARGET, Passes(100))
    scorer = Scorer([Accumulator(checkpoint, directions=directions)], POOL, Passes(100))
    together = scorer(np.arange(6)).values
    assert np.array_equal(scorer(np.arange(6)).values, together)
    alone = [scorer(np.array([row])).values for row in range(6)]
    assert np.allclose(np.concatenate(alone), together, atol=1e-6)


@pytest.mark.parametrize("nonzeros", [1, 2, 4])
@pytest.mark.parametrize("weights", [[1.0], [0.25, 0.75]])
def test_sketches_estimate_the_exact_scores(nonzeros, weights):
    sketch = Sketch(8192, nonzeros, seed=1)
    m = np.random.default_rng(5).normal(size=MANIFEST.size).astype(np.float32)
    moments = Moments(m * 1e-2, m * m * 1e-3, 9, 0.9, 0.999, 1e-8)
    kinds = [(Preconditioner("sgd"), None), (Preconditioner(step=9), moments)]
    checkpoints = [
        at_checkpoint(*kind, weight=weight, number=number)
        for number, (kind, weight) in enumerate(zip(kinds, weights, strict=False))
    ]
    directions = [compute_directions(UnitGradients(one), TARGET, Passes(100))[0] for one in checkpoints]
    exact = Scorer(
        [Accumulator(one, directions=own) for one, own in zip(checkpoints, directions, strict=True)],
        POOL,
        Passes(100),
    )
    accumulators = [Accumulator(one, sketch=sketch) for one in checkpoints]
    targets = sketch_directions(directions, weights, sketch)
    scorer = Scorer(accumulators, POOL, Passes(100), targets=targets)
    rows = np.arange(6)
    true, estimated = exact(rows).values, scorer(rows).values
    units, faults = unit_sketches(accumulators, POOL, Passes(100), "all")
    assert abs(estimated - true).max() < 5 / np.sqrt(8192)
    assert abs(estimated - true).max() > 0
    assert np.array_equal(ops.sketch_products(units, targets), estimated)
    assert faults == [None] * 6
    norms = [
        np.linalg.norm(one, axis=1) ** 2 * weight for one, weight in zip(directions, weights, strict=True)
    ]
    assert np.allclose(np.linalg.norm(targets, axis=1), np.sqrt(sum(norms)), atol=0.05)


def test_scores_of_several_checkpoints_are_their_weighted_sum():
    one, other = at_checkpoint(weight=0.25), at_checkpoint(weight=0.75, number=1)
    directions, _ = compute_directions(UnitGradients(one), TARGET, Passes(100))
    done = []
    accumulators = [Accumulator(one, directions=directions), Accumulator(other, directions=2 * directions)]
    both = Scorer(accumulators, POOL, Passes(100), advance=done.append)
    alone = Scorer([Accumulator(at_checkpoint(), directions=directions)], POOL, Passes(100))
    rows = np.arange(6)
    assert np.allclose(both(rows).values, (0.25 + 2 * 0.75) * alone(rows).values, rtol=1e-6)
    assert sum(done) == 6


class _Gradients:
    """Gradients that are given: what `PerSampleGradients` would hand on."""

    def __init__(self, rows):
        self.rows = torch.tensor(rows, dtype=torch.float32)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def backward(self, batch, sink):
        chosen = self.rows[batch.ids[:, 0]]
        sink(0, chosen[:, :2].contiguous())
        sink(8, chosen[:, 2:].contiguous())


def numbered(rows):
    """Return samples whose first token is the row of the given gradients."""
    mask = np.array([False, True])
    return [Encoded(np.array([row, 0]), mask, mask) for row in rows]


GIVEN = [[0, 0, 0], [3, 0, 4], [math.nan, 1, 1], [0, 2, 0], [1, math.inf, 0]]


@pytest.mark.parametrize("kind", ["sgd", "adam_less"])
@pytest.mark.parametrize("sketched", [False, True])
def test_a_gradient_that_is_zero_or_not_finite_fails_and_never_scores(kind, sketched):
    done = []
    moments = Moments(np.full(16, 0.5, np.float32), np.full(16, 0.5, np.float32), 3, 0.9, 0.999, 1e-8)
    chosen, directions = Preconditioner(kind, step=3), np.ones((2, 16), np.float32)
    projection = Sketch(256) if sketched else None
    accumulator = Accumulator(
        Checkpoint(_Gradients(GIVEN), 16, chosen, moments),
        directions=None if sketched else directions,
        sketch=projection,
    )
    scorer = Scorer(
        [accumulator],
        numbered(range(5)),
        Passes(100),
        targets=sketch_directions([directions], [1.0], projection) if projection else None,
        advance=done.append,
    )
    found = scorer(np.arange(5))
    assert np.isnan(found.values).all(axis=1).tolist() == [True, False, True, False, True]
    assert found.failures == {
        0: "the gradient is zero",
        2: "the gradient is not finite",
        4: "the gradient is not finite",
    }
    assert sum(done) == 5


def test_directions_leave_out_target_samples_that_fail():
    directions, failures = compute_directions(
        UnitGradients(Checkpoint(_Gradients(GIVEN), 16)),
        {"x": numbered([0, 1, 3]), "y": numbered([2, 3])},
        Passes(100),
    )
    expected = np.zeros((2, 16))
    expected[0, [0, 1, 8]] = [0.3, 0.5, 0.4]
    expected[1, 1] = 1
    assert np.allclose(directions, expected)
    assert failures == {"x": ["the gradient is zero"], "y": ["the gradient is not finite"]}


def test_a_subtask_without_a_usable_gradient_is_an_error():
    with pytest.raises(InputError, match=r"no target sample of subtask 'x' has a usable gradient .*is zero"):
        compute_directions(
            UnitGradients(Checkpoint(_Gradients(GIVEN), 16)), {"x": numbered([0, 2])}, Passes(100)
        )
