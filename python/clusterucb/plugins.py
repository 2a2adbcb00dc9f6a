"""Find the strategies that are installed, by name.

`load` makes a fresh manager each time: nothing global, so tests and notebooks see what is installed
now. Entry points are loaded one by one; a plugin that fails is set aside with its reason and never
keeps the others, or the program, from working.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

import msgspec
import pluggy

from clusterucb import hookspecs
from clusterucb.clusterers.base import Clusterer
from clusterucb.errors import OptionError, PluginError, did_you_mean
from clusterucb.features.base import Feature
from clusterucb.policies.base import Policy

KINDS: dict[str, type] = {"clusterer": Clusterer, "policy": Policy, "feature": Feature}
_HOOKS = {
    "clusterer": "clusterucb_clusterers",
    "policy": "clusterucb_policies",
    "feature": "clusterucb_features",
}


@dataclass(frozen=True)
class Strategy:
    """An installed clusterer, policy or feature.

    Attributes:
        kind: ``clusterer``, ``policy`` or ``feature``.
        name: what the command line calls it.
        factory: its class.
        provider: the package (or module) that provides it.
    """

    kind: str
    name: str
    factory: type
    provider: str

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    def options(self) -> dict[str, inspect.Parameter]:
        """Return the constructor's parameters by name."""
        return dict(inspect.signature(self.factory).parameters)

    def defaults(self) -> dict[str, str]:
        """Return the options' defaults as text; ``required`` where there is none."""
        return {
            name: "required" if one.default is one.empty else str(one.default)
            for name, one in self.options().items()
        }


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be used, and why."""

    provider: str
    reason: str


@dataclass(frozen=True)
class Strategies:
    """Everything that is installed, and what could not be loaded."""

    table: Mapping[tuple[str, str], Strategy]
    broken: tuple[Broken, ...]

    def of_kind(self, kind: str) -> list[Strategy]:
        """Return the strategies of one kind by name."""
        return [strategy for (of, _), strategy in sorted(self.table.items()) if of == kind]

    def make(self, kind: str, name: str, options: Mapping[str, str]) -> Any:
        """Construct a strategy from its name and ``key=value`` options as the command line has them.

        Raises:
            OptionError: no such strategy, no such option, or a value of the wrong type.
        """
        strategy = self.table.get((kind, name))
        if strategy is None:
            choices = [known.name for known in self.of_kind(kind)]
            broken = "".join(f" Plugin {plugin.provider} could not be loaded." for plugin in self.broken)
            hint = did_you_mean(name, choices) + broken
            raise OptionError(f"there is no {kind} {name!r}; installed: {', '.join(choices)}.{hint}")
        known = strategy.options()
        values = {}
        for key, text in options.items():
            if key not in known:
                raise OptionError(
                    f"{kind} {name} has no option {key!r}; its options: {', '.join(known) or 'none'}."
                    f"{did_you_mean(key, known)}"
                )
            values[key] = _parse(f"{kind} {name}: {key}", text, strategy.factory, known[key])
        return strategy.factory(**values)


def load(discover: Callable[[], list[EntryPoint]] | None = None) -> Strategies:
    """Load every installed plugin, the built-in ones included.

    Args:
        discover: returns the entry points to load; by default those installed in the group
            ``clusterucb``.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    broken: list[Broken] = []
    table: dict[tuple[str, str], Strategy] = {}
    for point in (
        discover() if discover else sorted(entry_points(group=hookspecs.PROJECT), key=_built_in_first)
    ):
        provider = point.dist.name if point.dist else point.module
        try:
            _register(manager, point, provider, table)
        except Exception as error:  # whatever a plugin raises, the others still load
            broken.append(Broken(provider, f"{type(error).__name__}: {error}"))
    return Strategies(table, tuple(broken))


def _built_in_first(point: EntryPoint) -> tuple[bool, str]:
    return (point.dist is None or point.dist.name != "clusterucb", point.value)


def _register(
    manager: pluggy.PluginManager, point: EntryPoint, provider: str, table: dict[tuple[str, str], Strategy]
) -> None:
    """Add one plugin's strategies to the table, all of them or none."""
    name = manager.register(point.load(), name=point.value)
    try:
        manager.check_pending()
        found = {}
        for kind, hook in _HOOKS.items():
            others = [plugin for plugin in manager.get_plugins() if manager.get_name(plugin) != name]
            for strategies in manager.subset_hook_caller(hook, others)():
                for key, factory in strategies.items():
                    _check(kind, key, factory, provider, table)
                    found[kind, key] = Strategy(kind, key, factory, provider)
    except BaseException:
        manager.unregister(name=point.value)
        raise
    table.update(found)


def _check(
    kind: str, name: str, factory: object, provider: str, table: dict[tuple[str, str], Strategy]
) -> None:
    if not isinstance(factory, type) or not issubclass(factory, KINDS[kind]):
        raise PluginError(
            f"{kind} {name!r} is {factory!r}; expected a class derived from clusterucb.{KINDS[kind].__name__}"
        )
    if inspect.isabstract(factory):
        missing = sorted(getattr(factory, "__abstractmethods__", ()))
        raise PluginError(f"{kind} {name!r} does not define {', '.join(missing)}")
    if (other := table.get((kind, name))) is not None:
        raise PluginError(
            f"{kind} {name!r} is already provided by {other.provider}; {provider} must rename its own"
        )


def describe(strategy: object) -> dict[str, Any]:
    """Return a strategy's class and hyper-parameters as plain values, for manifests and fingerprints."""
    cls = type(strategy)
    if dataclasses.is_dataclass(strategy):
        options = {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}
    else:
        options = {key: value for key, value in vars(strategy).items() if not key.startswith("_")}
    return {"class": f"{cls.__module__}.{cls.__qualname__}", "options": options}


def _parse(what: str, text: str, factory: type, parameter: inspect.Parameter) -> object:
    """Convert ``text`` to the type of a constructor's parameter (its annotation, or its default's type)."""
    hints = get_type_hints(factory.__init__)  # type: ignore[misc]
    expected = hints.get(parameter.name, type(parameter.default))
    try:
        return msgspec.convert("null" if text.lower() == "none" else text, expected, strict=False)
    except msgspec.ValidationError as error:
        name = getattr(expected, "__name__", str(expected)) if isinstance(expected, type) else str(expected)
        raise OptionError(f"{what} is {text!r}; expected {name}") from error
