"""Limit the time and the memory of code that comes with a model, such as a chat template.

A thread watches the code and raises an exception in it. The exception is raised between two instructions of Python, so
code that loops is ended, and code that waits in a library is not. The address space is limited, too: one call can
take all memory, such as ``'%9999999999d' % 1``.
"""

from __future__ import annotations

import ctypes
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from clusterucb.machine import address_space, resident_memory

_INTERVAL = 0.05  # seconds between two looks
_MEMORY = 1 << 30  # bytes that the code may take
_SLACK = 1 << 28  # bytes of address space beside them, for threads and allocators


class TooMuch(Exception):
    """Watched code took too long, or too much memory."""


@dataclass(frozen=True)
class _Limits:
    """The limits of a thread: a time of the monotonic clock, and bytes of the process."""

    until: float
    memory: int

    @property
    def reached(self) -> bool:
        return time.monotonic() > self.until or resident_memory() > self.memory


class _Watcher:
    """Watches threads, from a thread of its own that is started when it is first needed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[int, _Limits] = {}
        self._started = False

    def begin(self, thread: int, limits: _Limits) -> None:
        with self._changed:
            if not self._started:
                threading.Thread(target=self._run, name="clusterucb watch", daemon=True).start()
                self._started = True
            self._watched[thread] = limits
            self._changed.notify()

    def end(self, thread: int) -> None:
        with self._changed:
            self._watched.pop(thread, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._watched)
            time.sleep(_INTERVAL)
            with self._changed:
                for thread in [thread for thread, limits in self._watched.items() if limits.reached]:
                    del self._watched[thread]
                    _raise_in(thread, TooMuch)


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
    """Raise `TooMuch` in the block if it takes longer than ``seconds``, or more than a gigabyte of memory.

    Raises:
        MemoryError: one call asks for more than that.
    """
    thread = threading.get_ident()
    with _SPACE:
        _WATCHER.begin(thread, _Limits(time.monotonic() + seconds, resident_memory() + _MEMORY))
        try:
            yield
        finally:
            _WATCHER.end(thread)
            _raise_in(thread, None)  # forget an exception that was not raised in time


def _raise_in(thread: int, exception: type[Exception] | None) -> None:
    given = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), given)
