"""Turn the replays of a comparison into JSON values, and print them as a table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clusterucb import filenames
from clusterucb.engine.aggregate import PAPER
from clusterucb.engine.rules import Rules, capturing
from clusterucb.jobs.comparison.replay import Contender, Replay, Terms, Truth, by_source, overlaps, spread
from clusterucb.jobs.stages.cost import selection_cost
from clusterucb.options.search import CompareSettings
from clusterucb.plugins import describe, import_path
from clusterucb.policies.baselines import Exhaustive
from clusterucb.run.cost import Cost, PhaseCost
from clusterucb.wording import rounded_duration

if TYPE_CHECKING:
    from clusterucb.features.base import Feature
    from clusterucb.run.folder import Run
    from clusterucb.samples.pool_and_target import Material


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """The result of a comparison.

    Attributes:
        content: everything as JSON values, as in ``comparison.json``.
        out: the comparison's folder, with ``comparison.json`` and ``comparison.html``.
    """

    content: dict[str, Any]
    out: Path

    def __repr__(self) -> str:
        strategies = self.content["strategies"]
        return f"<Comparison: {len(strategies)} strategies on {self.content['pool_samples']} samples, in {self.out}>"

    def recall(self, name: str, budget: str) -> float:
        """Return a strategy's mean recall at a budget, which is spelt as in the call of the comparison."""
        points = {
            (one["name"], point["budget"]): point["recall"]["mean"]
            for one in self.content["strategies"]
            for point in one["points"]
        }
        return float(points[name, budget])


def folder_of(feature: Feature) -> str:
    """Return the name of the folder for a feature's shards, which depends on the feature's class and options."""
    return _hashed(describe(feature))


def take_up_former(run: Run, features: Iterable[Feature]) -> None:
    """Rename the feature folders of a comparison that version 0.1 wrote; their names are hashes of import paths."""
    for feature in features:
        former, now = _hashed(describe(feature, import_path)), folder_of(feature)
        if run.path(former).is_dir() and not run.path(now).exists():
            run.path(former).rename(run.path(now))
            run.files.renamed(former, now)
            phases = run.manifest.cost.phases
            if former in phases:
                phases[now] = phases.pop(former)
                run.save()


def _hashed(described: dict[str, Any]) -> str:
    return "features-" + hashlib.sha256(msgspec.json.encode(described)).hexdigest()[:12]


def budgets_of(contender: Contender, counts: Mapping[str, int], n_samples: int) -> dict[str, int]:
    """Return the budgets of a contender by their spelling. A policy that scores everything has one budget, 100%."""
    return {"100%": n_samples} if isinstance(contender.policy, Exhaustive) else dict(counts)


def results(
    contenders: Sequence[Contender],
    replays: Mapping[str, Sequence[Sequence[Replay]]],
    counts: Mapping[str, int],
    truth: Truth,
    settings: CompareSettings,
    material: Material,
    timed: Cost,
    passes: Mapping[str, float],
) -> dict[str, Any]:
    """Return the results of all contenders as JSON values.

    Args:
        contenders: the strategies.
        replays: for each contender by name, and for each of its budgets, the searches of all seeds.
        counts: the number of draws of each budget by its spelling.
        truth: the scores of the whole pool.
        settings: the options.
        material: the pool and the target.
        timed: the measured seconds of every phase.
        passes: for each contender by name, the forward passes over each sample that its features take.
    """
    return {
        "pool_samples": len(material.samples),
        "n_select": len(truth.best),
        "subtasks": list(material.target),
        "rule": settings.rule,
        "subtask_weights": settings.subtask_weights,
        "batch_size": settings.batch_size,
        "truth": {
            "scored": len(truth.rewards),
            "failed": int(np.isnan(truth.rewards).sum()),
            "served": _served([truth.best], truth, material),
            **_beside_paper(truth, material),
        },
        "strategies": [
            _strategy(one, replays[one.name], counts, truth, settings, material, timed, passes[one.name])
            for one in contenders
        ],
        **_at_largest(replays, list(counts)[-1], truth),
    }


