"""Compute the kernel of any rows with a few fixed ones, for predictions of all rows of a large pool.

`Kernel` computes the distances of each block and then scales and sums them for each term. Here, the scales and
constants are part of the fixed rows' side of the matrix products, so that a product is a term's denominator, and
categories are looked up in a table. This takes half the time. Sums are rounded in another order, so pools that are not
large, whose results are settled, keep `Kernel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.large import product

if TYPE_CHECKING:
    from clusterucb.engine.gaussian import Kernel

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


class KernelColumns:
    """The kernel of any rows with p fixed rows.

    Args:
        kernel: the kernel, with the parameters that it has now.
        others: i64[p], the fixed rows.
    """

    def __init__(self, kernel: Kernel, others: Rows) -> None:
        inputs, amplitudes = kernel.inputs, kernel.amplitudes
        self._blocks, self._linear = inputs.with_squares, inputs.linear
        self._categories = inputs.categories
        ends = np.cumsum([0, *(block.shape[1] for block in self._blocks)]).tolist()
        self._terms: list[tuple[slice, Floats]] = []
        for a, (term, scales) in zip(amplitudes, kernel.scaled_terms(), strict=False):
            sides = []
            for block, scale in zip(term, scales, strict=True):
                side = inputs.other_side(block, others)
                sides.append(side * np.float32(scale / (2 * a)))
            sides[-1][:, -1] += np.float32(1 / a)
            here = slice(ends[term[0]], ends[term[-1] + 1])
            self._terms.append((here, np.concatenate(sides, axis=1).T.copy()))
        shared = amplitudes[len(self._terms) :]
        self._tables = [
            np.float32(a) * (np.arange(column.max() + 1)[:, None] == column[others]).astype(np.float32)
            for a, column in zip(shared, self._categories, strict=False)
        ]
        self._others = [
            np.float32(a) * block[others].T
            for a, block in zip(shared[len(self._tables) :], self._linear, strict=True)
        ]

    def __call__(self, rows: Rows) -> Floats:
        """Return the kernel f32[m, p] of rows i64[m] with the fixed rows, without noise."""
        left = np.concatenate([block[rows] for block in self._blocks], axis=1)
        total: Floats | None = None
        for here, right in self._terms:
            term = product(left[:, here], right)
            np.reciprocal(term, out=term)
            total = term if total is None else np.add(total, term, out=total)
        for column, table in zip(self._categories, self._tables, strict=True):
            found = table[column[rows]]
            total = found if total is None else np.add(total, found, out=total)
        for block, right in zip(self._linear, self._others, strict=True):
            found = product(block[rows], right)
            total = found if total is None else np.add(total, found, out=total)
        assert total is not None, "a kernel has a term"
        return total
