"""Select anew while training, and judge the training on unseen samples: `make bench-rounds`.

    python benchmarks/bench_rounds.py [--pools templated,diverse] [--arms ours-10,dynamic] [--rates 2e-4] [--seeds 0]
                                      [--finished] [--keep FOLDER] [--json FILE]

A LoRA is trained on 1,500 samples of a pool of `bench_training.py`, drawn at random. It begins at the adapter and the
moments after 30 steps on random samples, which all arms share. Then come four periods of ten steps. In each of them the
training visits 75 samples once, and five of them twice. The arms differ in what these samples are:

- `random`: other random samples in each period; `random-once`: the same ones in all periods;
- `static-10`: what a budget of 10 % finds before the first period; `static-all`: what all gradients find then;
- `dynamic`: what all gradients find in each period; `paper`: Dynamic-ClusterUCB, with a budget of 10 %;
- `ours-5`, `ours-10`, `ours-20`: rounds that learn from earlier ones, each with this share of the gradients.

The loss of the answers is measured on the judges of `bench_training.py`, for the first target of the pool, after each
period. A file that is committed keeps each cell, a training, with the loss of every judge. So the bench resumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

import clusterucb as cu
from bench_training import Bench
from cells import Cells, Losses, rounded
from clusterucb.demo.wheels import cache_folder
from clusterucb.gradients.directions import sketch_directions
from clusterucb.gradients.fine_tuning import Training, answer_losses, rising_and_falling
from clusterucb.gradients.passes import CPU_TOKENS, Passes
from clusterucb.jobs.stages.influence import Influence
from clusterucb.jobs.trial.statistics import differences
from clusterucb.model.source import ModelSource
from clusterucb.progress import Screen
from clusterucb.training.schedule import order

N_POOL, N_SELECTED, BATCH = 1500, 75, 8  # of fewer samples, a tenth of the gradients finds little
WARMUP, EVERY, N_PERIODS = 30, 10, 4  # in steps, but for the last; the first steps were taken before
ARMS = {
    "random": None,
    "random-once": None,
    "static-10": {"every": 1000, "budget": "10%"},
    "static-all": {"every": 1000, "schedule": "dynamic"},
    "dynamic": {"schedule": "dynamic"},
    "paper": {"schedule": "paper", "budget": "10%"},
    "ours-5": {"budget": "5%"},
    "ours-10": {"budget": "10%"},
    "ours-20": {"budget": "20%"},
}
RATES = (2e-4,)
RESULTS = Path(__file__).parent / "results" / "rounds-smollm2-135m.jsonl"


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        pool: the pool's name.
        arm: an arm of `ARMS`.
        seed: the seed of the 600 samples and of everything random.
        rate: the largest learning rate.
    """

    pool: str
    arm: str
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """The name of the cell in the file of cells."""
        return f"{self.pool}-{self.arm}-s{self.seed}-lr{self.rate:g}"


def part_of(n_samples: int, seed: int) -> np.ndarray:
    """Return the rows of a pool that are trained on, ascending."""
    return np.sort(np.random.default_rng([seed, 0]).choice(n_samples, N_POOL, replace=False))


class Rounds:
    """Trains on a part of a pool, and selects anew.

    Args:
        bench: the pool, with its judges.
        seed: draws the part.
        keep: a folder for the scores of all rounds, or None.
    """

    def __init__(self, bench: Bench, seed: int, keep: Path | None) -> None:
        self._bench, self._seed, self._keep = bench, seed, keep
        material = bench.material
        self._rows = part_of(len(material.samples), seed)
        self._names = bench.targets[1]
        self._pool = [json.loads(material.samples[int(row)].raw) for row in self._rows]
        lines = map(json.loads, (bench.own / "target.jsonl").read_bytes().splitlines())
        self._target = [row for row in lines if row["subtask"] in self._names]

    def trained(self, cell: Cell) -> dict[str, Any]:
        """Train, and return the judges' losses after each period, with what the rounds were."""
        base = ModelSource(str(self._bench.path_of_model)).model("float32", "cpu")
        tokenizer = ModelSource(str(self._bench.path_of_model)).tokenizer()
        model = PeftModel.from_pretrained(base, self._bench.adapter, is_trainable=True).eval()
        training = Training(model, limit=CPU_TOKENS)
        state = torch.load(self._bench.adapter / "optimizer.pt", weights_only=True)
        training.optimizer.load_state_dict(state)
        keeping = _directions(self._keep / cell.name) if self._keep else nullcontext()
        with tempfile.TemporaryDirectory() as folder, keeping:
            began = time.perf_counter()
            rows_of, selection = self._chooser(cell, model, tokenizer, training.optimizer, Path(folder))
            periods, judging = [], 0.0
            rates = rising_and_falling(cell.rate, N_PERIODS * EVERY)
            for step in range(WARMUP, WARMUP + N_PERIODS * EVERY):
                samples = [self._bench.material.encoded[int(self._rows[row])] for row in rows_of(step)]
                next(training.steps([samples], [float(rates[step - WARMUP])]))
                if (step + 1 - WARMUP) % EVERY == 0:
                    judged = time.perf_counter()
                    periods.append(rounded(self._judged(model)))
                    judging += time.perf_counter() - judged
            seconds = time.perf_counter() - began - judging
            rounds = list(selection.rounds) if selection else []
            if self._keep and selection:
                shutil.copytree(selection.rounds.folder, self._keep / cell.name, dirs_exist_ok=True)
        return {
            "periods": periods,
            "seconds": round(seconds),
            "rounds": [
                {
                    "gradients": one.gradients,
                    "seconds": round(one.seconds),
                    "recall": one.recall,
                    "overlap": one.overlap,
                    "rows": one.rows,
                }
                for one in rounds
            ],
        }

    def _chooser(
        self, cell: Cell, model: Any, tokenizer: Any, optimizer: Any, folder: Path
    ) -> tuple[Callable[[int], np.ndarray], cu.Reselect | None]:
        """Return the function that gives a step's rows, and the selection, if there is one."""
        options = ARMS[cell.arm]
        if options is None:

            def rows(step: int) -> np.ndarray:
                number, at = divmod(step - WARMUP, EVERY)
                period = 0 if cell.arm == "random-once" else number
                some = np.random.default_rng([cell.seed, 1, period]).permutation(N_POOL)[:N_SELECTED]
                return order(some, at * BATCH, BATCH, (cell.seed, number))

            return rows, None
        chosen = {"every": EVERY, "warmup": WARMUP, "select": N_SELECTED, "seed": cell.seed, **options}
        selection = cu.Reselect(self._pool, self._target, observer=Screen(), **chosen)
        selection.open(tokenizer, model, batch_size=BATCH, out=folder / "rounds")
        if self._keep:
            selection._selecting.plan = replace(selection._selecting.plan, sketches="always")
        selection.begin()
        return lambda step: selection.rows(step, model, optimizer), selection

    def _judged(self, model: Any) -> Losses:
        judges, passes = self._bench.material.target, Passes(CPU_TOKENS, "cpu")
        return {name: answer_losses(model, judges[name], passes).tolist() for name in self._names}


