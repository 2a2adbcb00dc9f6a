"""How a sample's scores for S subtasks become its one reward.

The table stands apart, without numpy, because the command line offers its names before anything heavy
is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# scores f64[m, S] -> rewards f64[m]; NaN stays NaN
AGGREGATES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "max": lambda scores: scores.max(axis=1),
    "mean": lambda scores: scores.mean(axis=1),
}
