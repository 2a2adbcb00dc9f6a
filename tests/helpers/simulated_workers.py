"""Workers that are simulated: time passes only while the driver waits for them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from clusterucb.workers.crew import Died
from clusterucb.workers.worker import Worker


@dataclass
class _Simulated:
    """A simulated worker: its calls, each with its reference, and the time until which it computes the first."""

    real: Worker
    calls: deque[tuple[int, str, tuple[Any, ...]]] = field(default_factory=deque)
    until: float | None = None


class Simulation:
    """A transport whose workers compute in this process.

    Args:
        seconds: returns how long a call takes, given its method and arguments.
        kills: returns whether a call ends its worker, given the number of the call and its method and arguments.
    """

    def __init__(
        self,
        seconds: Callable[[str, tuple[Any, ...]], float] = lambda *_: 1.0,
        kills: Callable[[int, str, tuple[Any, ...]], bool] = lambda *_: False,
    ) -> None:
        self.now = 0.0
        self.n_started = self.n_computed = 0
        self._seconds, self._kills = seconds, kills
        self._numbers: Iterator[int] = itertools.count()
        self._workers: list[_Simulated] = []
        self._answers: dict[int, Any] = {}

    def clock(self) -> float:
        return self.now

    def start(self) -> _Simulated:
        self.n_started += 1
        self._workers.append(worker := _Simulated(Worker("cpu")))
        return worker

    def call(self, worker: _Simulated, method: str, *arguments: Any) -> int:
        reference = next(self._numbers)
        if worker not in self._workers:
            self._answers[reference] = Died("it is dead")
            return reference
        worker.calls.append((reference, method, arguments))
        self._begin(worker)
        return reference

    def share(self, value: Any) -> Any:
        return value

    def wait(self, references: Sequence[int], seconds: float) -> list[int]:
        stop = self.now + seconds
        while not (done := [one for one in references if one in self._answers]):
            due = [worker for worker in self._workers if worker.until is not None]
            first = min(due, key=lambda one: one.until or 0.0, default=None)
            if first is None or (first.until or 0.0) > stop:
                self.now = stop
                break
            self.now = first.until or 0.0
            self._finish(first)
        return done

    def answer(self, reference: int) -> Any:
        found = self._answers.pop(reference)
        if isinstance(found, Died):
            raise found
        return found

    def end(self, worker: _Simulated) -> None:
        if worker in self._workers:
            self._workers.remove(worker)

    def close(self) -> None:
        self._workers.clear()

    def _begin(self, worker: _Simulated) -> None:
        if worker.until is None and worker.calls:
            _, method, arguments = worker.calls[0]
            worker.until = self.now + self._seconds(method, arguments)

    def _finish(self, worker: _Simulated) -> None:
        reference, method, arguments = worker.calls.popleft()
        worker.until = None
        self.n_computed += 1
        if self._kills(self.n_computed, method, arguments):
            for lost in (reference, *(number for number, *_ in worker.calls)):
                self._answers[lost] = Died("it was killed")
            self._workers.remove(worker)
            return
        self._answers[reference] = getattr(worker.real, method)(*arguments)
        self._begin(worker)
