"""Define the contract of a feature, which describes samples by vectors. The pool is clustered by these vectors.

Decisions:
    - `Feature.fit` returns what it learns from the pool as arrays. They are written to the run folder and passed to
      every `Feature.compute`; the feature itself keeps no state. So a resumed run and the target use the same arrays.
    - `fit` sees a bounded number of evenly spaced rows. Canonical order is the order of content hashes, so these rows
      are a random sample that does not depend on the order of files, and a pool of millions is fitted in the memory
      of thousands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import PluginError, warn
from clusterucb.wording import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from clusterucb.samples.encoded import Encoded
    from clusterucb.samples.sample import Sample

PASSES = "forward_passes"  # the name of the array in which `Feature.fit` may return the number of passes
Fitted = Mapping[str, NDArray[Any]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class FeatureBatch:
    """Some samples, in canonical order, and access to the model.

    Attributes:
        samples: the samples as they were read.
        encoded: the samples' tokens, in the same order.
        load_model: a function that returns the base model; the property `model` calls it.
        take_gradients: a function that returns gradient sketches; the property `gradient_sketches` calls it.
        fitted: the arrays that `Feature.fit` returned, read-only. Empty during `fit`, and if `fit` returned None.
        device: the device that the model runs on: ``cpu``, ``cuda``, ``cuda:1``, ...
    """

    samples: Sequence[Sample]
    encoded: Sequence[Encoded]
    load_model: Callable[[], PreTrainedModel]
    take_gradients: Callable[[], NDArray[np.float32]]
    fitted: Fitted = field(default_factory=dict)
    device: str = "cpu"

    @property
    def model(self) -> PreTrainedModel:
        """The base model in evaluation mode; do not change it."""
        return self.load_model()

    @property
    def gradient_sketches(self) -> NDArray[np.float32]:
        """Sketches f32[m, d] of the samples' unit update directions; a row of zeros where the gradient fails.

        Sketches cost one gradient per sample, unless a gradient store has them. A feature that uses them must declare
        it in `Feature.gradients`.
        """
        return self.take_gradients()

    def spread(self, count: int) -> FeatureBatch:
        """Return a batch of ``count`` evenly spaced samples, or of all samples if there are fewer.

        The new batch looks up a sample only when it is accessed. It has no gradients: taking them raises PluginError.
        """

        def refuse() -> NDArray[np.float32]:
            raise PluginError(
                "a feature asks for gradients in `fit`; expected it to take them only in `compute`"
            )

        n_samples = len(self.samples)
        rows = np.arange(min(count, n_samples)) * n_samples // max(min(count, n_samples), 1)
        return replace(
            self, samples=_Rows(self.samples, rows), encoded=_Rows(self.encoded, rows), take_gradients=refuse
        )


class Feature(ABC):
    """Describes samples by vectors. A feature that takes gradients cannot save any.

    Attributes:
        forward_passes: passes of the model that `compute` makes over each sample, for the cost that a run reports.
            A partial pass, or a pass of a smaller model, counts as a fraction.
        gradients: gradients that `compute` takes of each sample, also for the reported cost.
        similar_by: names of the blocks in which samples are compared with the target; empty means all blocks.
        fit_samples: the number of pool samples that `fit` gets; 0 means that there is nothing to fit.
    """

    forward_passes: float = 0
    gradients: int = 0
    similar_by: ClassVar[tuple[str, ...]] = ()
    fit_samples: int = 0

    def fit(self, batch: FeatureBatch) -> Fitted | None:  # noqa: ARG002
        """Learn from the pool what `compute` needs, and return it as named arrays of numbers; optional.

        A run calls this once, writes the arrays to its folder, and passes them to every `compute` as
        ``batch.fitted``, for the pool and for the target. Keep nothing in the feature. Do not run the model here: the
        run would not count the cost. If the number of passes depends on the model, return it as an array
        ``forward_passes``, f64[1]; it replaces the attribute.

        Args:
            batch: `fit_samples` evenly spaced samples of the pool in canonical order, or the whole of a smaller pool.

        Returns:
            Arrays by name, or None if there is nothing to keep.
        """
        return None

    @abstractmethod
    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return named blocks, each f32[len(batch.samples), k], finite.

        A row must not depend on the other rows of its batch: batches are written to disk one by one, and a resumed
        run continues after the last batch on disk.
        """

    def compared(self, blocks: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the blocks in which samples are compared with the target: `similar_by`, or all."""
        return self.similar_by or tuple(blocks)

    def contents(self) -> dict[str, str]:
        """Return a fingerprint of each file that an option names, by option; none by default.

        Fingerprints and options together decide whether a run may be resumed and whether cached features are reused.
        """
        return {}


class _Rows(Sequence[Item]):
    """Some rows of a sequence; each is looked up only when it is accessed."""

    def __init__(self, items: Sequence[Item], rows: NDArray[np.int64]) -> None:
        self._items = items
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Item]: ...
    def __getitem__(self, at: int | slice) -> Item | Sequence[Item]:
        if isinstance(at, slice):
            return _Rows(self._items, self._rows[at])
        return self._items[int(self._rows[at])]


def checked_blocks(
    feature: Feature, found: object, samples: Sequence[Sample]
) -> dict[str, NDArray[np.float32]]:
    """Check the blocks that a feature computed, and return them as arrays that can be saved.

    A row that is not finite does not stop the job: it is warned of, and gets the mean of the other rows.

    Args:
        feature: the feature, for its name in messages.
        found: what `Feature.compute` returned.
        samples: the samples of the batch.

    Raises:
        PluginError: ``found`` is not a dict of blocks f32[m, k], or no row of a block is finite.
    """
    n_rows = len(samples)
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
        bad = np.flatnonzero(~np.isfinite(blocks[key]).all(axis=1))
        if bad.size == n_rows:
            raise PluginError(
                f"{name}: block {key!r} is not finite; expected {expected}, without NaN or infinity"
            )
        if bad.size:
            blocks[key] = _described_by_others(blocks[key], bad)
            first, others = samples[int(bad[0])], n_rows - bad.size
            warn(
                f"{name}: {counted(bad.size, 'row')} of block {key!r} {'is' if bad.size == 1 else 'are'} not finite, "
                f"the first of {first.file}:{first.line}; the mean of {counted(others, 'other row')} takes its place"
            )
    return blocks


def _described_by_others(block: NDArray[np.float32], bad: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a block f32[m, k] with the mean of the other rows in place of ``bad`` ones: they are like any sample."""
    filled = block.copy()
    good = np.ones(len(block), np.bool_)
    good[bad] = False
    filled[bad] = block[good].mean(axis=0, dtype=np.float64).astype(np.float32)
    return filled


def checked_fit(feature: Feature, found: object) -> dict[str, NDArray[Any]]:
    """Check what a feature learnt, and return it as arrays that can be saved; no arrays if it is None.

    Args:
        feature: the feature, for its name in messages.
        found: what `Feature.fit` returned.

    Raises:
        PluginError: ``found`` is neither None nor a dict of arrays of numbers.
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
