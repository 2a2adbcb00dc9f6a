"""Define the commands that look at runs: their summaries, their pages, a list of them, and how two differ."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clusterucb.cli.arguments import OPTIONS, JobArguments
from clusterucb.cli.plugins import Flag
from clusterucb.terminal import write

Runs = Annotated[list[Path], Parameter(negative=(), json_list=False, name="RUN...")]


def show(
    runs: Runs,
    /,
    *,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001  (`run` acts on it, even if other arguments cannot be parsed)
) -> None:
    """Print the summary of a finished selection again, without reading its pool or loading its model.

    Args:
        runs: Folder of a selection, or of several.
        json: Print the summaries as JSON, one after the other.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.report.screen import show as show_summary
    from clusterucb.report.summary import Summary

    job = JobArguments(json=json)
    for folder in runs:
        summary = Summary.in_folder(folder)
        job.show(summary.to_json(), partial(show_summary, summary))


def report(
    runs: Runs,
    /,
    *,
    open: Annotated[bool, Parameter(negative=(), group=OPTIONS, show_default=False)] = False,  # noqa: A002
    watch: Annotated[bool, Parameter(negative=(), group=OPTIONS, show_default=False)] = False,
    quiet: Flag = False,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001  (`run` acts on it, even if other arguments cannot be parsed)
) -> None:
    """Write the page of a selection, report.html in its folder: what was found, where the budget went, every sample.

    A selection writes its page when it ends. This command writes it at any time, also of a run that is at work.

    Args:
        runs: Folder of a selection, or of several.
        open: Open the page in a browser.
        watch: Serve the page on this machine until Ctrl-C, and refresh it while the run is at work.
        quiet: Hide the summary.
        json: Print the pages' paths as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from clusterucb.jobs.report import Served
    from clusterucb.jobs.report import report as write_pages

    job = JobArguments(quiet=quiet, json=json)
    if watch:
        served = Served(runs)
        write(f"{served.address}\n")
        if open:
            served.open()
        with suppress(KeyboardInterrupt):
            served.serve()
        return
    pages = write_pages(runs, opened=open)
    job.show({"pages": [str(page) for page in pages]}, lambda console: console.print(*pages, sep="\n"))


def runs(
    folder: Path = Path(),
    /,
    *,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """List the selections, scores, gradient stores, comparisons and trials below a folder, the latest first.

    Args:
        folder: Folder to look in, with the folders below it.
        json: Print the list as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from msgspec import to_builtins

    from clusterucb.jobs.runs import runs as list_runs
    from clusterucb.jobs.runs import show as show_runs

    found = list_runs(folder)
    JobArguments(json=json).show([to_builtins(one) for one in found], partial(show_runs, found, folder))


def diff(
    first: Path,
    second: Path,
    /,
    *,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001
) -> None:
    """Compare two finished selections: settings, selected samples, and scores of samples that both have scored.

    Args:
        first: Folder of a selection.
        second: Folder of another selection.
        json: Print the differences as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from msgspec import to_builtins

    from clusterucb.jobs.difference import difference
    from clusterucb.jobs.difference import show as show_difference

    found = difference(first, second)
    content = {**to_builtins(found), "overlap": found.overlap}
    JobArguments(json=json).show(content, partial(show_difference, found))
