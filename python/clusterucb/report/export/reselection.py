"""Write a selection as the call of `clusterucb.Reselect` that selects in the same way while a model is trained."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping
from pathlib import Path

from clusterucb import plugins
from clusterucb.errors import OptionError
from clusterucb.features.concatenation import Concatenation
from clusterucb.options.config_file import option_text
from clusterucb.options.kinds import option_name
from clusterucb.options.live import CHECKPOINT, COMMAND, LOADING, WARMUP
from clusterucb.options.search import SelectSettings
from clusterucb.report.export.trl import BATCH, EPOCHS


def reselection(
    settings: SelectSettings, pool: object, target: object, strategies: Mapping[str, object], n_select: int
) -> str:
    """Return the call as Python code.

    Args:
        settings: the options of the selection, with ``every``.
        pool, target: the files, as they were given.
        strategies: the strategies by the names of their arguments.
        n_select: the number of samples that are selected. If the training has few steps, a tenth is the warm-up.

    Raises:
        OptionError: a pool, a target or a strategy has no name, because it is an object in memory; or an option
            belongs to a checkpoint.
    """
    for name in (*CHECKPOINT, "parameters", "chat_template", "quantize"):
        if getattr(settings, name) is not None:
            raise OptionError(
                f"--every is given with {option_name(name)}; expected it without, because the training selects with "
                "its own model"
            )
    n_steps = EPOCHS * -(-n_select // BATCH)
    unused = {*CHECKPOINT, *LOADING, *COMMAND}
    options = {
        field.name: _plain(getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if field.name not in unused and getattr(settings, field.name) != field.default
    }
    every = settings.every if settings.every in ("epoch", "auto") else int(str(settings.every))
    arguments = [
        repr(_paths("pool", pool)),
        repr(_paths("target", target)),
        f"every={every!r}",
        *([f"warmup={max(n_steps // 10, 1)}"] if n_steps < 2 * WARMUP else []),
        *(f"{name}={_call(name, strategy)}" for name, strategy in strategies.items()),
        *(f"{name}={value!r}" for name, value in options.items()),
    ]
    return "cu.Reselect({}\n)".format("".join(f"\n    {argument}," for argument in arguments))


def _paths(name: str, given: object) -> list[str]:
    parts = given if isinstance(given, list | tuple) else [given]
    if not all(isinstance(part, str | os.PathLike) for part in parts):
        raise OptionError(
            f"--every is given with a {name} in memory; expected files, which a script can read"
        )
    return [os.path.abspath(str(part)) for part in parts]


def _plain(value: object) -> object:
    """Return an option's value as Python writes it."""
    if isinstance(value, Path):
        return os.path.abspath(value)
    return dict(value) if isinstance(value, Mapping) else value


def _call(name: str, strategy: object) -> str:
    """Return the code that makes a strategy: its class if `clusterucb` has it, else by its name."""
    kind = "feature" if name == "features" else name
    named = plugins.load().named(strategy)
    if named is None:
        raise OptionError(
            f"--every is given with a {name} that is not installed under a name; expected an installed strategy"
        )
    found, options = named
    package, _, own = plugins.describe(strategy)["class"].partition(".")
    if package == "clusterucb" and not isinstance(strategy, Concatenation):
        defaults = inspect.signature(type(strategy)).parameters
        given = {key: value for key, value in options.items() if value != defaults[key].default}
        return f"cu.{own}({', '.join(f'{key}={value!r}' for key, value in given.items())})"
    texts = {key: option_text(value if value is None else str(value)) for key, value in options.items()}
    return f"cu.plugins.load().make({kind!r}, {found!r}, {texts!r})"
