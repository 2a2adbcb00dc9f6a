"""Define the errors that a user can cause, all with one base class.

Every message says what was given, what was expected and what to do. The command line prints a `ClusterUCBError` as one
line and exits with code 2. Any other exception that reaches the command line is a bug; the exit code is then 1.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection
from pathlib import Path

from clusterucb.wording import did_you_mean

__all__ = [
    "ClusterUCBError",
    "ClusterUCBWarning",
    "InputError",
    "ModelError",
    "OptionError",
    "PluginError",
    "RunError",
    "WorkerError",
    "check_choice",
    "check_utf8",
    "warn",
]

_PACKAGE = str(Path(__file__).parent)


class ClusterUCBError(Exception):
    """Base class of all exceptions that clusterucb raises on purpose."""


class OptionError(ClusterUCBError, ValueError):
    """An option, argument or array has a value that cannot be used."""


class InputError(ClusterUCBError):
    """A pool or target file cannot be read or has no usable sample."""


class ModelError(ClusterUCBError):
    """A model, tokenizer, adapter or optimiser state cannot be loaded or does not fit."""


class PluginError(ClusterUCBError):
    """A plugin cannot be loaded or a strategy breaks its contract."""


class RunError(ClusterUCBError):
    """A run folder cannot be used: it belongs to other options, is locked, or cannot be written."""


class WorkerError(ClusterUCBError):
    """Workers cannot be started, do not live, or do not see the files of the job."""


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Check that a value is one of ``choices``.

    Raises:
        OptionError: the value is not one of ``choices``.
    """
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise OptionError(f"{name} is {value!r}; expected one of {', '.join(choices)}.{hint}")


def check_utf8(what: str, path: object, kind: type[ClusterUCBError] = OptionError) -> None:
    """Check that a path can be written into files and passed to libraries, which take UTF-8 alone.

    Args:
        what: what the path names, for the message.
        path: the path, or anything else, which is let pass.
        kind: the class of the error.

    Raises:
        ClusterUCBError: the path is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise kind(f"{what} {str(path)!r:.300} is not UTF-8; expected a name in UTF-8: rename it") from error


def is_panic(error: BaseException) -> bool:
    """Return whether an exception is a failure in a Rust library, which is no `Exception` and cannot be imported."""
    return type(error).__name__ == "PanicException"


class ClusterUCBWarning(UserWarning):
    """A problem that a user should know about but that does not stop the work."""


def warn(message: str) -> None:
    """Emit a `ClusterUCBWarning` that points to the line that called this package."""
    level, frame = 1, sys._getframe()
    outermost = level
    while frame := frame.f_back:  # type: ignore[assignment]
        level += 1
        if frame.f_code.co_filename.startswith(_PACKAGE):
            outermost = level
    warnings.warn(message, ClusterUCBWarning, stacklevel=outermost + 1)
