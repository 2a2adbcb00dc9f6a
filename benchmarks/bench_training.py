"""Train on selections and judge them on unseen samples: `make bench-training`.

    python benchmarks/bench_training.py [--pools diverse,templated,code] [--arms random,max] [--seeds 3] [--json FILE]

The exhaustive scores of the three pools lie in `tests/data`, so no gradient of a pool is computed. A rule turns them
into a selection of a share of the pool. A LoRA is trained on it, and the loss of the answers is measured on judges:
samples of the target's sources that stand neither in the pool nor in the target, up to 30 for each subtask.

Every arm begins at the adapter whose gradients were scored (30 warm-up steps on random pool samples). So what any
training gains first, the form of the answers, is gained before. All arms of a target take the same number of steps of
8 samples, over two epochs. `random` draws samples with the same number of tokens in all as the rule `round-robin`
selects, within half a percent.

A cell is one training. FOLDER keeps each cell in a file (by default beside the demo's model in the user's cache), so an
interrupted bench resumes. A cell takes one to three minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import code_pool
import diverse_pool
import real_pool
from clusterucb.atomic import write_whole
from clusterucb.demo.model import demo_model
from clusterucb.demo.wheels import cache_folder
from clusterucb.engine import Rules
from clusterucb.gradients.fine_tuning import Training, answer_losses, rising_and_falling
from clusterucb.gradients.passes import CPU_TOKENS, Passes
from clusterucb.gradients.session import fresh_lora
from clusterucb.gradients.warmup import warm_up
from clusterucb.jobs.comparison.replay import Terms, Truth
from clusterucb.jobs.stages.prepare import prepare
from clusterucb.model.source import ModelSource, load_adapter
from clusterucb.options.search import Settings
from clusterucb.progress import Screen
from replay import scores_of
from strategies import POOLS, TARGETS

SUBTASK_ROWS = {
    "templated": real_pool.rows_by_subtask,
    "diverse": diverse_pool.rows_by_subtask,
    "code": code_pool.rows_by_subtask,
}
N_JUDGES = 30  # of each subtask, where its sources have so many more samples
BATCH, EPOCHS = 8, 2
RATES = (2e-4, 5e-5)
ARMS = ("nothing", "random", "max", "mean", "standardized", "round-robin")

Rows = np.ndarray


RULES = {
    "max": Rules(),
    "mean": Rules(aggregate="mean"),
    "standardized": Rules(aggregate="standardized"),
    "round-robin": Rules(select_by="round-robin"),
}


@dataclass(frozen=True)
class Cell:
    """One training: on what, and how.

    Attributes:
        pool: the pool's name.
        target: the number of the target in `TARGETS`.
        arm: a rule, ``random`` or ``nothing``.
        share: the share of the pool that is selected.
        seed: the seed of the order of the samples, and of random samples.
        rate: the largest learning rate.
    """

    pool: str
    target: int
    arm: str
    share: float
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """The name of the cell's file."""
        size = f"{self.share:g}-e{EPOCHS}"
        return f"{self.pool}-t{self.target + 1}-{self.arm}-{size}-s{self.seed}-lr{self.rate:g}.json"


