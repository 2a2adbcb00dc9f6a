"""What a run found, for the disk, for Python and for the screen.

The files are written from what was recorded, never from what happens to be in memory, so writing
them again gives the same bytes.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from clusterucb import filenames
from clusterucb.atomic import write_lines
from clusterucb.engine.loop import Selection
from clusterucb.engine.recall import CONFIDENCE
from clusterucb.report.annotate import FIELD
from clusterucb.report.export import export
from clusterucb.report.result import EXAMPLES, TABLE, Result
from clusterucb.report.scores_table import write_scores
from clusterucb.run.folder import Cost, Outcome, Run
from clusterucb.samples.rejected import write_rejected
from clusterucb.samples.sample import told
from clusterucb.samples.shapes import TEXT
from clusterucb.wording import counted, in_bytes, one_line, printable

if TYPE_CHECKING:
    from clusterucb.options.search import SelectSettings
    from clusterucb.report.plan import Plan
    from clusterucb.run.gradient_store import GradientStore
    from clusterucb.samples.pool_and_target import Material

_ENDS = {"exhausted": "; the pool is exhausted", "recall": "; enough was found"}
_WIDTH = 100  # characters of a sample's text on the screen


def finish(
    run: Run,
    material: Material,
    selection: Selection,
    failures: Sequence[tuple[int, str]],
    cost: Cost,
    settings: SelectSettings,
    model: str,
) -> Result:
    """Write what a run found, and mark it as finished.

    Args:
        run: the run's folder.
        material: the encoded pool and target.
        selection: what the search found.
        failures: (row, reason) of every draw that could not be scored.
        cost: what it all cost.
        settings: in which forms it is written.
        model: folder of the model, or its hub id.
    """
    samples = [material.samples[row] for row in selection.rows.tolist()]
    result = Result(
        rows=selection.rows,
        ids=[sample.id for sample in samples],
        scores=selection.scores,
        samples=samples,
        subtasks=list(material.target),
        cost=cost,
        selection=selection,
        manifest=run.manifest,
        out=run.folder,
        exports=export(run.folder, settings.tools, samples, model=model, settings=settings),
    )
    result.write(run.path(filenames.SELECTED), annotate=settings.annotate)
    write_lines(run.path(filenames.SCORES), _scored(selection, material))
    if settings.scores_parquet or run.path(TABLE).exists():  # never one of an earlier selection
        write_scores(run.path(TABLE), selection, material.samples, list(material.target))
    manifest = run.manifest
    failed = material.rejected_rows(failures)
    manifest.rejected = write_rejected(
        run.path(filenames.REJECTED), material.pool_rejected, material.target_rejected, failed
    )
    manifest.pool_samples, manifest.pool_rejected = len(material.samples), len(material.pool_rejected)
    manifest.target_samples, manifest.target_rejected = material.n_target, len(material.target_rejected)
    manifest.subtasks = list(material.target)
    manifest.subtask_contents = material.subtask_contents()
    manifest.cost = cost
    good = ~np.isnan(selection.drawn_scores)
    answers = np.array([material.encoded[row].n_labels for row in selection.drawn_rows], np.float64)
    manifest.outcome = Outcome(
        n_selected=len(samples),
        n_scored=selection.n_scored,
        n_failed=len(failures),
        stopped=selection.stopped,
        clusters=len(selection.draws),
        draws=selection.draws.tolist(),
        selected_by_source=dict(Counter(sample.source for sample in samples).most_common()),
        length_correlation=spearman(selection.drawn_scores[good], answers[good]),
        standardized=None
        if selection.standardized is None
        else dict(zip(material.target, selection.standardized.T.tolist(), strict=True)),
        recall={**asdict(selection.recall), "confidence": CONFIDENCE} if selection.recall else None,
    )
    manifest.annotated = settings.annotate
    manifest.status = "finished"
    run.save()
    return result


def _scored(selection: Selection, material: Material) -> Iterator[dict[str, Any]]:
    """Yield a line for each scored sample, in draw order."""
    chosen = set(selection.rows.tolist())
    draws = zip(
        selection.drawn_rows.tolist(),
        selection.drawn_scores.tolist(),
        selection.subtask_scores.tolist(),
        strict=True,
    )
    for draw, (row, score, scores) in enumerate(draws):
        if not math.isnan(score):
            yield {
                "id": material.samples[row].id,
                "score": score,
                "subtasks": dict(zip(material.target, scores, strict=True)),
                "cluster": int(selection.labels[row]),
                "draw": draw,
                "selected": row in chosen,
            }


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Return the rank correlation of two arrays [m], ties sharing their mean rank; None if undefined."""
    ranks = np.array([_ranks(a), _ranks(b)])
    if ranks.shape[1] < 2 or not np.ptp(ranks, axis=1).all():
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def show(result: Result, console: Console) -> None:
    """Print what was selected, what it cost and where it stands."""
    manifest, outcome = result.manifest, result.manifest.outcome
    assert outcome is not None
    failed = f" ({outcome.n_failed:,} of them failed)" if outcome.n_failed else ""
    console.print(
        Text.assemble(
            ("Selected ", "bold"),
            (f"{outcome.n_selected:,} of {counted(manifest.pool_samples, 'sample')}", "bold green"),
            f" after scoring {outcome.n_scored:,}{failed} in {counted(outcome.clusters, 'cluster')}"
            + _ENDS.get(outcome.stopped, ""),
        )
    )
    if outcome.recall is not None:
        share, low, high, confidence = (f"{value:.0%}" for value in outcome.recall.values())
        console.print(
            Text.assemble(
                f"Of the best {counted(outcome.n_selected, 'sample')} of the pool, it found about ",
                (share, "bold green"),
                f" ({confidence} interval: {low} to {high})",
            ),
            soft_wrap=True,
        )
    console.print(Group(_sources(result), Text(), cost_table(result.cost), Text(), _examples(result)))
    if manifest.settings.get("--scorer") == "sketch":
        error = manifest.settings["--sketch-dim"] ** -0.5
        console.print(
            f"Scores are estimates by sketches, with errors of about {error:.3f}",
            soft_wrap=True,
        )
    if outcome.length_correlation is not None:
        favoured = _favoured(outcome.length_correlation, outcome.n_scored - outcome.n_failed)
        console.print(
            f"Rank correlation of score and answer length: {outcome.length_correlation:+.2f}{favoured}"
        )
    if result.out is not None:
        _show_files(result, result.out, console)


