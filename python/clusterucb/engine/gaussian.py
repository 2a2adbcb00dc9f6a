"""Regress scores on features with a Gaussian process, exact for few observations and sparse for many.

The kernel is a sum of terms:

- ``a / (1 + d / 2)`` for each block of features, where d is the squared distance of two rows in the block, divided by
  the square of a length; and one more such term whose d is the sum of these distances over all blocks,
- ``a`` for each column of categories in which the two rows share a category,
- ``a`` times the inner product of the two rows, for each linear block.

The first is the rational quadratic kernel, a mixture of Gaussian kernels of many lengths. It costs a division where a
Gaussian kernel costs an exponential. Amplitudes, lengths and the noise are learnt by maximizing the marginal likelihood
(Rasmussen and Williams 2006, section 5.4). They have weak priors, which decide as long as there are few observations.

Decisions:
    - All subtasks share one model: they have the same kernel, which takes most of the time, and different observations.
    - Beyond a number of observations, the model is the deterministic training conditional of Quinonero-Candela and
      Rasmussen 2005. All observations count, through inducing points that are observed rows. The time of a prediction
      then does not depend on the number of observations.
    - In a large pool, the variance of a row leaves out its influence on its own mean: with as many observations, it is
      below a thousandth of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.components import said, squares
from clusterucb.engine.kernel_columns import KernelColumns
from clusterucb.engine.large import in_parts, is_large, product, slices

_LENGTH, _NOISE = 0.7, 0.3  # the centres of the priors
_AT_ONCE = 1 << 18  # kernel values that fit into a core's cache
_RESOLVED = 1e-4  # share of the mean variance; float32 cannot resolve directions with less
_ROUNDING = 1e-6  # share of the variance: the rounding error of a kernel in float32
_MOST_INFLUENCE = 0.99  # the largest influence of a row on its own mean that float32 can tell from 1

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Product = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]


class KernelInputs:
    """The rows of a pool in the form that the kernel needs.

    Args:
        blocks: blocks of features, each f32[N, k].
        categories: columns of category numbers, each [N].
        linear: more blocks, each f32[N, k]. They count as blocks of features, and values may also depend on them
            linearly.

    Attributes:
        with_squares: the non-constant blocks, projected and scaled, each f32[N, k + 2]; the last two columns are the
            squared norms of the rows, and ones.
        n_rows: N.
    """

    def __init__(
        self,
        blocks: Sequence[NDArray[np.float32]],
        categories: Sequence[NDArray[np.integer]] = (),
        linear: Sequence[NDArray[np.float32]] = (),
    ) -> None:
        rising = said(linear)
        self.with_squares = [*said(blocks), *rising]
        self.n_rows = max(map(len, (*blocks, *linear)), default=0)
        self.categories = list(categories)
        self.linear = [block[:, :-2] * np.float32(math.sqrt(2)) for block in rising]

    @property
    def blocks(self) -> list[NDArray[np.float32]]:
        """The non-constant blocks, projected and scaled, in which distances are measured."""
        return [rows[:, :-2] for rows in self.with_squares]

    def distances(self, rows: Rows, others: Rows) -> Iterator[NDArray[np.float32]]:
        """Yield the squared distances f32[m, n] of rows i64[m] and others i64[n] in each block.

        A distance of 0 may be returned as -1e-6, because of rounding.
        """
        # x.x + y.y - 2 x.y is computed as one matrix product: (x, x.x, 1) times (-2 y, 1, y.y)
        for number, block in enumerate(self.with_squares):
            yield block[rows] @ self.other_side(number, others).T

    def other_side(self, block: int, others: Rows) -> NDArray[np.float32]:
        """Return f32[n, k + 2]: its product with a row of `with_squares` is the squared distance in that block."""
        own = self.with_squares[block][others]
        right = own * np.float32(-2)
        right[:, -2], right[:, -1] = 1, own[:, -2]
        return right

    @property
    def n_shared(self) -> int:
        """The number of matrices that `shared` yields: category columns and linear blocks."""
        return len(self.categories) + len(self.linear)

    def shared(self, rows: Rows, others: Rows) -> Iterator[NDArray[np.float32]]:
        """Yield the similarity f32[m, n] of rows i64[m] and others i64[n] in each category column and linear block.

        In a category column it is 1 where two rows have the same category, else 0. In a linear block it is the inner
        product.
        """
        yield from ((c[rows, None] == c[others]).astype(np.float32) for c in self.categories)
        yield from (block[rows] @ block[others].T for block in self.linear)

    def shared_with_itself(self, rows: Rows) -> Iterator[NDArray[np.float32]]:
        """Yield the similarity f32[m] of each of the rows i64[m] with itself, for each matrix of `shared`."""
        yield from (np.ones(len(rows), np.float32) for _ in self.categories)
        yield from (squares(block[rows]) for block in self.linear)


class Kernel:
    """The covariance of two rows' values: a sum of T terms with learnt parameters.

    Args:
        inputs: the rows.

    Attributes:
        parameters: the logarithms of the T amplitudes, of the lengths, and of the noise's variance, in this order.
    """

    def __init__(self, inputs: KernelInputs) -> None:
        self.inputs = inputs
        every = tuple(range(len(inputs.blocks)))
        self._terms = [*((block,) for block in every), *([every] if len(every) > 1 else [])]
        n_terms = len(self._terms) + inputs.n_shared
        lengths = [np.log(_LENGTH * np.sqrt(len(term))) for term in self._terms for _ in term]
        self._prior = np.array([*[-np.log(max(n_terms, 1))] * n_terms, *lengths, np.log(_NOISE)])
        self._strength = np.array([*[0.2] * n_terms, *[2.0] * len(lengths), 0.2])
        self._n_terms = n_terms
        self.parameters = self._prior

    @property
    def amplitudes(self) -> Floats:
        """The amplitude (a variance) of each term, f64[T]."""
        found: Floats = np.exp(self.parameters[: self._n_terms])
        return found

    @property
    def noise(self) -> float:
        """The variance of the noise, at least the kernel's rounding error."""
        return max(float(np.exp(self.parameters[-1])), _ROUNDING * float(self.amplitudes.sum()))

    def __call__(self, rows: Rows, others: Rows) -> NDArray[np.float32]:
        """Return the kernel matrix f32[m, n] of rows i64[m] and others i64[n], without noise."""
        distances = list(self.inputs.distances(rows, others))
        total = np.zeros((len(rows), len(others)), np.float32)
        summed, scaled = np.empty_like(total), np.empty_like(total)
        amplitudes = self.amplitudes
        for a, (term, scales) in zip(amplitudes, self.scaled_terms(), strict=False):
            summed.fill(1 / a)
            for block, scale in zip(term, scales, strict=True):
                summed += np.multiply(distances[block], np.float32(scale / (2 * a)), out=scaled)
            total += np.reciprocal(summed, out=summed)
        for a, shared in zip(amplitudes[len(self._terms) :], self.inputs.shared(rows, others), strict=True):
            total += np.multiply(shared, np.float32(a), out=shared)
        return total

    def variance(self, rows: Rows) -> Floats:
        """Return the kernel of each of the rows i64[m] with itself, f64[m], without noise."""
        amplitudes, n_terms = self.amplitudes, len(self._terms)
        total = np.full(len(rows), amplitudes[:n_terms].sum())
        for a, own in zip(amplitudes[n_terms:], self.inputs.shared_with_itself(rows), strict=True):
            total += a * own
        return total

    def learn(self, rows: Rows, values: Floats, steps: int) -> None:
        """Fit the parameters to observations, with steps of Adam from the current parameters.

        Args:
            rows: i64[n], the observed rows.
            values: f64[n, S], their values; each column has mean 0 and deviation 1.
            steps: the number of steps.
        """
        distances = [one.astype(np.float64) for one in self.inputs.distances(rows, rows)]
        shared = [one.astype(np.float64) for one in self.inputs.shared(rows, rows)]
        first, second = np.zeros_like(self._prior), np.zeros_like(self._prior)
        for step in range(1, steps + 1):
            _, _, slope = self._slope(distances, shared, values)
            first = 0.8 * first + 0.2 * slope
            second = 0.95 * second + 0.05 * slope**2
            move = first / (1 - 0.8**step) / (np.sqrt(second / (1 - 0.95**step)) + 1e-9)
            self.parameters = self.parameters + 0.1 * move

    def evidence(self, distances: list[Floats], shared: list[Floats], values: Floats) -> tuple[float, Floats]:
        """Return the log of marginal likelihood times prior, and its gradient with respect to `parameters`.

        The log likelihood is the mean over the subtasks.

        Args:
            distances: the observed rows' squared distances in each block, f64[n, n] (`KernelInputs.distances`).
            shared: the observed rows' other similarities, f64[n, n] each (`KernelInputs.shared`).
            values: f64[n, S], the observations.
        """
        whole, solved, slope = self._slope(distances, shared, values)
        fit = -(np.vdot(values, solved) / values.shape[1] + np.linalg.slogdet(whole)[1]) / 2
        off = self.parameters - self._prior
        return float(fit - self._strength @ off**2 / 2), slope

    def _slope(
        self, distances: list[Floats], shared: list[Floats], values: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return the observations' covariance with noise f64[n, n], its inverse times them, and `evidence`'s gradient.

        The steps of `learn` need the gradient alone. It takes no determinant, which costs a seventh of a step.
        """
        shapes = [
            1 / (1 + sum(distances[block] * scale for block, scale in zip(term, scales, strict=True)) / 2)
            for term, scales in self.scaled_terms()
        ]
        amplitudes, noise = self.amplitudes, float(np.exp(self.parameters[-1]))
        parts = [a * shape for a, shape in zip(amplitudes, [*shapes, *shared], strict=True)]
        whole = noise * np.eye(len(values)) + sum(parts)
        inverse = np.linalg.inv(whole)
        solved = inverse @ values
        outer = (solved @ solved.T / values.shape[1] - inverse) / 2
        slope = [float(np.vdot(outer, part)) for part in parts]
        for a, shape, (term, scales) in zip(amplitudes, shapes, self.scaled_terms(), strict=False):
            of_distance = outer * shape * shape
            slope += [
                a * scale * float(np.vdot(of_distance, distances[block]))
                for block, scale in zip(term, scales, strict=True)
            ]
        slope.append(noise * float(np.trace(outer)))
        return whole, solved, np.array(slope) - self._strength * (self.parameters - self._prior)

    def scaled_terms(self) -> Iterator[tuple[tuple[int, ...], Floats]]:
        """Yield the blocks of each distance term, and one over the square of each block's length."""
        at = self._n_terms
        for term in self._terms:
            yield term, np.exp(-2 * self.parameters[at : at + len(term)])
            at += len(term)


@dataclass(frozen=True)
class Posterior:
    """The posterior of all rows' values, given the values of some rows.

    Let k f32[p] be a row's kernel with the inducing points.

    Attributes:
        kernel: the covariance of the rows.
        points: i64[p], the rows that are inducing points.
        weights: f32[p, S]; a row's mean is k @ weights.
        spanned: f32[p, q]; the observations reduce a row's variance by the squared norm of k @ spanned.
        influence: f32[p, q]; the squared norm of k @ influence is an observation's influence on its own prediction.
            Times the noise, it is added to the row's variance. None if all observations are inducing points.
    """

    kernel: Kernel
    points: Rows
    weights: NDArray[np.float32]
    spanned: NDArray[np.float32]
    influence: NDArray[np.float32] | None

    @classmethod
    def of(cls, kernel: Kernel, rows: Rows, values: Floats, points: Rows) -> Posterior:
        """Return the posterior given observations.

        Args:
            kernel: the covariance of the rows.
            rows: i64[n], the observed rows.
            values: f64[n, S], the observations; each column has mean 0 and deviation 1.
            points: i64[p], the positions in ``rows`` of the inducing points. If they are all observations, the
                posterior is exact.
        """
        noise = kernel.noise
        exact = len(points) == len(rows)
        inducing = rows if exact else rows[points]
        prior = kernel(inducing, inducing).astype(np.float64)
        sizes, axes = np.linalg.eigh(prior)
        if exact:
            spanned = axes / np.sqrt(sizes.clip(0) + noise)
            weights, influence = spanned @ (spanned.T @ values), None
        else:
            resolved = sizes > _RESOLVED * float(kernel.variance(inducing).mean())
            spanned = axes[:, resolved] / np.sqrt(sizes[resolved])
            inner, projected = np.zeros_like(prior), np.zeros((len(points), values.shape[1]))
            columns, _ = _with(kernel, inducing)
            for here in slices(len(rows), _at_once(len(points))):
                some = columns(rows[here]).astype(np.float64)
                inner += some.T @ some
                projected += some.T @ values[here]
            precision = spanned.T @ inner @ spanned / noise + np.eye(spanned.shape[1])
            root = spanned @ np.linalg.inv(np.linalg.cholesky(precision)).T
            weights = root @ (root.T @ projected) / noise
            influence = (root / math.sqrt(noise)).astype(np.float32)
        return cls(kernel, inducing, weights.astype(np.float32), spanned.astype(np.float32), influence)

    def mean(self, rows: Rows) -> Floats:
        """Return the posterior mean f64[m, S] of rows i64[m]."""
        mean = np.empty((len(rows), self.weights.shape[1]))
        columns, times = self._columns

        def one(here: slice) -> None:
            mean[here] = times(columns(rows[here]), self.weights)

        self._in_parts(one, len(rows))
        return mean

    def predict(self, rows: Rows) -> tuple[Floats, Floats]:
        """Return the posterior mean f64[m, S] of rows i64[m], and the deviation f64[m] without noise.

        The deviation is the same for all S values of a row.
        """
        mean = np.empty((len(rows), self.weights.shape[1]))
        variance = self.kernel.variance(rows)
        columns, times = self._columns

        def one(here: slice) -> None:
            kernel = columns(rows[here])
            mean[here] = times(kernel, self.weights)
            variance[here] -= squares(times(kernel, self.spanned))
            if self.influence is not None and not is_large(self.kernel.inputs.n_rows):
                variance[here] += self.kernel.noise * squares(kernel @ self.influence)

        self._in_parts(one, len(rows))
        return mean, np.sqrt(np.maximum(variance, 0))

    def left_out(self, rows: Rows, values: Floats) -> Floats:
        """Return the leave-one-out mean f64[n, S] of each observed row: its own values are left out, its kernel stays.

        The mean follows from the rule for linear smoothers, (mean - h value) / (1 - h), where h is the row's influence
        on its own mean (Rasmussen and Williams 2006, section 5.4.2).

        Args:
            rows: i64[n], the rows that were given to `of`.
            values: f64[n, S], the values that were given to `of`.
        """
        if self.influence is None:
            return values - self.weights / squares(self.spanned)[:, None]
        left = np.empty_like(values)
        columns, times = self._columns

        def one(here: slice) -> None:
            assert self.influence is not None
            kernel = columns(rows[here])
            own = squares(times(kernel, self.influence)).clip(0, _MOST_INFLUENCE)[:, None]
            left[here] = (times(kernel, self.weights) - own * values[here]) / (1 - own)

        self._in_parts(one, len(rows))
        return left

    @cached_property
    def _columns(self) -> tuple[Callable[[Rows], NDArray[np.float32]], Product]:
        return _with(self.kernel, self.points)

    def _in_parts(self, one: Callable[[slice], None], n_rows: int) -> None:
        """Call a function, in threads, with slices of rows whose kernel with the points fits into a core's cache."""
        in_parts(one, n_rows, _at_once(len(self.points)))


def _with(kernel: Kernel, points: Rows) -> tuple[Callable[[Rows], NDArray[np.float32]], Product]:
    """Return a function from rows i64[m] to their kernel with points i64[p], f32[m, p], and a matrix product."""
    if is_large(kernel.inputs.n_rows):
        return KernelColumns(kernel, points), product
    return lambda rows: kernel(rows, points), np.matmul


def _at_once(n_others: int) -> int:
    """Return the number of rows whose kernel with ``n_others`` rows fits into a core's cache."""
    return max(_AT_ONCE // n_others, 64)
