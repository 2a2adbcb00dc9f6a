"""Join several features side by side: ``embedding+lexical`` on the command line.

Every block is named after its part (``embedding.length``, ``lexical.prompt``), so no two names clash. If two parts
are of the same class, the second is called ``hidden2``. The engine scales each block to the same mean norm, so a part
with two blocks weighs as much as two parts with one block each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.blame import blamed
from clusterucb.errors import OptionError
from clusterucb.features.base import (
    PASSES,
    Feature,
    FeatureBatch,
    Fitted,
    checked_blocks,
    checked_fit,
)
from clusterucb.wording import one_line


@dataclass
class Concatenation(Feature):
    """The blocks of several features, each named after its part.

    The cost is the sum of the parts' costs. Samples are compared with the target in the blocks that each part would
    compare them in.

    Attributes:
        parts: two or more features.
    """

    parts: tuple[Feature, ...]

    def __post_init__(self) -> None:
        self.parts = tuple(self.parts)
        if len(self.parts) < 2 or not all(isinstance(part, Feature) for part in self.parts):
            raise OptionError(
                f"the parts of a concatenation are {one_line(repr(self.parts)):.80}; expected two or more objects of "
                "classes derived from clusterucb.Feature"
            )
        self.forward_passes = sum(part.forward_passes for part in self.parts)
        self.gradients = sum(part.gradients for part in self.parts)
        self.fit_samples = max(part.fit_samples for part in self.parts)

    def fit(self, batch: FeatureBatch) -> Fitted | None:
        """Return the arrays that each part learns from its own `fit_samples`, named after the part, and all passes."""
        learnt: dict[str, NDArray[Any]] = {}
        passes = 0.0
        for name, part in self._named().items():
            arrays = None
            if part.fit_samples:
                arrays = checked_fit(part, blamed(part.fit)(batch.spread(part.fit_samples)))
                learnt |= {f"{name}.{key}": array for key, array in arrays.items()}
            passes += float(arrays[PASSES].item()) if arrays and PASSES in arrays else part.forward_passes
        return {**learnt, PASSES: np.array([passes])}

    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return the blocks of all parts."""
        blocks = {}
        for name, part in self._named().items():
            own = {key: batch.fitted[f"{name}.{key}"] for key in _own(name, batch.fitted)}
            computed = blamed(part.compute)(replace(batch, fitted=own))
            for key, block in checked_blocks(part, computed, batch.samples).items():
                blocks[f"{name}.{key}"] = block
        return blocks

    def compared(self, blocks: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the blocks in which the parts compare samples with the target."""
        blocks = tuple(blocks)
        return tuple(
            f"{name}.{key}"
            for name, part in self._named().items()
            for key in part.compared(_own(name, blocks))
        )

    def _named(self) -> dict[str, Feature]:
        """Return the parts by the name with which their blocks begin."""
        named: dict[str, Feature] = {}
        for part in self.parts:
            name = plain = type(part).__name__.lower()
            for number in count(2):
                if name not in named:
                    break
                name = f"{plain}{number}"
            named[name] = part
        return named


def _own(part: str, names: Iterable[str]) -> list[str]:
    """Return the names that belong to a part, without the part's name in front."""
    return [name.removeprefix(f"{part}.") for name in names if name.startswith(f"{part}.")]
