"""A strategy as plain values: what a manifest records, and what a run compares when it resumes.

Decision: a strategy's identity is no file path, so that a class may move. It is the public name for a class of ours,
the distribution and the class for a plugin's, and the import path for any other. Version 0.1 recorded import paths;
`renewed` translates them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from clusterucb.errors import PluginError
from clusterucb.features.base import Feature
from clusterucb.plugins.kinds import KINDS


def describe(strategy: object, name_of: Callable[[type], str] | None = None) -> dict[str, Any]:
    """Return a strategy's class and hyper-parameters as plain values, for manifests and fingerprints.

    A hyper-parameter that holds strategies is described in the same way. If a feature's options name files, the
    description also has ``contents``: the fingerprints of these files, by option.

    Args:
        strategy: a clusterer, policy or feature.
        name_of: returns the name of a class; `identity` by default.

    Raises:
        PluginError: the strategy does not keep a parameter of its constructor as an attribute of that name, or the
            value is not plain. A run could not tell whether its settings have changed.
    """
    cls = type(strategy)

    def plain(value: object) -> object:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        raise PluginError(
            f"{cls.__qualname__} has a hyper-parameter of type {type(value).__qualname__}; expected plain "
            "values: numbers, strings, lists, dictionaries"
        )

    options = {}
    for name in inspect.signature(cls).parameters:
        if not hasattr(strategy, name):
            raise PluginError(
                f"{cls.__qualname__} does not store its hyper-parameter {name!r}; expected an attribute of that name"
            )
        value = getattr(strategy, name)
        if isinstance(value, tuple) and value and isinstance(value[0], tuple(KINDS.values())):
            options[name] = [describe(part, name_of) for part in value]
        else:
            options[name] = msgspec.to_builtins(value, enc_hook=plain)
    contents = strategy.contents() if isinstance(strategy, Feature) else {}
    described = {"class": (name_of or identity)(cls), "options": options}
    return {**described, "contents": contents} if contents else described


def identity(cls: type) -> str:
    """Return the name that a run records of a class: ``clusterucb.UCB``, or ``my-package:MyPolicy`` of a plugin."""
    if cls.__module__.startswith("clusterucb."):
        return f"clusterucb.{cls.__qualname__}"
    return _registered().get(import_path(cls), import_path(cls))


def import_path(cls: type) -> str:
    """Return where a class is imported from, as version 0.1 recorded it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def is_description(value: object) -> bool:
    """Return whether a recorded value is the description of a strategy, as `describe` makes it."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("class"), str)
        and isinstance(value.get("options"), dict)
    )


def packages(value: Any) -> list[str]:
    """Return the packages of the plugins whose strategies stand in recorded settings, sorted."""
    if isinstance(value, list | tuple):
        return sorted({name for item in value for name in packages(item)})
    if not isinstance(value, dict):
        return []
    own = [value["class"].partition(":")[0]] if is_description(value) and ":" in value["class"] else []
    return sorted({*own, *(name for item in value.values() for name in packages(item))})


def renewed(value: Any) -> Any:
    """Return recorded settings in which strategies have today's identities in place of import paths."""
    if isinstance(value, list):
        return [renewed(item) for item in value]
    if not isinstance(value, dict):
        return value
    if is_description(value):
        path = value["class"]
        if path.startswith("clusterucb."):
            path = f"clusterucb.{path.rpartition('.')[2]}"
        elif ":" not in path:
            path = _registered().get(path, path)
        return {**value, "class": path, "options": renewed(value["options"])}
    return {key: renewed(item) for key, item in value.items()}


def _registered() -> dict[str, str]:
    """Return the identities of the plugins' classes by their import paths."""
    from clusterucb.plugins.registry import load  # which describes what it finds

    return {
        import_path(strategy.factory): f"{strategy.provider}:{strategy.factory.__qualname__}"
        for strategy in load().table.values()
    }
