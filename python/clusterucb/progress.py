"""What a person sees while a run works: steps, notes, and how much of a budget is left.

On a terminal, bars with rate and time left (rich); elsewhere, plain lines, at most one every few
seconds, so that a log stays readable. All of it goes to standard error: standard output is for
results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

Advance = Callable[[int], None]


class Observer(Protocol):
    """Whoever wants to know how a run gets on."""

    def step(self, text: str) -> None:
        """Say what happens now."""

    def count(
        self, text: str, total: int, *, done: int = 0, unit: str = "samples"
    ) -> AbstractContextManager[Advance]:
        """Count up to ``total`` while the block runs; it gets a function to call with each increment."""


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
    ) -> AbstractContextManager[Advance]:
        """Count silently."""
        return nullcontext(lambda _: None)


class Screen:
    """Shows progress on standard error.

    Args:
        console: where to write; by default standard error.
        seconds_between_lines: how often a count is printed where there is no terminal.
    """

    def __init__(self, console: Console | None = None, seconds_between_lines: float = 10.0) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._seconds = seconds_between_lines

    def step(self, text: str) -> None:
        """Print one line."""
        self._console.print(Text(text), soft_wrap=True)

    def count(
        self, text: str, total: int, *, done: int = 0, unit: str = "samples"
    ) -> AbstractContextManager[Advance]:
        """Show a bar on a terminal, plain lines elsewhere."""
        count = self._bar if self._console.is_terminal else self._lines
        return count(text, total, done, unit)

    @contextmanager
    def _bar(self, text: str, total: int, done: int, unit: str) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=24),
            _Left(unit),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(text, total=total, completed=done)
            progress.reset(task, total=total, completed=done)
            yield lambda n: progress.advance(task, n)

    @contextmanager
    def _lines(self, text: str, total: int, done: int, unit: str) -> Iterator[Advance]:
        began = last = time.monotonic()
        start = count = done

        def advance(n: int) -> None:
            nonlocal count, last
            count += n
            now = time.monotonic()
            if count >= total or now - last >= self._seconds:
                last = now
                rate = (count - start) / max(now - began, 1e-9)
                left = _clock((total - count) / rate) if rate > 0 else "?"
                self.step(f"{text}: {count} of {total} {unit}, {_rate(rate)} {unit}/s, {left} left")

        yield advance


class _Left(ProgressColumn):
    """``148 of 160 draws left``."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        total = int(task.total or 0)
        return Text(f"{total - int(task.completed)} of {total} {self._unit} left")


class _Rate(ProgressColumn):
    """``2.1/s``."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text(f"{_rate(task.speed)}/s" if task.speed else "")


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