class Bench:
    """A pool with its judges, its recorded scores, and the model at the adapter whose gradients were scored.

    Args:
        name: the pool's name.
        folder: the folder of the bench's files.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        own = folder / name
        if not (own / "pool.jsonl").exists():
            POOLS[name](own)
        if not (own / "judges.jsonl").exists():
            judges = list(_judges(own, SUBTASK_ROWS[name]()))
            (own / "judges.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in judges))
        self._settings, self._path = Settings(), demo_model(Screen())
        files = (own / "pool.jsonl", own / "judges.jsonl")
        self.material = prepare(*files, self._path, self._settings, Screen()).material
        self.scores = scores_of(name)
        self.subtasks = list(self.material.target)
        if len(self.material.samples) != len(self.scores):
            raise SystemExit(
                f"{name} has {len(self.material.samples)} samples and {len(self.scores)} recorded scores; expected "
                "the same number. The code pool depends on Python's version"
            )

    @cached_property
    def model(self) -> Any:
        """The model, with the adapter that all arms begin at."""
        base = ModelSource(str(self._path)).model("float32", "cpu")
        adapter = self.folder / f"{self.name}-adapter"
        if not adapter.exists():
            lora = fresh_lora(self._settings, base)
            steps = self.material.warmup_rows(self._settings.warmup_steps, self._settings.seed)
            batches = [[self.material.encoded[int(row)] for row in rows] for rows in steps]
            warm_up(lora, batches, adapter, learning_rate=self._settings.warmup_lr)
            lora.unload()
        return load_adapter(base, adapter)

    @cached_property
    def start(self) -> dict[str, torch.Tensor]:
        """The adapter's matrices at the start, by name."""
        return {
            name: one.detach().clone() for name, one in self.model.named_parameters() if one.requires_grad
        }

    def rows(self, cell: Cell) -> Rows:
        """Return the pool rows that a cell trains on."""
        scores = self.scores[:, TARGETS[cell.target]]
        n = max(int(cell.share * len(scores)), 1)
        if cell.arm != "random":
            return self._selected(cell.arm, scores, n)
        lengths = self.material.encoded.lengths
        wanted = int(lengths[self._selected("round-robin", scores, n)].sum())
        return of_tokens(lengths, n, wanted, np.random.default_rng([cell.seed, 99]))

    def _selected(self, rule: str, scores: np.ndarray, n: int) -> Rows:
        return Truth.of(scores, self.material.sources, Terms(n, RULES[rule])).best

    def run(self, cell: Cell) -> dict[str, Any]:
        """Return the judges' losses after a cell's training, by subtask. A finished cell is read from its file."""
        path = self.folder / "cells" / cell.name
        if path.exists():
            content: dict[str, Any] = json.loads(path.read_text())
            return content
        began = time.perf_counter()
        start = self.start
        with torch.no_grad():
            for name, value in start.items():
                self.model.get_parameter(name).copy_(value)
        if cell.arm != "nothing":
            self._train(self.rows(cell), cell)
        judged = self.subtasks[TARGETS[cell.target]]
        losses = {
            name: answer_losses(self.model, self.material.target[name], Passes(CPU_TOKENS)).tolist()
            for name in judged
        }
        content = {"losses": losses, "seconds": time.perf_counter() - began}
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(content).encode())
        shown = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in losses.items())
        print(f"{cell.name.removesuffix('.json')}: {shown} ({content['seconds']:.0f} s)", flush=True)
        return content

    def _train(self, rows: Rows, cell: Cell) -> None:
        rng = np.random.default_rng([cell.seed, 7])
        order = np.concatenate([rng.permutation(rows) for _ in range(EPOCHS)])
        starts = range(0, len(order), BATCH)
        batches = [
            [self.material.encoded[int(row)] for row in order[start : start + BATCH]] for start in starts
        ]
        training = Training(self.model, limit=CPU_TOKENS)
        for _ in training.steps(batches, rising_and_falling(cell.rate, len(batches))):
            pass


