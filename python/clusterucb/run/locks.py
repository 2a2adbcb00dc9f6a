"""Lock files against other processes."""

from __future__ import annotations

import errno
import fcntl
import time

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_PAUSE = 0.1  # seconds between two attempts


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
