"""The errors that a user can cause, all of one base class.

Every message says what was got, what was expected and what to do. The command line prints a
`ClusterUCBError` as one line and exits with 2; anything else that escapes is a bug and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClusterUCBError(Exception):
    """Base class of everything that clusterucb raises on purpose."""


class OptionError(ClusterUCBError, ValueError):
    """An option, argument or array has a value that cannot be used."""


class InputError(ClusterUCBError):
    """A pool or target file cannot be read, or has no usable sample."""


class ModelError(ClusterUCBError):
    """A model, tokenizer, adapter or optimiser state cannot be loaded or does not fit."""


class PluginError(ClusterUCBError):
    """A plugin cannot be loaded, or a strategy breaks its contract."""


class RunError(ClusterUCBError):
    """A run folder cannot be used: it belongs to other options, is locked, or cannot be written."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``choices``, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


class ClusterUCBWarning(UserWarning):
    """Something that a user should know, though the work goes on."""
