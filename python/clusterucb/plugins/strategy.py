"""Hold what is known of an installed strategy, and of a plugin that could not be loaded."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from docstring_parser import parse

from clusterucb.plugins.option_values import type_of
from clusterucb.wording import in_words, one_line


@dataclass(frozen=True)
class Strategy:
    """An installed clusterer, policy or feature.

    Attributes:
        kind: ``clusterer``, ``policy`` or ``feature``.
        name: the strategy's name on the command line.
        factory: the strategy's class.
        provider: the package (or module) that provides the strategy.
        version: the version of the package; empty for a module.
    """

    kind: str
    name: str
    factory: type
    provider: str
    version: str = ""

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    def options(self) -> dict[str, inspect.Parameter]:
        """Return the constructor's parameters by name."""
        return dict(inspect.signature(self.factory).parameters)

    def described(self) -> dict[str, Any]:
        """Return what a user needs to know of the strategy and its options, as JSON values.

        Raises:
            PluginError: the type of an option cannot be determined.
        """
        attributes = parse(inspect.getdoc(self.factory) or "").params
        written = {name.strip(): one.description for one in attributes for name in one.arg_name.split(",")}
        defaults = self.defaults()
        options = [
            {
                "name": name,
                "type": in_words(type_of(self.factory, option)),
                "default": defaults[name],
                "meaning": one_line(written.get(name) or ""),
            }
            for name, option in self.options().items()
        ]
        about = {"kind": self.kind, "name": self.name, "package": self.provider, "version": self.version}
        return {**about, "summary": self.summary, "options": options}

    def defaults(self) -> dict[str, str]:
        """Return the options' defaults as text; ``required`` for an option without a default."""
        return {
            name: "required" if option.default is option.empty else str(option.default)
            for name, option in self.options().items()
        }


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded, and the reason.

    Attributes:
        provider: the package (or module) of the plugin.
        reason: what went wrong, on one line.
        version: the version of the package; empty for a module.
    """

    provider: str
    reason: str
    version: str = ""
