"""Code that comes with a model ends when it takes too much, and only that code."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from clusterucb import machine
from clusterucb.errors import ModelError
from clusterucb.samples import chat, watch
from clusterucb.samples.chat import ChatTemplate
from clusterucb.samples.message import Message
from clusterucb.samples.pieces import Unusable
from clusterucb.samples.watch import TooMuch, limited
from helpers.templates import SHAPES, byte_level


def loop() -> None:
    while True:
        pass


def test_a_loop_is_ended() -> None:
    with pytest.raises(TooMuch), limited(0.2):
        loop()


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_MEMORY", 50_000_000)
    kept: list[bytearray] = []

    def grow() -> None:
        while True:
            kept.append(bytearray(os.urandom(1_000_000)))

    with pytest.raises(TooMuch), limited(60):
        grow()
    assert len(kept) < 1_000


def test_a_single_call_cannot_take_all_memory() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(TooMuch), limited(60):
        " " * 10**10
    with limited(60):
        bytearray(1_000_000)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_the_limit_is_lifted_after_the_last_thread() -> None:
    before, entered, leave = resource.getrlimit(resource.RLIMIT_AS), threading.Event(), threading.Event()

    def work() -> None:
        with limited(60):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait(60)
    with limited(60):
        assert resource.getrlimit(resource.RLIMIT_AS) != before
    assert resource.getrlimit(resource.RLIMIT_AS) != before
    leave.set()
    thread.join()
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_nothing_is_raised_after_the_block() -> None:
    for _ in range(200):
        with limited(0):
            pass
    end = time.monotonic() + 3 * watch._INTERVAL
    while time.monotonic() < end:
        pass


def raise_at(point: int) -> Iterator[None]:
    """Raise `TooMuch` at an instruction of this thread while the block is watched, as the watcher does."""
    left = iter(range(point))

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        frame.f_trace_opcodes = True
        if event == "opcode" and (watched := list(watch._WATCHER._watched)) and next(left, None) is None:
            watch._WATCHER._watched.pop(watched[0])
            taken.append(watched[0])
            raise TooMuch
        return trace

    def close(_: float) -> None:
        taken[0].closed = taken[0].left

    taken: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "_WATCHER", watch._Watcher())
        patch.setattr(watch._Watcher, "_run", lambda _: None)
        patch.setattr(watch.time, "sleep", close)
        sys.settrace(trace)
        yield


def enter() -> None:
    with limited(60):
        pass


def test_the_exception_may_be_raised_at_any_instruction() -> None:
    """In the block, while it begins and while it ends: it is raised once, and nothing stays limited or locked."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    for point in range(1000):
        points = raise_at(point)
        next(points)
        try:
            with limited(60):
                sum((1, 2, 3))
        except TooMuch:
            ended = False
        else:
            ended = True
        sys.settrace(None)
        assert resource.getrlimit(resource.RLIMIT_AS) == before
        other = threading.Thread(target=enter, daemon=True)
        other.start()
        other.join(30)
        assert not other.is_alive()
        points.close()
        if ended:
            break
    assert 30 < point < 1000


def test_code_that_catches_the_exception_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_AGAIN", 0.1)
    caught: list[int] = []

    def stubborn() -> None:
        while len(caught) < 3:
            try:
                loop()
            except TooMuch:
                caught.append(1)
        loop()

    with pytest.raises(TooMuch), limited(0.1):
        stubborn()
    assert len(caught) == 3


def test_other_threads_are_left_alone() -> None:
    found: list[str] = []

    def work() -> None:
        for _ in range(200_000):
            pass
        found.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    with pytest.raises(TooMuch), limited(0.1):
        loop()
    thread.join()
    assert found == ["done"]


def test_a_forked_process_watches_anew() -> None:
    code = 70
    with limited(60):
        child = os.fork()
        if not child:
            try:
                with limited(0.1):
                    loop()
            except TooMuch:
                code = 7
            finally:
                signal.alarm(30)  # ends the child if the block that began in its parent cannot be left
    if not child:
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TURNS = [Message("user", "q"), Message("assistant", "a")]
BAD = [Message("user", "bad"), Message("assistant", "a")]


def with_fault(fault: str) -> ChatTemplate:
    """Return a template with a fault in conversations that begin with ``bad``."""
    tokenizer = byte_level(SHAPES["chatml"])
    tokenizer.chat_template = "{% if messages[0].content == 'bad' %}" + fault + "{% endif %}" + CHATML
    return ChatTemplate(tokenizer)


FAULTS = {
    "overflow": "{{ 2.0 ** 10000 }}",
    "division": "{{ 1 / 0 }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "surrogate": r"{{ '\ud800' }}",
    "attribute": "{{ messages.nothing.more }}",
    "type": "{{ 'a' + 1 }}",
    "index": "{{ messages[100].content.x }}",
    "format": "{{ '%d' % 'x' }}",
    "raised": "{{ raise_exception('no') }}",
    "range": "{{ range(10 ** 9) }}",
    "unsafe": "{{ messages.__class__.__mro__ }}",
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_an_error_of_a_template_belongs_to_the_row(fault: str) -> None:
    template = with_fault(fault)
    good, bad, again = template.render([TURNS, BAD, TURNS])
    assert good == again
    assert isinstance(good, str)
    assert isinstance(bad, Unusable)
    assert str(bad).startswith("chat template: it refuses the conversation: ")


LOOPS = {
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{% set n = namespace(x='abcdefgh') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
}


@pytest.mark.parametrize("fault", LOOPS.values(), ids=LOOPS)
def test_a_template_that_takes_too_much_rejects_the_row_and_then_ends_the_job(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "_SECONDS", 1)
    monkeypatch.setattr(watch, "_MEMORY", 100_000_000)
    template = with_fault(fault)
    good, bad = template.render([TURNS, BAD])
    assert isinstance(good, str)
    assert str(bad) == "chat template: it takes more than 1 s or 1 GB"
    with pytest.raises(
        ModelError, match=r"takes more than 1 s or 1 GB for a conversation, 3 times; .*--chat-template"
    ):
        template.render([BAD, BAD, BAD])


@pytest.mark.parametrize("starts", [True, False])
def test_a_thread_that_cannot_begin_is_said_and_blames_no_row(
    starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`threading.Thread.start` would wait for ever for a thread that dies of its first allocation."""

    def start(*_: object) -> None:
        if not starts:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(machine, "_BEGINS", 0.01)
    monkeypatch.setattr("_thread.start_new_thread", start)
    monkeypatch.setattr(watch, "_WATCHER", watch._Watcher())
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(
        ModelError, match=r"a chat template cannot be watched \(.*thread\); expected more memory"
    ):
        enter()
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    with pytest.raises(MemoryError, match="thread"):
        machine.start_thread(enter)
