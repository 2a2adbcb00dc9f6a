"""Store sketches in half precision, or in a byte for each element.

    float16   ``sketches`` f16[m, d]
    int8      ``sketches`` i8[m, d] and ``scales`` f32[m]: a sketch is its row times its scale

A row's scale is its largest absolute element over 127. A sketch that does not exist is NaN: in its elements, or in its
scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.options.kinds import FLOAT16

_LARGEST = 127

Sketches = NDArray[np.float16] | NDArray[np.float32]


def stored(sketches: NDArray[np.float32], dtype: str) -> dict[str, NDArray[Any]]:
    """Return the arrays in which sketches are stored.

    Args:
        sketches: f32[m, d]; NaN in rows without a sketch.
        dtype: ``float16`` or ``int8``.
    """
    if dtype == FLOAT16:
        return {"sketches": sketches.astype(np.float16)}
    scales = np.abs(sketches).max(axis=1) / np.float32(_LARGEST)  # NaN where the sketch is
    divisors = np.where(scales > 0, scales, 1)[:, None]
    return {"sketches": np.rint(np.nan_to_num(sketches) / divisors).astype(np.int8), "scales": scales}


def shapes(
    dtype: str, n_rows: int, dimension: int
) -> dict[str, tuple[type[np.generic], tuple[int | None, ...]]]:
    """Return the dtype and the shape of each array in which m sketches are stored."""
    if dtype == FLOAT16:
        return {"sketches": (np.float16, (n_rows, dimension))}
    return {"sketches": (np.int8, (n_rows, dimension)), "scales": (np.float32, (n_rows,))}


def loaded(arrays: dict[str, NDArray[Any]]) -> Sketches:
    """Return the sketches that arrays store: f16[m, d], or f32[m, d] of bytes."""
    if "scales" not in arrays:
        found: NDArray[np.float16] = arrays["sketches"]
        return found
    sketches: NDArray[np.float32] = arrays["sketches"] * arrays["scales"][:, None]
    return sketches
