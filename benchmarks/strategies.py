"""Score and sketch real pools whole, and compare gradient clusters with others: `make bench-strategies`.

    python benchmarks/strategies.py [--folder FOLDER] [--pools templated,diverse] [--seeds 5] [--json FILE]

The bench scores each pool whole for eight subtasks, once, and sketches its gradients, once. Each takes about 25 minutes
on two cores. FOLDER keeps the results (by default beside the demo's model in the user's cache), and an interrupted
bench resumes there. `record.py` writes them to `tests/data`. A target consists of some of the subtasks: the first three
in alphabetical order, the next three, or the last two. Then the bench replays strategies, which takes minutes, and
writes a comparison.html for every target to FOLDER.

`replay.py` compares many more strategies on the recorded scores.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import clusterucb as cu
import code_pool
import diverse_pool
import real_pool
from clusterucb import plugins
from clusterucb.demo.model import demo_model
from clusterucb.demo.wheels import cache_folder
from clusterucb.jobs.comparison.spelling import contender, split
from clusterucb.progress import Screen

POOLS: dict[str, Callable[[Path], None]] = {
    "templated": real_pool.main,
    "diverse": diverse_pool.main,
    "code": code_pool.main,  # scored for `replay.py`
}
TARGETS = (slice(0, 3), slice(3, 6), slice(6, 8))  # subtasks in alphabetical order
BUDGETS = ("5%", "10%", "20%")
STRATEGIES = (
    "random",
    "ucb",
    "surrogate",
    "ucb@gradient",
    "thompson@gradient",
    "ucb@gradient[n_clusters=50]",
)


@dataclass(frozen=True)
class Scored:
    """A pool with the exact scores and the sketches of all its samples.

    Attributes:
        name: the name of the pool.
        folder: the folder of the bench's files; their names begin with the pool's name.
        model: the folder of the model.
    """

    name: str
    folder: Path
    model: Path

    def path(self, what: str) -> Path:
        """Return a file or folder of this pool."""
        return self.folder / f"{self.name}-{what}"

    @property
    def pool(self) -> Path:
        """The pool's file."""
        return self.folder / self.name / "pool.jsonl"

    def prepare(self, write: Callable[[Path], None]) -> None:
        """Write, score and sketch the pool, except for results that already exist."""
        if not self.pool.exists():
            write(self.pool.parent)
        cu.select(
            self.pool,
            self.pool.parent / "target.jsonl",
            model=self.model,
            out=self.path("scores"),
            policy=cu.Exhaustive(),
            budget="100%",
            batch_size=64,
            observer=Screen(),
        )
        cu.sketch(
            self.pool,
            model=self.model,
            adapter=self.path("scores") / "adapter",
            out=self.path("store"),
            observer=Screen(),
        )
        cu.select(  # estimates scores from sketches, for `record.py`
            self.pool,
            self.pool.parent / "target.jsonl",
            model=self.model,
            out=self.path("sketched"),
            store=self.path("store"),
            scorer="sketch",
            observer=Screen(),
        )

    def compare(self, number: int, strategies: Iterable[str], seeds: int) -> cu.Comparison:
        """Compare strategies on one of the targets and return the comparison."""
        lines = (self.pool.parent / "target.jsonl").read_text().splitlines()
        subtasks = sorted({json.loads(line)["subtask"] for line in lines})[TARGETS[number]]
        target = self.pool.parent / f"target-{number + 1}.jsonl"
        target.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["subtask"] in subtasks))
        installed = plugins.load()
        return cu.compare(
            self.pool,
            target,
            model=self.model,
            out=self.path(f"target-{number + 1}"),
            scores=self.path("scores"),
            store=self.path("store"),
            scorer="exact",
            strategies=[contender(spec, installed) for spec in strategies],
            budgets=BUDGETS,
            seeds=seeds,
            observer=Screen(),
        )


def summary(comparisons: list[cu.Comparison]) -> list[dict[str, object]]:
    """Return each strategy's mean recall over targets and seeds at each budget, and its deviation over seeds."""
    rows: list[dict[str, object]] = []
    for of_targets in zip(*(one.content["strategies"] for one in comparisons), strict=True):
        points = list(zip(*(one["points"] for one in of_targets), strict=True))
        recalls = np.array([[point["recall"]["seeds"] for point in of_budget] for of_budget in points])
        sketched = "@gradient" in of_targets[0]["name"]  # counted as if made for this target alone
        masses = np.array([[point["mass"]["seeds"] for point in of_budget] for of_budget in points])
        rows.append(
            {
                "strategy": of_targets[0]["name"],
                "recall": recalls.mean(axis=(1, 2)).round(4).tolist(),
                "over_seeds": recalls.mean(axis=1).std(axis=1).round(4).tolist(),
                "by_target": recalls[-1].mean(axis=1).round(4).tolist(),
                "mass": masses.mean(axis=(1, 2)).round(4).tolist(),
                "cost": round(
                    float(np.mean([one["points"][-1]["cost"] for one in of_targets])) + sketched, 4
                ),
                "seconds": round(float(np.median([one["points"][-1]["seconds"] for one in of_targets])), 3),
            }
        )
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Return the summary as a Markdown table, sorted by recall at the largest budget, best first."""
    lines = [f"| strategy | {' | '.join(BUDGETS)} | by target | cost |", "|---" * (len(BUDGETS) + 3) + "|"]
    for row in sorted(rows, key=lambda row: -row["recall"][-1]):  # type: ignore[index]
        recalls = " | ".join(
            f"{mean:.2f} ± {std:.2f}" for mean, std in zip(row["recall"], row["over_seeds"], strict=True)
        )
        targets = " ".join(f"{one:.2f}" for one in row["by_target"])  # type: ignore[attr-defined]
        lines.append(f"| `{row['strategy']}` | {recalls} | {targets} | {row['cost']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--pools", default="templated,diverse")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # The comparison includes budgets that barely cover the cold start, and targets that share texts with the pool.
    warnings.simplefilter("ignore", cu.ClusterUCBWarning)
    folder = options.folder or cache_folder().parent / "bench"
    model = demo_model(Screen())
    strategies = split(options.strategies)
    found: dict[str, list[dict[str, object]]] = {}
    for name in options.pools.split(","):
        scored = Scored(name, folder, model)
        scored.prepare(POOLS[name])
        targets = range(len(TARGETS))
        found[name] = summary([scored.compare(number, strategies, options.seeds) for number in targets])
        print(f"\n{name}: recall of the best 5 %, mean over {len(TARGETS)} targets ± deviation over seeds\n")
        print(table(found[name]))
    if options.json:
        content = {"budgets": BUDGETS, "seeds": options.seeds, "pools": found}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
