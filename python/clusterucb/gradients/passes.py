"""Group samples into passes of the model, build each pass's tensors, and repeat a pass smaller if memory runs out.

Decisions:
    - Samples of similar lengths share a pass. The list, sorted by length, is cut into passes within a limit of padded
      tokens. Of all ways to cut it, the one with the lowest cost is taken: the padded tokens, and for each pass some
      tokens more (`overhead_of`).
    - Samples are padded on the right, without an attention mask: under causal attention no label sees the padding.
    - The positions of the labels are computed on the host, so that no pass waits for the device.
    - A pass that runs out of memory does not fail the job. The limit becomes half of what was tried, and the remaining
      samples are grouped again. Each new limit is recorded before it takes effect, so that a resumed run makes the same
      passes and gives the same bits.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.errors import ModelError, OptionError, WorkerError
from clusterucb.run.manifest import Limit
from clusterucb.samples.encoded import Encoded
from clusterucb.workers.lane import Deadly, Lane, NoMemory, Pending

CPU_TOKENS = 1024  # padded tokens of a pass on a CPU; larger passes are not faster
# The cost of a pass beside its tokens, in tokens: two halves of a pass take that much more than the whole (measured: 24
# to 53, with 135M parameters on 2 cores).
_CPU_OVERHEAD = 40
_PAD = 0  # any token will do

Result = TypeVar("Result")


class PaddedBatch(NamedTuple):
    """B padded samples of at most T tokens; n of the tokens are labels.

    Attributes:
        ids: i64[B, T], the tokens, padded on the right.
        predicting: i64[n], the positions in the flattened batch whose logits predict the labels.
        predicted: i64[n], the labels.
        sample: i64[n], the row of each label's sample.
        counts: f32[B], the number of labels of each sample.
        lengths: the number of tokens of each sample.
    """

    ids: torch.Tensor
    predicting: torch.Tensor
    predicted: torch.Tensor
    sample: torch.Tensor
    counts: torch.Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, samples: Sequence[Encoded], device: str = "cpu") -> Self:
        """Return a batch of B samples on a device; no sample may have a label as its first token."""
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
        """Return a batch of one of the samples, without padding."""
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
    if torch.device(device).type == "cuda":  # the host goes on while the device copies
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def overhead_of(device: str, limit: int) -> int:
    """Return the cost of a pass beside its tokens, in tokens.

    A small pass leaves most of a GPU idle. So the cost there is the limit itself, which makes passes as full as the
    limit allows.
    """
    return _CPU_OVERHEAD if torch.device(device).type == "cpu" else limit


def micro_batches(
    lengths: Sequence[int] | NDArray[np.int64],
    limit: int,
    overhead: int = _CPU_OVERHEAD,
    most: int | None = None,
) -> list[NDArray[np.int64]]:
    """Group samples into batches of similar lengths, at the lowest total cost.

    The cost of a batch is its padded size (its count times its longest length) plus ``overhead``. Samples of one length
    keep their order. The longest samples come first, so that memory runs out at once or not at all.

    Args:
        lengths: i64[m], the number of tokens of each sample.
        limit: the largest padded size of a batch; a single sample may exceed it.
        overhead: the cost of a batch beside its padded size, in tokens.
        most: the largest number of samples in a batch; None for no limit.

    Returns:
        For each batch, the positions of its samples in ``lengths``.

    Raises:
        OptionError: ``limit`` is not positive.
    """
    if limit < 1:
        raise OptionError(f"batch_tokens is {limit}; expected at least 1, the padded tokens of a pass")
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    longest = np.asarray(lengths, np.int64)[order]
    count = len(order)
    least = np.full(count + 1, np.iinfo(np.int64).max)  # [i]: the lowest cost of the first i samples
    least[0] = 0
    begins = np.zeros(count + 1, np.int64)  # [i]: where the last batch of the first i samples begins
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


@dataclass(frozen=True)
class _Done(Generic[Result]):
    """A pass that has ended.

    Attributes:
        found: the result as the only entry, or nothing if memory ran out.
    """

    found: tuple[Result, ...]

    def result(self) -> Result:
        if not self.found:
            raise NoMemory
        return self.found[0]

    def cancel(self) -> None:
        pass


class Here(Generic[Result]):
    """Computes passes in this process.

    Args:
        compute: runs one pass; if it fails, it must leave nothing behind.
        device: the model's device.
    """

    ahead = 2  # the device goes on while the caller reads a result

    def __init__(self, compute: Callable[[PaddedBatch], Result], device: str = "cpu") -> None:
        self._compute = compute
        self._device = device

    def begin(self, samples: Sequence[Encoded]) -> Pending[Result]:
        """Run a pass over B samples."""
        try:
            return _Done((self._compute(PaddedBatch.of(samples, self._device)),))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        gc.collect()  # the tensors of the failed pass are freed with its traceback
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return _Done(())


class Passes:
    """Groups samples into passes, and repeats a pass smaller if memory runs out.

    Args:
        limit: the padded tokens of a pass.
        device: the model's device.
        limits: the lower limits that earlier sessions of a resumed run recorded.
        record: called with each new limit before it takes effect.

    Attributes:
        limit: the padded tokens of a pass, as given.
        device: the model's device.
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
        self.device = device
        self._limits = list(limits)
        self._record = record

    def over(
        self,
        call: str,
        part: int,
        samples: Sequence[Encoded],
        lane: Lane[Result],
        *,
        most: int | None = None,
        killed: Callable[[int, str], None] | None = None,
    ) -> Iterator[tuple[NDArray[np.int64], Result]]:
        """Yield the result of each pass over m samples, with the positions of its samples.

        Passes begin and are yielded in one order, whatever the lane. The next passes begin before a result is read.

        Args:
            call: a name for this computation that is unique within the run. Its results are kept all together, or
                computed again.
            part: the number of this part of the computation, counted from 0.
            samples: m samples.
            lane: computes the passes.
            most: the largest number of samples in a pass; None for no limit.
            killed: called with the position of a sample that workers die of, and with how they died. Such a sample is
                in no pass that is yielded. None raises an error instead.

        Raises:
            ModelError: memory is too small for a single sample.
            WorkerError: workers die of a sample.
        """
        lengths = np.array([len(sample) for sample in samples])
        same = [limit for limit in self._limits if limit.call == call]
        due = deque(limit for limit in same if limit.part == part)
        later = [limit for limit in same if limit.part >= part]
        before = self._limits[: self._limits.index(later[0])] if later else self._limits
        tokens = before[-1].tokens if before else self.limit
        batches = self._batches(lengths, np.arange(len(samples)), tokens, most)
        begun: deque[tuple[NDArray[np.int64], Pending[Result]]] = deque()
        n_begun = 0  # samples
        while batches or begun:
            if batches and due and due[0].done == n_begun:
                left = np.sort(np.concatenate(batches))
                batches = self._batches(lengths, left, due.popleft().tokens, most)
                continue
            if batches and len(begun) < lane.ahead:
                batch = batches.popleft()
                begun.append((batch, lane.begin([samples[at] for at in batch])))
                n_begun += len(batch)
                continue
            batch, pending = begun.popleft()
            try:
                result = pending.result()
            except Deadly as death:
                deadly = _deadly(lane, samples, batch, death)
                for at, how in deadly.items():
                    _report(killed, at, how)
                rest = np.array([at for at in batch.tolist() if at not in deadly], np.int64)
                if deadly and len(rest):
                    begun.appendleft((rest, lane.begin([samples[at] for at in rest])))
                if deadly:
                    continue
            except NoMemory:
                pass
            else:
                yield batch, result
                continue
            again = [batch, *(one for one, _ in begun)]
            n_begun -= sum(map(len, again))
            for _, pending in begun:
                pending.cancel()
            begun.clear()
            batches.extendleft(reversed(again))
            limit = Limit(call, part, n_begun, _half(len(batch), int(lengths[batch].max())))
            self._limits.append(limit)
            self._record(limit)
            due.appendleft(limit)

    def _batches(
        self, lengths: NDArray[np.int64], left: NDArray[np.int64], tokens: int, most: int | None
    ) -> deque[NDArray[np.int64]]:
        batches = micro_batches(lengths[left], tokens, overhead_of(self.device, tokens), most)
        return deque(left[batch] for batch in batches)


