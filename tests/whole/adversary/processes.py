"""Run a command of clusterucb in a process of its own, forked from this one, and say how it ended.

A fork has torch and transformers already, so it begins at once.
"""

from __future__ import annotations

import fcntl
import gc
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clusterucb.cli import main as cli

LIMIT = 120.0  # seconds after which a command counts as a hang
_MEMORY = 4_000_000_000  # bytes at which a process is ended, before the machine suffers
_PAUSE = 0.01  # seconds between two looks
_PIPE = 1 << 20  # bytes


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; of a process that a signal ended, minus the signal's number.
        shown: what it wrote to standard output and standard error.
        peak: the largest resident memory of the process, in bytes.
        hung: whether it was ended because it ran longer than its limit.
    """

    code: int
    shown: str
    peak: int
    hung: bool

    @property
    def clean(self) -> bool:
        """Whether the command ended as a command may: done or refused, with neither a bug nor a traceback."""
        bad = "this is a bug" in self.shown or "Traceback (most recent call last)" in self.shown
        return not self.hung and self.code in (0, 2) and not bad

    def __str__(self) -> str:
        return f"{'hangs' if self.hung else f'exit {self.code}'}: {self.shown[-700:]}"


class Process:
    """A command in a process of its own.

    Args:
        arguments: the command, without ``clusterucb``.
        prepare: called in the process before the command begins.
    """

    def __init__(self, arguments: list[str], prepare: Callable[[], object] = lambda: None) -> None:
        self._reading, self._writing = os.pipe()  # a file would meet limits on disks and files
        fcntl.fcntl(self._reading, fcntl.F_SETPIPE_SZ, _PIPE)
        os.set_blocking(self._reading, False)
        self._shown = bytearray()
        self._began = time.monotonic()
        gc.freeze()  # a collection in the fork would copy every page
        self.id = os.fork()
        if not self.id:
            self._run(arguments, prepare)
        os.close(self._writing)

    def kill(self) -> None:
        """End the process at once, as ``kill -9`` does."""
        os.kill(self.id, signal.SIGKILL)

    def end(self, limit: float = LIMIT) -> Ended:
        """Wait for the process, at most until ``limit`` seconds after its beginning. Then end it."""
        hung = False
        while True:
            process, status, usage = os.wait4(self.id, os.WNOHANG)
            self._read()
            if process:
                break
            hung = time.monotonic() - self._began > limit
            if hung or _resident(self.id) > _MEMORY:
                self.kill()
            time.sleep(_PAUSE)
        os.close(self._reading)
        shown = self._shown.decode(errors="surrogateescape")
        return Ended(os.waitstatus_to_exitcode(status), shown, usage.ru_maxrss << 10, hung)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while piece := os.read(self._reading, _PIPE):
                self._shown += piece

    def _run(self, arguments: list[str], prepare: Callable[[], object]) -> None:
        code = 70
        try:
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            for stream in (1, 2):
                os.dup2(self._writing, stream)
            sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
            sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
            sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
            prepare()
            code = cli.run(arguments)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)


def _resident(process: int) -> int:
    """Return how many bytes of memory a process uses; 0 after its end."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def run(arguments: list[str], prepare: Callable[[], object] = lambda: None, *, limit: float = LIMIT) -> Ended:
    """Run a command in a process of its own to its end."""
    return Process(arguments, prepare).end(limit)
