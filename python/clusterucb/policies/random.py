"""Draw rows uniformly at random, the baseline that every other policy must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.policy import Policy


@dataclass
class Random(Policy):
    """Draw uniformly at random from all available rows; ignores the clusters."""

    uniform: ClassVar[bool] = True

    def ask(self, n: int, available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return a uniform sample of the available rows, without replacement."""
        rows = np.flatnonzero(available)
        return rng.choice(rows, size=min(n, len(rows)), replace=False)
