"""Convert a strategy's options from the text in the command line and in configuration files."""

from __future__ import annotations

import inspect
import re
import sys
from contextlib import suppress
from types import NoneType, SimpleNamespace
from typing import Any, get_args, get_type_hints

import msgspec

from clusterucb.errors import OptionError, PluginError
from clusterucb.wording import in_words

_BRACKETED = re.compile(r"(?P<head>[^\[\]]+)(\[(?P<options>[^\[\]]*)\])?")


def bracketed(text: str) -> tuple[str, list[str]] | None:
    """Return the head and the options of a text such as ``ucb[beta=1.5,delta=2]``; None if the brackets do not fit."""
    matched = _BRACKETED.fullmatch(text.strip())
    return (
        (matched["head"].strip(), list(filter(None, (matched["options"] or "").split(","))))
        if matched
        else None
    )


def parse_value(what: str, text: str, factory: type, parameter: inspect.Parameter) -> object:
    """Convert ``text`` to the type of a constructor's parameter: its annotation, or the type of its default.

    Args:
        what: the option in words, with which messages begin.
        text: the option's value as text.
        factory: the strategy's class.
        parameter: the parameter of the class's constructor.

    Raises:
        OptionError: the text is not a value of that type.
        PluginError: the annotation cannot be resolved, and the default does not tell the type.
    """
    expected = type_of(factory, parameter)
    if text.lower() == "none" and NoneType in get_args(expected):
        return None
    try:
        return msgspec.convert(text, expected, strict=False)
    except msgspec.ValidationError as error:
        with suppress(msgspec.MsgspecError):
            if text.startswith(("[", "{")):  # a configuration file writes lists and mappings as JSON
                return msgspec.convert(msgspec.json.decode(text), expected, strict=False)
        raise OptionError(f"{what} is {text!r}; expected {in_words(expected)}") from error


def type_of(factory: type, parameter: inspect.Parameter) -> Any:
    """Return the annotation of a parameter, or the type of its default if the annotation cannot be resolved.

    Raises:
        PluginError: the annotation cannot be resolved, and the default is not a plain value.
    """
    default = parameter.default
    if parameter.annotation is parameter.empty:
        return type(default)
    annotated = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    for base in factory.__mro__:  # an inherited field's annotation uses the names of its own class's module
        with suppress(Exception):  # an annotation is any expression, and may raise any exception
            return get_type_hints(annotated, vars(sys.modules[base.__module__]))[parameter.name]
    if isinstance(default, bool | int | float | str):
        return type(default)
    raise PluginError(
        f"{factory.__module__}.{factory.__qualname__} annotates {parameter.name} as "
        f"{parameter.annotation!r}, which cannot be resolved; expected a name that its module has at run "
        "time: import it outside TYPE_CHECKING"
    )
