"""Judge what a use of an input did: it may succeed, or be refused with an error of clusterucb that has a message.

Everything else is a fault and leaves as an exception: any other error, an empty message, and an event that an input may
never cause (`_FORBIDDEN`), such as a program that is started or a file that is written outside the temporary folder.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clusterucb.errors import ClusterUCBError

LONGEST = 20_000  # characters of a message
# Audit events of Python. torch and clusterucb have unpicklers of their own, which do not raise pickle.find_class.
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")
_FORBIDDEN += ("pickle.find_class", "sqlite3.load_extension")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Fault(Exception):
    """An input did what no input may do."""


class _Guard(threading.local):
    """The events that this thread caused while an input was used."""

    active = False
    seen = ""


_GUARD = _Guard()
_INSTALLED: list[bool] = []
_TEMPORARY = os.path.realpath(tempfile.gettempdir())


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _GUARD.active:
        return
    if event in _FORBIDDEN:
        _GUARD.seen = f"{event}{arguments!r:.200}"
    elif event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and isinstance(flags, int) and flags & _WRITING:
            _check_written(os.path.realpath(os.fsdecode(path)))


def _check_written(path: str) -> None:
    if not path.startswith((_TEMPORARY, "/dev/")):
        _GUARD.seen = f"a file was opened for writing: {path}"


@contextmanager
def _guarded() -> Iterator[None]:
    if not _INSTALLED:
        _INSTALLED.append(True)
        sys.addaudithook(_audit)
    _GUARD.seen, _GUARD.active = "", True
    try:
        yield
    finally:
        _GUARD.active = False
    if _GUARD.seen:
        raise Fault(_GUARD.seen)


def outcome(use: Callable[[], object]) -> str:
    """Use an input, and return "" if it is accepted, or the message of the refusal.

    Raises:
        Fault: the message says nothing, or a forbidden event happened.
        Exception: whatever else ``use`` raises, which is a fault, too.
    """
    message = ""
    with warnings.catch_warnings(), _guarded():
        warnings.simplefilter("ignore")
        try:
            use()
        except ClusterUCBError as error:
            message = str(error)
            if not message.strip() or len(message) > LONGEST:
                raise Fault(f"a message of {len(message)} characters: {message:.200}") from error
    return message


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder for the files of a case, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check(condition: object, what: str) -> None:
    """Check what must hold of every accepted input.

    Raises:
        Fault: it does not hold.
    """
    if not condition:
        raise Fault(what)
