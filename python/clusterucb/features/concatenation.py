"""Several features side by side: ``embedding+lexical`` on the command line.

Every block is named after its part (``embedding.length``, ``lexical.prompt``), so that no two clash; of parts of the
same class, the second is ``hidden2``. The engine scales each block to the same mean norm, so a part with two blocks
weighs as much as two parts with one.
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

    Its cost is the sum of the parts' costs, and samples are compared with the target in the blocks that each part
    compares them in.

    Attributes:
        parts: two or more features.
    """

    parts: tuple[Feature, ...]

    def __post_init__(self) -> None:
        self.parts = tuple(self.parts)
        if len(self.parts) < 2 or not all(isinstance(part, Feature) for part in self.parts):
            raise OptionError(
                f"a concatenation is of {one_line(repr(self.parts)):.80}; expected two or more objects of classes "
                "derived from clusterucb.Feature"
            )
        self.forward_passes = sum(part.forward_passes for part in self.parts)
        self.gradients = sum(part.gradients for part in self.parts)
        self.fit_samples = max(part.fit_samples for part in self.parts)

    def fit(self, batch: FeatureBatch) -> Fitted | None:
        """Return what each part learns from its own number of samples, named after the part."""
        learnt: dict[str, NDArray[Any]] = {}
        passes = 0.0
        for name, part in self._named().items():
            found = None
            if part.fit_samples:
                found = checked_fit(part, blamed(part.fit)(batch.spread(part.fit_samples)))
                learnt |= {f"{name}.{key}": array for key, array in found.items()}
            passes += float(found[PASSES].item()) if found and PASSES in found else part.forward_passes
        return {**learnt, PASSES: np.array([passes])}

    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return the blocks of all parts."""
        blocks = {}
        for name, part in self._named().items():
            own = {key: batch.fitted[f"{name}.{key}"] for key in _own(name, batch.fitted)}
            found = blamed(part.compute)(replace(batch, fitted=own))
            for key, block in checked_blocks(part, found, len(batch.samples)).items():
                blocks[f"{name}.{key}"] = block
        return blocks

    def compared(self, blocks: Iterable[str]) -> tuple[str, ...]:
        """Return the blocks that the parts compare samples in."""
        every = tuple(blocks)
        return tuple(
            f"{name}.{key}"
            for name, part in self._named().items()
            for key in part.compared(_own(name, every))
        )

    def _named(self) -> dict[str, Feature]:
        """Return the parts by the names that their blocks begin with."""
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
    """Return a part's own names of what belongs to it."""
    return [name.removeprefix(f"{part}.") for name in names if name.startswith(f"{part}.")]
