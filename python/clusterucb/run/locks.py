"""Lock files and folders against other processes.

Decisions:
    - A folder's lock is an advisory lock on a file in it, which the system releases when the process dies.
    - Some network file systems have no such locks. There, a file ``lease`` says which process uses the folder. The
      process touches it every few seconds. A lease that nobody has touched for a minute, or whose process on this
      machine is dead, is taken over. Ages are measured by the file system's own clock, because machines' clocks differ.
    - A lease is weaker than a lock: a process that is stopped for more than a minute, and goes on later, writes beside
      the process that took over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from clusterucb import filenames
from clusterucb.atomic import check_regular
from clusterucb.errors import RunError, warn
from clusterucb.machine import start_thread

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_PAUSE = 0.1  # seconds between two attempts
_TOUCH, _STALE = 10.0, 60.0  # seconds between two touches of a lease, and until it counts as given up


def lock(descriptor: int, mode: int, *, patience: float = 0.0) -> bool:
    """Lock an open file, and return whether it is locked.

    The system releases the lock when the file is closed, also when the process dies.

    Args:
        descriptor: the file's descriptor.
        mode: ``fcntl.LOCK_SH`` or ``fcntl.LOCK_EX``.
        patience: the seconds to wait while another process holds the lock.

    Raises:
        OSError: the file system has no locks.
    """
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                raise
            if time.monotonic() >= end:
                return False
            time.sleep(_PAUSE)
        else:
            return True


class FolderLock:
    """The right to write to a folder, for one process at a time.

    Args:
        folder: the folder, which exists.
        wanted: whether to lock it. If not, the caller is certain that no other process uses the folder.

    Raises:
        OSError: the folder cannot be written.
        RunError: another process uses the folder.
    """

    def __init__(self, folder: Path, *, wanted: bool = True) -> None:
        self._descriptor: int | None = None
        self._lease: Lease | None = None
        if not wanted:
            return
        path = folder / filenames.LOCK
        check_regular(path, written=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            try:
                locked = lock(self._descriptor, fcntl.LOCK_EX)
            except OSError as error:
                warn(
                    f"{folder} is on a file system without file locks ({error.strerror}): a lease protects it, which "
                    "is weaker. --no-lock does without"
                )
                self._lease, locked = Lease(folder), True
            if not locked:
                raise RunError(f"{folder} is in use by another process; wait for it, or choose another --out")
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the folder up."""
        if self._lease is not None:
            self._lease.release()
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._lease = None


class _Holder(msgspec.Struct):
    """The content of a lease: the process that holds it."""

    host: str
    process: int
    token: str


class Lease:
    """A file that says which process uses a folder.

    Args:
        folder: the folder.

    Raises:
        RunError: another process has the lease.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / filenames.LEASE
        self._own = _Holder(socket.gethostname(), os.getpid(), secrets.token_hex(8))
        check_regular(self._path, written=True)
        took_over = False
        while not self._taken():
            took_over = True
            self._give_way()
        if took_over:  # another process may just have done the same
            time.sleep(2 * _PAUSE)
            with suppress(OSError, msgspec.MsgspecError):
                took_over = self._holder() != self._own
            if took_over:
                raise RunError(f"{folder} is in use by another process; wait for it, or choose another --out")
        self._ended = threading.Event()
        start_thread(self._touch)

    def release(self) -> None:
        """Remove the lease, unless another process has taken it over."""
        self._ended.set()
        with suppress(OSError, msgspec.MsgspecError):
            if self._holder() == self._own:
                self._path.unlink()

    def _taken(self) -> bool:
        """Create the lease, and return whether it was not there."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(self._own))
        return True

    def _give_way(self) -> None:
        """Remove a lease that was given up.

        Raises:
            RunError: its process uses the folder.
        """
        try:
            touched = self._path.stat().st_mtime
            age = self._now() - touched
            holder = self._holder()
        except FileNotFoundError:
            return
        except msgspec.MsgspecError:  # its process has just created it, or died while it did
            holder = None
        here = holder is not None and holder.host == self._own.host
        if age < _STALE and not (here and holder is not None and not _lives(holder.process)):
            of = f"process {holder.process} on {holder.host}" if holder else "another process"
            raise RunError(
                f"{self._path.parent} is in use by {of}, whose lease is {age:.0f} s old; wait for it, or choose "
                f"another --out. A lease of a process that has died ends after {_STALE:.0f} s"
            )
        given_up = self._path.with_name(f"{filenames.LEASE}.{self._own.token}")
        with suppress(FileNotFoundError):
            self._path.rename(given_up)
            if given_up.stat().st_mtime != touched:
                with suppress(
                    FileExistsError
                ):  # it is the new lease of a process that was faster: put it back
                    os.link(given_up, self._path)
            given_up.unlink()

    def _holder(self) -> _Holder:
        return msgspec.json.decode(self._path.read_bytes(), type=_Holder)

    def _now(self) -> float:
        """Return the time by the clock of the file system."""
        probe = self._path.with_name(f"{filenames.LEASE}.{self._own.token}")
        probe.write_bytes(b"")
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def _touch(self) -> None:
        while not self._ended.wait(_TOUCH):
            with suppress(OSError):
                os.utime(self._path)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True