@contextmanager
def _directions(folder: Path) -> Iterator[None]:
    """Keep the sketches of the target's directions in each round, f32[S, d], for `bench_between_rounds.py`."""
    own, counter = Influence._directions, itertools.count(1)
    folder.mkdir(parents=True, exist_ok=True)

    def keeping(influence: Influence) -> list[np.ndarray]:
        found, settings = own(influence), influence._settings
        np.save(
            folder / f"directions-{next(counter)}.npy",
            sketch_directions(found, settings.weights, settings.sketch),
        )
        return found

    Influence._directions = keeping
    try:
        yield
    finally:
        Influence._directions = own


def less(cells: dict[Cell, dict[str, Any]], arm: str, other: str) -> dict[str, float]:
    """Return the mean difference of two arms' losses after the last period, with its interval, over all cells."""
    pairs = [
        (content, cells[replace(cell, arm=other)])
        for cell, content in cells.items()
        if cell.arm == arm and replace(cell, arm=other) in cells
    ]
    losses = [
        {
            f"{number} {name}": np.array([[values]])
            for number, pair in enumerate(pairs)
            for name, values in pair[side]["periods"][-1].items()
        }
        for side in (0, 1)
    ]
    _, mean = differences(*losses)
    return {name: round(value, 4) for name, value in vars(mean).items()}


def summary(cells: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each cell: its losses after each period, and what its rounds cost."""
    return [
        {
            "pool": cell.pool,
            "arm": cell.arm,
            "rate": cell.rate,
            "seed": cell.seed,
            "losses": [round(_mean(losses), 3) for losses in content["periods"]],
            "subtasks": {name: round(float(np.mean(v)), 3) for name, v in content["periods"][-1].items()},
            "gradients": sum(one["gradients"] for one in content["rounds"]),
            "share_of_time": round(
                sum(one["seconds"] for one in content["rounds"]) / max(content["seconds"], 1), 2
            ),
            "overlap": [one["overlap"] for one in content["rounds"][1:]],
        }
        for cell, content in cells.items()
    ]


def _mean(losses: Losses) -> float:
    return float(np.mean([np.mean(values) for values in losses.values()]))


def compared(cells: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each pool, rate and arm: its losses less random's, and the share of `dynamic`'s gain."""
    rows = []
    for pool, rate in dict.fromkeys((cell.pool, cell.rate) for cell in cells):
        some = {cell: content for cell, content in cells.items() if (cell.pool, cell.rate) == (pool, rate)}
        gains = {arm: less(some, arm, "random") for arm in dict.fromkeys(cell.arm for cell in some)}
        gradients = {
            cell.arm: sum(one["gradients"] for one in content["rounds"]) for cell, content in some.items()
        }
        for arm, gain in gains.items():
            row = {"pool": pool, "rate": rate, "arm": arm, "less": "random", **gain}
            if "dynamic" in gains and arm != "random":
                row["gain"] = round(gain["mean"] / gains["dynamic"]["mean"], 2)
                row["gradients"] = round(gradients[arm] / gradients["dynamic"], 2)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pools", default="templated,diverse")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--rates", default=",".join(map(str, RATES)))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cells", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=cache_folder() / "training")
    parser.add_argument("--keep", type=Path, help="a folder for the scores and sketches of all rounds")
    parser.add_argument("--finished", action="store_true", help="show finished cells; train nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kept = Cells(options.cells)
    planned = [
        Cell(pool, arm, int(seed), float(rate))
        for pool in options.pools.split(",")
        for seed in options.seeds.split(",")
        for rate in options.rates.split(",")
        for arm in options.arms.split(",")
    ]
    benches: dict[str, Bench] = {}
    for cell in planned if not options.finished else ():
        if cell.name in kept:
            continue
        if cell.pool not in benches:
            benches[cell.pool] = Bench(cell.pool, options.folder, kept)
        content = Rounds(benches[cell.pool], cell.seed, options.keep).trained(cell)
        kept.keep(cell.name, **content)
        losses = " ".join(f"{_mean(losses):.3f}" for losses in content["periods"])
        print(f"{cell.name}: {losses} ({content['seconds']} s)", flush=True)
    cells = {cell: kept[cell.name] for cell in planned if cell.name in kept}
    rows = [*summary(cells), *compared(cells)]
    for row in rows:
        print(row)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
