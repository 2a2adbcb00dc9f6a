"""Read vectors from a column of the pool's rows: whatever the pool's author knows about them.

`Column.fit` takes the length of the vectors from the first row in canonical order. Every other row, of the pool or of
the target, must have a vector of that length. A vector with a number that is missing or too large for 32 bits is not
finite, and counts as the mean of others (`clusterucb.features.base.checked_blocks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import InputError, OptionError
from clusterucb.features.base import Feature, FeatureBatch, Fitted
from clusterucb.samples.message import kind_of

if TYPE_CHECKING:
    from clusterucb.samples.sample import Sample


@dataclass
class Column(Feature):
    """A column of the pool's rows that holds vectors: lists of numbers, equally long in every row.

    Block: ``column`` f32[m, k].

    Attributes:
        name: the name of the column.
    """

    name: str = "vector"

    fit_samples = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise OptionError(
                f"column: name is {self.name!r}; expected the name of a column of the pool's rows"
            )

    def fit(self, batch: FeatureBatch) -> Fitted:
        """Return the length of the vectors, i64[1]."""
        return {"length": np.array([len(self._vector(batch.samples[0]))])}

    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return the block ``column``.

        Raises:
            InputError: the column of a row holds no vector, or one of another length.
        """
        length = int(batch.fitted["length"].item())
        rows = np.empty((len(batch.samples), length), np.float32)
        for row, sample in enumerate(batch.samples):
            vector = self._vector(sample)
            if len(vector) != length:
                raise self._refusal(sample, f"{len(vector)} numbers", f"{length}, as in other rows")
            rows[row] = vector
        return {"column": rows}

    def _vector(self, sample: Sample) -> NDArray[np.float32]:
        """Return a row's vector, f32[k], k >= 1.

        Raises:
            InputError: the row has no vector.
        """
        values, wanted = msgspec.json.decode(sample.raw).get(self.name), "a list of numbers"
        if not isinstance(values, list) or not values:
            raise self._refusal(sample, "no value" if values is None else kind_of(values), wanted)
        for value in values:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise self._refusal(sample, f"a list with {kind_of(value)} in it", wanted)
        try:
            with np.errstate(over="ignore"):
                return np.array(values, np.float64).astype(np.float32)  # null, a table's NaN, becomes NaN
        except OverflowError:
            return np.full(len(values), np.inf, np.float32)

    def _refusal(self, sample: Sample, got: str, expected: str) -> InputError:
        columns = ", ".join(msgspec.json.decode(sample.raw, type=dict[str, msgspec.Raw]))
        return InputError(
            f"{sample.file}:{sample.line}: column {self.name!r} holds {got}; expected {expected}. Correct the row, "
            f"name another of its columns ({columns}) with -f name=, or use other --features"
        )
