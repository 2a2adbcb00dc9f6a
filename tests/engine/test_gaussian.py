"""The Gaussian process against textbook formulas, and its slopes against differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.engine.components import MAX_DIM
from clusterucb.engine.gaussian import Kernel, KernelInputs, Posterior


def inputs_of(n_rows: int, seed: int, *, n_blocks: int = 2, others: bool = True) -> KernelInputs:
    rng = np.random.default_rng(seed)
    blocks = [rng.normal(size=(n_rows, 2 + block)).astype(np.float32) for block in range(n_blocks)]
    if not others:
        return KernelInputs(blocks)
    linear = rng.normal(size=(n_rows, 2)).astype(np.float32)
    return KernelInputs(blocks, [rng.integers(0, 3, n_rows)], [linear])


def kernel_of(n_rows: int, seed: int, *, n_blocks: int = 2, others: bool = True) -> Kernel:
    """Return a kernel whose parameters are nobody's default."""
    kernel = Kernel(inputs_of(n_rows, seed, n_blocks=n_blocks, others=others))
    kernel.parameters = kernel.parameters + np.random.default_rng(seed + 1).normal(
        scale=0.3, size=len(kernel.parameters)
    )
    return kernel


def by_the_book(kernel: Kernel, one: int, other: int) -> float:
    """Return the kernel of two rows, written out."""
    blocks = kernel.inputs.blocks
    n_terms = len(kernel.amplitudes)
    lengths = np.exp(kernel.parameters[n_terms:-1])
    apart = [float(((block[one].astype(float) - block[other].astype(float)) ** 2).sum()) for block in blocks]
    terms = [1 / (1 + d / length**2 / 2) for d, length in zip(apart, lengths, strict=False)]
    if len(blocks) > 1:
        together = sum(d / length**2 for d, length in zip(apart, lengths[len(blocks) :], strict=True))
        terms.append(1 / (1 + together / 2))
    terms += [float(column[one] == column[other]) for column in kernel.inputs.categories]
    terms += [float(block[one].astype(float) @ block[other].astype(float)) for block in kernel.inputs.linear]
    return float(kernel.amplitudes @ np.array(terms))


@given(seed=st.integers(0, 1000), n_blocks=st.integers(0, 3), others=st.booleans())
def test_kernel_is_the_sum_of_its_terms(seed: int, n_blocks: int, others: bool) -> None:
    kernel = kernel_of(6, seed, n_blocks=n_blocks, others=others)
    rows, columns = np.array([0, 3, 5]), np.array([1, 3])
    expected = [[by_the_book(kernel, one, other) for other in columns] for one in rows]
    np.testing.assert_allclose(kernel(rows, columns), expected, rtol=1e-4, atol=1e-5)
    own = [by_the_book(kernel, one, one) for one in rows]
    np.testing.assert_allclose(kernel.variance(rows), own, rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 1000), n_blocks=st.integers(1, 3), others=st.booleans())
def test_slope_of_the_evidence_is_that_of_its_differences(seed: int, n_blocks: int, others: bool) -> None:
    kernel = kernel_of(12, seed, n_blocks=n_blocks, others=others)
    rows = np.arange(12)
    values = np.random.default_rng(seed).normal(size=(12, 2))
    distances = [one.astype(np.float64) for one in kernel.inputs.distances(rows, rows)]
    shared = [one.astype(np.float64) for one in kernel.inputs.shared(rows, rows)]
    here = kernel.parameters
    _, slope = kernel.evidence(distances, shared, values)
    for at in range(len(here)):
        step = np.zeros(len(here))
        step[at] = 1e-5
        sides = []
        for sign in (1, -1):
            kernel.parameters = here + sign * step
            sides.append(kernel.evidence(distances, shared, values)[0])
        kernel.parameters = here
        assert slope[at] == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4, abs=1e-5)


