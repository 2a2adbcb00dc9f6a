"""Find the ends of the axes of the page's figures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NARROWEST = 1e-12  # the smallest distance of two ends


def ends(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the smallest and the largest of some values, without NaN; 0 and 1 if there are none."""
    known = values[~np.isnan(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
