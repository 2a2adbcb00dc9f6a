"""Let all processes of a training (DDP) compute the passes of a round, which the first of them decides.

Decisions:
    - The first process forms the passes, as if it were alone, and deals them out: one to each other process, then one
      to itself. It reads the results in the order of the passes. So a round's numbers do not depend on the number of
      processes.
    - Every process has the same weights and moments, because that is what DDP keeps equal. Nothing but samples and
      numbers is sent.
    - Messages go through a group of their own (gloo), because a round may take hours, and NCCL gives up after minutes.
    - torchrun ends all processes if one of them dies, so no death is handled here.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from clusterucb.gradients.accumulate import Checkpoint, Step
from clusterucb.gradients.checkpoints import base_for_adapter, load_checkpoints
from clusterucb.gradients.program import GradientProgram, Reduction, entered
from clusterucb.model.loaded import LoadedModel, borrowing
from clusterucb.options.keywords import settings_from
from clusterucb.options.search import SelectSettings
from clusterucb.samples.encoded import Encoded
from clusterucb.workers.crew import value_of
from clusterucb.workers.lane import Pending
from clusterucb.workers.worker import Worker

_PATIENCE = timedelta(days=7)  # a process waits for a round
_AHEAD = 2  # passes in the hands of each process
_CHECKPOINTS = "live checkpoints"
_END = "end"


class Ranks:
    """The processes of a training.

    Args:
        rank: the number of this process, from 0.
        size: the number of processes.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._sent: list[tuple[Any, torch.Tensor]] = []  # a tensor must live until it is sent
        self._asked: dict[int, deque[_Answer]] = {other: deque() for other in range(1, size)}
        self._n_programs = 0

    def decided(self, value: Any) -> Any:
        """Return the first process's value on all of them. They wait for it."""
        answer = [value]
        dist.broadcast_object_list(answer, group=self._group)
        return answer[0]

    @contextmanager
    def round(self) -> Iterator[None]:
        """Let the others compute passes inside the block; they are in `serve`. For the first process."""
        try:
            yield
        finally:
            for other, asked in self._asked.items():
                self._send(other, (_END,))
                while asked:
                    self.read(other)
            self._flush()

    def spread(self, reduction: Reduction, steps: list[Step[Any]]) -> list[Step[Any]]:
        """Return what computes passes on all processes, for each checkpoint.

        Args:
            reduction: what gradients are reduced to.
            steps: what computes passes in this process.
        """
        self._n_programs += 1
        key = f"program {self._n_programs}"
        for answer in [
            self.ask(other, "load", key, GradientProgram(Live(), reduction)) for other in self._asked
        ]:
            answer.result()
        return [_SpreadStep(self, key, step) for step in steps]

    def ask(self, other: int, *request: Any) -> _Answer:
        """Send another process a request, and return its answer, which need not be there yet."""
        self._send(other, request)
        answer = _Answer(self, other)
        self._asked[other].append(answer)
        return answer

    def read(self, other: int) -> None:
        """Read the next answer of another process."""
        self._asked[other].popleft().found.append(self._receive(other))

    def answer(self, worker: Worker) -> None:
        """Answer requests of the first process until it has no more."""
        while (request := self._receive(0)) != (_END,):
            method, *arguments = request
            self._send(0, getattr(worker, method)(*arguments))
        self._flush()

    def _send(self, to: int, value: Any) -> None:
        content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        for part in (torch.tensor([len(content)]), content):
            self._sent.append((dist.isend(part, to, group=self._group), part))
        self._sent = [(work, part) for work, part in self._sent if not work.is_completed()]

    def _flush(self) -> None:
        while self._sent:
            self._sent.pop()[0].wait()

    def _receive(self, other: int) -> Any:
        size = torch.zeros(1, dtype=torch.int64)
        dist.recv(size, other, group=self._group)
        content = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(content, other, group=self._group)
        return pickle.loads(content.numpy().tobytes())


@dataclass
class _Answer:
    """The answer of another process.

    Attributes:
        ranks: the processes.
        other: the number of the process.
        found: the answer alone, once it is there.
    """

    ranks: Ranks
    other: int

    def __post_init__(self) -> None:
        self.found: list[Any] = []

    def result(self) -> Any:
        """Return the answer once it is there; see `clusterucb.workers.lane.Pending`."""
        while not self.found:
            self.ranks.read(self.other)
        return value_of(self.found[0])

    def cancel(self) -> None:
        """Do nothing: the answer is read with the next one, and nobody looks at it."""


class _SpreadStep:
    """A step whose passes all processes compute in turn; the step of this process does its share.

    Args:
        ranks: the processes.
        key: the name of the program that the others have loaded.
        own: what computes passes in this process.

    Attributes:
        number, weight, size, n_directions, sketch: as for `clusterucb.gradients.accumulate.Step`.
        ahead: how many passes may have begun before the result of the first is read.
    """

    def __init__(self, ranks: Ranks, key: str, own: Step[Any]) -> None:
        self.number, self.weight, self.size = own.number, own.weight, own.size
        self.n_directions, self.sketch = own.n_directions, own.sketch
        self.ahead = _AHEAD * ranks.size
        self._ranks, self._key, self._own = ranks, key, own
        self._n_begun = 0

    @property
    def lane(self) -> Self:
        """Computes passes on all processes."""
        return self

    def begin(self, samples: Sequence[Encoded]) -> Pending[Any]:
        """Begin a pass over B samples. In this process it is computed at once, after the others have theirs."""
        self._n_begun += 1
        other = self._n_begun % self._ranks.size
        if not other:
            return self._own.lane.begin(samples)
        return self._ranks.ask(other, "compute", self._key, self.number, list(samples))

    def __enter__(self) -> Self:
        """Put the model of this process at the checkpoint."""
        self._own.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the model."""
        self._own.__exit__(kind, error, trace)


class Live:
    """The origin of a live model's checkpoints: this process has them at hand."""

    def load(self, device: str, shared: dict[str, Any]) -> list[Checkpoint]:  # noqa: ARG002
        """Return the checkpoints."""
        checkpoints: list[Checkpoint] = shared[_CHECKPOINTS]
        return checkpoints


@borrowing
def serve(ranks: Ranks, *, model: LoadedModel, **options: Any) -> None:
    """Compute passes of a round for the first process, until it needs no more.

    Args:
        ranks: the processes.
        model: the live model, given with its tokenizer and its optimiser; it is given back unchanged.
        **options: the options of the selection.
    """
    settings = settings_from(options, SelectSettings)
    device = model.device(settings.device)
    with torch.inference_mode(False), torch.enable_grad():
        base, _ = base_for_adapter(settings, model, device)
        shared = {_CHECKPOINTS: load_checkpoints(settings, base, settings.given_checkpoints)}
        ranks.answer(Worker(device, shared))
        entered(shared).at(None)
