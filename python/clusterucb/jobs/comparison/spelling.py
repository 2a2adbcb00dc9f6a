"""Read contenders in the command line's spelling: ``policy[@clusterer][@features][key=value,...]``.

    random
    rds@hidden
    ucb@kmeans@embedding[n_clusters=150,beta=0.5]
    ucb@embedding+lexical[dim=32]

An option belongs to whichever of the three strategies has it; ``cold_start`` and ``batch_size`` belong to the search.
If two strategies have an option of the same name, the prefix ``policy.``, ``clusterer.`` or ``features.`` decides. For
joined features, the prefix is the name of one of them: ``lexical.dim``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from clusterucb.errors import OptionError
from clusterucb.jobs.comparison.replay import Contender
from clusterucb.plugins import Strategies
from clusterucb.plugins.option_values import bracketed
from clusterucb.wording import did_you_mean

_KINDS = {"policy": "policy", "clusterer": "clusterer", "features": "feature"}
_SEARCH: dict[str, tuple[str, Callable[[float], bool]]] = {
    "cold_start": ("a share between 0 and 1", lambda share: 0 <= share <= 1),
    "batch_size": ("a whole number of at least 1", lambda size: size >= 1),
}


def split(text: str) -> list[str]:
    """Split a comma-separated list into specifications. Commas in brackets separate options and do not split."""
    return [spec.strip() for spec in re.split(r",(?![^\[]*\])", text) if spec.strip()]


def contender(spec: str, installed: Strategies) -> Contender:
    """Return the contender that a specification describes.

    Raises:
        OptionError: the specification cannot be read, or it names a strategy or an option that does not exist.
    """
    if (parts := bracketed(spec)) is None:
        raise OptionError(
            f"strategy {spec!r} cannot be read; expected policy[@clusterer][@features][key=value,...], such as "
            "ucb@kmeans@embedding[n_clusters=50]"
        )
    head, pairs = parts
    names = _names(spec, head, installed)
    options: dict[str, dict[str, str]] = {part: {} for part in (*_KINDS, "search")}
    for pair in pairs:
        key, equals, value = (text.strip() for text in pair.partition("="))
        if not (key and equals):
            raise OptionError(f"strategy {spec}: {pair!r} is not an option; expected key=value")
        part, key = _owner(spec, key, names, installed)
        if key in options[part]:
            raise OptionError(f"strategy {spec}: {key} is given twice; expected it once")
        options[part][key] = value
    made = {part: installed.make(_KINDS[part], name, options[part]) for part, name in names.items()}
    return Contender(name=spec.strip(), **made, **_search_options(spec, options["search"]))


def _names(spec: str, parts: str, installed: Strategies) -> dict[str, str]:
    """Return the names of policy, clusterer and features. The second of two parts names a clusterer or features."""
    policy, *rest = (part.strip() for part in parts.split("@"))
    if not all((policy, *rest)):
        raise OptionError(f"strategy {spec!r} has an empty part; expected policy[@clusterer][@features]")
    if len(rest) > 2:
        raise OptionError(
            f"strategy {spec!r} has {len(rest) + 1} parts; expected policy[@clusterer][@features]"
        )
    if len(rest) == 1 and not installed.find("clusterer", rest[0]):
        if "+" not in rest[0] and not installed.find("feature", rest[0]):
            known = [one.name for kind in ("clusterer", "feature") for one in installed.of_kind(kind)]
            raise OptionError(
                f"strategy {spec!r}: there is no clusterer or feature {rest[0]!r}; installed: {', '.join(known)}."
                f"{did_you_mean(rest[0], known)}"
            )
        rest = ["kmeans", *rest]
    return dict(zip(_KINDS, (policy, *rest, *("kmeans", "embedding")[len(rest) :]), strict=True))


def _owner(spec: str, key: str, names: dict[str, str], installed: Strategies) -> tuple[str, str]:
    """Return the part that an option belongs to, and the option's name in that part."""
    part, dot, rest = key.partition(".")
    if dot and part in names:
        return part, rest
    known = {part: installed.options(_KINDS[part], name) for part, name in names.items()}
    known["search"] = list(_SEARCH)
    owners = [part for part, keys in known.items() if key in keys]
    if len(owners) > 1:
        choices = " or ".join(f"{part}.{key}" for part in owners)
        raise OptionError(f"strategy {spec}: {key} is an option of several parts; expected {choices}")
    if not owners:
        every = [one for keys in known.values() for one in keys]
        raise OptionError(
            f"strategy {spec} has no option {key!r}; its options: {', '.join(every)}.{did_you_mean(key, every)}"
        )
    return owners[0], key


def _search_options(spec: str, options: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, text in options.items():
        expected, good = _SEARCH[key]
        try:
            values[key] = (float if key == "cold_start" else int)(text)
        except ValueError:
            values[key] = math.nan
        if not good(values[key]):
            raise OptionError(f"strategy {spec}: {key} is {text!r}; expected {expected}")
    return values