def _deadly(
    lane: Lane[Any], samples: Sequence[Encoded], batch: NDArray[np.int64], death: Deadly
) -> dict[int, str]:
    """Return the samples of a pass that workers die of, each alone, with how they died.

    There may be none: then the pass as a whole is too much, as if memory had run out.
    """
    if len(batch) == 1:
        return {int(batch[0]): str(death)}
    deadly = {}
    for at in batch.tolist():
        try:
            lane.begin([samples[at]]).result()
        except Deadly as alone:
            deadly[at] = str(alone)
        except NoMemory:
            pass
    return deadly


def _report(killed: Callable[[int, str], None] | None, at: int, how: str) -> None:
    if killed is None:
        raise WorkerError(
            f"workers die of a sample, each time it is computed ({how}); expected a sample that they survive"
        )
    killed(at, how)


def _half(count: int, longest: int) -> int:
    """Return the next limit after a pass that did not fit into memory.

    Raises:
        ModelError: the pass had a single sample.
    """
    if count == 1:
        raise _too_small(longest)
    return count * longest // 2


def single_pass(samples: Sequence[Encoded], device: str, compute: Callable[[PaddedBatch], Result]) -> Result:
    """Return the result of one pass over all the samples, which is never repeated smaller.

    Args:
        samples: the samples of the pass.
        device: the model's device.
        compute: runs the pass.

    Raises:
        ModelError: memory is too small for the pass.
    """
    with memory_for(_too_small(max(map(len, samples)))):
        return compute(PaddedBatch.of(samples, device))


@contextmanager
def memory_for(error: ModelError) -> Iterator[None]:
    """Raise ``error`` in place of any error which says that memory has run out."""
    try:
        yield
    except (RuntimeError, MemoryError) as cause:
        if not out_of_memory(cause):
            raise
        raise error from cause


def _too_small(longest: int) -> ModelError:
    return ModelError(
        f"memory is too small for the gradient of one sample of {longest} tokens; expected more memory. Use a smaller "
        "--max-length, --checkpointing, or fewer layers (--lora-targets, --parameters)"
    )


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory has run out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
