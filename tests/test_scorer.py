"""Scores equal an independent computation, one sample at a time, in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from clusterucb import ops
from clusterucb.accumulate import Accumulator, unit_sketches
from clusterucb.encode import Encoded
from clusterucb.errors import InputError
from clusterucb.gradients import PerSampleGradients
from clusterucb.moments import Moments
from clusterucb.parameters import ParameterManifest
from clusterucb.preconditioner import PRECONDITIONERS, Preconditioner
from clusterucb.projection import Sketch
from clusterucb.scorer import Scorer, compute_directions, sketch_directions
from models import VOCABULARY, tiny_llama, with_lora

MODEL = with_lora(tiny_llama())
MANIFEST = ParameterManifest.of(MODEL)


def encoded(seed, lengths):
    rng = np.random.default_rng(seed)
    samples = []
    for length in lengths:
        labels = rng.random(length) < 0.5
        labels[0], labels[-1] = False, True
        samples.append(Encoded(rng.integers(0, VOCABULARY, length), labels, ~labels))
    return samples


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
    with PerSampleGradients(MODEL, MANIFEST) as gradients:
        directions, failures = compute_directions(
            gradients, TARGET, size=MANIFEST.size, batch_tokens=batch_tokens
        )
        moments = Moments(m, v, 9, 0.9, 0.999, 1e-8)
        accumulator = Accumulator(gradients, chosen, moments, directions=directions)
        scorer = Scorer(accumulator, POOL, batch_tokens=batch_tokens)
        rows = np.array([3, 0, 5, 1, 4, 2])
        scores = scorer(rows)
    assert failures == {"a": [], "b": []}
    assert not scorer.failures
    assert np.allclose(scores, true_scores(chosen, m.astype(float), v.astype(float))[rows], atol=2e-5)


def test_scores_do_not_depend_on_the_call():
    with PerSampleGradients(MODEL, MANIFEST) as gradients:
        directions, _ = compute_directions(gradients, TARGET, size=MANIFEST.size, batch_tokens=100)
        accumulator = Accumulator(gradients, Preconditioner(), None, directions=directions)
        scorer = Scorer(accumulator, POOL, batch_tokens=100)
        together = scorer(np.arange(6))
        assert np.array_equal(scorer(np.arange(6)), together)
        assert np.allclose(np.concatenate([scorer(np.array([row])) for row in range(6)]), together, atol=1e-6)


@pytest.mark.parametrize("nonzeros", [1, 2, 4])
def test_sketches_estimate_the_exact_scores(nonzeros):
    sketch = Sketch(8192, nonzeros, seed=1)
    with PerSampleGradients(MODEL, MANIFEST) as gradients:
        directions, _ = compute_directions(gradients, TARGET, size=MANIFEST.size, batch_tokens=100)
        exact = Scorer(
            Accumulator(gradients, Preconditioner(), None, directions=directions), POOL, batch_tokens=100
        )
        accumulator = Accumulator(gradients, Preconditioner(), None, sketch=sketch)
        targets = sketch_directions(directions, sketch)
        scorer = Scorer(accumulator, POOL, batch_tokens=100, targets=targets)
        rows = np.arange(6)
        true, estimated = exact(rows), scorer(rows)
        units, faults = unit_sketches(accumulator, POOL, batch_tokens=100)
    assert abs(estimated - true).max() < 5 / np.sqrt(8192)
    assert abs(estimated - true).max() > 0
    assert np.array_equal(ops.sketch_products(units, targets), estimated)
    assert faults == [None] * 6
    assert np.allclose(np.linalg.norm(targets, axis=1), np.linalg.norm(directions, axis=1), atol=0.05)


class _Gradients:
    """Gradients that are given: what `PerSampleGradients` would hand on."""

    def __init__(self, rows):
        self.rows = torch.tensor(rows, dtype=torch.float32)

    def backward(self, ids, labels, sink):
        chosen = self.rows[ids[:, 0]]
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
        _Gradients(GIVEN), chosen, moments, directions=None if sketched else directions, sketch=projection
    )
    scorer = Scorer(
        accumulator,
        numbered(range(5)),
        batch_tokens=100,
        targets=sketch_directions(directions, projection) if projection else None,
        advance=done.append,
    )
    scores = scorer(np.arange(5))
    assert np.isnan(scores).all(axis=1).tolist() == [True, False, True, False, True]
    assert scorer.failures == {
        0: "the gradient is zero",
        2: "the gradient is not finite",
        4: "the gradient is not finite",
    }
    assert sum(done) == 5


def test_directions_leave_out_target_samples_that_fail():
    directions, failures = compute_directions(
        _Gradients(GIVEN), {"x": numbered([0, 1, 3]), "y": numbered([2, 3])}, size=16, batch_tokens=100
    )
    expected = np.zeros((2, 16))
    expected[0, [0, 1, 8]] = [0.3, 0.5, 0.4]
    expected[1, 1] = 1
    assert np.allclose(directions, expected)
    assert failures == {"x": ["the gradient is zero"], "y": ["the gradient is not finite"]}


def test_a_subtask_without_a_usable_gradient_is_an_error():
    with pytest.raises(InputError, match=r"no target sample of subtask 'x' has a usable gradient .*is zero"):
        compute_directions(_Gradients(GIVEN), {"x": numbered([0, 2])}, size=16, batch_tokens=100)
