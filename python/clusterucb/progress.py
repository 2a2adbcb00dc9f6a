"""Show the progress of a run: its steps, its counts and how much of the budget is left.

A terminal gets bars (rich), a notebook gets one line that is updated, and everything else gets plain lines, at most one
every few seconds, so that a log stays readable. All three use the same words: how much is done, how much is left,
the rate and the time to go. A program gets lines of JSON. Progress is written to standard error, because standard
output is for results. A call from Python shows nothing unless it runs in a notebook or passes an observer, which is a
function or any `Observer`.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TextIO, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from clusterucb.errors import OptionError
from clusterucb.terminal import Terminal
from clusterucb.wording import clock, printable

Advance = Callable[[int], None]
Note = Callable[[], str]


def _nothing() -> str:
    return ""


@runtime_checkable
class Observer(Protocol):
    """An object that a run reports its progress to."""

    def step(self, text: str) -> None:
        """Report the step that begins now."""

    def count(
        self, text: str, total: int, *, done: int = 0, unit: str = "samples", note: Note = _nothing
    ) -> AbstractContextManager[Advance]:
        """Count up to ``total`` while the block runs. Yields a function, to be called with each increment.

        Args:
            text: the name of the work.
            total: the number of units in all.
            done: the number of units that were done before.
            unit: the plural of the unit.
            note: a function that returns a remark to show beside the count, or "" for none.
        """


AnyObserver = Observer | Callable[[str, int, int], object]


class Silent:
    """An observer that shows nothing."""

    def step(self, text: str) -> None:
        """Ignore the step."""

    def count(
        self,
        text: str,  # noqa: ARG002
        total: int,  # noqa: ARG002
        *,
        done: int = 0,  # noqa: ARG002
        unit: str = "samples",  # noqa: ARG002
        note: Note = _nothing,  # noqa: ARG002
    ) -> AbstractContextManager[Advance]:
        """Ignore the count."""
        return nullcontext(lambda _: None)


class Calls:
    """An observer that calls a function.

    Args:
        function: a function of (text, done, total): the name of the step or the work, the number of units done and
            the number of units in all. Both numbers are 0 for a step.
    """

    def __init__(self, function: Callable[[str, int, int], object]) -> None:
        self._function = function

    def step(self, text: str) -> None:
        """Call the function with the step."""
        self._function(text, 0, 0)

    @contextmanager
    def count(
        self,
        text: str,
        total: int,
        *,
        done: int = 0,
        unit: str = "samples",  # noqa: ARG002
        note: Note = _nothing,  # noqa: ARG002
    ) -> Iterator[Advance]:
        """Call the function with the count, at the start and after every increment."""
        count = done

        def advance(n: int) -> None:
            nonlocal count
            count += n
            self._function(text, count, total)

        advance(0)
        yield advance


def observer_of(given: AnyObserver | None) -> Observer:
    """Return ``given`` as an observer. A function becomes `Calls`; None becomes `Screen` in a notebook, else `Silent`.

    Raises:
        OptionError: ``given`` is neither an observer nor a function of (text, done, total).
    """
    if given is None:
        return Screen() if Terminal().is_jupyter else Silent()
    if isinstance(given, Observer) and not isinstance(given, type):
        return given
    if callable(given) and (signature := _other_signature(given)) is None:
        return Calls(given)
    takes = f", which takes {signature}" if callable(given) else ""
    raise OptionError(
        f"observer is {given!r:.80}{takes}; expected a function of (text, done, total), or an Observer"
    )


def _other_signature(function: Callable[..., object]) -> str | None:
    """Return a function's signature if it cannot be called with (text, done, total), else None."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions have no signature: assume that they can be called
        return None
    try:
        signature.bind("", 0, 0)
    except TypeError:
        return str(signature)
    return None