def _favoured(correlation: float, n_scores: int) -> str:
    """Return which answers scores favour, if any: more than a little, and more than twice what chance makes of them."""
    if abs(correlation) <= max(0.3, 2 / math.sqrt(n_scores - 1)):
        return ""
    return f" ({'long' if correlation > 0 else 'short'} answers are favoured)"


def _show_files(result: Result, out: Path, console: Console) -> None:
    _show_rejected(result.manifest.rejected, out, console)
    annotated = f" (each line with a field {FIELD})" if result.manifest.annotated else ""
    console.print(
        Text.assemble("Written to ", (str(out / filenames.SELECTED), "bold"), annotated), soft_wrap=True
    )
    if (table := out / TABLE).exists():
        console.print(f"Written to {table}", soft_wrap=True, markup=False)
    for one in result.exports:
        console.print(f"Written to {one.folder}", soft_wrap=True, markup=False)
        for program, file in one.trainings:
            command = f"{program} {shlex.quote(str(file))}"
            console.print(Text.assemble("  to train: ", (command, "bold")), soft_wrap=True)


def show_store(store: GradientStore, console: Console) -> None:
    """Print what was sketched, what it cost and how to use it."""
    manifest, failed = store.manifest, len(store.failures())
    console.print(
        Text.assemble(
            ("Sketched ", "bold"),
            (f"{len(store) - failed:,} of {counted(len(store), 'sample')}", "bold green"),
            f" in {store.sketch.dimension} dimensions",
        )
    )
    console.print(Group(cost_table(manifest.cost), Text()))
    _show_rejected(manifest.rejected, store.folder, console)
    console.print(
        Text.assemble("For every target: ", (f"clusterucb select ... --store {store.folder}", "bold")),
        soft_wrap=True,
    )


def _show_rejected(rejected: Mapping[str, int], folder: Path, console: Console) -> None:
    if rejected:
        lines = counted(sum(rejected.values()), "line was", "lines were")
        which = folder / filenames.REJECTED
        console.print(Text(f"{lines} not used: {told(rejected)}; which: {which}"), soft_wrap=True)


def _sources(result: Result) -> RenderableType:
    outcome = result.manifest.outcome
    assert outcome is not None
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
    """Print what a selection takes."""
    console.print(
        f"Scoring {counted(plan.n_budget, 'sample')} of {plan.pool_samples:,}, to select {plan.n_select:,}, takes "
        f"about {_seconds(plan.seconds)}, {_seconds(plan.set_up)} of it to read and load.\n"
    )
    console.print(cost_table(plan.cost))
    console.print()
    table = Table("room", box=None, pad_edge=False, header_style="dim")
    for title in ("needed", "free"):
        table.add_column(title, justify="right")
    for what, (needed, free) in plan.places().items():
        table.add_row(what, in_bytes(needed), Text(in_bytes(free), style="bold red" if needed > free else ""))
    console.print(table)
    for misfit in plan.misfits():
        console.print(Text(misfit, style="bold red"))


def cost_table(cost: Cost) -> RenderableType:
    """Return the passes and seconds of every phase."""
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
            _seconds(phase.seconds),
        )
    table.add_row(
        "total",
        f"{cost.gradients:,}",
        f"{cost.forward_passes:,.0f}",
        f"{cost.total:.3f}",
        _seconds(cost.seconds),
        style="bold",
    )
    return table


def _examples(result: Result) -> RenderableType:
    table = Table("score", "", box=None, pad_edge=False, header_style="dim")
    table.add_column("sample", overflow="fold")
    best = list(zip(result.scores.tolist(), result.samples, strict=True))
    worst = best[max(len(best) - 1, EXAMPLES) :]
    for title, some in (("best", best[:EXAMPLES]), ("last selected", worst)):
        for score, sample in some:
            question = next((m.content for m in reversed(sample.messages) if m.role == "user"), "")
            answer = next(m.content for m in reversed(sample.messages) if m.role in ("assistant", TEXT))
            text = Text.assemble((_plain(question), "dim"), "\n", _plain(answer))
            table.add_row(f"{score:+.4f}", title, text)
    return table


def _plain(text: str, width: int = _WIDTH) -> str:
    """Return text on one line, cut, without what a terminal would obey."""
    line = printable(one_line(text))
    return line if len(line) <= width else line[: width - 1] + "…"


def _seconds(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s"
