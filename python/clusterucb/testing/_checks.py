"""What the suites share: how they complain, how they watch global randomness, how they run without pytest."""

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
    """What one test of a suite found.

    Attributes:
        property: what was tested, in words.
        passed: whether the strategy has it.
        message: what was got, what was expected and what to do; "" where it passed.
    """

    property: str
    passed: bool
    message: str


def outcomes(suite: type, make: Callable[[], object]) -> list[Outcome]:
    """Run every test of a suite without pytest.

    Args:
        suite: `PolicySuite`, `ClustererSuite`, `FeatureSuite` or a subclass of one.
        make: returns the strategy; called for each test, as a fixture would be.
    """
    found = []
    for name in sorted(dir(suite), key=_place_in(suite)):
        if not name.startswith("test_"):
            continue
        test = getattr(suite(), name)
        message = ""
        try:
            given = {suite.kind: make(), "model": None}  # type: ignore[attr-defined]
            test(**{wanted: given[wanted] for wanted in inspect.signature(test).parameters})
        except AssertionError as error:
            message = one_line(error) or "an assertion of the strategy failed"
        except Exception as error:  # whatever a strategy raises
            message = f"got {type(error).__name__}: {one_line(error):.300}; expected no exception"
        found.append(Outcome(name.removeprefix("test_").replace("_", " "), not message, message))
    return found


def _place_in(suite: type) -> Callable[[str], tuple[int, str]]:
    """Return a sort key: tests in the order in which the classes define them."""
    order = [name for cls in reversed(suite.__mro__) for name in vars(cls)]
    return lambda name: (order.index(name) if name in order else -1, name)


def require(holds: object, got: str, expected: str, remedy: str) -> None:
    """Raise an AssertionError unless ``holds``; a function, since ``python -O`` leaves ``assert`` out."""
    __tracebackhide__ = True
    if not holds:
        raise AssertionError(f"got {one_line(got)}; expected {expected}. {remedy}")


def require_description(strategy: object, use: Callable[[], object]) -> None:
    """Require that a strategy's hyper-parameters can be recorded, and stay the same in use."""
    kept = "every parameter of the constructor as an attribute of its name, of plain values"
    remedy = "Make the class a dataclass, and put what is learnt into other attributes"
    try:
        before = plugins.describe(strategy)
    except PluginError as error:
        raise AssertionError(f"got {error}; expected {kept}. {remedy}") from error
    use()
    after = plugins.describe(strategy)
    require(after == before, f"{after['options']} after use and {before['options']} before", kept, remedy)


@contextmanager
def seeded(seed: int) -> Iterator[Callable[[], bool]]:
    """Seed the global random numbers and put them back; yields what tells whether nobody has touched them.

    Where two answers are compared for another reason than randomness, both are asked for under the same seed, so
    that a strategy with global randomness fails the test of just that.
    """
    before = _global_state()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (it is the global generator that is watched)
    if torch := sys.modules.get("torch"):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would look for GPUs
    started = _plain(_global_state())

    def untouched() -> bool:
        now = _plain(_global_state())
        return now[:2] == started[:2] and started[2] in (None, now[2])  # torch may have come in between

    try:
        yield untouched
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        if before[2] is not None:
            sys.modules["torch"].set_rng_state(before[2])


def require_no_global_randomness(answer: Callable[[], Sequence[ArrayLike]], instead: str) -> None:
    """Require that ``answer()``, some arrays, is the same whatever the global random numbers are.

    Args:
        answer: asks the strategy afresh.
        instead: where its randomness has to come from.
    """
    answers = []
    for seed in (1, 2):
        with seeded(seed) as untouched:
            answers.append(answer())
            require(
                untouched(),
                "a change of the global random state (np.random, random or torch)",
                "the global state as it was",
                f"Neither draw from it nor seed it: {instead}",
            )
    require(
        same_bits(*answers),
        "two answers to the same question",
        "the same answer whatever the global seeds, the time or the process",
        f"Randomness may only come from one place: {instead}",
    )


def same_bits(one: Sequence[ArrayLike], other: Sequence[ArrayLike]) -> bool:
    """Return whether two sequences of arrays are of the same shapes, types and bits; NaN equals NaN."""

    def bits(arrays: Sequence[ArrayLike]) -> list[tuple[object, ...]]:
        return [(np.shape(one), np.asarray(one).dtype, np.asarray(one).tobytes()) for one in arrays]

    return bits(one) == bits(other)


def _global_state() -> tuple[Any, Any, Any]:
    torch = sys.modules.get("torch")
    return random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None  # noqa: NPY002


def _plain(state: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    """Return a state as values that can be compared; None for torch's where torch was never imported."""
    builtin, numpy, torch = state
    return (
        builtin,
        [np.asarray(part).tobytes() for part in numpy],
        None if torch is None else bytes(torch.numpy()),
    )
