"""Errors of a plugin's methods, reported as the plugin's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from clusterucb.errors import ClusterUCBError, PluginError
from clusterucb.wording import one_line

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
