"""Gradient sketches: what the paper clusters by.

Clusters of gradients are clusters of influence, and cost what they save: a gradient of every pool sample.
That pays where they are used again: for further targets (a gradient store), or at later checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.base import Feature, FeatureBatch


@dataclass
class Gradient(Feature):
    """Sketch of a sample's unit update direction (the paper's feature); costs a gradient of every sample.

    Block: ``gradient`` f32[m, d].
    """

    gradients = 1

    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return the block."""
        return {"gradient": batch.gradient_sketches}