def test_evidence_without_the_prior_is_the_density_of_a_normal_distribution() -> None:
    kernel = Kernel(inputs_of(5, 0))  # its parameters are the middle of the prior, which so takes nothing off
    rows = np.arange(5)
    values = np.random.default_rng(0).normal(size=(5, 1))
    distances = [one.astype(np.float64) for one in kernel.inputs.distances(rows, rows)]
    shared = [one.astype(np.float64) for one in kernel.inputs.shared(rows, rows)]
    covariance = np.array([[by_the_book(kernel, i, j) for j in rows] for i in rows]) + kernel.noise * np.eye(
        5
    )
    density = -0.5 * values[:, 0] @ np.linalg.solve(covariance, values[:, 0])
    density -= 0.5 * np.log(np.linalg.det(covariance))
    assert kernel.evidence(distances, shared, values)[0] == pytest.approx(density, rel=1e-5)


def test_exact_posterior_is_that_of_the_book() -> None:
    kernel = kernel_of(30, 1)
    rows, others = np.array([7, 2, 19, 11, 25]), np.array([0, 2, 29])
    values = np.random.default_rng(2).normal(size=(5, 2))
    covariance = kernel(rows, rows).astype(np.float64) + kernel.noise * np.eye(5)
    cross = kernel(others, rows).astype(np.float64)
    mean, deviation = Posterior.of(kernel, rows, values, np.arange(5)).predict(others)
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(covariance, values), rtol=1e-4, atol=1e-5)
    variance = kernel.variance(others) - np.einsum("ij,ji->i", cross, np.linalg.solve(covariance, cross.T))
    np.testing.assert_allclose(deviation, np.sqrt(variance), rtol=1e-3, atol=1e-3)


def test_order_of_the_points_does_not_matter() -> None:
    kernel = kernel_of(20, 3)
    rows = np.array([4, 9, 1, 15])
    values = np.random.default_rng(3).normal(size=(4, 1))
    one, other = (
        Posterior.of(kernel, rows, values, points).predict(np.arange(20))
        for points in (np.arange(4), np.arange(4)[::-1])
    )
    for mine, others in zip(one, other, strict=True):
        np.testing.assert_allclose(mine, others, rtol=1e-3, atol=1e-4)


def test_sparse_posterior_with_nearly_all_points_is_the_exact_one() -> None:
    kernel = kernel_of(60, 4)
    rows = np.random.default_rng(4).permutation(60)[:40]
    values = np.random.default_rng(5).normal(size=(40, 2))
    exact = Posterior.of(kernel, rows, values, np.arange(40)).predict(np.arange(60))
    nearly = Posterior.of(kernel, rows, values, np.arange(39)).predict(np.arange(60))
    few = Posterior.of(kernel, rows, values, np.arange(8)).predict(np.arange(60))
    off = [np.abs(found[0] - exact[0]).max() for found in (nearly, few)]
    assert off[0] < 0.15 < off[1]
    assert np.abs(nearly[1] - exact[1]).max() < 0.15


def test_sparse_posterior_learns_from_all_observations() -> None:
    rng = np.random.default_rng(6)
    block = rng.normal(size=(1500, 2)).astype(np.float32)
    truth = np.sin(block[:, :1].astype(np.float64))
    kernel = Kernel(KernelInputs([block]))
    rows = np.arange(1200)
    values = truth[rows] + rng.normal(scale=0.5, size=(1200, 1))
    held_out = np.arange(1200, 1500)
    from_points = Posterior.of(kernel, rows[:40], values[:40], rows[:40]).predict(held_out)[0]
    from_all = Posterior.of(kernel, rows, values, rows[:40]).predict(held_out)[0]
    error = [float(((mean - truth[held_out]) ** 2).mean()) for mean in (from_points, from_all)]
    assert error[1] < error[0] / 3