class Screen:
    """An observer that shows progress on standard error or in a notebook.

    Args:
        console: the console to write to. By default, standard error.
        seconds_between_lines: the shortest time between two lines of one count where there is no terminal.
    """

    def __init__(self, console: Console | None = None, seconds_between_lines: float = 10.0) -> None:
        self._console = console or Terminal(stderr=True)
        self._seconds = seconds_between_lines

    def step(self, text: str) -> None:
        """Print one line."""
        self._console.print(Text(text), soft_wrap=True)

    def count(
        self, text: str, total: int, *, done: int = 0, unit: str = "samples", note: Note = _nothing
    ) -> AbstractContextManager[Advance]:
        """Show a bar on a terminal, an updated line in a notebook and plain lines elsewhere."""
        wording = _Wording(unit, note)
        if self._console.is_jupyter:
            return self._in_notebook(text, total, done, wording)
        count = self._bar if self._console.is_terminal else self._lines
        return count(text, total, done, wording)

    @contextmanager
    def _bar(self, text: str, total: int, done: int, wording: _Wording) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            _Status(wording),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(text, total=total, completed=done)
            progress.reset(task, total=total, completed=done)
            yield lambda n: progress.advance(task, n)

    @contextmanager
    def _in_notebook(self, text: str, total: int, done: int, wording: _Wording) -> Iterator[Advance]:
        from IPython.display import display

        def line(status: str) -> dict[str, str]:
            return {"text/plain": printable(status)}

        shown = display(line(f"{text}: {wording.status(done, total)}"), raw=True, display_id=True)

        def show(count: int, rate: float) -> None:
            shown.update(line(f"{text}: {wording.status(count, total, rate)}"), raw=True)

        with _now_and_then(total, done, 0.5, show) as advance:
            yield advance

    def _lines(self, text: str, total: int, done: int, wording: _Wording) -> AbstractContextManager[Advance]:
        def show(count: int, rate: float) -> None:
            self.step(f"{text}: {wording.status(count, total, rate)}")

        return _now_and_then(total, done, self._seconds, show)


class Events:
    """An observer for programs: it writes a line of JSON for each step, and for each count every few seconds.

    A step has the keys ``event`` ("step") and ``text``. A count has ``event`` ("count"), ``text``, ``done``, ``total``,
    ``unit``, ``per_second``, ``seconds_left`` and ``note``.

    Args:
        stream: the stream to write to. By default, standard error.
        seconds_between_lines: the shortest time between two lines of one count.
    """

    def __init__(self, stream: TextIO | None = None, seconds_between_lines: float = 1.0) -> None:
        self._stream = stream
        self._seconds = seconds_between_lines

    def step(self, text: str) -> None:
        """Write the step."""
        self._write({"event": "step", "text": text})

    def count(
        self, text: str, total: int, *, done: int = 0, unit: str = "samples", note: Note = _nothing
    ) -> AbstractContextManager[Advance]:
        """Write the count at the end of every few seconds, and when it is complete."""

        def show(count: int, rate: float) -> None:
            rates = {"per_second": round(rate, 3), "seconds_left": round((total - count) / rate, 1)}
            event = {"event": "count", "text": text, "done": count, "total": total, "unit": unit}
            self._write({**event, **rates, "note": note()})

        return _now_and_then(total, done, self._seconds, show)

    def _write(self, event: dict[str, object]) -> None:
        stream = self._stream or sys.stderr
        if stream is not None:
            stream.write(json.dumps(event) + "\n")
            stream.flush()


@contextmanager
def _now_and_then(
    total: int, done: int, seconds: float, show: Callable[[int, float], None]
) -> Iterator[Advance]:
    """Show a count and its rate a second at most every ``seconds``, and when the count is complete."""
    began = last = time.monotonic()
    start = count = done

    def advance(n: int) -> None:
        nonlocal count, last
        count += n
        now = time.monotonic()
        if count > start and (count >= total or now - last >= seconds):
            last = now
            show(count, (count - start) / max(now - began, 1e-9))

    yield advance


class _Status(ProgressColumn):
    """The column of a progress bar that shows the status of its task in words."""

    def __init__(self, wording: _Wording) -> None:
        self._wording = wording
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text(self._wording.status(int(task.completed), int(task.total or 0), task.speed or 0))


@dataclass(frozen=True)
class _Wording:
    """Puts a count into words.

    Attributes:
        unit: the plural of the unit.
        note: a function that returns a remark to add, or "" for none.
    """

    unit: str
    note: Note

    def status(self, count: int, total: int, rate: float = 0) -> str:
        """Return ``12 of 160 draws, 148 left: 2.1/s, 1:10 to go``; without a rate, the part before the colon."""
        words = f"{count:,} of {total:,} {self.unit}, {total - count:,} left"
        if rate:
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            words += f": {speed}/s, {clock((total - count) / rate)} to go"
        note = self.note()
        return f"{words}; {note}" if note else words
