"""What is seen of a count: the same words on a terminal and in a log, with what is left of budget and time."""

from __future__ import annotations

import json
import re
from functools import partial
from io import StringIO

import pytest
from rich.console import Console

from clusterucb import progress
from clusterucb.errors import OptionError
from clusterucb.progress import Calls, Events, Screen, Silent, observer_of

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def seen(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, width: int = 80) -> list[str]:
    """Return the lines of a count to 160 that goes on from 4, one draw a second."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stream = StringIO()
    console = Console(file=stream, force_terminal=terminal, width=width, get_time=lambda: now)
    with Screen(console).count("Scoring", 160, done=4, unit="draws") as advance:
        for _ in range(12):
            now += 8
            advance(8)
    return [
        line.rstrip() for line in re.split(r"[\r\n]+", ESCAPES.sub("", stream.getvalue())) if line.strip()
    ]


def test_a_bar_and_a_log_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "100 of 160 draws, 60 left: 1/s, 1:00 to go"
    lines = seen(monkeypatch, terminal=False)
    assert lines[-1] == f"Scoring: {said}"
    bar = seen(monkeypatch, terminal=True)[-1]
    assert re.fullmatch(f"Scoring [━╸╺]+ {said}", bar)


def test_a_log_has_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = seen(monkeypatch, terminal=False)
    assert [int(re.findall(r"\d+", line)[0]) for line in lines] == [20, 36, 52, 68, 84, 100]
    assert not any("\x1b" in line for line in lines)


def test_what_is_left_is_seen_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "60 left: 1/s, 1:00 to go" in seen(monkeypatch, terminal=True, width=52)[-1]


def test_nothing_is_said_of_a_rate_that_is_not_known() -> None:
    stream = StringIO()
    with Screen(Console(file=stream, force_terminal=True, width=80)).count("Scoring", 160, unit="draws"):
        pass
    assert "0 of 160 draws, 160 left" in stream.getvalue()
    assert "to go" not in stream.getvalue()


def test_slow_and_fast_counts_are_written_out() -> None:
    wording = progress._Wording("draws", lambda: "")
    assert wording.status(20, 1000, 0.25) == "20 of 1,000 draws, 980 left: 0.25/s, 1:05:20 to go"
    assert wording.status(0, 10**6, 12345.6).endswith(": 12,346/s, 1:21 to go")
    noted = progress._Wording("draws", lambda: "80% found")
    assert noted.status(20, 1000) == "20 of 1,000 draws, 980 left; 80% found"


@pytest.mark.parametrize(
    ("given", "takes"),
    [
        (lambda text: None, ", which takes (text)"),
        (lambda: None, ", which takes ()"),
        (lambda text, done, total, unit: None, ", which takes (text, done, total, unit)"),
        (lambda *, text, done, total: None, ", which takes (*, text, done, total)"),
        (Silent, ", which takes ()"),
        ("quiet", ""),
        (3, ""),
    ],
)
def test_what_cannot_be_told_is_refused_at_once(given: object, takes: str) -> None:
    with pytest.raises(OptionError) as caught:
        observer_of(given)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"observer is {given!r:.80}{takes}; expected a function of (text, done, total), or an Observer"
    )


@pytest.mark.parametrize(
    "given",
    [
        lambda text, done, total: None,
        lambda *event: None,
        lambda text, *counts, unit="samples": None,
        partial(lambda name, text, done, total: None, "name"),
        max,  # does not say what it takes
    ],
)
def test_any_function_of_three_is_told(given: object) -> None:
    assert isinstance(observer_of(given), Calls)  # type: ignore[arg-type]


def test_an_observer_is_taken_as_it_is() -> None:
    silent = Silent()
    assert observer_of(silent) is silent


def test_a_program_gets_events(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stream = StringIO()
    events = Events(stream, seconds_between_lines=10)
    events.step("Loading \x1b[2J")
    with events.count("Scoring", 160, done=4, unit="draws", note=lambda: "2 workers") as advance:
        advance(0)
        for _ in range(12):
            now += 8
            advance(13)
    step, *counts = map(json.loads, stream.getvalue().splitlines())
    assert step == {"event": "step", "text": "Loading \x1b[2J"}
    assert "\x1b" not in stream.getvalue()
    assert [event["done"] for event in counts] == [30, 56, 82, 108, 134, 160]
    assert counts[0] == {
        "event": "count",
        "text": "Scoring",
        "done": 30,
        "total": 160,
        "unit": "draws",
        "per_second": 1.625,
        "seconds_left": 80.0,
        "note": "2 workers",
    }
    assert counts[-1]["seconds_left"] == 0
