"""Sum up a trial: losses of every arm, differences from random samples, and what they mean in words.

Decision: a trial never says that a model is better. It says how much lower or higher the loss is on unseen samples of
the target, in each subtask first, and at how many passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clusterucb import filenames
from clusterucb.atomic import write_whole
from clusterucb.jobs.trial.arms import NOTHING, RANDOM
from clusterucb.jobs.trial.cells import BATCH, Cell
from clusterucb.jobs.trial.statistics import CONFIDENCE, Difference, differences
from clusterucb.options.trial import ARMS, TrialSettings
from clusterucb.report import page
from clusterucb.versions import __version__
from clusterucb.wording import counted

if TYPE_CHECKING:
    from clusterucb.jobs.trial.arms import Arm
    from clusterucb.run.folder import Run

Cells = Mapping[tuple[int, int], Cell]
Losses = NDArray[np.float64]
Rows = NDArray[np.int64]
_TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True, eq=False, repr=False)
class Trial:
    """The result of a trial.

    Attributes:
        content: everything as JSON values, as in ``trial.json``.
        out: the trial's folder, with ``trial.json`` and ``trial.html``.
    """

    content: dict[str, Any]
    out: Path

    def __repr__(self) -> str:
        return f"<Trial: {self.content['verdict'][0]} In {self.out}>"

    def difference(self, arm: str, subtask: str | None = None) -> tuple[float, float, float]:
        """Return an arm's loss less that of random samples: the mean and the ends of its interval.

        Args:
            arm: the arm's name.
            subtask: the subtask; None for the mean over all.
        """
        (found,) = (one["less_random"] for one in self.content["arms"] if one["name"] == arm)
        chosen = found["mean"] if subtask is None else found["subtasks"][subtask]
        return chosen["mean"], chosen["low"], chosen["high"]


def losses_of(cells: Cells) -> dict[str, NDArray[np.float64]]:
    """Return the judges' losses at the end of an arm's trainings by subtask, f64[rates, seeds, judges]."""
    rates, seeds = (sorted(set(numbers)) for numbers in zip(*cells, strict=True))
    names = next(iter(cells.values())).losses
    return {
        name: np.array([[cells[rate, seed].losses[name][-1] for seed in seeds] for rate in rates])
        for name in names
    }


def results(
    arms: Mapping[str, Arm], cells: Mapping[str, Cells], settings: TrialSettings, elsewhere: Rows
) -> dict[str, Any]:
    """Return the results of a trial as JSON values.

    Args:
        arms: the arms by name.
        cells: the cells of each arm, by the number of the learning rate and the seed.
        settings: the options.
        elsewhere: the pool rows on which the losses elsewhere were measured.
    """
    summaries = {name: _summary(arm, cells[name], cells[RANDOM], elsewhere) for name, arm in arms.items()}
    selections = [name for name in arms if name not in (RANDOM, NOTHING, *ARMS)]
    return {
        "clusterucb": __version__,
        "verdict": [_verdict(summaries[name], len(selections)) for name in selections],
        "confidence": CONFIDENCE,
        "seeds": settings.seeds,
        "epochs": settings.epochs,
        "learning_rates": list(settings.rates),
        "batch_size": BATCH,
        "elsewhere": len(elsewhere),
        "arms": list(summaries.values()),
    }


def _summary(arm: Arm, cells: Cells, yardstick: Cells, elsewhere: Rows) -> dict[str, Any]:
    """Return an arm's results as JSON values; ``yardstick`` is the cells of the random samples."""
    ours, every = losses_of(cells), list(cells.values())
    means = {subtask: float(losses.mean()) for subtask, losses in ours.items()}
    return {
        "name": arm.name,
        "samples": 0 if arm.rows is None else len(arm.rows(0)),
        "tokens": float(np.mean([cell.tokens for cell in every])),
        "selecting": {"passes": arm.passes, "seconds": arm.seconds},
        "training": {
            "passes": every[0].samples,
            "seconds": float(np.mean([cell.seconds for cell in every])),
        },
        "subtasks": means,
        "mean": float(np.mean(list(means.values()))),
        "worst": max(means.values()),
        "by_rate": np.mean([losses.mean(axis=(1, 2)) for losses in ours.values()], axis=0).tolist(),
        "elsewhere": _elsewhere(arm, cells, elsewhere),
        "less_random": None if arm.name == RANDOM else _less(ours, losses_of(yardstick)),
        "curve": _curve(every),
    }


