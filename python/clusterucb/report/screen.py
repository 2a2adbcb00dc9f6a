"""Print a selection, a gradient store and a plan on the terminal."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from clusterucb import filenames
from clusterucb.report.annotate import FIELD
from clusterucb.run.cost import Cost
from clusterucb.run.store_summary import HOLD
from clusterucb.samples.sample import kinds_in_words
from clusterucb.wording import counted, duration, in_bytes, one_line

if TYPE_CHECKING:
    from clusterucb.report.plan import Plan
    from clusterucb.report.summary import Summary
    from clusterucb.run.gradient_store import GradientStore
    from clusterucb.run.manifest import RunOutcome
    from clusterucb.run.store_summary import StoreSummary

_ENDS = {"exhausted": "; the pool is exhausted", "recall": "; the wanted recall is reached"}
_SUBTASKS = 20  # subtasks that are listed
_SHORT = 12  # characters of a fingerprint
_WIDTH = 100  # characters of a sample's text on the screen


def show(summary: Summary, console: Console) -> None:
    """Print a summary of the selection, its cost and its files."""
    manifest, outcome = summary.manifest, summary.outcome
    failed = f" ({outcome.n_failed:,} of them failed)" if outcome.n_failed else ""
    console.print(
        Text.assemble(
            ("Selected ", "bold"),
            (f"{outcome.n_selected:,} of {counted(manifest.inputs.pool_samples, 'sample')}", "bold green"),
            f" after scoring {outcome.n_scored:,}{failed} in {counted(outcome.clusters, 'cluster')}"
            + _ENDS.get(outcome.stopped, ""),
        )
    )
    if outcome.recall is not None:
        share, low, high, confidence = (f"{value:.0%}" for value in outcome.recall.values())
        console.print(
            Text.assemble(
                f"Of the best {counted(outcome.n_selected, 'sample')} of the pool, the selection holds about ",
                (share, "bold green"),
                f" ({confidence} interval: {low} to {high})",
            ),
            soft_wrap=True,
        )
    if outcome.served is not None:
        console.print(Text(f"Of each subtask's own best: {_shares(outcome.served)}"), soft_wrap=True)
    console.print(Group(_sources(outcome), Text(), cost_table(manifest.cost), Text(), _examples(summary)))
    by_sketch = manifest.identity.options.get("--scorer") == "sketch"
    if by_sketch:
        error = manifest.identity.options["--sketch-dim"] ** -0.5
        console.print(
            f"Scores are estimated from sketches, with errors of about {error:.3f}",
            soft_wrap=True,
        )
    if n_lacking := manifest.inputs.pool_unsketched:
        exactly = ", and were scored exactly" if by_sketch else ""
        lacking = counted(n_lacking, "sample was", "samples were")
        console.print(f"{lacking} not in the gradient store{exactly}", soft_wrap=True)
    if outcome.length_correlation is not None:
        favoured = _favoured(outcome.length_correlation, outcome.n_scored - outcome.n_failed)
        console.print(
            f"Rank correlation of score and answer length: {outcome.length_correlation:+.2f}{favoured}"
        )
    if summary.out is not None:
        _show_files(summary, summary.out, console)


def _shares(served: Mapping[str, float]) -> str:
    """Return the share of each subtask's own best samples; of many subtasks, of those that are served least."""
    least = sorted(served, key=lambda name: served[name])[:_SUBTASKS]
    shown = served if len(served) <= _SUBTASKS else {name: served[name] for name in least}
    more = f", and at least that of {len(served) - len(shown):,} more" if len(served) > len(shown) else ""
    return ", ".join(f"{one_line(name)} {share:.0%}" for name, share in shown.items()) + more


def _favoured(correlation: float, n_scores: int) -> str:
    """Return a remark if scores favour long or short answers, else an empty text.

    The correlation must be larger than 0.3, and larger than twice the standard error of a chance correlation.
    """
    if abs(correlation) <= max(0.3, 2 / math.sqrt(n_scores - 1)):
        return ""
    return f" ({'long' if correlation > 0 else 'short'} answers are favoured)"


def _show_files(summary: Summary, out: Path, console: Console) -> None:
    _show_rejected(summary.manifest.inputs.rejected, out, console)
    annotated = f" (each line with a field {FIELD})" if summary.outcome.annotated else ""
    console.print(
        Text.assemble("Written to ", (str(out / filenames.SELECTED), "bold"), annotated), soft_wrap=True
    )
    if (table := out / filenames.SCORES_TABLE).exists():
        console.print(f"Written to {table}", soft_wrap=True)
    if (page := out / filenames.RUN_PAGE).exists():
        console.print(Text.assemble("To look at it: ", (str(page), "bold")), soft_wrap=True)
    for exported in summary.exports:
        console.print(f"Written to {exported.folder}", soft_wrap=True)
        for program, file in exported.trainings:
            command = f"{program} {shlex.quote(str(file))}"
            console.print(Text.assemble("  to train: ", (command, "bold")), soft_wrap=True)