def _judges(folder: Path, by_subtask: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield the first rows of each subtask whose content stands neither in the pool nor in the target."""
    lines = [
        line for name in ("pool", "target") for line in (folder / f"{name}.jsonl").read_bytes().splitlines()
    ]
    seen = {_key(msgspec.json.decode(line)) for line in lines}
    for subtask, rows in by_subtask.items():
        unseen = [row for row in rows if _key(row) not in seen][:N_JUDGES]
        seen.update(map(_key, unseen))
        yield from ({**row, "subtask": subtask} for row in unseen)


def _key(row: dict[str, Any]) -> bytes:
    return hashlib.sha256(msgspec.json.encode(row["messages"])).digest()


def of_tokens(lengths: np.ndarray, n: int, wanted: int, rng: np.random.Generator) -> Rows:
    """Return n random rows whose lengths add up to ``wanted`` within half a percent, if swaps of rows lead there."""
    order = rng.permutation(len(lengths))
    chosen, others = order[:n].copy(), order[n:].copy()
    total = int(lengths[chosen].sum())
    for _ in range(20_000):
        if abs(total - wanted) <= 0.005 * wanted:
            break
        ours, theirs = rng.integers(n), rng.integers(len(others))
        swapped = total - int(lengths[chosen[ours]]) + int(lengths[others[theirs]])
        if abs(swapped - wanted) < abs(total - wanted):
            chosen[ours], others[theirs], total = others[theirs], chosen[ours], swapped
    return chosen


def difference(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean difference of losses over subtasks, with a paired bootstrap interval of 95 %.

    Args:
        ours, theirs: the contents of the cells of two arms, in the same order of targets, seeds and rates. The
            bootstrap draws cells and, in each subtask, judges.
    """
    rng = np.random.default_rng(0)
    apart = [
        [np.array(one["losses"][name]) - np.array(other["losses"][name]) for name in one["losses"]]
        for one, other in zip(ours, theirs, strict=True)
    ]

    def mean(cells: Sequence[int], draw: bool) -> float:
        of_cells = []
        for at in cells:
            kept = [
                values[rng.integers(len(values), size=len(values))] if draw else values
                for values in apart[at]
            ]
            of_cells.append(np.mean([values.mean() for values in kept]))
        return float(np.mean(of_cells))

    count = len(apart)
    drawn = [mean(rng.integers(count, size=count).tolist(), draw=True) for _ in range(2000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": mean(range(count), draw=False), "low": float(low), "high": float(high)}


def summary(cells: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each pool, target, arm and rate: the losses by subtask, averaged over the seeds."""
    rows = []
    for key in dict.fromkeys((cell.pool, cell.target, cell.arm, cell.rate) for cell in cells):
        found = [content["losses"] for cell, content in cells.items() if key == _row(cell)]
        by_subtask = {name: float(np.mean([np.mean(one[name]) for one in found])) for name in found[0]}
        values = list(by_subtask.values())
        rows.append(
            {
                **dict(zip(("pool", "target", "arm", "rate"), (key[0], key[1] + 1, *key[2:]), strict=True)),
                "seeds": len(found),
                "subtasks": {name: round(value, 4) for name, value in by_subtask.items()},
                "mean": round(float(np.mean(values)), 4),
                "worst": round(max(values), 4),
            }
        )
    return rows


def _row(cell: Cell) -> tuple[str, int, str, float]:
    return cell.pool, cell.target, cell.arm, cell.rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pools", default=",".join(SUBTASK_ROWS))
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--rates", default=",".join(map(str, RATES)))
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=cache_folder() / "training")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    arms, rates = options.arms.split(","), [float(rate) for rate in options.rates.split(",")]
    options.folder.mkdir(parents=True, exist_ok=True)
    cells: dict[Cell, dict[str, Any]] = {}
    for pool in options.pools.split(","):
        bench = Bench(pool, options.folder)
        for seed in range(options.seeds):
            for rate in rates:
                for target in range(len(TARGETS)):
                    for arm in arms:
                        fixed = arm == "nothing"  # has neither seed nor rate
                        cell = Cell(
                            pool,
                            target,
                            arm,
                            options.share,
                            0 if fixed else seed,
                            rates[0] if fixed else rate,
                        )
                        cells[cell] = bench.run(cell)
    rows = summary(cells)
    for row in rows:
        print(row)
    for arm in arms:
        ours = [cell for cell in cells if cell.arm == arm]
        theirs = [Cell(**{**vars(cell), "arm": "random"}) for cell in ours]
        if arm in ("random", "nothing") or not all(cell in cells for cell in theirs):
            continue
        found = difference([cells[cell] for cell in ours], [cells[cell] for cell in theirs])
        print(f"{arm} less random: {found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]")
        rows.append({"arm": arm, "less random": {key: round(value, 4) for key, value in found.items()}})
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
