"""Provide the checks that all suites share, the watch on global random numbers, and a run without pytest."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from clusterucb import plugins
from clusterucb.errors import PluginError
from clusterucb.wording import one_line


class Outcome(NamedTuple):
    """The outcome of one test of a suite.

    Attributes:
        property: the tested property, in words.
        passed: whether the strategy has the property.
        message: what was got, what was expected and what to do; "" if the test passed.
    """

    property: str
    passed: bool
    message: str


def outcomes(suite: type, make: Callable[[], object]) -> list[Outcome]:
    """Run every test of a suite without pytest.

    Args:
        suite: `PolicySuite`, `ClustererSuite`, `FeatureSuite` or a subclass of one.
        make: a function that returns the strategy; called for each test, like a fixture.

    Returns:
        An outcome for each test, in the order in which the suite defines them.
    """
    results = []
    for name in sorted(dir(suite), key=_place_in(suite)):
        if not name.startswith("test_"):
            continue
        test = getattr(suite(), name)
        message = ""
        try:
            given = {suite.kind: make(), "model": None}  # type: ignore[attr-defined]
            test(**{parameter: given[parameter] for parameter in inspect.signature(test).parameters})
        except AssertionError as error:
            message = one_line(error) or "an assertion of the strategy failed"
        except Exception as error:  # a strategy may raise any exception
            message = f"got {type(error).__name__}: {one_line(error):.300}; expected no exception"
        results.append(Outcome(name.removeprefix("test_").replace("_", " "), not message, message))
    return results


def _place_in(suite: type) -> Callable[[str], tuple[int, str]]:
    """Return a sort key that puts the names of tests in the order in which the classes define them."""
    order = [name for cls in reversed(suite.__mro__) for name in vars(cls)]
    return lambda name: (order.index(name) if name in order else -1, name)


def require(holds: object, got: str, expected: str, remedy: str) -> None:
    """Raise an AssertionError unless ``holds``. An ``assert`` statement would be left out under ``python -O``.

    Args:
        holds: whether the property holds.
        got: what the strategy did.
        expected: what the contract requires.
        remedy: a sentence that says what to do.
    """
    __tracebackhide__ = True
    if not holds:
        raise AssertionError(f"got {one_line(got)}; expected {expected}. {remedy}")


def require_description(strategy: object, use: Callable[[], object]) -> None:
    """Require that a strategy's hyper-parameters can be recorded, and that ``use()`` does not change them."""
    kept = "every parameter of the constructor stored as an attribute of that name, with plain values"
    remedy = "Make the class a dataclass, and store learnt values in other attributes"
    try:
        before = plugins.describe(strategy)
    except PluginError as error:
        raise AssertionError(f"got {error}; expected {kept}. {remedy}") from error
    use()
    after = plugins.describe(strategy)
    require(after == before, f"{after['options']} after use and {before['options']} before", kept, remedy)


@contextmanager
def seeded(seed: int) -> Iterator[Callable[[], bool]]:
    """Seed the global random generators, and restore their states afterwards.

    Yields a function that returns whether the global states are still the seeded ones.

    A test that compares two answers for another reason than randomness asks for both under the same seed. So a
    strategy that uses global randomness fails only the test of randomness.
    """
    before = _global_state()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the global generator is what this function watches)
    if torch := sys.modules.get("torch"):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would also look for GPUs
    started = _plain(_global_state())

    def untouched() -> bool:
        now = _plain(_global_state())
        return now[:2] == started[:2] and started[2] in (None, now[2])  # None: torch was imported in between

    try:
        yield untouched
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        if before[2] is not None:
            sys.modules["torch"].set_rng_state(before[2])


def require_no_global_randomness(answer: Callable[[], Sequence[ArrayLike]], instead: str) -> None:
    """Require that ``answer()`` neither uses nor changes the global random generators.

    Args:
        answer: a function that asks the strategy again and returns its answer as arrays.
        instead: where the strategy must take its random numbers from, in words.
    """
    answers = []
    for seed in (1, 2):
        with seeded(seed) as untouched:
            answers.append(answer())
            require(
                untouched(),
                "a change of the global random state (np.random, random or torch)",
                "the global state as it was",
                f"Do not draw from it or seed it. Draw only from {instead}",
            )
    require(
        same_bits(*answers),
        "different results from two equal calls",
        "the same result for any global seed, time or process",
        f"Draw random numbers only from {instead}",
    )


def same_bits(one: Sequence[ArrayLike], other: Sequence[ArrayLike]) -> bool:
    """Return whether the arrays of two sequences have the same shapes, types and bits; NaN equals NaN."""

    def bits(arrays: Sequence[ArrayLike]) -> list[tuple[object, ...]]:
        return [(np.shape(array), np.asarray(array).dtype, np.asarray(array).tobytes()) for array in arrays]

    return bits(one) == bits(other)


def _global_state() -> tuple[Any, Any, Any]:
    """Return the states of the global generators of random, numpy and torch; None for torch if it is not imported."""
    torch = sys.modules.get("torch")
    return random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None  # noqa: NPY002


def _plain(state: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    """Convert the states from `_global_state` to values that can be compared."""
    builtin, numpy, torch = state
    return (
        builtin,
        [np.asarray(part).tobytes() for part in numpy],
        None if torch is None else bytes(torch.numpy()),
    )
