"""Convert and check options that are given as Python keyword arguments, and show them in signatures."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from clusterucb.errors import OptionError
from clusterucb.options.gradients import GradientSettings
from clusterucb.options.kinds import Checked, field_names, list_fields
from clusterucb.wording import did_you_mean, in_words

_COUNTS = ("budget", "select", "workers")

AnySettings = TypeVar("AnySettings", bound=GradientSettings)
AnyChecked = TypeVar("AnyChecked", bound=Checked)
Function = TypeVar("Function", bound=Callable[..., Any])


def settings_from(options: Mapping[str, Any], kind: type[AnyChecked]) -> AnyChecked:
    """Make settings from keyword arguments.

    Args:
        options: the keyword arguments.
        kind: the class of the settings.

    Raises:
        OptionError: the settings have no such option, or a value cannot be used.
    """
    known = field_names(kind)
    for name in options:
        if name not in known:
            raise OptionError(
                f"there is no option {name!r}; options: {', '.join(known)}.{did_you_mean(name, known)}"
            )
    typed: dict[str, Any] = {name: _typed(kind, name, value) for name, value in options.items()}
    return kind(**typed)


def spelt_out(kind: type[GradientSettings]) -> Callable[[Function], Function]:
    """Return a decorator that replaces ``**options`` in a function's signature by the fields of ``kind``."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        named = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        options = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
            )
            for field in dataclasses.fields(kind)
        ]
        function.__signature__ = signature.replace(parameters=[*named, *options])  # type: ignore[attr-defined]
        return function

    return decorate


def _typed(kind: type, name: str, value: object) -> object:
    """Convert the value of a keyword argument to the type of the field ``name`` of ``kind``.

    Raises:
        OptionError: the value has another type.
    """
    if name in _COUNTS and value is not None:
        return str(value)  # the user may give a number
    if isinstance(value, list | tuple) and name in list_fields(kind):
        return ",".join(map(str, value)) or None
    hint = get_type_hints(kind)[name]
    if isinstance(value, str | PathLike) and Path in get_args(hint):
        return Path(value)
    if name == "prior" and isinstance(value, str | PathLike):
        return (Path(value),)
    if name in ("checkpoint", "prior") and isinstance(value, list | tuple):
        return tuple(Path(one) if isinstance(one, str | PathLike) else one for one in value)
    if hasattr(value, "dtype") and not getattr(value, "shape", True):
        value = value.item()  # type: ignore[attr-defined]  # a numpy scalar
    expected = tuple(get_origin(one) or one for one in get_args(hint) or (hint,))
    if float in expected:
        expected = (*expected, int)
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        raise OptionError(f"{name} is {value!r}; expected {in_words(hint)}")
    return value
