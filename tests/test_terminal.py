"""Nothing reaches a terminal that it would obey, and a terminal that is gone ends no work."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from clusterucb.progress import Screen
from clusterucb.terminal import Droppable, Terminal, write
from helpers.terminals import EVERYTHING, obeyed

PACKAGE = Path(__file__).parents[1] / "python" / "clusterucb"


@given(text=st.text(st.characters() | st.sampled_from(EVERYTHING)), colours=st.booleans())
def test_no_text_is_obeyed(text: str, colours: bool) -> None:
    file = io.StringIO()
    console = Terminal(file=file, force_terminal=colours, width=40)
    table = Table(text, "column")
    table.add_row(text, Text(text, "bold"))
    for shown in (text, Text(text, "red"), table):
        console.print(shown)
        console.print(shown, soft_wrap=True)
    assert obeyed(file.getvalue()) == ""


def test_progress_is_not_obeyed() -> None:
    file = io.StringIO()
    screen = Screen(Terminal(file=file))
    screen.step(EVERYTHING)
    with screen.count(EVERYTHING, 2, note=lambda: EVERYTHING) as advance:
        advance(2)
    assert obeyed(file.getvalue()) == ""
    assert "2 of 2 samples" in file.getvalue()


def test_markup_and_names_of_emoji_are_text() -> None:
    file = io.StringIO()
    Terminal(file=file).print("[bold]a[/bold] :boom: [link=https://x]y[/link]")
    assert file.getvalue() == "[bold]a[/bold] :boom: [link=https://x]y[/link]\n"


def test_there_is_no_other_door() -> None:
    others = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "Console", "rich.print", "sys.stdout.write", "sys.stderr.write"):
                others.append(f"{path.relative_to(PACKAGE)}: {called}")
    assert others == []
    uses = [
        path for path in PACKAGE.rglob("*.py") if re.search(r"sys\.stdout\b(?!\.flush)", path.read_text())
    ]
    assert {path.name for path in uses} == {
        "terminal.py",
        "main.py",
    }  # which flushes it, or drops what it holds


class Full(io.StringIO):
    """A stream on a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_what_cannot_be_written_is_dropped() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (Full(), closed):
        dropping = Droppable(stream)
        assert dropping.write("text") == 4
        dropping.flush()
        Terminal(file=dropping).print("text")  # type: ignore[arg-type]
    assert Droppable(io.StringIO()).isatty() is False


def test_a_closed_standard_output_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    write("text")
    Terminal().print("text")