def show_store(store: GradientStore, console: Console) -> None:
    """Print a summary of a gradient store, its cost and the command that uses it."""
    manifest, failed = store.manifest, len(store.failures())
    console.print(
        Text.assemble(
            ("Sketched ", "bold"),
            (f"{len(store) - failed:,} of {counted(len(store), 'sample')}", "bold green"),
            f" in {store.sketch.dimension} dimensions",
        )
    )
    console.print(Group(cost_table(manifest.cost), Text()))
    _show_rejected(manifest.inputs.rejected, store.folder, console)
    console.print(
        Text.assemble("To select for a target: ", (f"clusterucb select ... --store {store.folder}", "bold")),
        soft_wrap=True,
    )


def show_stores(stores: Sequence[StoreSummary], console: Console) -> None:
    """Print what gradient stores hold, and what is wrong with their files."""
    for store in stores:
        parts = [
            f"{counted(store.rows, 'sample')} in {store.dimension} dimensions, {store.dtype}",
            in_bytes(store.bytes),
            counted(store.checkpoints, "checkpoint"),
            f"model {store.model[:_SHORT]}",
            f"fingerprint {store.fingerprint[:_SHORT]}",
        ]
        if store.checksums:
            parts.append("checksums hold" if store.checksums == HOLD else "DAMAGED")
        console.print(Text.assemble((store.out, "bold"), f": {', '.join(parts)}"), soft_wrap=True)
        if not store.knows_samples:
            console.print(Text("  It does not know its samples: repeat its sketch once"), soft_wrap=True)
        if store.checksums not in (None, HOLD):
            console.print(Text(f"  {store.checksums}", style="bold red"), soft_wrap=True)


def _show_rejected(rejected: Mapping[str, int], folder: Path, console: Console) -> None:
    if rejected:
        lines = counted(sum(rejected.values()), "line was", "lines were")
        which = folder / filenames.REJECTED
        console.print(
            Text(f"{lines} rejected: {kinds_in_words(rejected)}; listed in {which}"), soft_wrap=True
        )


def _sources(outcome: RunOutcome) -> RenderableType:
    table = Table("source", box=None, pad_edge=False, header_style="dim")
    table.add_column("selected", justify="right")
    table.add_column("of the selection", justify="right")
    shown = sorted(outcome.selected_by_source.items(), key=lambda item: (-item[1], item[0]))
    for source, count in shown[:8]:
        table.add_row(Text(_plain(source, 40)), f"{count:,}", f"{count / max(outcome.n_selected, 1):.0%}")
    if shown[8:]:
        rest = sum(count for _, count in shown[8:])
        table.add_row(
            counted(len(shown) - 8, "other source"),
            f"{rest:,}",
            f"{rest / max(outcome.n_selected, 1):.0%}",
            style="dim",
        )
    return table


def show_plan(plan: Plan, console: Console) -> None:
    """Print the time, the passes, the memory and the disk space that a selection takes."""
    console.print(
        f"Scoring {counted(plan.n_budget, 'sample')} of {plan.pool_samples:,} to select {plan.n_select:,} takes "
        f"about {duration(plan.seconds)}, including {duration(plan.set_up)} to read and load.\n"
    )
    console.print(cost_table(plan.cost))
    console.print()
    table = Table("resource", box=None, pad_edge=False, header_style="dim")
    for title in ("needed", "free"):
        table.add_column(title, justify="right")
    for what, (needed, free) in plan.places().items():
        table.add_row(what, in_bytes(needed), Text(in_bytes(free), style="bold red" if needed > free else ""))
    console.print(table)
    if (workers := plan.workers) is not None:
        console.print(
            f"\n{counted(workers.number, 'worker')}: {in_bytes(workers.memory)} of memory each; "
            f"{in_bytes(workers.sent)} of samples are sent. More than {workers.useful} save less than 5 % of the time."
        )
    for misfit in plan.misfits():
        console.print(Text(misfit, style="bold red"))


def cost_table(cost: Cost) -> RenderableType:
    """Return a table of the passes and the time of every phase."""
    table = Table("cost", box=None, pad_edge=False, header_style="dim")
    for title in ("gradients", "forward passes", "of all pool gradients", "time"):
        table.add_column(title, justify="right")
    for name, phase in cost.phases.items():
        share = cost.share(phase)
        table.add_row(
            f"{name} (cached)" if phase.reused else name,
            f"{phase.gradients:,}",
            f"{phase.forward_passes:,.0f}",
            f"{share:.3f}",
            duration(phase.seconds),
        )
    table.add_row(
        "total",
        f"{cost.gradients:,}",
        f"{cost.forward_passes:,.0f}",
        f"{cost.total:.3f}",
        duration(cost.seconds),
        style="bold",
    )
    return table


def _examples(summary: Summary) -> RenderableType:
    table = Table("score", "", box=None, pad_edge=False, header_style="dim")
    table.add_column("sample", overflow="fold")
    for title, some in (("best", summary.best), ("last selected", [summary.last] if summary.last else [])):
        for one in some:
            text = Text.assemble((_plain(one.question), "dim"), "\n", _plain(one.answer))
            table.add_row(f"{one.score:+.4f}", title, text)
    return table


def _plain(text: str, width: int = _WIDTH) -> str:
    """Return text on one line of at most ``width`` characters, without control sequences."""
    line = one_line(text)
    return line if len(line) <= width else line[: width - 1] + "…"
