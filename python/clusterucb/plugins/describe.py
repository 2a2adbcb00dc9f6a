"""A strategy as plain values: what a manifest records of it."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import numpy as np

from clusterucb.errors import PluginError
from clusterucb.features.base import Feature
from clusterucb.plugins.kinds import KINDS


def describe(strategy: object) -> dict[str, Any]:
    """Return a strategy's class and hyper-parameters as plain values, for manifests and fingerprints.

    Hyper-parameters that are strategies are described in the same way. Of a feature whose options name files there
    are ``contents``, too, their fingerprints by option.

    Raises:
        PluginError: a parameter of the constructor is not kept as an attribute of its name, or is not a
            plain value; a run could not tell whether its settings have changed.
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
                f"{cls.__qualname__} does not keep its hyper-parameter {name!r}; expected an attribute of that name"
            )
        value = getattr(strategy, name)
        if isinstance(value, tuple) and value and isinstance(value[0], tuple(KINDS.values())):
            options[name] = [describe(one) for one in value]
        else:
            options[name] = msgspec.to_builtins(value, enc_hook=plain)
    contents = strategy.contents() if isinstance(strategy, Feature) else {}
    described = {"class": f"{cls.__module__}.{cls.__qualname__}", "options": options}
    return {**described, "contents": contents} if contents else described
