"""The errors that a user can cause, all of one base class.

Every message says what was got, what was expected and what to do. The command line prints a
`ClusterUCBError` as one line and exits with 2; anything else that escapes is a bug and exits with 1.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

__all__ = [
    "ClusterUCBError",
    "ClusterUCBWarning",
    "InputError",
    "ModelError",
    "OptionError",
    "PluginError",
    "RunError",
    "check_choice",
    "counted",
    "did_you_mean",
    "in_words",
]

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    NoneType: "none",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


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


def printable(text: str) -> str:
    """Return text without what a terminal would obey: control characters, but line breaks, become �."""
    return "".join(one if one.isprintable() or one == "\n" else "�" for one in text)


def one_line(value: object) -> str:
    """Return the text of an exception or value on one line."""
    return " ".join(str(value).split())


def counted(count: int, one: str, more: str = "") -> str:
    """Return a count and what is counted: ``1 cluster``, ``1,234 clusters``.

    Args:
        count: how many there are.
        one: the words after a count of one.
        more: the words after any other count; by default ``one`` with an s.
    """
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def blamed(method: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Return a strategy's method so that whatever it raises names it; a built-in one as it is.

    The exceptions of built-in strategies stay bugs of clusterucb.
    """
    cls = type(getattr(method, "__self__", None))
    if cls.__module__.partition(".")[0] == "clusterucb":
        return method

    @functools.wraps(method)
    def call(*args: _Args.args, **options: _Args.kwargs) -> _Result:
        try:
            return method(*args, **options)
        except ClusterUCBError:
            raise
        except Exception as error:  # whatever a plugin raises
            raise PluginError(
                f"{cls.__module__}.{cls.__qualname__}.{method.__name__} failed: {type(error).__name__}: "
                f"{one_line(error):.300}. The fault is the plugin's; --debug shows where"
            ) from error

    return call


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``choices``, in whatever case, or an empty string."""
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(word.casefold(), list(folded), n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Check that a value is one of ``choices``.

    Raises:
        OptionError: it is none.
    """
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise OptionError(f"{name} is {value!r}; expected one of {', '.join(choices)}.{hint}")


def in_bytes(count: float) -> str:
    """Return a number of bytes as people say it."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def in_words(hint: object) -> str:
    """Return what values of a type are: ``int | None`` is "a whole number or none"."""
    origin, kinds = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return in_words(kinds[0])
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, kinds))
    if origin is Literal:
        return f"one of {', '.join(map(str, kinds))}"
    if origin in _WORDS:
        return f"{_WORDS[origin]} ({str(hint).replace('typing.', '')})"
    return _WORDS.get(hint, str(hint))


class ClusterUCBWarning(UserWarning):
    """Something that a user should know, though the work goes on."""
