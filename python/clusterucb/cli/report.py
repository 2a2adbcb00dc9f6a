"""Define the command that writes, opens and serves the pages of selections."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clusterucb.cli.arguments import OPTIONS, JobArguments
from clusterucb.cli.plugins import Flag
from clusterucb.terminal import write


def report(
    runs: Annotated[list[Path], Parameter(negative=(), json_list=False, name="RUN...")],
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
