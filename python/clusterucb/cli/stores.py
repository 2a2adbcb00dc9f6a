"""Define the command that lists gradient stores, verifies them and merges them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clusterucb.cli.arguments import OPTIONS, JobArguments
from clusterucb.cli.plugins import Flag
from clusterucb.errors import OptionError, RunError
from clusterucb.wording import counted


def stores(
    folders: Annotated[list[Path], Parameter(negative=(), json_list=False, name="STORE...")],
    /,
    *,
    verify: Annotated[bool, Parameter(negative=(), group=OPTIONS, show_default=False)] = False,
    merge: Annotated[Path | None, Parameter(group=OPTIONS)] = None,
    overwrite: Flag = False,
    quiet: Flag = False,
    json: Flag = False,
    debug: Flag = False,  # noqa: ARG001  (`run` acts on it, even if other arguments cannot be parsed)
) -> None:
    """List gradient stores, verify their files, or merge them into one that holds each sample once.

    Args:
        folders: Folder of a gradient store, or of several.
        verify: Read every file of the stores, and compare it with its recorded checksum.
        merge: Folder of a new store with the samples of all. The stores must have the same model, options and
            checkpoint. Repeat the command to resume an interrupted merge.
        overwrite: Delete the earlier store in the folder of --merge and start again.
        quiet: Hide the progress and the summary.
        json: Print the summary as JSON.
        debug: Show tracebacks and the libraries' warnings.
    """
    from msgspec import to_builtins

    from clusterucb.jobs.stores import merge_stores
    from clusterucb.jobs.stores import stores as summed_up
    from clusterucb.report.screen import show_store, show_stores
    from clusterucb.run.store_summary import HOLD

    job = JobArguments(quiet=quiet, json=json)
    if merge is None and overwrite:
        raise OptionError("--overwrite is given without --merge; expected both")
    if merge is None or verify:
        found = summed_up(folders, verify=verify)
        if merge is None:
            job.show([to_builtins(one) for one in found], partial(show_stores, found))
        if faults := [one.checksums for one in found if one.checksums not in (None, HOLD)]:
            raise RunError(f"{len(faults)} of {counted(len(found), 'store')} cannot be used: {faults[0]}")
    if merge is not None:
        merged = merge_stores(folders, merge, overwrite=overwrite, observer=job.observer)
        job.show(merged.to_json(), partial(show_store, merged))
