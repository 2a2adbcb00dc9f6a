"""Train on selections and judge them on unseen samples: `make bench-training`.

    python benchmarks/bench_training.py [--pools diverse,templated,code] [--arms random,paper] [--seeds 0,1,2]
                                         [--shares 0.02,0.05] [--finished] [--json FILE]

The exhaustive scores of the three pools lie in `tests/data`, so no gradient of a pool is computed. A rule turns them
into a selection of a share of the pool. A LoRA is trained on it, and the loss of the answers is measured on judges:
samples of the target's sources that stand neither in the pool nor in the target, up to 30 for each subtask. Subtasks
with fewer than `FEWEST` such samples are left out; the others are divided into targets of two or three subtasks, in
alphabetical order.

Every arm begins at the adapter whose gradients were scored (30 warm-up steps on random pool samples). So what any
training gains first, the form of the answers, is gained before. All arms of a target take the same number of steps of
8 samples, over two epochs. `random` draws samples with the same number of tokens in all as the rule `round-robin`
selects, within half a percent. `training_arms.py` says what the other arms train on.

A cell is one training. The file of CELLS, which is committed, keeps the loss of every judge after each training. So an
interrupted bench resumes, and later benches add cells without training those of earlier ones again. A cell takes one to
three minutes on two idle cores; of the code pool, up to half an hour on one. `all` trains on the whole pool, once for
all targets: two thousand samples take an hour.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import code_pool
import diverse_pool
import real_pool
from cells import Cells, rounded
from clusterucb.demo.model import demo_model
from clusterucb.demo.wheels import cache_folder
from clusterucb.gradients.checkpoints import fresh_lora
from clusterucb.gradients.warmup import warm_up
from clusterucb.jobs.stages.prepare import prepare
from clusterucb.jobs.trial.cells import order_of
from clusterucb.jobs.trial.statistics import Difference, differences
from clusterucb.jobs.trial.training import Trainer
from clusterucb.model.adapters import load_adapter
from clusterucb.model.source import ModelSource
from clusterucb.options.search import Settings
from clusterucb.progress import Screen
from replay import scores_of, subtasks_of
from strategies import POOLS
from training_arms import RULES, Arms

SUBTASK_ROWS = {
    "templated": real_pool.rows_by_subtask,
    "diverse": diverse_pool.rows_by_subtask,
    "code": code_pool.rows_by_subtask,
}
N_JUDGES = 30  # of each subtask, where its sources have so many more samples
FEWEST, TOGETHER = 20, 3  # the fewest judges of a subtask; the subtasks of a target
EPOCHS = 2
RATES = (2e-4, 5e-5)
CELLS = Path(__file__).parent / "results" / "training-cells-smollm2-135m.jsonl"
ARMS = ("nothing", "random", *RULES)
KEEPS = ("random", "round-robin")  # what the gain of a search is compared with


@dataclass(frozen=True)
class Cell:
    """One training: on what, and how.

    Attributes:
        pool: the pool's name.
        target: the number of the target (`Bench.targets`), from 1.
        arm: an arm of `training_arms.py`, ``all`` for the whole pool, or ``nothing``.
        share: the share of the pool that is selected; with ``all``, the share that it is compared with.
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
        """The name of the cell in the file of cells."""
        if self.arm == "nothing":
            return f"{self.pool}-t{self.target}-nothing"
        share = 1.0 if self.arm == "all" else self.share
        return f"{self.pool}-t{self.target}-{self.arm}-{share:g}-e{EPOCHS}-s{self.seed}-lr{self.rate:g}"


