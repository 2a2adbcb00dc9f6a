"""Run the demo, from the first download to the command that a user would type."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.table import Table

from clusterucb.demo import model, sources
from clusterucb.demo.model import demo_model
from clusterucb.demo.pool import demo_pool
from clusterucb.jobs.select import select
from clusterucb.policies.random import Random
from clusterucb.progress import Screen
from clusterucb.report.result import Result
from clusterucb.report.screen import show
from clusterucb.report.summary import Summary
from clusterucb.terminal import Terminal

_BUDGET = "20%"
_SELECT = "5%"


def demo(*, out: Path, exhaustive: bool = False) -> Result:
    """Select from the demo's pool for the demo's target, and show the result.

    Args:
        out: the run folder. As with any run, the same call resumes an unfinished run in it.
        exhaustive: also score the whole pool, in the sibling folder ``OUT-exhaustive``, and say how many of the true
            best samples the run found.

    Returns:
        The result of the run.

    Raises:
        ClusterUCBError: something cannot be downloaded, read or written.
    """
    screen, console = Screen(), Terminal()
    pool, target, judges = demo_pool(screen)
    base = demo_model(screen)
    console.print(_terms())
    console.print()
    result = select(pool, target, model=base, out=out, budget=_BUDGET, select=_SELECT, observer=screen)
    console.print()
    show(Summary.of(result), console)
    if exhaustive:
        screen.step("Scoring the whole pool with the same adapter, to find the true best samples")
        everything = select(
            pool,
            target,
            model=base,
            out=out.with_name(f"{out.name}-exhaustive"),
            policy=Random(),
            budget="100%",
            select=_SELECT,
            adapter=out / "adapter",
            observer=screen,
        )
        console.print("\n" + recall(result, everything))
    files = [str(pool), "--target", str(target), "--model", str(base)]
    options = ["--budget", _BUDGET, "--select", _SELECT, "--out", str(out)]
    command = shlex.join(["clusterucb", "select", *files, *options])
    console.print(f"\nThis run as a command:\n{command}", soft_wrap=True)
    trial = shlex.join(["clusterucb", "try", str(out), "--judge", str(judges)])
    console.print(
        f"\nTo train on the selection, and see whether it helps (about a quarter of an hour):\n{trial}",
        soft_wrap=True,
    )
    return result


def recall(result: Result, everything: Result) -> str:
    """Return a sentence that says how many of the best samples a run found, compared with as many random draws.

    Args:
        result: the result of the run.
        everything: the result of a run with the same pool, target and checkpoint that scored the whole pool.
    """
    n_scored, n_pool = result.selection.n_scored, everything.selection.n_scored
    best = set(everything.ids)
    n_found = len(best.intersection(result.ids))
    return (
        f"Of the {len(best)} best samples of the whole pool, the run found {n_found} ({n_found / len(best):.0%}) "
        f"with {n_scored} of {n_pool} gradients; as many random draws find {n_scored / n_pool:.0%} on average."
    )


def _terms() -> Table:
    """Return a table of the demo's model and samples by their terms of use."""
    table = Table("terms", "used for the demo", box=None, pad_edge=False, header_style="dim")
    table.add_row(model.TERMS, f"model: {model.NAME}")
    for terms in dict.fromkeys(source.terms for source in sources.SOURCES):
        names = [source.name for source in sources.SOURCES if source.terms == terms]
        table.add_row(terms, f"samples: {', '.join(names)}")
    return table
