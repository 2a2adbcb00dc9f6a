"""The one door to the terminal.

Names of files, rows of a pool and messages of libraries may hold escape sequences, which would move the cursor, change
the terminal's title, or hide what is shown. Everything that clusterucb prints for people therefore goes through
`Terminal`, which shows control characters as �. JSON on standard output goes another way: it escapes them itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from clusterucb.wording import printable


class Terminal(Console):
    """A console that shows control characters in texts as �, and interprets nothing in them.

    Args:
        stderr: whether it prints to standard error, in place of standard output.
        **options: options of `rich.console.Console`.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, highlight=False, emoji=False, markup=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object into segments whose texts are safe to print."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text.isprintable() else Segment(printable(text), style, control)


_results: list[TextIO | None] = []  # standard output, while what others print goes elsewhere


def write(text: str) -> None:
    """Write text that is safe to print, such as JSON, to standard output, unless it is closed."""
    stream = _results[-1] if _results else sys.stdout
    if stream is not None:
        stream.write(text)


@contextmanager
def prints_aside() -> Iterator[None]:
    """Send what plugins and libraries print to standard error while the block runs: only `write` reaches the output."""
    _results.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results.pop()


class Droppable:
    """A text stream that drops what cannot be written, because its disk is full or nobody reads it.

    Hours of work must not end because a message cannot be shown.

    Args:
        stream: the stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop what it holds."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
