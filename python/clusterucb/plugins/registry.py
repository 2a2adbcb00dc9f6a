"""Find the installed strategies by name.

Decisions:
    - `load` looks for all strategies each time it is called, and keeps nothing global. So tests and notebooks see what
      is installed now.
    - Entry points are loaded one by one, each with its own pluggy manager. A plugin that fails is set aside with the
      reason; the other plugins and the program work on.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from itertools import chain
from typing import Any

import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clusterucb import hookspecs
from clusterucb.errors import ClusterUCBError, OptionError, PluginError
from clusterucb.features.concatenation import Concatenation
from clusterucb.plugins.describe import describe
from clusterucb.plugins.kinds import HOOKS, KINDS
from clusterucb.plugins.names import Contested, named
from clusterucb.plugins.option_values import bracketed, parse_value
from clusterucb.plugins.strategy import Broken, Strategy
from clusterucb.versions import __version__
from clusterucb.wording import did_you_mean, one_line

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_UNNAMED: dict[Any, str] = {
    inspect.Parameter.POSITIONAL_ONLY: "{}, /",
    inspect.Parameter.VAR_POSITIONAL: "*{}",
    inspect.Parameter.VAR_KEYWORD: "**{}",
}


@dataclass(frozen=True)
class Strategies:
    """All installed strategies, and the plugins that could not be loaded.

    Attributes:
        table: the strategies by kind and name.
        broken: the plugins that could not be loaded.
        contested: for each kind and name that several packages provide, the names that stand for each of them
            (`clusterucb.plugins.names`).
    """

    table: Mapping[tuple[str, str], Strategy]
    broken: tuple[Broken, ...]
    contested: Contested = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Strategy]:
        """Return the strategies of one kind, sorted by name."""
        return [strategy for (of, _), strategy in sorted(self.table.items()) if of == kind]

    def of_name(self, name: str) -> list[Strategy]:
        """Return the strategies of a name, of every kind that has one.

        Raises:
            OptionError: there is none, or several packages provide it.
        """
        found = [strategy for kind in KINDS if (strategy := self.find(kind, name)) is not None]
        if not found and (others := [names for (_, one), names in self.contested.items() if one == name]):
            raise OptionError(f"several packages provide {name!r}; expected {' or '.join(others[0])}")
        if not found:
            known = sorted({strategy for _, strategy in self.table})
            listed = "; ".join(
                f"{kind}: {', '.join(one.name for one in self.of_kind(kind))}" for kind in KINDS
            )
            broken = "".join(
                f" Plugin {plugin.provider} could not be loaded: {plugin.reason}." for plugin in self.broken
            )
            raise OptionError(
                f"there is no strategy {name!r}; installed: {listed}.{did_you_mean(name, known)}{broken}"
            )
        return found

    def options(self, kind: str, name: str) -> list[str]:
        """Return the names of a strategy's options, or none if there is no such strategy.

        For joined features, each option is listed twice: by its name, and with the name of its feature in front.
        """
        names = _parts(kind, name)
        found = {part: self.find(kind, part) for part in names}
        parts = {part: list(strategy.options()) for part, strategy in found.items() if strategy}
        if len(names) == 1:
            return parts.get(name, [])
        return list(
            dict.fromkeys(
                [*chain(*parts.values()), *(f"{part}.{key}" for part, keys in parts.items() for key in keys)]
            )
        )

    def find(self, kind: str, name: str) -> Strategy | None:
        """Return a strategy by its name, which may have its package in front: ``package:name``."""
        if (strategy := self.table.get((kind, name))) is not None:
            return strategy
        provider, _, plain = name.rpartition(":")
        strategy = self.table.get((kind, plain))
        return strategy if strategy is not None and strategy.provider == provider else None

    def spelt(self, kind: str, text: str) -> Any:
        """Construct a strategy from a text such as ``ucb`` or ``ucb[beta=1.5,delta=2]``.

        Raises:
            OptionError: the text cannot be read; or as for `make`.
            PluginError: as for `make`.
        """
        name, pairs = bracketed(text) or ("", [])
        parts = [[part.strip() for part in pair.partition("=")] for pair in pairs]
        if not name or not all(key and equals for key, equals, _ in parts):
            raise OptionError(f"{kind} {text!r:.80} cannot be read; expected name, or name[key=value,...]")
        options: dict[str, str] = {}
        for key, _, value in parts:
            if key in options:
                raise OptionError(f"{kind} {text!r:.80}: {key} is given twice; expected it once")
            options[key] = value
        return self.make(kind, name, options)

    def make(self, kind: str, name: str, options: Mapping[str, str]) -> Any:
        """Construct a strategy from its name and its ``key=value`` options, as on the command line.

        Features may be joined: ``embedding+lexical``. An option goes to the feature that has it. If several have an
        option of that name, put the feature's name in front: ``lexical.dim``.

        Raises:
            OptionError: there is no such strategy or option, a value has the wrong type, or the constructor refuses it.
            PluginError: the type of an option cannot be determined.
        """
        names = _parts(kind, name)
        if len(names) > 1 and not all(names):
            raise OptionError(
                f"{kind} {name!r} has an empty name beside a +; expected names joined as in embedding+lexical"
            )
        if len(names) > 1:
            return self._concatenation(name, names, options)
        strategy = self.find(kind, name)
        if strategy is None and (kind, name) in self.contested:
            raise OptionError(
                f"several packages provide the {kind} {name!r}; expected {' or '.join(self.contested[kind, name])}"
            )
        if strategy is None:
            choices = [known.name for known in self.of_kind(kind)]
            broken = "".join(f" Plugin {plugin.provider} could not be loaded." for plugin in self.broken)
            joined = re.split(r"\s*[,&]\s*", name)
            hint = did_you_mean(name, choices)
            if kind == "feature" and len(joined) > 1:
                hint = f" Features are joined with +: {'+'.join(joined)}."
            raise OptionError(f"there is no {kind} {name!r}; installed: {', '.join(choices)}.{hint}{broken}")
        known = strategy.options()
        values = {}
        for key, text in options.items():
            if key not in known:
                raise OptionError(
                    f"{kind} {name} has no option {key!r}; its options: {', '.join(known) or 'none'}."
                    f"{did_you_mean(key, known)}"
                )
            values[key] = parse_value(f"{kind} {name}: {key}", text, strategy.factory, known[key])
        missing = [
            key for key, option in known.items() if option.default is option.empty and key not in values
        ]
        if missing:
            raise OptionError(f"{kind} {name} needs a value for {', '.join(missing)}; expected key=value")
        try:
            return strategy.factory(**values)
        except ClusterUCBError:
            raise
        except Exception as error:  # a constructor may refuse a value with any exception
            why = one_line(error) or type(error).__name__
            raise OptionError(f"{kind} {name} rejects its options: {why:.300}") from error

    def named(self, strategy: object) -> tuple[str, dict[str, Any]] | None:
        """Return the name and the options from which `make` would make a strategy; None if it has no name.

        Options are plain values. Options of joined features have the name of their feature in front.
        """
        if isinstance(strategy, Concatenation):
            parts = [self.named(part) for part in strategy.parts]
            with_name = [part for part in parts if part is not None]
            names = [name for name, _ in with_name]
            if len(with_name) < len(parts) or len(set(names)) < len(names):
                return None
            return "+".join(names), {
                f"{name}.{key}": value for name, options in with_name for key, value in options.items()
            }
        for installed in self.table.values():
            if installed.factory is type(strategy):
                return installed.name, describe(strategy)["options"]
        return None

    def _concatenation(self, joined: str, names: list[str], options: Mapping[str, str]) -> Concatenation:
        """Make the features in ``names``, and give each option to the feature that it belongs to."""
        if len(set(names)) < len(names):
            raise OptionError(f"features {joined} repeat a feature; expected different features")
        own: dict[str, dict[str, str]] = {name: {} for name in names}
        for key, text in options.items():
            part = next((name for name in names if key.startswith(f"{name}.")), "")
            rest = key.removeprefix(f"{part}.")
            if not part:
                owners = [name for name in names if key in self.options("feature", name)]
                if len(owners) > 1:
                    choices = " or ".join(f"{name}.{key}" for name in owners)
                    raise OptionError(
                        f"features {joined}: {key} is an option of several features; expected {choices}"
                    )
                if not owners:
                    known = self.options("feature", joined)
                    raise OptionError(
                        f"features {joined} have no option {key!r}; their options: {', '.join(known) or 'none'}."
                        f"{did_you_mean(key, known)}"
                    )
                part, rest = owners[0], key
            if rest in own[part]:
                raise OptionError(f"features {joined}: {part}.{rest} is given twice; expected it once")
            own[part][rest] = text
        return Concatenation(tuple(self.make("feature", name, own[name]) for name in names))


def _parts(kind: str, name: str) -> list[str]:
    """Split a name at each + into the names that it joins; only features can be joined."""
    return [part.strip() for part in name.split("+")] if kind == "feature" else [name]


def load(discover: Callable[[], list[EntryPoint]] | None = None) -> Strategies:
    """Load every installed plugin, including the built-in strategies.

    Args:
        discover: a function that returns the entry points to load. By default, load all entry points that are
            installed in the group ``clusterucb``.
    """
    broken: list[Broken] = []
    provided: list[Strategy] = []
    for point in (
        discover() if discover else sorted(entry_points(group=hookspecs.PROJECT), key=_built_in_first)
    ):
        provider = point.dist.name if point.dist else point.module
        try:
            _check_version(point)
            with redirect_stdout(sys.stderr):  # standard output is for results
                provided += _strategies(point, provider, provided)
        except (Exception, SystemExit) as error:  # whatever one plugin raises, the others still load
            reason = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
            broken.append(Broken(provider, reason, _version(point)))
    table, contested = named(provided)
    return Strategies(table, tuple(broken), contested)


def _built_in_first(point: EntryPoint) -> tuple[bool, str]:
    """Return a sort key that puts the built-in strategies first."""
    return (point.dist is None or point.dist.name != "clusterucb", point.value)


def _version(point: EntryPoint) -> str:
    return (point.dist.version if point.dist else "") or ""


def _check_version(point: EntryPoint) -> None:
    """Refuse a plugin that requires another version of clusterucb; ``pip install --no-deps`` does not check it."""
    for text in (point.dist.requires if point.dist else None) or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue  # the requirement belongs to an extra, or to another platform
        ours = canonicalize_name(requirement.name) == hookspecs.PROJECT
        if ours and not requirement.specifier.contains(__version__, prereleases=True):
            raise PluginError(
                f"it needs {hookspecs.PROJECT}{requirement.specifier}, but {__version__} is installed; upgrade one "
                "of the two"
            )


def _strategies(point: EntryPoint, provider: str, before: Iterable[Strategy]) -> list[Strategy]:
    """Return the strategies of one plugin; an error in one of them refuses all of them."""
    own = {(strategy.kind, strategy.name) for strategy in before if strategy.provider == provider}
    provided = []
    for kind, hook, strategies in _returned(point):
        if not isinstance(strategies, Mapping) or not strategies:
            raise PluginError(
                f"hook {hook} returned {strategies!r:.100}; expected a dictionary of classes by name: "
                f'return {{"my-{kind}": My{kind.capitalize()}}}'
            )
        for name, factory in strategies.items():
            _check(kind, name, factory)
            if (kind, name) in own:
                raise PluginError(f"it provides the {kind} {name!r} twice; expected different names")
            provided.append(Strategy(kind, name, factory, provider, _version(point)))
    return provided


def _returned(point: EntryPoint) -> Iterator[tuple[str, str, object]]:
    """Yield, for each hook of a plugin, the kind, the hook's name and the value that the hook returns.

    Each hook function is called directly. pluggy would leave out a hook that returns None, and so hide that its author
    forgot the ``return``.
    """
    # Each plugin has its own manager, so no mistake affects another plugin.
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    plugin = point.load()
    manager.register(plugin)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = [hook for hook, caller in vars(manager.hook).items() if not caller.has_spec()]
        hints = (did_you_mean(hook, HOOKS.values()) for hook in unknown)
        raise PluginError(f"{one_line(error)}.{''.join(hints)}") from error
    if not manager.get_hookcallers(plugin):
        raise PluginError(
            f"{point.value} implements no hook; expected one or more of {', '.join(HOOKS.values())}, each "
            "marked with clusterucb.hookspecs.hookimpl"
        )
    for name in dir(plugin):
        if name.startswith(f"{hookspecs.PROJECT}_"):
            _check_marked(name, getattr(plugin, name, None), manager.parse_hookimpl_opts(plugin, name))
    for kind, hook in HOOKS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            yield kind, hook, implementation.function()


def _check_marked(name: str, value: object, mark: object) -> None:
    """Refuse an attribute that has the name of a hook but would not be called, since it is not marked."""
    looks_like_hook = inspect.isroutine(value) or name in HOOKS.values()
    if looks_like_hook and mark is None and value is not getattr(hookspecs, name, None):
        hint = "" if name in HOOKS.values() else did_you_mean(name, HOOKS.values())
        raise PluginError(
            f"{name} is named like a hook, but is not a function marked with clusterucb.hookspecs.hookimpl; "
            f"mark it, or rename it if it is not a hook.{hint}"
        )


def _check(kind: str, name: str, factory: object) -> None:
    """Refuse a strategy that the command line could not name or construct."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(
            f"{kind} {name!r}: expected a name of letters, digits, - and _, for use on the command line"
        )
    if not isinstance(factory, type) or not issubclass(factory, KINDS[kind]):
        raise PluginError(
            f"{kind} {name!r} is {factory!r}; expected a class derived from clusterucb.{KINDS[kind].__name__}"
        )
    if inspect.isabstract(factory):
        missing = sorted(getattr(factory, "__abstractmethods__", ()))
        raise PluginError(f"{kind} {name!r} does not define {', '.join(missing)}")
    # `inspect.signature` raises if the constructor's options cannot be determined.
    for option in inspect.signature(factory).parameters.values():
        if (form := _UNNAMED.get(option.kind)) is not None:
            raise PluginError(
                f"the constructor of {kind} {name!r} takes {form.format(option.name)}; expected named "
                "hyper-parameters: name each of them"
            )
