"""Report exceptions in a plugin's methods as errors of the plugin."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from clusterucb.errors import ClusterUCBError, PluginError
from clusterucb.wording import one_line

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def blamed(method: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Wrap a strategy's method so that any exception becomes a `PluginError` that names the method.

    Methods of built-in strategies are returned unchanged: their exceptions are bugs of clusterucb.
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
        except Exception as error:
            raise PluginError(
                f"{cls.__module__}.{cls.__qualname__}.{method.__name__} failed: {type(error).__name__}: "
                f"{one_line(error):.300}. This is a fault of the plugin; --debug shows where"
            ) from error

    return call