class Bench:
    """A pool with its judges, its recorded scores, and the model at the adapter whose gradients were scored.

    Args:
        name: the pool's name.
        folder: the folder of the bench's files.
        cells: the finished cells.

    Attributes:
        settings: the options of the gradients and of the training.
        path_of_model: the model's folder.
        own: the folder of the pool's files.
        adapter: the folder of the adapter.
        material: the pool, encoded; its target are the judges.
        targets: the subtasks of each target.
    """

    def __init__(self, name: str, folder: Path, cells: Cells) -> None:
        self.name = name
        self._cells = cells
        self.own = own = folder / name
        self.adapter = folder / f"{name}-adapter"
        if not (own / "pool.jsonl").exists():
            POOLS[name](own)
        if not (own / "judges.jsonl").exists():
            judges = list(_judges(own, SUBTASK_ROWS[name]()))
            (own / "judges.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in judges))
        self.settings, self.path_of_model = Settings(), demo_model(Screen())
        files = (own / "pool.jsonl", own / "judges.jsonl")
        self.material = prepare(*files, self.path_of_model, self.settings, Screen()).material
        scored = subtasks_of(name)
        judged = [subtask for subtask in scored if len(self.material.target.get(subtask, ())) >= FEWEST]
        starts = range(0, len(judged) - 1, TOGETHER)
        self.targets = {1 + start // TOGETHER: judged[start : start + TOGETHER] for start in starts}
        self._arms = Arms(name, own, self.material)
        if (n_samples := len(self.material.samples)) != (n_scored := len(scores_of(name))):
            raise SystemExit(
                f"{name} has {n_samples} samples and {n_scored} recorded scores; expected the same number. The code "
                "pool depends on Python's version"
            )

    @cached_property
    def model(self) -> Any:
        """The model, with the adapter that all arms begin at."""
        base = ModelSource(str(self.path_of_model)).model("float32", "cpu")
        if not self.adapter.exists():
            lora = fresh_lora(self.settings, base)
            steps = self.material.warmup_rows(self.settings.warmup_steps, self.settings.seed)
            batches = [[self.material.encoded[int(row)] for row in rows] for rows in steps]
            warm_up(lora, batches, self.adapter, learning_rate=self.settings.warmup_lr)
            lora.unload()
        return load_adapter(base, self.adapter)

    def _trainer(self, targets: Iterable[int]) -> Trainer:
        subtasks = [name for target in targets for name in self.targets[target]]
        judges = {name: self.material.target[name] for name in subtasks}
        return Trainer(self.model, self.material.encoded, judges, (), self.settings, "cpu")

    @cached_property
    def trainers(self) -> dict[int, Trainer]:
        """A trainer for each target, and one for all (0). They are made before any training: they start alike."""
        return {
            0: self._trainer(self.targets),
            **{target: self._trainer([target]) for target in self.targets},
        }

    def rows(self, cell: Cell) -> np.ndarray:
        """Return the pool rows that a cell trains on."""
        if cell.arm == "all":
            return np.arange(len(self.material.samples))
        n = max(int(cell.share * len(self.material.samples)), 1)
        return self._arms.rows(cell.arm, self.targets[cell.target], n, cell.seed)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Return the judges' losses after a cell's training, by subtask, and its seconds."""
        if cell.name not in self._cells:
            self._train(cell)
        return self._cells[cell.name]

    def _train(self, cell: Cell) -> None:
        """Train, and keep the cell. ``all`` does not depend on the target, so it gives the cells of all targets."""
        whole = cell.arm == "all"
        trainer = self.trainers[0 if whole else cell.target]
        began = time.perf_counter()
        if cell.arm == "nothing":
            found = trainer.untrained()
        else:
            rows = self.rows(cell)
            order = order_of(rows, EPOCHS * len(rows), np.random.default_rng([cell.seed, 7]))
            found = trainer.trained(order, cell.rate, points=1)
        seconds = time.perf_counter() - began
        for target in self.targets if whole else [cell.target]:
            losses = rounded({name: found.losses[name][-1] for name in self.targets[target]})
            name = replace(cell, target=target).name
            self._cells.keep(name, losses=losses, seconds=round(seconds))
            shown = ", ".join(f"{subtask} {np.mean(values):.3f}" for subtask, values in losses.items())
            print(f"{name}: {shown} ({seconds:.0f} s)", flush=True)


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


def less(cells: dict[Cell, dict[str, Any]], arm: str, other: str = "random") -> dict[str, Any]:
    """Return the mean difference of two arms' losses, with its interval, over every pool and target of ``cells``."""
    of_targets: dict[tuple[str, int], list[list[dict[str, Any]]]] = {}
    for cell, content in cells.items():
        twin = replace(cell, arm=other)
        if cell.arm == arm and twin in cells:
            of_targets.setdefault((cell.pool, cell.target), []).append(
                [content["losses"], cells[twin]["losses"]]
            )
    ours, theirs = (
        {
            f"{pool} {target} {name}": np.array([[pair[side][name] for pair in pairs]])
            for (pool, target), pairs in of_targets.items()
            for name in pairs[0][0]
        }
        for side in (0, 1)
    )
    by_subtask, mean = differences(ours, theirs)
    return {
        "arm": arm,
        "less": other,
        **_rounded(mean),
        "subtasks": {name: _rounded(d) for name, d in by_subtask.items()},
    }


def kept(cells: dict[Cell, dict[str, Any]], arm: str) -> float:
    """Return the part of the exhaustive selection's gain over random samples that a search keeps, on the same cells."""
    own = [
        cell
        for cell in cells
        if cell.arm == arm and {replace(cell, arm=one) for one in KEEPS} <= cells.keys()
    ]
    same = {replace(cell, arm=one): cells[replace(cell, arm=one)] for cell in own for one in (arm, *KEEPS)}
    return round(float(less(same, arm)["mean"] / less(same, "round-robin")["mean"]), 2)


def _rounded(found: Difference) -> dict[str, float]:
    return {name: round(value, 4) for name, value in vars(found).items()}


def summary(cells: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each pool, target, arm, share and rate: the losses by subtask, averaged over the seeds."""
    rows = []
    for key in dict.fromkeys(map(_row, cells)):
        found = [content["losses"] for cell, content in cells.items() if key == _row(cell)]
        by_subtask = {name: float(np.mean([np.mean(one[name]) for one in found])) for name in found[0]}
        values = list(by_subtask.values())
        rows.append(
            {
                **dict(zip(("pool", "target", "arm", "share", "rate"), key, strict=True)),
                "seeds": len(found),
                "subtasks": {name: round(value, 4) for name, value in by_subtask.items()},
                "mean": round(float(np.mean(values)), 4),
                "worst": round(max(values), 4),
            }
        )
    return rows


def _row(cell: Cell) -> tuple[str, int, str, float, float]:
    return cell.pool, cell.target, cell.arm, cell.share, cell.rate


def compared(
    cells: dict[Cell, dict[str, Any]], pools: list[list[str]], arms: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each group of pools, arm, share and rate: the losses less those after random samples."""
    for share, rate in dict.fromkeys((cell.share, cell.rate) for cell in cells):
        for group in pools:
            some = {
                cell: content
                for cell, content in cells.items()
                if cell.pool in group and (cell.share, cell.rate) == (share, rate)
            }
            for arm in arms:
                twins = {
                    cell.pool for cell in some if cell.arm == arm and replace(cell, arm="random") in some
                }
                if arm not in ("random", "nothing") and twins == set(group):
                    found = {"pools": group, "share": share, "rate": rate, **less(some, arm)}
                    yield {**found, "kept": kept(some, arm)} if arm.startswith("search") else found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pools", default=",".join(SUBTASK_ROWS))
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--rates", default=",".join(map(str, RATES)))
    parser.add_argument("--shares", default="0.05", help="shares of the pool that are selected")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cells", type=Path, default=CELLS)
    parser.add_argument("--folder", type=Path, default=cache_folder() / "training")
    parser.add_argument(
        "--finished", action="store_true", help="show the cells that are finished; train nothing"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    arms, rates, shares = (
        options.arms.split(","),
        [float(rate) for rate in options.rates.split(",")],
        [float(share) for share in options.shares.split(",")],
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    kept_cells = Cells(options.cells)
    benches = [Bench(pool, options.folder, kept_cells) for pool in options.pools.split(",")]
    planned = [
        (bench, Cell(bench.name, target, arm, share, 0 if arm == "nothing" else seed, rate))
        for seed in seeds
        for share in shares
        for rate in rates
        for bench in benches
        for target in bench.targets
        for arm in arms
        if arm != "nothing" or (seed, share, rate) == (seeds[0], shares[0], rates[0])  # has none of them
    ]
    if options.finished:
        planned = [(bench, cell) for bench, cell in planned if cell.name in kept_cells]
    cells = {cell: bench.run(cell) for bench, cell in planned}
    rows = summary(cells)
    for row in rows:
        print(row)
    names = [bench.name for bench in benches]
    for row in compared(cells, [*([name] for name in names), names], arms):
        interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        where = f"{', '.join(row['pools'])}, {row['share']:.0%} at {row['rate']:g}"
        print(f"{where}: {row['arm']} less random {row['mean']:+.3f} {interval}")
        rows.append(row)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
