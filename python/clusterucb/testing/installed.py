"""Run the suites on installed strategies."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial

from clusterucb import plugins, testing
from clusterucb.testing import Outcome


def check(name: str, options: Mapping[str, str] | None = None) -> list[Outcome]:
    """Run the suite of every installed strategy that is called ``name``.

    Args:
        name: the strategy's name on the command line.
        options: ``key=value`` options for the constructor, which has defaults for the others.

    Returns:
        The outcome of each test. If strategies of several kinds have the name, each property begins with the kind.

    Raises:
        OptionError: no strategy has the name, or the strategy refuses the options.
    """
    installed = plugins.load()
    kinds = [strategy.kind for strategy in installed.of_name(name)]
    suites = {
        "policy": testing.PolicySuite,
        "clusterer": testing.ClustererSuite,
        "feature": testing.FeatureSuite,
    }
    outcomes: dict[str, list[Outcome]] = {}
    with redirect_stdout(sys.stderr):  # standard output is for results
        for kind in kinds:
            make = partial(installed.make, kind, name, options or {})
            make()  # refused options are an error of the caller, not a failed test
            outcomes[kind] = testing.outcomes(suites[kind], make)
    if len(kinds) == 1:
        return outcomes[kinds[0]]
    return [
        outcome._replace(property=f"{kind}: {outcome.property}")
        for kind, of_kind in outcomes.items()
        for outcome in of_kind
    ]
