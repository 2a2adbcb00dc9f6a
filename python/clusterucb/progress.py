"""What a person sees while a run works: steps, notes, and how much of a budget is left.

On a terminal, bars (rich); in a notebook, a line that counts; elsewhere, plain lines, at most one every few seconds,
so that a log stays readable. All say the same in the same words: what is done, what is left of it, the rate and the
time to go. All of it goes to standard error: standard output is for results. From Python, nobody is told unless it
is a notebook; a function may be, or any `Observer`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
from clusterucb.wording import printable

Advance = Callable[[int], None]
Note = Callable[[], str]


def _nothing() -> str:
    return ""


@runtime_checkable
class Observer(Protocol):
    """Whoever wants to know how a run gets on."""

    def step(self, text: str) -> None:
        """Say what happens now."""

    def count(
        self, text: str, total: int, *, done: int = 0, unit: str = "samples", note: Note = _nothing
    ) -> AbstractContextManager[Advance]:
        """Count up to ``total`` while the block runs; it gets a function to call with each increment.

        Args:
            text: what is done.
            total: how much of it there is.
            done: how much was done before.
            unit: what is counted.
            note: asked for what else is to be said of it now.
        """


AnyObserver = Observer | Callable[[str, int, int], object]


class Silent:
    """Says nothing."""

    def step(self, text: str) -> None:
        """Say nothing."""

    def count(
        self,
        text: str,  # noqa: ARG002
        total: int,  # noqa: ARG002
        *,
        done: int = 0,  # noqa: ARG002
        unit: str = "samples",  # noqa: ARG002
        note: Note = _nothing,  # noqa: ARG002
    ) -> AbstractContextManager[Advance]:
        """Count silently."""
        return nullcontext(lambda _: None)


class Calls:
    """Tells a function.

    Args:
        function: called with what happens, how much of it is done, and how much there is (0 and 0 of a step).
    """

    def __init__(self, function: Callable[[str, int, int], object]) -> None:
        self._function = function

    def step(self, text: str) -> None:
        """Tell that something happens."""
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
        """Tell how far it got, now and with every increment."""
        count = done

        def advance(n: int) -> None:
            nonlocal count
            count += n
            self._function(text, count, total)

        advance(0)
        yield advance


def observer_of(given: AnyObserver | None) -> Observer:
    """Return an observer: the one that is given, a function's, or by default the screen of a notebook alone.

    Raises:
        OptionError: it is neither an observer nor a function that can be called as `Calls` does.
    """
    if given is None:
        return Screen() if Console().is_jupyter else Silent()
    if isinstance(given, Observer) and not isinstance(given, type):
        return given
    if callable(given) and (takes := _refusing(given)) is None:
        return Calls(given)
    said = f", which takes {takes}" if callable(given) else ""
    raise OptionError(
        f"observer is {given!r:.80}{said}; expected a function of (text, done, total), or an Observer"
    )


def _refusing(function: Callable[..., object]) -> str | None:
    """Return what a function takes instead of (text, done, total); None if it takes these, or does not say."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions
        return None
    try:
        signature.bind("", 0, 0)
    except TypeError:
        return str(signature)
    return None


class Screen:
    """Shows progress on standard error, or in a notebook.

    Args:
        console: where to write; by default standard error.
        seconds_between_lines: how often a count is printed where there is no terminal.
    """

    def __init__(self, console: Console | None = None, seconds_between_lines: float = 10.0) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._seconds = seconds_between_lines

    def step(self, text: str) -> None:
        """Print one line."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def count(
        self, text: str, total: int, *, done: int = 0, unit: str = "samples", note: Note = _nothing
    ) -> AbstractContextManager[Advance]:
        """Show a bar on a terminal, plain lines elsewhere."""
        said = _Said(unit, note)
        if self._console.is_jupyter:
            return self._in_notebook(text, total, done, said)
        count = self._bar if self._console.is_terminal else self._lines
        return count(text, total, done, said)

    @contextmanager
    def _bar(self, text: str, total: int, done: int, said: _Said) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            _Status(said),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(printable(text), total=total, completed=done)
            progress.reset(task, total=total, completed=done)
            yield lambda n: progress.advance(task, n)

    @contextmanager
    def _in_notebook(self, text: str, total: int, done: int, said: _Said) -> Iterator[Advance]:
        from IPython.display import display

        def line(status: str) -> dict[str, str]:
            return {"text/plain": status}

        shown = display(line(f"{text}: {said.status(done, total)}"), raw=True, display_id=True)
        with self._counted(
            text, total, done, said, 0.5, lambda status: shown.update(line(status), raw=True)
        ) as advance:
            yield advance

    def _lines(self, text: str, total: int, done: int, said: _Said) -> AbstractContextManager[Advance]:
        return self._counted(text, total, done, said, self._seconds, self.step)

    @contextmanager
    def _counted(
        self, text: str, total: int, done: int, said: _Said, seconds: float, show: Callable[[str], None]
    ) -> Iterator[Advance]:
        """Show a line at most every few seconds, and at the end."""
        began = last = time.monotonic()
        start = count = done

        def advance(n: int) -> None:
            nonlocal count, last
            count += n
            now = time.monotonic()
            if count >= total or now - last >= seconds:
                last = now
                rate = (count - start) / max(now - began, 1e-9)
                show(f"{text}: {said.status(count, total, rate)}")

        yield advance


class _Status(ProgressColumn):
    """What is said of a task."""

    def __init__(self, said: _Said) -> None:
        self._said = said
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text(self._said.status(int(task.completed), int(task.total or 0), task.speed or 0))


@dataclass(frozen=True)
class _Said:
    """How a count is put into words.

    Attributes:
        unit: what is counted.
        note: asked for what else to say.
    """

    unit: str
    note: Note

    def status(self, count: int, total: int, rate: float = 0) -> str:
        """Return ``12 of 160 draws, 148 left: 2.1/s, 1:10 to go``; without a rate, its first half."""
        words = f"{count:,} of {total:,} {self.unit}, {total - count:,} left"
        if rate:
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            words += f": {speed}/s, {_clock((total - count) / rate)} to go"
        note = self.note()
        return f"{words}; {note}" if note else words


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
