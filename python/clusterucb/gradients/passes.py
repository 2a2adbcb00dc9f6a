"""Passes of the model: which samples share one, and what the model is given of them.

Decisions:
    - Samples of like lengths share a pass. Of all ways to cut the list, sorted by length, into passes within a limit
      of padded tokens, the one with the least padding is taken, a pass itself counting as some tokens more (`Cost`).
    - Samples are padded on the right, without an attention mask: under causal attention no label sees the padding.
    - Where the labels stand is worked out before anything is on the device, so that no pass waits for the device.
    - Memory that runs out is no failure: the limit becomes half of what was tried, and the samples that are not done
      yet are put into passes anew. Each such change is recorded before it takes effect, so that a run that is taken
      up again makes the same passes, and so the same bits.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.errors import ModelError, OptionError
from clusterucb.run.folder import Limit
from clusterucb.samples.encode import Encoded

CPU_TOKENS = 1024  # of a pass on a CPU, where more gain nothing
_CPU_OVERHEAD = (
    40  # tokens; two halves of a pass take as much more than the whole (24 to 53, 135M parameters, 2 cores)
)
_PAD = 0  # any token will do

Result = TypeVar("Result")


class Batch(NamedTuple):
    """B samples of at most T tokens, which n labels are predicted of.

    Attributes:
        ids: i64[B, T], tokens, padded on the right.
        predicting: i64[n], the positions that predict the labels, in the flattened batch.
        predicted: i64[n], the labels.
        sample: i64[n], the row of each label.
        counts: f32[B], labels of each sample.
        lengths: tokens of each sample.
    """

    ids: torch.Tensor
    predicting: torch.Tensor
    predicted: torch.Tensor
    sample: torch.Tensor
    counts: torch.Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, samples: Sequence[Encoded], device: str = "cpu") -> Self:
        """Return a batch of B samples, none of which has a label as its first token, on a device."""
        longest = max(map(len, samples))
        ids = np.full((len(samples), longest), _PAD, np.int64)
        labels = np.zeros(ids.shape, bool)
        for row, sample in enumerate(samples):
            ids[row, : len(sample)] = sample.tokens
            labels[row, : len(sample)] = sample.labels
        rows, columns = np.nonzero(labels)
        return cls(
            _moved(ids, device),
            _moved(rows * longest + columns - 1, device),
            _moved(ids[rows, columns], device),
            _moved(rows, device),
            _moved(labels.sum(axis=1, dtype=np.float32), device),
            tuple(map(len, samples)),
        )

    def alone(self, row: int) -> Self:
        """Return one of the samples without the others and without padding."""
        longest, length = self.ids.shape[1], self.lengths[row]
        own = self.sample == row
        return type(self)(
            self.ids[row : row + 1, :length],
            self.predicting[own] - row * longest,
            self.predicted[own],
            self.sample[own] - row,
            self.counts[row : row + 1],
            (length,),
        )


def _moved(array: NDArray[Any], device: str) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cuda":  # the copy goes on while the host prepares what comes next
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def overhead_of(device: str, limit: int) -> int:
    """Return what a pass costs beside its tokens, in tokens.

    On a GPU small passes leave most of it idle, so passes are as full as the limit lets them be.
    """
    return _CPU_OVERHEAD if torch.device(device).type == "cpu" else limit


def micro_batches(
    lengths: Sequence[int] | NDArray[np.int64],
    limit: int,
    overhead: int = _CPU_OVERHEAD,
    most: int | None = None,
) -> list[NDArray[np.int64]]:
    """Return positions into ``lengths`` in batches of like lengths, the longest first.

    Each batch's padded size (count times longest) is at most ``limit``, unless it is a single sample, and its count at
    most ``most``; the sum of all padded sizes, and ``overhead`` for each batch, is the least that is possible. Samples
    of one length stay in their order. The longest come first, so that memory runs out at once or not at all.

    Raises:
        OptionError: ``limit`` is not positive.
    """
    if limit < 1:
        raise OptionError(f"batch_tokens is {limit}; expected at least 1, the padded tokens of a pass")
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    longest = np.asarray(lengths, np.int64)[order]
    count = len(order)
    least = np.full(count + 1, np.iinfo(np.int64).max)  # cost of the samples before a place
    least[0] = 0
    begins = np.zeros(count + 1, np.int64)  # where the last batch before a place begins
    for start in range(count):
        fitting = min(max(limit // int(longest[start]), 1), most or count, count - start)
        costs = least[start] + longest[start] * np.arange(1, fitting + 1) + overhead
        ends = slice(start + 1, start + fitting + 1)
        better = costs < least[ends]
        least[ends][better] = costs[better]
        begins[ends][better] = start
    batches = []
    end = count
    while end:
        start = int(begins[end])
        batches.append(order[start:end])
        end = start
    return batches[::-1]


class Passes:
    """Puts samples into passes, and makes them again smaller when memory runs out.

    Args:
        limit: padded tokens of a pass.
        device: where the model is.
        limits: those that came into force since, of a run that is taken up again.
        record: told of each new one before it takes effect.

    Attributes:
        limit: as given.
    """

    def __init__(
        self,
        limit: int,
        device: str = "cpu",
        *,
        limits: Sequence[Limit] = (),
        record: Callable[[Limit], None] = lambda _: None,
    ) -> None:
        self.limit = limit
        self._device = device
        self._limits = list(limits)
        self._record = record

    def over(
        self,
        call: str,
        part: int,
        samples: Sequence[Encoded],
        compute: Callable[[Batch], Result],
        *,
        most: int | None = None,
    ) -> Iterator[tuple[NDArray[np.int64], Result]]:
        """Yield the result of each pass over m samples, with the positions of its samples.

        A pass is begun before the result of the last one is yielded, so that the caller, who reads it, does not keep
        the device waiting.

        Args:
            call: names what is computed, among everything of a run; it is kept as a whole, or computed again.
            part: number of this part of it, from 0.
            samples: m of them.
            compute: makes one pass; on failure it must leave nothing behind.
            most: samples of a pass.

        Raises:
            ModelError: memory is too small for a single sample.
        """
        lengths = np.array([len(sample) for sample in samples])
        same = [limit for limit in self._limits if limit.call == call]
        came = deque(limit for limit in same if limit.part == part)
        later = [limit for limit in same if limit.part >= part]
        before = self._limits[: self._limits.index(later[0])] if later else self._limits
        tokens = before[-1].tokens if before else self.limit
        batches = self._batches(lengths, np.arange(len(samples)), tokens, most)
        done = 0
        finished: tuple[NDArray[np.int64], Result] | None = None
        while batches:
            if came and came[0].done == done:
                left = np.sort(np.concatenate(batches))
                batches = self._batches(lengths, left, came.popleft().tokens, most)
                continue
            batch = batches[0]
            result = self._attempt(compute, [samples[at] for at in batch])
            if result is None:
                limit = Limit(call, part, done, _half(len(batch), int(lengths[batch].max())))
                self._limits.append(limit)
                self._record(limit)
                came.append(limit)
                continue
            if finished is not None:
                yield finished
            finished = batches.popleft(), result[0]
            done += len(batch)
        if finished is not None:
            yield finished

    def _batches(
        self, lengths: NDArray[np.int64], left: NDArray[np.int64], tokens: int, most: int | None
    ) -> deque[NDArray[np.int64]]:
        found = micro_batches(lengths[left], tokens, overhead_of(self._device, tokens), most)
        return deque(left[batch] for batch in found)

    def _attempt(
        self, compute: Callable[[Batch], Result], samples: Sequence[Encoded]
    ) -> tuple[Result] | None:
        """Return the result of a pass, or None if memory runs out."""
        try:
            return (compute(Batch.of(samples, self._device)),)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        gc.collect()  # what the failed pass held goes with its traceback
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def _half(count: int, longest: int) -> int:
    """Return the next limit after a pass that did not fit into memory."""
    if count == 1:
        raise _too_small(longest)
    return count * longest // 2


def single_pass(samples: Sequence[Encoded], device: str, compute: Callable[[Batch], Result]) -> Result:
    """Return the result of one pass that cannot be made smaller.

    Raises:
        ModelError: memory is too small for it.
    """
    with memory_for(_too_small(max(map(len, samples)))):
        return compute(Batch.of(samples, device))


@contextmanager
def memory_for(error: ModelError) -> Iterator[None]:
    """Raise an error in place of the one that says that memory has run out."""
    try:
        yield
    except (RuntimeError, MemoryError) as cause:
        if not out_of_memory(cause):
            raise
        raise error from cause


def _too_small(longest: int) -> ModelError:
    return ModelError(
        f"memory is too small for the gradient of one sample of {longest} tokens; expected more of it. Use a smaller "
        "--max-length, --checkpointing, or fewer layers (--lora-targets, --parameters)"
    )


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory has run out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
