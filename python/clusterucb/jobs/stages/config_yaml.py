"""Write ``config.yaml``: every option of a run, in the form that `clusterucb.options.config_file` reads.

Paths are absolute, so that the file works from any folder. Strategies are written by name, with all their options. A
value that no command line can name (an object in memory, or a strategy that is not installed) becomes a comment that
says so.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from clusterucb import plugins
from clusterucb.errors import OptionError
from clusterucb.features.base import Feature
from clusterucb.features.concatenation import Concatenation
from clusterucb.jobs.comparison import spelling as contenders
from clusterucb.jobs.comparison.replay import Contender
from clusterucb.options.config_file import option_key, option_text
from clusterucb.options.gradients import GradientSettings
from clusterucb.versions import __version__
from clusterucb.wording import one_line


def resolved(settings: GradientSettings, **given: object) -> bytes:
    """Return the content of ``config.yaml``: every option of a job, so that ``--config`` repeats the job.

    A value without a name on a command line (an object in memory, or a strategy that is not installed) becomes a
    comment.

    Args:
        settings: the plain options.
        **given: the other options by name: paths and strategies.
    """
    installed = plugins.load()
    fields = [field.name for field in dataclasses.fields(settings)]
    lines = [
        f"# Every option of this run (clusterucb {__version__}). To repeat it: --config THIS_FILE --out ANOTHER_FOLDER"
    ]
    for key, value in {**given, **{name: getattr(settings, name) for name in fields}}.items():
        try:
            lines.extend(_written(key, value, installed))
        except _NamelessError as error:
            lines.append(f"# {key}: {error}")
    return "\n".join([*lines, ""]).encode()


class _NamelessError(Exception):
    """A value cannot be written on a command line. The message describes the value."""


def _written(key: str, value: object, installed: plugins.Strategies) -> list[str]:
    """Return the YAML lines of an option.

    Raises:
        _NamelessError: the value cannot be written.
    """
    content: dict[str, Any]
    if isinstance(value, tuple(plugins.KINDS.values())):
        name, options = _named(value, installed)
        content = {key: {"name": name, **options}}
        if "name" in options:  # the strategy has a hyper-parameter `name`
            content = {key: name, option_key(key): options}
    elif isinstance(value, list | tuple) and any(isinstance(one, Contender) for one in value):
        content = {key: [_spelt(one, installed) for one in value]}
    elif key in ("pool", "target", "model", "out"):
        content = {key: _absolute(key, value)}
    else:
        content = {key: _writable(value)}
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.splitlines()


def _writable(value: object) -> object:
    """Return a value in a form that YAML can write.

    Raises:
        _NamelessError: the value is an object in memory.
    """
    if isinstance(value, Path):
        return os.path.abspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [_writable(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _writable(one) for key, one in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    raise _NamelessError(f"an object in memory, {type(value).__name__}")


def _absolute(key: str, value: object) -> object:
    """Return a path as an absolute path, in a list for a pool or a target. A hub id is returned unchanged.

    Raises:
        _NamelessError: the value is an object in memory, or None.
    """
    if isinstance(value, str | PathLike):
        path = os.fspath(value)
        if key == "model" and not os.path.isdir(path):
            return path
        return [os.path.abspath(path)] if key in ("pool", "target") else os.path.abspath(path)
    if isinstance(value, list | tuple) and all(isinstance(one, str | PathLike) for one in value):
        return [os.path.abspath(one) for one in value]
    if value is None:
        raise _NamelessError("not given")
    raise _NamelessError(f"an object in memory, {type(value).__name__}")


def _named(strategy: object, installed: plugins.Strategies) -> tuple[str, dict[str, Any]]:
    """Return the name and the hyper-parameters of an installed strategy. Paths among them become absolute.

    Raises:
        _NamelessError: the strategy is not installed.
    """
    named = installed.named(strategy)
    if named is None:
        described = plugins.describe(strategy)
        pairs = ", ".join(f"{key}={value!r}" for key, value in described["options"].items())
        raise _NamelessError(one_line(f"{described['class']}({pairs}) is not installed under a name"))
    name, options = named
    files = set()
    if isinstance(strategy, Concatenation):
        parts = zip(name.split("+"), strategy.parts, strict=True)
        files = {f"{part}.{key}" for part, feature in parts for key in feature.contents()}
    elif isinstance(strategy, Feature):
        files = set(strategy.contents())
    return name, {key: _writable(Path(value) if key in files else value) for key, value in options.items()}


def _spelt(contender: Contender, installed: plugins.Strategies) -> str:
    """Return a contender in the command line's spelling: its own name if that describes it completely.

    Raises:
        _NamelessError: no spelling describes it.
    """

    def described(one: Contender) -> list[object]:
        strategies = [one.policy, one.clusterer, one.features]
        return [*(each and plugins.describe(each) for each in strategies), one.cold_start, one.batch_size]

    def spellings() -> Iterator[str]:
        yield contender.name
        parts = {"policy": contender.policy, "clusterer": contender.clusterer, "features": contender.features}
        named = {
            part: _named(strategy, installed) for part, strategy in parts.items() if strategy is not None
        }
        options = {
            f"{part}.{key}": option_text(value if value is None else str(value))
            for part, (_, values) in named.items()
            for key, value in values.items()
        }
        own = {key: getattr(contender, key) for key in ("cold_start", "batch_size")}
        options |= {key: str(value) for key, value in own.items() if value is not None}
        pairs = (f"{key}={value}" for key, value in options.items())
        yield f"{'@'.join(name for name, _ in named.values())}[{','.join(pairs)}]"

    for spelling in spellings():
        with suppress(OptionError):
            if described(contenders.contender(spelling, installed)) == described(contender):
                return spelling
    raise _NamelessError(f"{contender.name} cannot be written on a command line")
