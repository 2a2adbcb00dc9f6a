"""Directives that take tables from the code, so that a page never says what an option was.

- ``{options} select``: the options of a command, a table for each group;
- ``{options} compare select``: those that a command has and another has not;
- ``{takers}``: which command takes which options;
- ``{strategies} policy``: the installed strategies of a kind;
- ``{environment}``: the variables of the environment that are read.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import clusterucb
from clusterucb import plugins
from clusterucb.cli.commands import app as commands

COMMANDS = ("select", "sketch", "compare", "doctor")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def arguments(command: str) -> list:
    """Return what a command takes, as the command line itself describes it."""
    found = commands[command].assemble_argument_collection(parse_docstring=True)
    return [one for one in found if one.show and one.names != ("*",)]


def default(one) -> str:
    """Return the default of an argument as it is typed."""
    value = one.field_info.default
    if value is None or value is False or value == ():
        return ""
    return "required" if value is inspect.Parameter.empty else f"`{value}`"


def row(one) -> list[str]:
    """Return the row of an option: how it is spelt, what it does, its default."""
    names = ", ".join(f"`{name}`" for name in one.names)
    help_ = " ".join((one.parameter.help or "").split())
    return [names, re.sub(r"(?<!`)--[a-z-]+", r"`\g<0>`", help_), default(one)]


def groups(command: str, beside: str = "") -> dict[str, list]:
    """Return the arguments of a command by group, without those that another command has, too."""
    known = {one.names[0] for one in arguments(beside)} if beside else set()
    found: dict[str, list] = {}
    for one in arguments(command):
        if one.names[0] in known:
            continue
        name = one.parameter.group[0].name if one.parameter.group else "Parameters"
        found.setdefault("Files" if name in ("Arguments", "Parameters") else name, []).append(one)
    return found


class Generated(SphinxDirective):
    """A directive whose content is Markdown that `text` makes."""

    optional_arguments = 2

    def run(self) -> list[nodes.Node]:
        """Return the nodes."""
        return self.parse_text_to_nodes("\n".join(self.text(*self.arguments)))

    def text(self, *arguments: str) -> Iterator[str]:
        """Yield the Markdown."""
        raise NotImplementedError


class Options(Generated):
    """The options of a command, a table for each group."""

    def text(self, command: str, beside: str = "") -> Iterator[str]:
        """Yield the tables."""
        for name, members in groups(command, beside).items():
            yield f"\n**{name}**\n"
            yield table(["option", "what it does", "default"], map(row, members))


class Takers(Generated):
    """Which command takes which option; `score` is a function alone."""

    def text(self) -> Iterator[str]:
        """Yield the table."""
        taken = {name: {one.names[0] for one in arguments(name)} for name in COMMANDS}
        parameters = inspect.signature(clusterucb.score).parameters
        taken["cu.score"] = {f"--{name.replace('_', '-')}" for name in parameters if name != "pool"}
        taken["cu.score"].add("POOL...")
        every = dict.fromkeys(one.names[0] for command in COMMANDS for one in arguments(command))
        rows = ([f"`{name}`", *("●" if name in its else "" for its in taken.values())] for name in every)
        yield table(["", *(f"`{name}`" for name in taken)], rows)


class Strategies(Generated):
    """The installed strategies of a kind."""

    def text(self, kind: str) -> Iterator[str]:
        """Yield the table."""
        rows = (
            [
                f"`{one.name}`",
                one.summary.replace("*", r"\*"),
                ", ".join(f"`{key}={value}`" for key, value in one.defaults().items()),
                f"`{one.provider}`",
            ]
            for one in plugins.load().of_kind(kind)
        )
        yield table(["name", "what it does", "options", "package"], rows)


class Environment(Generated):
    """The variables of the environment that are read."""

    def text(self) -> Iterator[str]:
        """Yield the table."""
        lines = [line[2:].partition(": ") for line in commands.help_epilogue.splitlines() if line[:2] == "- "]
        yield table(["variable", "what it does"], ([name, what] for name, _, what in lines))


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    for name, directive in (
        ("options", Options),
        ("takers", Takers),
        ("strategies", Strategies),
        ("environment", Environment),
    ):
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
