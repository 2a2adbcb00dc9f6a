"""The contract of a feature: what the pool is clustered by.

Decision: what a feature learns from the pool (`Feature.fit`) is arrays that are written to the run folder and handed
back with every batch, not state of the feature: a run that was interrupted, and the target, get the same. It learns
from a bounded number of evenly spaced rows. Canonical order is the order of content hashes, so these are a random
sample that does not depend on the order of files, and a pool of millions is fitted in the memory of thousands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import PluginError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from clusterucb.samples.encode import Encoded
    from clusterucb.samples.sample import Sample

PASSES = "forward_passes"  # what `Feature.fit` may call the number of passes
Fitted = Mapping[str, NDArray[Any]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class FeatureBatch:
    """Some pool samples, in canonical order, and the model.

    Attributes:
        samples: the samples as they were read.
        encoded: their tokens, in the same order.
        load_model: what `model` comes from.
        take_gradients: what `gradient_sketches` come from.
        fitted: what `Feature.fit` returned, read-only; empty in `fit` itself, or where it returned None.
        device: where the model runs: ``cpu``, ``cuda``, ``cuda:1``, ...
    """

    samples: Sequence[Sample]
    encoded: Sequence[Encoded]
    load_model: Callable[[], PreTrainedModel]
    take_gradients: Callable[[], NDArray[np.float32]]
    fitted: Fitted = field(default_factory=dict)
    device: str = "cpu"

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

    def spread(self, count: int) -> FeatureBatch:
        """Return a batch of ``count`` evenly spaced samples, or of all where there are fewer; without gradients.

        Samples are looked up when they are asked for.
        """

        def none() -> NDArray[np.float32]:
            raise PluginError("a feature asks for gradients in `fit`; expected them in `compute` alone")

        n_samples = len(self.samples)
        rows = np.arange(min(count, n_samples)) * n_samples // max(min(count, n_samples), 1)
        return replace(
            self, samples=_Rows(self.samples, rows), encoded=_Rows(self.encoded, rows), take_gradients=none
        )


class Feature(ABC):
    """Describes samples by vectors, without gradients if it is to save any.

    Attributes:
        forward_passes: passes of the model over each sample that `compute` makes (a part of one, or a pass of a
            smaller model, counts as a part); part of the cost that a run reports.
        gradients: gradients of each sample that it takes; part of the cost, too.
        similar_by: the blocks in which samples are compared with the target; all of them where it is empty.
        fit_samples: how many samples of the pool `fit` gets; 0: there is nothing to fit.
    """

    forward_passes: float = 0
    gradients: int = 0
    similar_by: ClassVar[tuple[str, ...]] = ()
    fit_samples: int = 0

    def fit(self, batch: FeatureBatch) -> Fitted | None:  # noqa: ARG002
        """Return what has to be known of the pool before `compute`, as named arrays of numbers; optional.

        Called once in a run. The arrays are written to the run folder, and are ``batch.fitted`` in every `compute`,
        of the pool and of the target; nothing may be kept in the feature. No pass of the model is made here: a
        run's cost would not know of it. An array ``forward_passes``, f64[1], takes the place of the attribute,
        where only the model tells how many there are.

        Args:
            batch: `fit_samples` evenly spaced samples of the pool in canonical order, or all of a smaller pool.
        """
        return None

    @abstractmethod
    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return named blocks, each f32[len(batch.samples), k], finite.

        A row must not depend on the other rows of the batch: batches are written to disk one by one,
        and a run that was interrupted goes on after the last.
        """

    def compared(self, blocks: Iterable[str]) -> tuple[str, ...]:
        """Return which of ``blocks`` samples are compared with the target in: `similar_by`, or all of them."""
        return self.similar_by or tuple(blocks)

    def contents(self) -> dict[str, str]:
        """Return fingerprints of the files that options name, by option; none by default.

        They decide, beside the options, whether a run may go on, and whether features may be used again.
        """
        return {}


class _Rows(Sequence[Item]):
    """Some rows of a sequence, looked up when they are asked for."""

    def __init__(self, every: Sequence[Item], rows: NDArray[np.int64]) -> None:
        self._every = every
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Item]: ...
    def __getitem__(self, at: int | slice) -> Item | Sequence[Item]:
        if isinstance(at, slice):
            return _Rows(self._every, self._rows[at])
        return self._every[int(self._rows[at])]


def checked_blocks(feature: Feature, found: object, n_rows: int) -> dict[str, NDArray[np.float32]]:
    """Return what a feature computed as arrays that can be saved.

    Raises:
        PluginError: it is no dict of finite blocks f32[n_rows, k].
    """
    name = f"{type(feature).__name__}.compute"
    expected = f"a dict of blocks of numbers, each f32[{n_rows}, k]"
    if not isinstance(found, Mapping) or not found:
        raise PluginError(f"{name} returned {found!r:.80}; expected {expected}")
    blocks = {}
    for key, values in found.items():
        block = np.asarray(values)
        fits = block.ndim == 2 and len(block) == n_rows and block.dtype.kind in "fiub"
        if not isinstance(key, str) or not fits:
            raise PluginError(
                f"{name}: block {key!r} is {block.dtype} of shape {block.shape}; expected {expected}"
            )
        blocks[key] = np.ascontiguousarray(block, np.float32)
        if not np.isfinite(blocks[key]).all():
            raise PluginError(f"{name}: block {key!r} is not finite; expected {expected}, finite")
    return blocks


def checked_fit(feature: Feature, found: object) -> dict[str, NDArray[Any]]:
    """Return what a feature learnt as arrays that can be saved; empty where it is None.

    Raises:
        PluginError: it is neither None nor a dict of arrays of numbers.
    """
    if found is None:
        return {}
    name, expected = f"{type(feature).__name__}.fit", "a dict of arrays of numbers, or None"
    if not isinstance(found, Mapping):
        raise PluginError(f"{name} returned {found!r:.80}; expected {expected}")
    arrays = {}
    for key, values in found.items():
        array = np.asarray(values)
        if not isinstance(key, str) or array.dtype.kind not in "fiub":
            raise PluginError(f"{name}: {key!r} is {array.dtype} of shape {array.shape}; expected {expected}")
        arrays[key] = np.array(array, order="C")
    return arrays
