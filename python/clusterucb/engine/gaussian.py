"""Gaussian-process regression of scores on features: a sum of kernels, exact for few observations, sparse for many.

The kernel is a sum of terms ``a / (1 + d / 2)``, where d is the squared distance of two rows in one block of features
over the square of a length, or the sum of such distances over all blocks; for every column of categories a term ``a``
that counts where two rows share one; and for every linear block a term ``a`` times the product of two rows in it.
(The first, the rational quadratic kernel, is a mixture of Gaussian kernels of many lengths, and costs a division where
those cost an exponential.) Amplitudes, lengths and the noise are learnt by maximizing the marginal likelihood
(Rasmussen and Williams 2006, section 5.4), with weak priors that decide while little was observed.

Decisions:
    - One model for all subtasks: they share the kernel, whose values are what takes time, and differ in their
      observations.
    - Beyond a number of observations the model is the deterministic training conditional of Quinonero-Candela and
      Rasmussen 2005: all observations count, by way of inducing points that are observed rows. A prediction then
      takes a time that does not depend on how many observations there are.
    - A block is brought down to its first principal components: what it takes to tell how far a million rows are
      from the inducing points should be seconds. Recall is the same to .02 with ten times as many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_DIM = 64  # of a block
SPREAD = 8192  # rows that principal components are learnt from
_SPARE, _ROUNDS = 16, 6  # directions beside them, and rounds until they are found
_LENGTH, _NOISE = 0.7, 0.3  # the middle of the priors
_AT_ONCE = 1 << 18  # values of the kernel: what a core has in its cache
_TOLD = 1e-4  # of a variance: directions that say less of it than float32 tells from nothing
_ROUNDING = 1e-6  # of a variance: what a kernel in float32 may be off by
_MOST_INFLUENCE = 0.99  # of a row on its own mean, as far as float32 tells it from 1

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class Inputs:
    """The rows of a pool as the kernel sees them.

    Args:
        blocks: each f32[N, k].
        categories: columns, each i64[N].
        linear: more blocks, each f32[N, k], that values are expected to rise or fall with, too.
    """

    def __init__(
        self,
        blocks: Sequence[NDArray[np.float32]],
        categories: Sequence[Rows] = (),
        linear: Sequence[NDArray[np.float32]] = (),
    ) -> None:
        rising = _said(linear)
        self._rows = [_with_squares(block) for block in (*_said(blocks), *rising)]
        self.categories = list(categories)
        self.linear = [block * np.float32(math.sqrt(2)) for block in rising]

    @property
    def blocks(self) -> list[NDArray[np.float32]]:
        """The blocks that say something, as distances are taken in them."""
        return [rows[:, :-2] for rows in self._rows]

    def distances(self, rows: Rows, others: Rows) -> Iterator[NDArray[np.float32]]:
        """Yield the squared distances f32[m, n] of rows i64[m] and others i64[n] in each block.

        What is 0 may come out as -1e-6.
        """
        for (
            block
        ) in self._rows:  # x.x + y.y - 2 x.y as a product of matrices: (x, x.x, 1) with (-2 y, 1, y.y)
            right = block[others] * np.float32(-2)
            right[:, -2], right[:, -1] = 1, block[others, -2]
            yield block[rows] @ right.T

    @property
    def n_shared(self) -> int:
        """How many kinds of things two rows can share."""
        return len(self.categories) + len(self.linear)

    def shared(self, rows: Rows, others: Rows) -> Iterator[NDArray[np.float32]]:
        """Yield what rows i64[m] and others i64[n] share, f32[m, n]: 1 for a category in each column of such, and their
        product in each linear block.
        """
        yield from ((c[rows, None] == c[others]).astype(np.float32) for c in self.categories)
        yield from (block[rows] @ block[others].T for block in self.linear)

    def shared_with_itself(self, rows: Rows) -> Iterator[NDArray[np.float32]]:
        """Yield what each of the rows i64[m] shares with itself, f32[m]."""
        yield from (np.ones(len(rows), np.float32) for _ in self.categories)
        yield from (_squares(block[rows]) for block in self.linear)


class Kernel:
    """How alike two rows are: a sum of terms, whose parameters are learnt.

    Args:
        inputs: the rows.

    Attributes:
        parameters: logarithms of the amplitudes f64[T], of the lengths, and of the noise's variance.
    """

    def __init__(self, inputs: Inputs) -> None:
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
        """The variance that each term stands for, f64[T]."""
        found: Floats = np.exp(self.parameters[: self._n_terms])
        return found

    @property
    def noise(self) -> float:
        """The variance of an observation beside it, or what the kernel itself is off by."""
        return max(float(np.exp(self.parameters[-1])), _ROUNDING * float(self.amplitudes.sum()))

    def __call__(self, rows: Rows, others: Rows) -> NDArray[np.float32]:
        """Return the kernel f32[m, n] of rows i64[m] and others i64[n], without noise."""
        distances = list(self.inputs.distances(rows, others))
        total = np.zeros((len(rows), len(others)), np.float32)
        summed, scaled = np.empty_like(total), np.empty_like(total)
        amplitudes = self.amplitudes
        for a, (term, scales) in zip(amplitudes, self._scaled_terms(), strict=False):
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
        """Fit the parameters to values f64[n, S] of rows i64[n], each column of mean 0 and deviation 1.

        Steps of Adam, from where the parameters are.
        """
        distances = [one.astype(np.float64) for one in self.inputs.distances(rows, rows)]
        shared = [one.astype(np.float64) for one in self.inputs.shared(rows, rows)]
        first, second = np.zeros_like(self._prior), np.zeros_like(self._prior)
        for step in range(1, steps + 1):
            slope = self.evidence(distances, shared, values)[1]
            first = 0.8 * first + 0.2 * slope
            second = 0.95 * second + 0.05 * slope**2
            move = first / (1 - 0.8**step) / (np.sqrt(second / (1 - 0.95**step)) + 1e-9)
            self.parameters = self.parameters + 0.1 * move

    def evidence(self, distances: list[Floats], shared: list[Floats], values: Floats) -> tuple[float, Floats]:
        """Return the logarithm of marginal likelihood, mean over subtasks, and prior, and its slope by `parameters`.

        Args:
            distances, shared: f64[n, n] of the observed rows, from `Inputs`.
            values: f64[n, S].
        """
        shapes = [
            1 / (1 + sum(distances[block] * scale for block, scale in zip(term, scales, strict=True)) / 2)
            for term, scales in self._scaled_terms()
        ]
        amplitudes, noise = self.amplitudes, float(np.exp(self.parameters[-1]))
        parts = [a * shape for a, shape in zip(amplitudes, [*shapes, *shared], strict=True)]
        whole = noise * np.eye(len(values)) + sum(parts)
        inverse = np.linalg.inv(whole)
        solved = inverse @ values
        outer = (solved @ solved.T / values.shape[1] - inverse) / 2
        slope = [float(np.vdot(outer, part)) for part in parts]
        for a, shape, (term, scales) in zip(amplitudes, shapes, self._scaled_terms(), strict=False):
            of_distance = outer * shape * shape
            slope += [
                a * scale * float(np.vdot(of_distance, distances[block]))
                for block, scale in zip(term, scales, strict=True)
            ]
        slope.append(noise * float(np.trace(outer)))
        fit = -(np.vdot(values, solved) / values.shape[1] + np.linalg.slogdet(whole)[1]) / 2
        off = self.parameters - self._prior
        return float(fit - self._strength @ off**2 / 2), np.array(slope) - self._strength * off

    def _scaled_terms(self) -> Iterator[tuple[tuple[int, ...], Floats]]:
        """Yield the blocks of each term that has some, and one over the squares of their lengths."""
        at = self._n_terms
        for term in self._terms:
            yield term, np.exp(-2 * self.parameters[at : at + len(term)])
            at += len(term)


@dataclass(frozen=True)
class Posterior:
    """What is known of all rows from the values of some.

    Attributes:
        kernel: how alike rows are.
        points: i64[p], the rows that are inducing points.
        weights: f32[p, S].
        spanned: f32[p, q]; a row's variance is less by the square of (its kernel with the points) @ spanned.
        influence: f32[p, q]; the square of (its kernel with the points) @ influence is how an observation acts upon its
            own prediction, and times the noise what its variance is more by; None if all observations are points.
    """

    kernel: Kernel
    points: Rows
    weights: NDArray[np.float32]
    spanned: NDArray[np.float32]
    influence: NDArray[np.float32] | None

    @classmethod
    def of(cls, kernel: Kernel, rows: Rows, values: Floats, points: Rows) -> Posterior:
        """Return what values f64[n, S] of rows i64[n] say, each column of mean 0 and deviation 1.

        Args:
            kernel: how alike rows are.
            rows: what was observed.
            values: the observations.
            points: i64[p], which of the observations are inducing points; if all of them, the model is exact.
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
            told = sizes > _TOLD * float(kernel.variance(inducing).mean())
            spanned = axes[:, told] / np.sqrt(sizes[told])
            inner, projected = np.zeros_like(prior), np.zeros((len(points), values.shape[1]))
            for here in _slices(len(rows), len(points)):
                some = kernel(rows[here], inducing).astype(np.float64)
                inner += some.T @ some
                projected += some.T @ values[here]
            precision = spanned.T @ inner @ spanned / noise + np.eye(spanned.shape[1])
            root = spanned @ np.linalg.inv(np.linalg.cholesky(precision)).T
            weights = root @ (root.T @ projected) / noise
            influence = (root / math.sqrt(noise)).astype(np.float32)
        return cls(kernel, inducing, weights.astype(np.float32), spanned.astype(np.float32), influence)

    def mean(self, rows: Rows) -> Floats:
        """Return the mean f64[m, S] of rows i64[m]."""
        mean = np.empty((len(rows), self.weights.shape[1]))

        def one(here: slice) -> None:
            mean[here] = self.kernel(rows[here], self.points) @ self.weights

        self._in_parts(one, len(rows))
        return mean

    def predict(self, rows: Rows) -> tuple[Floats, Floats]:
        """Return the mean f64[m, S] of rows i64[m], and the deviation f64[m] of each of the S, without noise."""
        mean = np.empty((len(rows), self.weights.shape[1]))
        variance = self.kernel.variance(rows)

        def one(here: slice) -> None:
            kernel = self.kernel(rows[here], self.points)
            mean[here] = kernel @ self.weights
            variance[here] -= _squares(kernel @ self.spanned)
            if self.influence is not None:
                variance[here] += self.kernel.noise * _squares(kernel @ self.influence)

        self._in_parts(one, len(rows))
        return mean, np.sqrt(np.maximum(variance, 0))

    def left_out(self, rows: Rows, values: Floats) -> Floats:
        """Return the mean f64[n, S] of each observed row when its own values are left out (its kernel stays).

        By the rule for linear smoothers, (mean - h value) / (1 - h), where h is the row's influence on its own mean
        (Rasmussen and Williams 2006, section 5.4.2).

        Args:
            rows, values: those that the posterior is `of`.
        """
        if self.influence is None:
            return values - self.weights / _squares(self.spanned)[:, None]
        left = np.empty_like(values)

        def one(here: slice) -> None:
            assert self.influence is not None
            kernel = self.kernel(rows[here], self.points)
            own = _squares(kernel @ self.influence).clip(0, _MOST_INFLUENCE)[:, None]
            left[here] = (kernel @ self.weights - own * values[here]) / (1 - own)

        self._in_parts(one, len(rows))
        return left

    def _in_parts(self, one: Callable[[slice], None], n_rows: int) -> None:
        """Call a function with parts of the rows, whose kernel with the points fits into a cache."""
        with ThreadPoolExecutor() as threads:
            list(threads.map(one, _slices(n_rows, len(self.points))))


