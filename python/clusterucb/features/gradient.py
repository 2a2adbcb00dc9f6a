"""Describe samples by sketches of their gradients, as the paper does.

Clusters of gradients are clusters of influence, but they cost what they save: one gradient per pool sample. That pays
only when the sketches are reused: for further targets (a gradient store), or at later checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.base import Feature, FeatureBatch


@dataclass
class Gradient(Feature):
    """Sketch of a sample's unit update direction (the paper's feature); costs one gradient per sample.

    Block: ``gradient`` f32[m, d].
    """

    gradients = 1

    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return the block ``gradient``."""
        return {"gradient": batch.gradient_sketches}