@pytest.mark.parametrize("step", [1, 10])
def test_what_is_left_out_is_not_known_however_alike_rows_are(step: int) -> None:
    rng = np.random.default_rng(8)
    block = np.repeat(rng.normal(size=(40, 2)), 10, axis=0) + rng.normal(scale=1e-3, size=(400, 2))
    kernel = Kernel(KernelInputs([block.astype(np.float32)]))
    rows, values = np.arange(400), rng.normal(size=(400, 1))
    points = rows[1::step]  # some of each group of rows that are alike
    left_out = Posterior.of(kernel, rows, values, points).left_out(rows, values)
    exact = Posterior.of(kernel, rows, values, rows).left_out(rows, values)
    np.testing.assert_allclose(left_out, exact, atol=0.05)
    for row in (0, 123, 399):
        others = np.delete(rows, row)
        alone = Posterior.of(kernel, others, values[others], np.arange(399)).mean(np.array([row]))
        np.testing.assert_allclose(exact[row], alone[0], atol=0.01)


@pytest.mark.parametrize("step", [1, 2])
def test_what_follows_a_law_without_noise_is_predicted(step: int) -> None:
    place = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    values = (place.astype(np.float64) ** 2 @ [[1, 2], [-1, 1]]) / 3
    kernel, rows = Kernel(KernelInputs([place])), np.arange(150)
    for _ in range(8):  # amplitudes become so large that the noise learnt is less than what float32 tells
        kernel.learn(rows, values[rows], 25)
    assert np.exp(kernel.parameters[-1]) < 1e-6 * kernel.amplitudes.sum()
    posterior = Posterior.of(kernel, rows, values[rows], rows[::step])
    others = np.arange(150, 300)
    off, left = (
        np.sqrt(np.mean(error**2))
        for error in (
            values[others] - posterior.mean(others),
            values[rows] - posterior.left_out(rows, values[rows]),
        )
    )
    assert off < 0.1
    assert left < 0.1
    assert off < 3 * left


def test_learning_raises_the_evidence_and_finds_what_matters() -> None:
    rng = np.random.default_rng(7)
    told, silent = (rng.normal(size=(200, 3)).astype(np.float32) for _ in range(2))
    kernel = Kernel(KernelInputs([told, silent]))
    values = np.sin(2 * told[:, :1].astype(np.float64)) + rng.normal(scale=0.1, size=(200, 1))
    values = (values - values.mean()) / values.std()
    rows = np.arange(200)
    distances = [one.astype(np.float64) for one in kernel.inputs.distances(rows, rows)]
    before = kernel.evidence(distances, [], values)[0]
    kernel.learn(rows, values, 40)
    assert kernel.evidence(distances, [], values)[0] > before + 20
    assert kernel.amplitudes[0] > 3 * kernel.amplitudes[1]
    assert kernel.noise < 0.3


def test_blocks_count_alike_whatever_their_units() -> None:
    rng = np.random.default_rng(8)
    block = rng.normal(size=(50, 3)).astype(np.float32)
    rows = np.arange(50)
    kernels = [
        Kernel(KernelInputs([block * factor + shift, block]))(rows, rows)
        for factor, shift in ((1, 0), (500, 7))
    ]
    np.testing.assert_allclose(*kernels, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_rows", [30, 300])  # fewer rows than columns, and more
def test_wide_blocks_keep_their_distances(n_rows: int) -> None:
    rng = np.random.default_rng(9)
    hidden = rng.normal(size=(n_rows, 5)) @ rng.normal(size=(5, 3 * MAX_DIM))
    wide = hidden.astype(np.float32)
    inputs = KernelInputs([wide])
    rows = np.arange(n_rows)
    assert inputs.blocks[0].shape == (n_rows, 5)
    found = next(inputs.distances(rows, rows))
    expected = ((wide[:, None] - wide[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(found / found.max(), expected / expected.max(), atol=1e-4)
    assert found.mean() == pytest.approx(1, rel=1e-3)


def test_blocks_that_say_nothing_are_left_out() -> None:
    kernel = Kernel(KernelInputs([np.ones((4, 3), np.float32)]))
    rows = np.arange(4)
    kernel.learn(rows, np.ones((4, 1)), 3)
    mean, deviation = Posterior.of(kernel, rows, np.ones((4, 1)), rows).predict(rows)
    assert not mean.any()
    assert not deviation.any()