def _strategy(
    contender: Contender,
    replays: Sequence[Sequence[Replay]],
    counts: Mapping[str, int],
    truth: Truth,
    settings: CompareSettings,
    material: Material,
    timed: Cost,
    passes: float,
) -> dict[str, Any]:
    """Return the results and the cost of a contender as JSON values."""
    n_samples = len(material.samples)
    points: list[dict[str, Any]] = []
    for budget, of_budget in zip(budgets_of(contender, counts, n_samples), replays, strict=True):
        some = of_budget[0].selection
        cost = selection_cost(
            Cost(),
            settings,
            material,
            some.drawn_rows,
            contender.features,
            contender.policy,
            passes=passes,
        )
        own = float(np.median([one.seconds for one in of_budget]))
        drawing = timed.phases.get("draws", PhaseCost()).seconds * some.n_scored / n_samples
        before = sum(timed.phases.get(name, PhaseCost()).seconds for name in ("warm-up", "target"))
        before += timed.phases.get(folder_of(contender.features), PhaseCost()).seconds
        points.append(
            {
                "budget": budget,
                "n_budget": some.n_scored,
                "cost": cost.total,
                "gradients": cost.gradients,
                "seconds": own,
                "total_seconds": before + drawing + own,
                "recall": spread([truth.recall(one.selection.rows) for one in of_budget]),
                "mass": spread([truth.mass(one.selection.rows) for one in of_budget]),
                "served": _served([one.selection.rows for one in of_budget], truth, material),
            }
        )
    parts = {
        part: getattr(contender, part)
        for part in ("policy", "clusterer", "features")
        if getattr(contender, part) is not None
    }
    overhead = points[0]["cost"] - (0 if settings.free_scores else points[0]["n_budget"] / n_samples)
    return {
        "name": contender.name,
        **{part: type(strategy).__name__ for part, strategy in parts.items()},
        "options": {part: describe(strategy)["options"] for part, strategy in parts.items()},
        "overhead": overhead,
        "points": points,
    }


def _served(selections: Sequence[NDArray[np.int64]], truth: Truth, material: Material) -> dict[str, float]:
    """Return the share of each subtask's own best that is selected, by subtask, averaged over several selections."""
    shares = np.mean([truth.served(rows) for rows in selections], axis=0)
    return dict(zip(material.target, shares.tolist(), strict=True))


def _beside_paper(truth: Truth, material: Material) -> dict[str, Any]:
    """Return what the paper's rule would select, beside the rule of the comparison."""
    paper = Truth.of(truth.scores, truth.sources, Terms(len(truth.best), Rules(rule=PAPER)))
    captor = capturing(truth.served(truth.best))
    return {
        "captured_by": None if captor is None else list(material.target)[captor],
        "paper": {"shared": truth.recall(paper.best), "served": _served([paper.best], truth, material)},
    }


def _at_largest(
    replays: Mapping[str, Sequence[Sequence[Replay]]], budget: str, truth: Truth
) -> dict[str, Any]:
    """Return how much the selections at the largest budget overlap, and which sources they come from."""
    selections = {name: [one.selection for one in of[-1]] for name, of in replays.items()}
    return {
        "overlap": {"budget": budget, "names": list(selections), "jaccard": overlaps(selections)},
        "sources": {
            "budget": budget,
            "truth": by_source([truth.best], truth.sources),
            "strategies": {
                name: by_source([one.rows for one in some], truth.sources)
                for name, some in selections.items()
            },
        },
    }


def show(comparison: Comparison, console: Console) -> None:
    """Print the recall of every strategy at every budget, best strategy first, and its cost."""
    content = comparison.content
    budgets = list(dict.fromkeys(p["budget"] for one in content["strategies"] for p in one["points"]))
    console.print(
        Text(
            f"Recall of the exhaustive best {content['n_select']} of {content['pool_samples']} samples, mean ± "
            f"deviation over {content['seeds']} seeds"
        )
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("strategy", overflow="fold")
    for title in (*budgets, "cost", "time", "own"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in sorted(content["strategies"], key=lambda one: -one["points"][-1]["recall"]["mean"]):
        recalls = {point["budget"]: point["recall"] for point in one["points"]}
        cells = [_short(**recalls[budget]) if budget in recalls else "" for budget in budgets]
        last = one["points"][-1]
        times = (rounded_duration(last["total_seconds"]), f"{last['seconds']:.2f} s")
        table.add_row(Text(one["name"]), *cells, f"{last['cost']:.3f}", *times)
    console.print(table)
    _show_served(content, console)
    console.print(
        "Cost and time are for the largest budget and count every pass: features, warm-up, target, draws. "
        "Cost 1 is a gradient of every pool sample; own is the strategy's time, without gradients."
    )
    console.print(
        Text.assemble("Written to ", (str(comparison.out / filenames.COMPARISON_PAGE), "bold")),
        soft_wrap=True,
    )


def _short(mean: float, std: float, **_: object) -> str:
    return f"{mean:.2f} ±{std:.2f}".replace("±0.", "±.")


def _show_served(content: Mapping[str, Any], console: Console) -> None:
    """Print how the exhaustive selection serves each subtask, and what the paper's rule would select instead."""
    truth = content["truth"]
    if len(content["subtasks"]) == 1:
        return
    shares, papers = (
        ", ".join(f"{name} {share:.0%}" for name, share in served.items())
        for served in (truth["served"], truth["paper"]["served"])
    )
    console.print(
        Text(f"Of each subtask's own best, the exhaustive best by {content['rule']} holds: {shares}")
    )
    if content["rule"] != PAPER:
        shared = truth["paper"]["shared"]
        console.print(
            Text(f"The paper's rule would select {shared:.0%} of the same samples, and hold: {papers}")
        )
    if captor := truth["captured_by"]:
        console.print(Text(f"Subtask {captor} captures it; --rule round-robin serves every subtask"))
