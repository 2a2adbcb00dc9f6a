"""Workers give the same answers in the same order, whoever is slow or dies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import ModelError, WorkerError
from clusterucb.workers.crew import DEATHS, Crew, Died
from clusterucb.workers.lane import Deadly, NoMemory
from helpers.simulated_workers import Simulation


@dataclass(frozen=True)
class Squares:
    """Squares numbers. Some are too large for the memory, and one is refused."""

    def load(self, device: str, shared: dict[str, Any]) -> tuple[str, Any]:
        return f"squares on {device}", self.square

    def square(self, x: int) -> int:
        if x == 13:
            raise ModelError("13 is unlucky")
        if x == 17:
            raise ZeroDivisionError("17")
        if x > 100:
            raise NoMemory
        return x * x


def crew_of(simulation: Simulation, size: int) -> tuple[Crew, str]:
    crew = Crew(simulation, size, clock=simulation.clock)
    key, about = crew.load(Squares())
    assert about == "squares on cpu"
    return crew, key


def answered(crew: Crew, key: str, xs: list[int], ahead: int) -> list[int]:
    """Return the answers to many requests, of which some have begun before the first is read."""
    numbers, found = [], []
    for x in xs:
        numbers.append(crew.begin(key, x))
        if len(numbers) == ahead:
            found.append(crew.answer(numbers.pop(0)))
    return found + [crew.answer(number) for number in numbers]


@given(
    size=st.integers(1, 5),
    xs=st.lists(st.integers(0, 9), max_size=40),
    ahead=st.integers(1, 20),
    seconds=st.lists(st.sampled_from([0.0, 0.1, 1.0, 30.0]), min_size=1, max_size=7),
    deaths=st.sets(st.integers(1, 60)),
)
def test_answers_do_not_depend_on_who_computes_them(
    size: int, xs: list[int], ahead: int, seconds: list[float], deaths: set[int]
) -> None:
    taken = iter(range(10**6))
    simulation = Simulation(
        lambda method, _: seconds[next(taken) % len(seconds)],
        # Deaths that do not hit one request again and again: every third computation at most.
        lambda number, method, _: method == "compute" and number in deaths and number % 3 == 0,
    )
    crew, key = crew_of(simulation, size)
    try:
        assert answered(crew, key, xs, ahead) == [x * x for x in xs]
    except Deadly:
        assert crew.n_deaths >= DEATHS
    assert simulation.n_started == size + crew.n_deaths


@given(size=st.integers(1, 4), at=st.integers(0, 9), n=st.integers(1, 10))
def test_a_request_that_kills_is_given_up_and_the_others_are_answered(size: int, at: int, n: int) -> None:
    at %= n
    simulation = Simulation(kills=lambda _, method, arguments: method == "compute" and arguments[1] == at)
    crew, key = crew_of(simulation, size)
    numbers = [crew.begin(key, x) for x in range(n)]
    for x, number in enumerate(numbers):
        if x == at:
            with pytest.raises(Deadly, match="it was killed"):
                crew.answer(number)
        else:
            assert crew.answer(number) == x * x
    assert DEATHS <= crew.n_deaths <= DEATHS + 1  # once, it may have been one of two in hand


def test_errors_are_raised_where_their_answer_is_read() -> None:
    crew, key = crew_of(Simulation(), 3)
    numbers = [crew.begin(key, x) for x in (1, 13, 17, 101, 2)]
    assert crew.answer(numbers[4]) == 4
    with pytest.raises(NoMemory):
        crew.answer(numbers[3])
    with pytest.raises(ZeroDivisionError) as caught:
        crew.answer(numbers[2])
    (note,) = caught.value.__notes__
    assert "On the worker at " in note
    assert "in square" in note
    with pytest.raises(ModelError, match=r"^13 is unlucky$"):
        crew.answer(numbers[1])
    assert crew.answer(numbers[0]) == 1


def test_workers_that_never_live_are_an_error() -> None:
    simulation = Simulation(kills=lambda _, method, __: method == "load")
    with pytest.raises(WorkerError, match=r"10 workers died before any pass was computed \(it was killed\)"):
        crew_of(simulation, 2)


def test_a_slow_request_is_given_to_another_worker() -> None:
    slow = iter([1.0, 1.0, 1.0, 1.0, 1000.0])
    simulation = Simulation(lambda method, _: next(slow, 1.0) if method == "compute" else 0.0)
    crew, key = crew_of(simulation, 2)
    assert answered(crew, key, list(range(8)), 8) == [x * x for x in range(8)]
    assert crew.n_repeated == 1
    assert simulation.now < 20


def test_a_cancelled_request_is_not_answered() -> None:
    crew, key = crew_of(Simulation(), 1)
    numbers = [crew.begin(key, x) for x in range(5)]
    for number in numbers[:4]:
        crew.cancel(number)
    assert crew.answer(numbers[4]) == 16


@given(st.integers(2, 64))
def test_workers_of_one_speed_share_the_requests(size: int) -> None:
    simulation = Simulation(lambda method, _: 1.0 if method == "compute" else 0.0)
    crew, key = crew_of(simulation, size)
    answered(crew, key, [1] * (20 * size), 4 * size)
    assert simulation.now <= 21
    assert crew.n_repeated == 0


def test_the_note_counts_workers_that_are_ready_and_that_died() -> None:
    seconds = iter([1.0, 100.0])
    simulation = Simulation(
        lambda method, _: next(seconds, 1.0) if method == "load" else 1.0,
        kills=lambda _, method, arguments: method == "compute" and arguments[1] == 7,
    )
    crew, key = crew_of(simulation, 2)
    assert crew.note == "1 ready of 2 workers"
    assert crew.answer(crew.begin(key, 2)) == 4
    with pytest.raises(Deadly):
        crew.answer(crew.begin(key, 7))
    assert crew.note.endswith(f"2 workers, {DEATHS} died")


def test_a_start_that_takes_long_is_said_once() -> None:
    said: list[str] = []
    simulation = Simulation(lambda method, _: 300.0 if method == "load" else 1.0)
    crew = Crew(simulation, 2, say=said.append, clock=simulation.clock)
    key, _ = crew.load(Squares())
    assert said == [
        "No worker is ready after 60 s: they still load the model, or Ray has no room for them (ray status)"
    ]
    assert answered(crew, key, [1, 2, 3], 2) == [1, 4, 9]
    assert crew.note == "2 workers"


def test_a_worker_gets_a_request_when_its_program_is_known_to_be_loaded() -> None:
    """The answers of a worker that dies may be lost, also that to the load, however busy the machine is."""

    class Forgetful(Simulation):
        def call(self, worker: Any, method: str, *arguments: Any) -> int:
            if method == "compute":
                assert not {reference for reference, owner in loads.items() if owner is worker} & {
                    *self._answers
                }
                assert not any(called == "load" for _, called, _ in worker.calls)
            reference = super().call(worker, method, *arguments)
            if method == "load":
                loads[reference] = worker
            return reference

    loads: dict[int, Any] = {}
    simulation = Forgetful(kills=lambda _, method, arguments: method == "compute" and arguments[1] == 7)
    crew, key = crew_of(simulation, 3)
    numbers = [crew.begin(key, x) for x in (7, 1, 2, 7, 3)]
    assert [crew.answer(numbers[at]) for at in (1, 2, 4)] == [1, 4, 9]
    for at in (0, 3):
        with pytest.raises(Deadly):
            crew.answer(numbers[at])
    assert 2 * DEATHS <= crew.n_deaths <= 2 * DEATHS + 2


@given(size=st.integers(1, 3), n=st.integers(2, 9), at=st.integers(0, 8))
def test_a_request_before_one_that_kills_is_not_blamed(size: int, n: int, at: int) -> None:
    """The answer to it is lost if the worker dies before the driver has read it."""

    class Losing(Simulation):
        def wait(self, references: Sequence[int], seconds: float) -> list[int]:
            found = super().wait(references, seconds)
            dead = [one for one in found if isinstance(self._answers[one], Died)]
            for one in found:
                if dead and one not in dead and owners[one] in {owners[other] for other in dead}:
                    self._answers[one] = self._answers[dead[0]]
            return found

        def call(self, worker: Any, method: str, *arguments: Any) -> int:
            reference = super().call(worker, method, *arguments)
            owners[reference] = id(worker)
            return reference

    owners: dict[int, int] = {}
    at %= n
    simulation = Losing(
        lambda *_: 0.0, lambda _, method, arguments: method == "compute" and arguments[1] == at
    )
    crew, key = crew_of(simulation, size)
    numbers = [crew.begin(key, x) for x in range(n)]
    for x, number in enumerate(numbers):
        if x != at:
            assert crew.answer(number) == x * x
    with pytest.raises(Deadly):
        crew.answer(numbers[at])
