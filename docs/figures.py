"""Draw the figures of the README and of the pages, from committed measurements: `python docs/figures.py [NAME...]`.

Each figure is drawn from numbers that a function here returns; the numbers stand in the SVG too, as its description,
so that a test can tell whether a figure is that of the committed measurements.

- ``recall.svg``, ``store.svg``: `benchmarks/results`.
- ``arms.svg``, ``search.svg``: the recorded scores of `tests/data`, searched here.
- ``loop.svg``: a drawing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import clusterucb as cu
from clusterucb.jobs.comparison.replay import Terms, Truth

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
RECORDED = HERE.parent / "tests" / "data"

POOLS = {"templated": "templated: 32 sources", "diverse": "diverse: 228 sources", "code": "code: 165 modules"}
NAMES = {"surrogate": "default", "ucb": "the paper's ucb", "random": "random"}
COLOURS = {"surrogate": "#c2410c", "ucb": "#1d4ed8", "random": "#64748b"}
INK = "#1f2937"


def recall() -> dict[str, Any]:
    """Return the recall at every budget, by pool and policy, as `make bench-replay` measured it."""
    measured = json.loads((RESULTS / "replay-smollm2-135m.json").read_text())
    found = {
        pool: {row["strategy"]: row["recall"] for row in rows if row["strategy"] in NAMES}
        for pool, rows in measured["pools"].items()
    }
    return {"budgets": measured["budgets"], "recall": found}


def store() -> dict[str, Any]:
    """Return the recall with a gradient store and without, by pool."""
    measured = json.loads((RESULTS / "store-smollm2-135m.json").read_text())
    found = {
        pool: {known: row["recall"][known] for known in ("nothing known", "a store")}
        for pool, row in measured["pools"].items()
    }
    return {"budgets": measured["budgets"], "recall": found}


def recorded(pool: str) -> tuple[dict[str, np.ndarray], Truth]:
    """Return a recorded pool's features, and the truth of its first target with the best 5 %."""
    found = np.load(RECORDED / f"{pool}.npz")
    scores = found["scores"][:, np.argsort(found["subtasks"])[:3]].astype(np.float64)
    truth = Truth.of(scores, np.zeros(len(scores), str), Terms(len(scores) // 20))
    return {name: found[name].astype(np.float32) for name in ("embedding", "length")}, truth


def searched(pool: str, policy: cu.Policy, score: Any = None, watch: Any = None) -> Any:
    """Return what a search with a fifth of the gradients finds on a recorded pool."""
    features, truth = recorded(pool)
    return cu.search(
        features,
        score or truth.scores.__getitem__,
        clusterer=cu.KMeans(),
        policy=policy,
        budget=cu.Budget(draws=len(truth.scores) // 5, watch=watch),
        n_select=len(truth.best),
        schedule=cu.Schedule(batch_size=8),
    )


def draw_recall(plt: Any, numbers: dict[str, Any]) -> Any:
    """Draw the recall against the budget, a panel for each pool."""
    figure, panels = plt.subplots(1, 3, figsize=(9, 3.1), sharey=True)
    share = [0, *(100 * budget for budget in numbers["budgets"])]
    for panel, (pool, title) in zip(panels, POOLS.items(), strict=True):
        for policy, name in NAMES.items():
            found = [0, *numbers["recall"][pool][policy]]
            panel.plot(share, found, "o-", color=COLOURS[policy], lw=2, ms=4, label=name, clip_on=False)
        panel.set_title(title)
        _axes(panel, "share of all gradients")
        panel.set_xticks([0, 5, 10, 20], ["0", "5 %", "10 %", "20 %"])
    panels[0].set_ylabel("share of the best 5 % found")
    panels[2].legend(frameon=False, loc="upper left", borderaxespad=0.1)
    return figure


def draw_store(plt: Any, numbers: dict[str, Any]) -> Any:
    """Draw the recall with a gradient store and without."""
    figure, panels = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True)
    share = [100 * budget for budget in numbers["budgets"]]
    for panel, (pool, title) in zip(panels, POOLS.items(), strict=True):
        for known, colour in (("a store", "#047857"), ("nothing known", COLOURS["surrogate"])):
            label = {"a store": "with a gradient store", "nothing known": "without"}[known]
            panel.plot(
                share,
                numbers["recall"][pool][known],
                "o-",
                color=colour,
                lw=2,
                ms=4,
                label=label,
                clip_on=False,
            )
        panel.set_title(title)
        _axes(panel, "gradients for this target")
        panel.set_xticks([5, 7.5, 10, 20], ["5 %", "", "10 %", "20 %"])
    panels[0].set_ylabel("share of the best 5 % found")
    panels[0].legend(frameon=False, loc="lower right")
    return figure


def draw_arms(plt: Any, _: dict[str, Any]) -> Any:
    """Draw the rewards of every cluster of the diverse pool, the best samples marked."""
    _, truth = recorded("diverse")
    found = searched("diverse", cu.UCB())
    rewards, best, labels = truth.rewards, truth.best, found.labels
    n_arms = labels.max() + 1
    mean, std = (np.array([f(rewards[labels == arm]) for arm in range(n_arms)]) for f in (np.mean, np.std))
    place = np.empty(n_arms, np.int64)
    place[np.argsort(mean + std)] = np.arange(n_arms)
    low, high = (
        np.array([np.quantile(rewards[labels == arm], q) for arm in range(n_arms)]) for q in (0.1, 0.9)
    )
    figure, panel = plt.subplots(figsize=(9, 3.2))
    panel.vlines(place, low, high, color="#cbd5e1", lw=2.4, label="middle 80 % of a cluster's rewards")
    panel.plot(place, mean, "_", color=INK, ms=3.5, label="mean of a cluster")
    panel.plot(
        place[labels[best]],
        rewards[best],
        ".",
        color=COLOURS["surrogate"],
        ms=4.5,
        label="the best 5 % of the pool",
    )
    _axes(panel, f"{n_arms} clusters, by mean + deviation of their rewards")
    panel.set_ylim(rewards.min() * 1.05, rewards.max() * 1.05)
    panel.set_xlim(-2, n_arms + 1)
    panel.set_ylabel("reward (z-score)")
    panel.legend(frameon=False, loc="upper left")
    return figure


def draw_search(plt: Any, _: dict[str, Any]) -> Any:
    """Draw how a search goes on: what it has found, and what it says it has found."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for panel, (policy, title) in zip(
        panels, ((cu.Surrogate(), "default"), (cu.UCB(), "the paper's ucb")), strict=True
    ):
        _, truth = recorded("diverse")
        drawn: list[int] = []
        watched: list[Any] = []

        def score(
            rows: np.ndarray, scores: np.ndarray = truth.scores, drawn: list[int] = drawn
        ) -> np.ndarray:
            drawn.extend(rows.tolist())
            return scores[rows]

        def watch(estimate: Any, drawn: list[int] = drawn, watched: list[Any] = watched) -> None:
            watched.append((len(drawn), estimate))

        searched("diverse", policy, score=score, watch=watch)
        looks = [100 * count / len(truth.scores) for count, _ in watched]
        estimates = [estimate for _, estimate in watched]
        true = np.cumsum(np.isin(drawn, truth.best)) / len(truth.best)
        share = np.arange(1, len(drawn) + 1) * 100 / len(truth.scores)
        panel.fill_between(
            looks,
            [one.low for one in estimates],
            [one.high for one in estimates],
            color="#fed7aa",
            label="90 % interval",
        )
        panel.plot(looks, [one.estimate for one in estimates], color="#ea580c", lw=1.5, label="estimate")
        panel.plot(share[::4], true[::4], color=INK, lw=2, label="truth")
        panel.set_title(title)
        _axes(panel, "share of all gradients")
        panel.set_xticks([0, 5, 10, 15, 20], ["0", "5 %", "10 %", "15 %", "20 %"])
    panels[0].set_ylabel("share of the best 5 % found")
    panels[0].legend(frameon=False, loc="upper left", borderaxespad=0.1)
    return figure


def draw_loop(plt: Any, _: dict[str, Any]) -> Any:
    """Draw which step hands what to which."""
    from matplotlib.patches import FancyBboxPatch

    figure, panel = plt.subplots(figsize=(9, 2.0))
    words = (
        "pool\nand target",
        "features\nof every sample",
        "clusters\n= arms",
        "policy\nchooses samples",
        "gradients\nof these samples",
        "the best of\nwhat was scored",
    )
    half, gap = 0.68, 0.36  # of a box, and between two
    middles = [number * (2 * half + gap) for number in range(len(words))]
    for x, text in zip(middles, words, strict=True):
        paid = text.startswith("gradients")
        colours = ("white", COLOURS["surrogate"]) if paid else (INK, "#f1f5f9")
        box = FancyBboxPatch(
            (x - half + 0.1, 0.85), 2 * half - 0.2, 0.5, boxstyle="round,pad=0.1", fc=colours[1], ec="#94a3b8"
        )
        panel.add_patch(box)
        for y, line in zip((1.2, 1.0), text.split("\n"), strict=True):
            panel.text(x, y, line, ha="center", va="center", color=colours[0], fontsize=9)
    arrow = {"arrowstyle": "-|>", "color": "#475569", "lw": 1.4, "shrinkA": 2, "shrinkB": 2}
    for x in middles[:-1]:
        panel.annotate("", (x + half + gap, 1.1), (x + half, 1.1), arrowprops=arrow)
    back = {**arrow, "connectionstyle": "arc3,rad=-0.4"}
    panel.annotate("", (middles[3], 0.75), (middles[4], 0.75), arrowprops=back)
    label = {"ha": "center", "va": "center"}
    panel.text(
        (middles[3] + middles[4]) / 2, 0.16, "scores come back, until the budget is spent", color=INK, **label
    )
    panel.text(middles[1], 1.68, "cheap: takes no gradient", color="#475569", **label)
    panel.text(middles[4], 1.68, "what the budget counts", color=COLOURS["surrogate"], **label)
    panel.set_xlim(-half - 0.05, middles[-1] + half + 0.05)
    panel.set_ylim(0, 1.8)
    panel.axis("off")
    return figure


FIGURES = {
    "recall": (recall, draw_recall),
    "store": (store, draw_store),
    "arms": (dict, draw_arms),
    "search": (dict, draw_search),
    "loop": (dict, draw_loop),
}


def _axes(panel: Any, label: str) -> None:
    panel.set_ylim(0, 1)
    panel.set_xlabel(label)
    panel.grid(axis="y", color="#e2e8f0", lw=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(length=0)


def main(names: list[str]) -> None:
    """Draw some figures, or all."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "clusterucb",  # the same identifiers every time
            "font.family": "sans-serif",
            "font.sans-serif": ["Arial", "Helvetica", "DejaVu Sans"],
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.titlepad": 9,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": "#94a3b8",
            "path.simplify": True,
        }
    )
    for name in names or FIGURES:
        numbers, draw = FIGURES[name]
        measured = numbers()
        figure = draw(plt, measured)
        figure.tight_layout()
        figure.savefig(
            HERE / "_static" / f"{name}.svg",
            metadata={"Date": None, "Description": json.dumps(measured)},
            facecolor="white",
        )


if __name__ == "__main__":
    main(sys.argv[1:])
