"""Score a pool with every preconditioner, and record the lengths of the updates: `python benchmarks/score_kinds.py`.

    python benchmarks/score_kinds.py [--pool diverse] FILE

One gradient of every pool sample is computed, at the adapter that the recorded scores of `tests/data` belong to. It
gives an update for each preconditioner, and the update gives its length and its inner product with the direction of
every subtask. The score is the inner product divided by the length. Without the division, it is the first-order change
of the target's loss that one step on the sample makes, and longer updates score higher. `bench_training.py` trains on
both (arms such as `sgd` and `inner`). The command takes half an hour on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch

from bench_training import CELLS, Bench
from cells import Cells
from clusterucb.demo.wheels import cache_folder
from clusterucb.gradients.accumulate import Checkpoint
from clusterucb.gradients.checkpoints import at_checkpoint
from clusterucb.gradients.directions import UnitGradients, compute_directions
from clusterucb.gradients.passes import CPU_TOKENS, Here, PaddedBatch, Passes
from clusterucb.jobs.stages.prepare import prepare
from clusterucb.kernels import ops
from clusterucb.kernels.preconditioner import PRECONDITIONERS, Preconditioner
from clusterucb.progress import Screen
from replay import scores_of, subtasks_of

CLOSE = 1e-4  # the largest difference from the recorded scores
Numbers = dict[
    str, tuple[torch.Tensor, torch.Tensor]
]  # of each preconditioner: squared lengths, inner products


@dataclass(frozen=True)
class Updates:
    """Computes the updates of samples with every preconditioner, from one gradient each.

    Attributes:
        checkpoint: the model at the adapter, with the moments.
        preconditioners: the preconditioners by name.
        directions: f32[S, P], the directions of the target's subtasks.
    """

    checkpoint: Checkpoint
    preconditioners: dict[str, Preconditioner]
    directions: torch.Tensor

    @classmethod
    def of(cls, bench: Bench) -> Self:
        """Load the model, and compute the directions of the target's subtasks in alphabetical order."""
        state = bench.adapter / "optimizer.pt"
        checkpoints = {
            kind: at_checkpoint(replace(bench.settings, preconditioner=kind), bench.model, state)
            for kind in PRECONDITIONERS
        }
        files = (bench.own / "pool.jsonl", bench.own / "target.jsonl")
        target = prepare(*files, bench.path_of_model, bench.settings, Screen()).material.target
        checkpoint = checkpoints["adam_less"]
        with Screen().count("Target gradients", sum(map(len, target.values()))) as advance:
            directions, _ = compute_directions(
                UnitGradients(checkpoint),
                {subtask: target[subtask] for subtask in subtasks_of(bench.name)},
                Passes(CPU_TOKENS),
                advance=advance,
            )
        of_kinds = {kind: one.preconditioner for kind, one in checkpoints.items()}
        return cls(checkpoint, of_kinds, torch.from_numpy(directions))

    def __call__(self, batch: PaddedBatch) -> Numbers:
        """Compute the updates of the samples of one pass."""
        count, moments = len(batch.lengths), self.checkpoint.moments
        assert moments is not None
        both = (torch.from_numpy(moments.m), torch.from_numpy(moments.v))
        numbers = {
            kind: (torch.zeros(count, dtype=torch.float64), torch.zeros(count, len(self.directions)).double())
            for kind in self.preconditioners
        }

        def add(offset: int, gradient: torch.Tensor) -> None:
            for kind, preconditioner in self.preconditioners.items():
                ops.accumulate(
                    gradient,
                    offset,
                    preconditioner=preconditioner,
                    norm2=numbers[kind][0],
                    moments=None if kind == "sgd" else both,
                    directions=self.directions,
                    products=numbers[kind][1],
                )

        self.checkpoint.gradients.backward(batch, add)
        return numbers


def scored(bench: Bench) -> dict[str, np.ndarray]:
    """Return ``KIND`` f32[N, S], the scores, and ``KIND-lengths`` f32[N], for each preconditioner."""
    updates, samples = Updates.of(bench), list(bench.material.encoded)
    found: dict[str, np.ndarray] = {}
    with updates.checkpoint.gradients, Screen().count("Pool gradients", len(samples)) as advance:
        for rows, numbers in Passes(CPU_TOKENS).over("pool", 0, samples, Here(updates)):
            for kind, (squares, products) in numbers.items():
                lengths = squares.sqrt().numpy()
                empty = np.zeros((len(samples), products.shape[1]), np.float32)
                found.setdefault(kind, empty)[rows] = products.numpy() / lengths[:, None]
                found.setdefault(f"{kind}-lengths", empty[:, 0].copy())[rows] = lengths
            advance(len(rows))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--pool", default="diverse")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "training")
    options = parser.parse_args()
    found = scored(Bench(options.pool, options.folder, Cells(CELLS)))
    apart = float(np.abs(found["adam_less"] - scores_of(options.pool)).max())
    print(f"largest difference from the recorded scores: {apart:.1e}")
    if not apart < CLOSE:
        raise SystemExit(
            f"expected less than {CLOSE}: this is another adapter than that of the recorded scores"
        )
    found["subtasks"] = np.array(subtasks_of(options.pool))
    np.savez_compressed(options.file, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
