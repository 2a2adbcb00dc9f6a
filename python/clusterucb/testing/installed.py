"""The suites, run on strategies that are installed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial

from clusterucb import plugins, testing
from clusterucb.errors import OptionError
from clusterucb.testing import Outcome
from clusterucb.wording import did_you_mean


def check(name: str, options: Mapping[str, str] | None = None) -> list[Outcome]:
    """Run the suite of every installed strategy that is called ``name``.

    Args:
        name: as the command line has it.
        options: ``key=value`` options for the constructor; its defaults where there are none.

    Returns:
        What each test found; the properties are preceded by the kind where several kinds have the name.

    Raises:
        OptionError: no strategy has the name, or it refuses the options.
    """
    installed = plugins.load()
    kinds = [kind for kind in plugins.KINDS if (kind, name) in installed.table]
    if not kinds:
        known = sorted({strategy for _, strategy in installed.table})
        listed = "; ".join(
            f"{kind}: {', '.join(one.name for one in installed.of_kind(kind))}" for kind in plugins.KINDS
        )
        broken = "".join(
            f" Plugin {one.provider} could not be loaded: {one.reason}." for one in installed.broken
        )
        raise OptionError(
            f"there is no strategy {name!r}; installed: {listed}.{did_you_mean(name, known)}{broken}"
        )

    suites = {
        "policy": testing.PolicySuite,
        "clusterer": testing.ClustererSuite,
        "feature": testing.FeatureSuite,
    }
    found: dict[str, list[Outcome]] = {}
    with redirect_stdout(sys.stderr):  # standard output is for results
        for kind in kinds:
            make = partial(installed.make, kind, name, options or {})
            make()  # options that it refuses are no property of the strategy
            found[kind] = testing.outcomes(suites[kind], make)
    if len(kinds) == 1:
        return found[kinds[0]]
    return [
        one._replace(property=f"{kind}: {one.property}") for kind, of_kind in found.items() for one in of_kind
    ]
