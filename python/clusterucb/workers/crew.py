"""Hand passes out to workers that may die or be slow, and give their answers back in order.

The promise: what `Crew.answer` returns does not depend on the number of workers, on their speed, or on who dies.

Decisions:
    - A request has a number. It may be computed more than once, and the first answer counts. Answers of a worker that
      is thought dead are dropped with the worker.
    - A worker has one request in hand, and a second one while more requests wait than there are workers. So nobody
      waits for the driver, and nobody holds what another worker could compute at the end.
    - A worker gets a request when the driver knows that it has loaded its program. So a worker that dies with a request
      in hand has died of the request, and one without has died of the program.
    - A worker that dies is replaced, and its requests are the next to be handed out. The answer to its last request may
      be lost, so of two requests in hand, either may have killed it: each of them is then given to a worker that has
      nothing else. A request that `DEATHS` workers have died of is answered by `Deadly`.
    - A request that takes `SLOW` times as long as usual is also given to a worker that has nothing to do, unless a
      worker has died of it.
    - How processes are started, called and ended is a `Transport`'s matter (`clusterucb.workers.ray_transport`).
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from clusterucb.errors import ClusterUCBError, WorkerError
from clusterucb.wording import counted
from clusterucb.workers.lane import Deadly, NoMemory
from clusterucb.workers.worker import Broken, Failed, Found, OutOfMemory, Program

DEATHS = 3  # deaths on one request, after which it is given up
STILLBORN = 8  # deaths in a row before anything was computed, beside one for each worker: the job ends
SLOW = 3.0  # times the usual duration of a request
_RECENT = 32  # answers whose duration is the usual one
_PATIENCE = 5.0  # seconds between two looks at slow workers
_STARTING = 60.0  # seconds without a worker that is ready, after which the user is told


class Died(Exception):
    """A worker has died. The message says how."""


class Transport(Protocol):
    """How workers are started, called and ended."""

    def start(self) -> Any:
        """Return a new worker, which may still be starting."""

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Call a method of `clusterucb.workers.worker.Worker`, and return a reference to its answer."""

    def share(self, value: Any) -> Any:
        """Return an argument that stands for a large value and reaches each machine once."""

    def wait(self, references: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Wait until one answer is there, at most for some seconds. Return the references whose answers are there."""

    def answer(self, reference: Any) -> Any:
        """Return an answer that is there.

        Raises:
            Died: the worker has died.
        """

    def end(self, worker: Any) -> None:
        """End a worker at once."""

    def close(self) -> None:
        """End all workers."""


@dataclass(eq=False)
class _Hand:
    """A worker and what it has in hand.

    Attributes:
        worker: the worker.
        loading: the references to the answers of programs that it loads, with the programs' names.
        calls: the references to the answers of requests, with the requests' numbers, in the order of the calls.
        since: when it began with the first of them.
        computed: the number of its answers.
    """

    worker: Any
    loading: deque[tuple[Any, str]] = field(default_factory=deque)
    calls: deque[tuple[Any, int]] = field(default_factory=deque)
    since: float = 0.0
    computed: int = 0


class Crew:
    """Workers that compute the requests of one job.

    Args:
        transport: starts and calls the workers.
        size: the number of workers.
        say: shows a line to the user.
        clock: returns the time in seconds.

    Attributes:
        size: the number of workers.
        n_deaths: how many workers have died.
        n_repeated: how many requests were given to a second worker because the first one was slow.
    """

    def __init__(
        self,
        transport: Transport,
        size: int,
        *,
        say: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._clock = clock
        self.size = size
        self.n_deaths = self.n_repeated = 0
        self._transport = transport
        self._programs: dict[str, Any] = {}
        self._about: dict[str, Any] = {}
        self._requests: dict[int, tuple[str, tuple[Any, ...]]] = {}
        self._waiting: deque[int] = deque()
        self._answers: dict[int, Any] = {}
        self._deaths: Counter[int] = Counter()
        self._suspects: set[int] = set()  # requests that a worker had in hand when it died
        self._seconds: deque[float] = deque(maxlen=_RECENT)
        self._next = 0
        self._stillborn = 0  # deaths in a row of workers that never answered a request
        self._hands = [_Hand(transport.start()) for _ in range(size)]
        self._ready_at = clock()  # when a worker was last ready

    @property
    def note(self) -> str:
        """The number of workers in words, with how many are ready and how many have died."""
        n_ready = sum(not hand.loading for hand in self._hands)
        ready = "" if n_ready == self.size else f"{n_ready} ready of "
        died = f", {self.n_deaths} died" if self.n_deaths else ""
        return f"{ready}{counted(self.size, 'worker')}{died}"

    def load(self, program: Program) -> tuple[str, Any]:
        """Load a program on every worker, and return its name and what it says about itself.

        Raises:
            NoMemory: a worker has too little memory.
            ClusterUCBError: the program refuses to load.
        """
        key = f"program {len(self._programs)}"
        self._programs[key] = self._transport.share(program)
        for hand in self._hands:
            self._load(hand, key)
        while key not in self._about:
            self._turn()
        return key, self._about[key]

    def begin(self, key: str, *request: Any) -> int:
        """Hand out a request to a loaded program, and return its number.

        Args:
            key: the program's name.
            *request: the arguments.
        """
        number, self._next = self._next, self._next + 1
        self._requests[number] = key, request
        self._waiting.append(number)
        self._hand_out()
        return number

    def answer(self, number: int) -> Any:
        """Return the answer to a request.

        Raises:
            NoMemory: the request needs more memory than a worker has.
            Deadly: workers died of it, again and again.
            WorkerError: it failed for another reason; or workers die before they answer.
            ClusterUCBError: the program refused it.
        """
        while number not in self._answers:
            self._turn()
        del self._requests[number]
        return value_of(self._answers.pop(number))

    def cancel(self, number: int) -> None:
        """Drop a request."""
        self._requests.pop(number, None)
        self._answers.pop(number, None)
        if number in self._waiting:
            self._waiting.remove(number)

    def close(self) -> None:
        """End all workers."""
        self._transport.close()

    def _turn(self) -> None:
        """Hand out what waits, wait for an answer, and read all that are there."""
        self._hand_out()
        owners = {reference: hand for hand in self._hands for reference, _ in (*hand.loading, *hand.calls)}
        there = set(self._transport.wait(list(owners), _PATIENCE))
        self._look_at_starts()
        for reference, hand in owners.items():  # a worker's answers are read in the order of its calls
            if reference in there and hand in self._hands:  # it may have died since
                self._read(hand, reference)

    def _look_at_starts(self) -> None:
        """Tell the user if no worker has become ready for a long time."""
        now = self._clock()
        if any(not hand.loading for hand in self._hands):
            self._ready_at = now
        elif now - self._ready_at >= _STARTING:
            self._ready_at = math.inf  # once
            self._say(
                f"No worker is ready after {_STARTING:.0f} s: they still load the model, or Ray has no room for them "
                "(ray status)"
            )

    def _read(self, hand: _Hand, reference: Any) -> None:
        try:
            found = self._transport.answer(reference)
        except Died as death:
            self._bury(hand, str(death))
            return
        if isinstance(found, Broken):
            self._bury(hand, found.reason)
            return
        loading = dict(hand.loading)
        if reference in loading:
            hand.loading.remove((reference, loading[reference]))
            self._about.setdefault(loading[reference], value_of(found))
            return
        number = dict(hand.calls)[reference]
        if hand.calls[0][1] == number:
            self._seconds.append(self._clock() - hand.since)
        hand.calls.remove((reference, number))
        hand.since = self._clock()
        hand.computed += 1
        self._stillborn = 0
        if number in self._requests:
            self._answers.setdefault(number, found)

    def _bury(self, hand: _Hand, reason: str) -> None:
        """Replace a worker, and hand its requests out again."""
        self._hands.remove(hand)
        self.n_deaths += 1
        self._say(f"A worker died ({reason}): another one takes its place")
        self._transport.end(hand.worker)
        held = [number for _, number in hand.calls if self._wanted(number)]
        self._suspects.update(held)
        if held and len(hand.calls) == 1:
            self._deaths[held[0]] += 1
            if self._deaths[held[0]] == DEATHS:
                self._answers[held.pop(0)] = Deadly(reason)
        elif not hand.calls and not hand.computed:
            self._stillborn += 1
            if self._stillborn >= STILLBORN + self.size:
                raise WorkerError(
                    f"{counted(self._stillborn, 'worker')} died before any pass was computed ({reason}); expected "
                    "workers that live. Fewer --workers need less memory"
                )
        elsewhere = {number for other in self._hands for _, number in other.calls}
        self._waiting.extendleft(sorted({*held} - elsewhere - {*self._waiting}, reverse=True))
        new = _Hand(self._transport.start())
        self._hands.append(new)
        for key in self._programs:
            self._load(new, key)

    def _load(self, hand: _Hand, key: str) -> None:
        hand.loading.append((self._transport.call(hand.worker, "load", key, self._programs[key]), key))

    def _hand_out(self) -> None:
        for hand in self._hands:
            if self._waiting and not hand.calls and not hand.loading:
                self._give(hand, self._waiting.popleft())
        for hand in self._hands:
            ahead = len(self._waiting) > len(self._hands) and len(hand.calls) == 1 and not hand.loading
            if ahead and not self._suspects & {hand.calls[0][1], self._waiting[0]}:
                self._give(hand, self._waiting.popleft())
        if not self._waiting:
            for hand in self._hands:
                if not hand.calls and not hand.loading and (late := self._late()) is not None:
                    self.n_repeated += 1
                    self._give(hand, late)

    def _give(self, hand: _Hand, number: int) -> None:
        key, request = self._requests[number]
        if not hand.calls:
            hand.since = self._clock()
        hand.calls.append((self._transport.call(hand.worker, "compute", key, *request), number))

    def _late(self) -> int | None:
        """Return the number of a request that takes too long and is in one hand alone, or None."""
        if len(self._seconds) < 3:
            return None
        held = Counter(number for hand in self._hands for _, number in hand.calls)
        since = self._clock() - SLOW * median(self._seconds)
        for hand in self._hands:
            for place, (_, number) in enumerate(hand.calls):
                alone = held[number] == 1 and number not in self._suspects
                if self._wanted(number) and alone and (place or hand.since < since):
                    return number
        return None

    def _wanted(self, number: int) -> bool:
        """Return whether a request has no answer yet and is not cancelled."""
        return number in self._requests and number not in self._answers


def value_of(found: Found | OutOfMemory | Failed | Deadly) -> Any:
    """Return what was computed, or raise what went wrong."""
    match found:
        case Found(value):
            return value
        case OutOfMemory():
            raise NoMemory
        case Failed(error, where, trace):
            if not isinstance(error, ClusterUCBError):
                error.add_note(f"On the worker at {where}:\n{trace}")
            raise error
        case Deadly():
            raise found


@dataclass
class CrewPending:
    """A pass that workers compute.

    Attributes:
        crew: the workers.
        number: the number of the request.
    """

    crew: Crew
    number: int

    def result(self) -> Any:
        """Return the pass's result once it is there; see `Crew.answer`."""
        return self.crew.answer(self.number)

    def cancel(self) -> None:
        """Drop the result."""
        self.crew.cancel(self.number)