def _squares(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the squares of vectors f32[m, k], f32[m]."""
    found: NDArray[np.float32] = np.einsum("ij,ij->i", vectors, vectors)
    return found


def _slices(n_rows: int, n_others: int) -> Iterator[slice]:
    """Yield slices of rows whose kernel with so many others fits into a cache."""
    step = max(_AT_ONCE // n_others, 64)
    return (slice(begin, begin + step) for begin in range(0, n_rows, step))


def principal(some: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean f32[k] of rows f32[n, k] and at most `MAX_DIM` of their principal directions, f32[k, m].

    By subspace iteration (Halko, Martinsson and Tropp 2011): a sketch of 8192 dimensions would take minutes to solve.
    """
    mean = some.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = some - mean
    guess = np.random.default_rng(0).normal(size=(some.shape[1], MAX_DIM + _SPARE)).astype(np.float32)
    for _ in range(_ROUNDS):
        guess = np.linalg.qr(centred.T @ (centred @ guess))[0]
    _, sizes, turned = np.linalg.svd(centred @ guess, full_matrices=False)
    kept = np.flatnonzero(sizes > 1e-3 * sizes[0])[:MAX_DIM]
    directions: NDArray[np.float32] = guess @ turned[kept].T
    return mean, directions


def _reduced(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a block, centred, in at most `MAX_DIM` of its principal components."""
    mean = block.mean(axis=0, dtype=np.float64).astype(np.float32)
    if block.shape[1] <= MAX_DIM:
        centred: NDArray[np.float32] = block - mean
        return centred
    directions = principal(block[:: -(-len(block) // SPREAD)])[1]
    found: NDArray[np.float32] = block @ directions - mean @ directions
    return found


def _with_squares(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows with two columns more: the squares of their lengths, and ones."""
    squares = np.einsum("ij,ij->i", block, block)
    return np.column_stack([block, squares, np.ones_like(squares)])


def _said(blocks: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return the blocks that say something, reduced and scaled."""
    return [block for block in map(_scaled, map(_reduced, blocks)) if block.any()]


def _scaled(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a centred block so that two random rows have a squared distance of 1 in the mean."""
    mean = 2 * float(np.mean(np.einsum("ij,ij->i", block, block), dtype=np.float64))
    scale: np.float32 = np.float32(1 / np.sqrt(mean)) if mean > 0 else np.float32(1)
    return block * scale
