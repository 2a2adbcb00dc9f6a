"""Define the plugin commands: list the strategies, write a new package, and test an installed strategy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, Group, Parameter
from rich.table import Table
from rich.text import Text

from clusterucb.errors import OptionError, PluginError
from clusterucb.terminal import Terminal, write

OUTPUT = Group("Output", sort_key=4)
STRATEGIES = Group("Strategies", sort_key=1)

Flag = Annotated[bool, Parameter(negative=(), group=OUTPUT, show_default=False)]
Pairs = Annotated[
    tuple[str, ...], Parameter(negative=(), json_list=False, group=STRATEGIES, show_default=False)
]

plugins = App(name="plugins", help="List the installed strategies; write or test your own.")


@plugins.default
def list_plugins(
    *,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """List the installed features, clusterers and policies with their options.

    Args:
        json: Print the list as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.plugins import KINDS, load

    installed = load()
    if json:
        strategies = [
            {
                "kind": strategy.kind,
                "name": strategy.name,
                "package": strategy.provider,
                "version": strategy.version,
                "summary": strategy.summary,
                "options": strategy.defaults(),
            }
            for kind in KINDS
            for strategy in installed.of_kind(kind)
        ]
        broken = [
            {"package": plugin.provider, "version": plugin.version, "reason": plugin.reason}
            for plugin in installed.broken
        ]
        print_json({"strategies": strategies, "broken": broken})
        return
    table = Table("name", "summary, options, package", box=None, pad_edge=False, header_style="dim")
    for kind in KINDS:
        table.add_row(Text(kind, style="bold"))
        for strategy in installed.of_kind(kind):
            options = ", ".join(f"{key}={value}" for key, value in strategy.defaults().items())
            package = f"{'   ' if options else ''}{strategy.provider} {strategy.version}"
            about = Text.assemble(strategy.summary, "\n", (options, "cyan"), (package, "dim"))
            table.add_row(Text(f"  {strategy.name}"), about)
    console = Terminal()
    console.print(table)
    for (kind, name), names in installed.contested.items():
        console.print(
            Text(f"Several packages provide the {kind} {name}: {', '.join(names)}", style="yellow"),
            soft_wrap=True,
        )
    for plugin in installed.broken:
        package = f"{plugin.provider} {plugin.version}".rstrip()
        console.print(Text(f"{package} could not be loaded: {plugin.reason}", style="red"), soft_wrap=True)


@plugins.command(name="show")
def show_strategy(
    name: str,
    /,
    *,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """Show a strategy: what it does, and the type, the default and the meaning of each of its options.

    Args:
        name: Name of a policy, clusterer or feature; PACKAGE:NAME if several packages provide it.
        json: Print it as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.plugins import load

    found = load().of_name(name)
    if json:
        print_json([one.described() for one in found])
        return
    console = Terminal()
    for one in found:
        package = f"{one.provider} {one.version}".rstrip()
        console.print(
            Text.assemble((f"{one.kind} {one.name}", "bold"), f", {package}\n{one.summary}"), soft_wrap=True
        )
        options = one.described()["options"]
        table = Table("option", "type", "default", "meaning", box=None, pad_edge=False, header_style="dim")
        for option in options:
            table.add_row(*(Text(option[part]) for part in ("name", "type", "default", "meaning")))
        console.print(table if options else Text("It has no options."))


@plugins.command(name="new")
def new_plugin(
    name: str,
    /,
    *,
    kind: Annotated[str, Parameter(completer=lambda _: ["policy", "clusterer", "feature"])],
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """Write a package with a working strategy and its tests into the folder NAME.

    Args:
        name: Name of the package and its strategy: lower-case letters, digits and -.
        kind: Kind of the strategy: policy, clusterer or feature.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.plugins.scaffold import create

    console = Terminal()
    for path in create(name, kind):
        console.print(Text(str(path)), soft_wrap=True)
    console.print(
        Text.assemble("Try it: ", (f"pip install --no-build-isolation ./{name} && pytest {name}", "bold"))
    )


@plugins.command(name="check")
def check_plugin(
    name: str,
    /,
    *,
    option: Annotated[Pairs, Parameter(name=("--option", "-o"))] = (),
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """Test an installed strategy with the tests that every strategy must pass.

    Args:
        name: Name of the policy, clusterer or feature.
        option: An option of the strategy, as key=value.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.testing.installed import check

    console = Terminal()
    found = check(name, key_values("-o", option))
    for one in found:
        mark = ("passed ", "green") if one.passed else ("FAILED ", "bold red")
        console.print(Text.assemble(mark, one.property), soft_wrap=True)
        if not one.passed:
            console.print(Text(f"       {one.message}"), soft_wrap=True)
    failed = sum(not one.passed for one in found)
    if failed:
        raise PluginError(f"{name} fails {failed} of {len(found)} tests")
    console.print(Text(f"{name} passes all {len(found)} tests"))


def key_values(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """Return ``key=value`` pairs as a dict.

    Args:
        option: the name of the option that the pairs were given with, for messages.
        pairs: the pairs.

    Raises:
        OptionError: a pair cannot be read, or a key is given twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise OptionError(
                f"{option} is {pair!r}; expected key=value; `clusterucb plugins` lists the options"
            )
        if key in values:
            raise OptionError(f"{option} gives {key!r} twice; expected each option once")
        values[key] = value
    return values


def print_json(value: object) -> None:
    """Print a value as JSON on standard output, for other programs."""
    write(json.dumps(value, indent=2, allow_nan=False) + "\n")
