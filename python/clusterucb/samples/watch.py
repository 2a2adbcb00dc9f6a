"""Limit the time and the memory of code that comes with a model, such as a chat template.

A thread watches the code and raises an exception in it. The exception is raised between two instructions of Python, so
code that loops is ended, and code that waits in a library is not. The address space is limited, too: one call can
take all memory, such as ``'%9999999999d' % 1``.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

from clusterucb.errors import ModelError
from clusterucb.machine import address_space, resident_memory, start_thread

_INTERVAL = 0.05  # seconds between two looks
_AGAIN = 1.0  # seconds after which the exception is raised again in code that has caught it
_MEMORY = 1 << 30  # bytes that the code may take
_SLACK = 1 << 28  # bytes of address space beside them, for threads and allocators


class TooMuch(Exception):
    """Watched code took too long, or too much memory."""


@dataclass(eq=False)
class _Block:
    """A block of code that is watched.

    Attributes:
        thread: the thread that runs it.
        until: when its time ends, on the monotonic clock; later, when `TooMuch` is raised again.
        memory: how many bytes the process may have.
        left: whether the thread has left the block.
        closed: whether the watcher raises nothing more for it.
    """

    thread: int
    until: float
    memory: int
    left: bool = False
    closed: bool = False

    @property
    def too_much(self) -> bool:
        return time.monotonic() > self.until or resident_memory() > self.memory


class _Watcher:
    """Watches blocks, from a thread of its own that is started when it is first needed.

    `TooMuch` may be raised at any instruction of a watched thread. So that thread takes no lock, which it might never
    give back: it shares a dictionary and a queue with the watcher, whose methods cannot be interrupted. `TooMuch` is
    raised again until the thread has left the block, because a library may catch it.
    """

    def __init__(self) -> None:
        self._watched: dict[_Block, None] = {}
        self._begun: SimpleQueue[None] = SimpleQueue()
        self._starting = threading.Lock()
        self._runs = False

    def start(self) -> None:
        """Start the thread, unless it runs.

        Raises:
            ModelError: the thread cannot be started. This is no fault of the code that would be watched.
        """
        with self._starting:
            if self._runs:
                return
            try:
                start_thread(self._run)
            except MemoryError as error:
                raise ModelError(
                    f"a chat template cannot be watched ({error}); expected more memory, or a higher limit of threads"
                ) from error
            self._runs = True

    def begin(self, block: _Block) -> None:
        self._watched[block] = None
        self._begun.put(None)

    def end(self, block: _Block) -> None:
        """Return when nothing is raised for a block any more. It may be called again if `TooMuch` interrupts it."""
        if self._watched.pop(block, self) is not self:
            return
        block.left = True
        while not block.closed and self is _WATCHER:  # a child process has no watcher of its parent's blocks
            time.sleep(_INTERVAL / 50)

    def _run(self) -> None:
        raising: list[_Block] = []
        while True:
            self._begun.get()
            while raising or self._watched:
                time.sleep(_INTERVAL)
                while not self._begun.empty():
                    self._begun.get()
                watched = list(self._watched)
                raising += [b for b in watched if b.too_much and self._watched.pop(b, self) is not self]
                for block in raising:
                    self._stop(block)
                raising = [block for block in raising if not block.closed]

    def _stop(self, block: _Block) -> None:
        if block.left:
            block.closed = True
        elif block.too_much:
            block.until, block.memory = time.monotonic() + _AGAIN, sys.maxsize
            exception = ctypes.py_object(TooMuch)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(block.thread), exception)


class _AddressSpace:
    """Limits the address space of the process while any thread is in the block.

    One call of a library can take all memory before the watcher looks. With the limit, it fails at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            self._before = soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            wanted = address_space() + _MEMORY + _SLACK
            if soft == resource.RLIM_INFINITY or soft > wanted:
                resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                resource.setrlimit(resource.RLIMIT_AS, self._before)


_WATCHER = _Watcher()
_SPACE = _AddressSpace()


def _begin_anew() -> None:
    """Watch anew in a child process, which has no thread of its parent and may have copied a lock that is held."""
    global _WATCHER, _SPACE
    _WATCHER, _SPACE = _Watcher(), _AddressSpace()


os.register_at_fork(after_in_child=_begin_anew)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `TooMuch` in the block if it takes longer than ``seconds``, or more than a gigabyte of memory."""
    watcher = _WATCHER
    with _SPACE:
        watcher.start()
        block = _Block(threading.get_ident(), time.monotonic() + seconds, resident_memory() + _MEMORY)
        try:
            try:
                watcher.begin(block)
                yield
            finally:
                watcher.end(block)
        except TooMuch:
            watcher.end(block)
            raise
        except MemoryError as error:
            raise TooMuch from error
