"""The contract of a feature: what the pool is clustered by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from clusterucb.encode import Encoded
    from clusterucb.pool import Sample


@dataclass(frozen=True)
class FeatureBatch:
    """A run of consecutive pool samples, in canonical order, and the model.

    Attributes:
        samples: the samples as they were read.
        encoded: their tokens, in the same order.
        load_model: what `model` comes from.
        take_gradients: what `gradient_sketches` come from.
    """

    samples: Sequence[Sample]
    encoded: Sequence[Encoded]
    load_model: Callable[[], PreTrainedModel]
    take_gradients: Callable[[], NDArray[np.float32]]

    @property
    def model(self) -> PreTrainedModel:
        """The base model in evaluation mode; it must not be changed."""
        return self.load_model()

    @property
    def gradient_sketches(self) -> NDArray[np.float32]:
        """Sketches f32[m, d] of the samples' unit update directions; zeros where a gradient fails.

        They cost a gradient of every sample, unless a store has them: a feature that uses them says so in
        `Feature.gradients`.
        """
        return self.take_gradients()


class Feature(ABC):
    """Describes samples by vectors, without gradients if it is to save any.

    Attributes:
        forward_passes: passes of the model over each sample that `compute` makes (a part of one counts
            as a part); part of the cost that a run reports.
        gradients: gradients of each sample that it takes; part of the cost, too.
        similar_by: the blocks in which samples are compared with the target; all of them where it is empty.
    """

    forward_passes: float = 0
    gradients: ClassVar[int] = 0
    similar_by: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return named blocks, each f32[len(batch.samples), k], finite.

        A row must not depend on the other rows of the batch: batches are written to disk one by one,
        and a run that was interrupted goes on after the last.
        """