def _less(ours: Mapping[str, Losses], theirs: Mapping[str, Losses]) -> dict[str, Any]:
    by_subtask, mean = differences(ours, theirs)
    return {
        "subtasks": {name: _with_verdict(one) for name, one in by_subtask.items()},
        "mean": _with_verdict(mean),
    }


def _with_verdict(found: Difference) -> dict[str, Any]:
    return {**asdict(found), "verdict": found.verdict}


def _elsewhere(arm: Arm, cells: Cells, rows: Rows) -> float | None:
    """Return the mean loss on random pool samples, without those that the arm trained on; None if there are none."""
    found: list[float] = []
    for (_, seed), cell in cells.items():
        trained = np.zeros(0, np.int64) if arm.rows is None else arm.rows(seed)
        found += np.array(cell.elsewhere)[~np.isin(rows, trained)].tolist()
    return float(np.mean(found)) if found else None


def _curve(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the mean losses at each measurement."""
    points = []
    for at, step in enumerate(cells[0].steps):
        means = {name: float(np.mean([cell.losses[name][at] for cell in cells])) for name in cells[0].losses}
        mean = float(np.mean(list(means.values())))
        samples = min(step * BATCH, cells[0].samples)
        points.append({"step": step, "samples": samples, "subtasks": means, "mean": mean})
    return points


def _verdict(arm: Mapping[str, Any], n_selections: int) -> str:
    """Return what training on a selection did, compared with random samples, in words."""
    subject = "the selection" if n_selections == 1 else arm["name"]
    less = arm["less_random"]
    found = less["mean"]
    if found["verdict"] == "lower":
        text = (
            f"Training on {subject} gives a lower loss on unseen samples of the target than training on random "
            f"samples: lower by {-found['mean']:.2f} [{-found['high']:.2f}, {-found['low']:.2f}], for "
            f"{arm['selecting']['passes']:,.0f} more passes."
        )
    elif found["verdict"] == "higher":
        text = (
            f"Training on {subject} did not help: the loss on unseen samples of the target is higher than after "
            f"training on random samples, by {found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]."
        )
    else:
        text = (
            f"Training on {subject} did not help in a way that these judges can tell from chance: the loss on unseen "
            f"samples of the target, less that after random samples, is {interval(found)}."
        )
    worse = [name for name, one in less["subtasks"].items() if one["verdict"] == "higher"]
    if worse and found["verdict"] != "higher":
        text += f" It is higher for {', '.join(worse)}."
    return text


def interval(found: Mapping[str, float]) -> str:
    """Return a difference with its interval, such as ``-0.12 [-0.19, -0.05]``."""
    return f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def write(run: Run, content: Mapping[str, Any]) -> None:
    """Write ``trial.json`` and ``trial.html`` to the trial's folder."""
    write_whole(
        run.path(filenames.TRIAL), msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
    )
    write_whole(run.path(filenames.TRIAL_PAGE), page.render(_TEMPLATE, content).encode())


def show(trial: Trial, console: Console) -> None:
    """Print the losses of every arm, its differences from random samples, and what they mean."""
    content = trial.content
    subtasks = list(content["judges"])
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("loss after", overflow="fold")
    for title in (*subtasks, "mean", "less random", "elsewhere", "passes"):
        table.add_column(Text(title), justify="right", overflow="fold")
    for arm in sorted(content["arms"], key=lambda arm: float(arm["mean"])):
        less = arm["less_random"]
        table.add_row(
            Text(arm["name"]),
            *(f"{arm['subtasks'][name]:.3f}" for name in subtasks),
            f"{arm['mean']:.3f}",
            interval(less["mean"]) if less else "",
            "" if arm["elsewhere"] is None else f"{arm['elsewhere']:.3f}",
            f"{arm['selecting']['passes'] + arm['training']['passes']:,.0f}",
        )
    for sentence in content["verdict"]:
        console.print(Text(sentence, "bold"), soft_wrap=True)
    console.print(table)
    console.print(
        f"Means over {counted(content['seeds'], 'seed')} and two learning rates; brackets hold "
        f"{content['confidence']:.0%} intervals. Elsewhere: {counted(content['elsewhere'], 'random pool sample')}. "
        "Passes: selecting and training, in gradients of one sample."
    )
    console.print(
        Text.assemble("Written to ", (str(trial.out / filenames.TRIAL_PAGE), "bold")), soft_wrap=True
    )
