"""A strategy's options, converted from the text that the command line and configuration files hold."""

from __future__ import annotations

import inspect
import sys
from contextlib import suppress
from types import NoneType, SimpleNamespace
from typing import Any, get_args, get_type_hints

import msgspec

from clusterucb.errors import OptionError, PluginError
from clusterucb.wording import in_words


def parse_value(what: str, text: str, factory: type, parameter: inspect.Parameter) -> object:
    """Convert ``text`` to the type of a constructor's parameter (its annotation, or its default's type)."""
    expected = _type_of(factory, parameter)
    if text.lower() == "none" and NoneType in get_args(expected):
        return None
    try:
        return msgspec.convert(text, expected, strict=False)
    except msgspec.ValidationError as error:
        with suppress(msgspec.MsgspecError):
            if text.startswith(("[", "{")):  # a list or a mapping, as a configuration gives it
                return msgspec.convert(msgspec.json.decode(text), expected, strict=False)
        raise OptionError(f"{what} is {text!r}; expected {in_words(expected)}") from error


def _type_of(factory: type, parameter: inspect.Parameter) -> Any:
    """Return the type of a parameter: its annotation, or its default's type where that cannot be resolved."""
    default = parameter.default
    if parameter.annotation is parameter.empty:
        return type(default)
    annotated = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    for base in factory.__mro__:  # a field may be inherited, and its annotation written for another module
        with suppress(Exception):  # an annotation may be any expression, and raise anything
            return get_type_hints(annotated, vars(sys.modules[base.__module__]))[parameter.name]
    if isinstance(default, bool | int | float | str):
        return type(default)
    raise PluginError(
        f"{factory.__module__}.{factory.__qualname__} annotates {parameter.name} as "
        f"{parameter.annotation!r}, which cannot be resolved; expected a name that its module has at run "
        "time: import it outside TYPE_CHECKING"
    )
