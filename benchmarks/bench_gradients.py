"""Time the pass that scores per-sample gradients against plain training and other libraries, side by side.

    make bench-gradients [ARGS='[--json FILE] [--only TEXT] [--rounds 7] [--threads N]']

The model is SmolLM2-135M-Instruct. The samples are real conversations: short samples are single conversations, long
samples join several. Each row is the median ratio of our time to the other's time. In every round all contenders run
one after the other, in an order that changes by round; an untimed round comes first. All get the same micro-batches of
the same tokens. Before a case is timed, the bench compares our scores with those of batch-1 autograd, and all scores of
other libraries with ours (with `--rounds 0` it only makes these checks). The contenders:

    plain-training       a LoRA training step as users of transformers write it: mask, labels, loss.backward(). It
                         computes no per-sample gradients
    label-only-training  the same step without a mask, with logits at label positions alone: the floor
    batch-1-loop         one sample at a time: backward pass, flat gradient, Adam's update, inner products
    bergson, dattri-llm  the same scores without a preconditioner (cases `sgd`). Each runs with a loss over all logits
                         and with our loss over label positions (`label-only`); see gradient_peers.py

`python benchmarks/bench_gradients.py` measures only the libraries that are installed.

r is the rank of the LoRA, S is the number of target directions.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import gradient_peers
from clusterucb.demo.model import demo_model
from clusterucb.demo.pool import demo_pool
from clusterucb.gradients.accumulate import Accumulator, Checkpoint
from clusterucb.gradients.loss import sample_losses
from clusterucb.gradients.passes import PaddedBatch, micro_batches
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.kernels import ops
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.model.adapters import attach_lora
from clusterucb.model.moments import Moments
from clusterucb.model.parameters import ParameterManifest
from clusterucb.model.source import ModelSource
from clusterucb.progress import Screen
from clusterucb.samples.encode import Encoder
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.pool import read_pool
from clusterucb.samples.shapes import Message

ADAM, SGD = Preconditioner("adam_less", step=30), Preconditioner("sgd")
BATCH_TOKENS = 1024
SHORT = 64  # tokens at most
LONG = (200, 500)  # tokens
COUNTS = {"short": 24, "long": 8}
Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A LoRA, a number of directions, a kind of samples and a preconditioner."""

    samples: str
    rank: int
    layers: tuple[str, ...]
    directions: int
    preconditioner: Preconditioner

    @property
    def name(self) -> str:
        layers = ",".join(layer[0] for layer in self.layers)
        sgd = " sgd" if self.preconditioner == SGD else ""
        return f"{self.samples} r={self.rank} {layers} S={self.directions}{sgd}"


QV = ("q_proj", "v_proj")
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
CASES = [
    Case(samples, *size, preconditioner)
    for preconditioner in (ADAM, SGD)
    for samples in ("short", "long")
    for size in ((8, QV, 8), (16, QKVO, 57))
]


class Job:
    """A model with a LoRA, and every input of the contenders."""

    def __init__(self, case: Case, source: ModelSource, samples: Sequence[Encoded]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.preconditioner = case.preconditioner
        self.model = attach_lora(
            source.model("float32", "cpu"),
            rank=case.rank,
            alpha=2 * case.rank,
            targets=list(case.layers),
            seed=0,
        )
        for name, weight in self.model.named_parameters():
            if "lora_B" in name:  # as after a warm-up: B = 0 would make the gradients of A zero
                weight.data.normal_(0, 0.02, generator=generator)
        self.model.config.use_cache = False  # no contender uses a key-value cache
        self.manifest = ParameterManifest.of(self.model)
        self.weights = [self.model.get_parameter(one.torch_name) for one in self.manifest]
        self.batches = [
            [samples[at] for at in batch]
            for batch in micro_batches([len(one) for one in samples], BATCH_TOKENS)
        ]
        size = self.manifest.size
        m, v, directions = (
            torch.empty(shape).normal_(generator=generator) for shape in (size, size, (case.directions, size))
        )
        inside = torch.zeros(size)
        for one in self.manifest:
            inside[one.offset : one.offset + one.size] = 1
        self.moments = Moments(
            (m * 1e-4 * inside).numpy(), (v.square() * 1e-7 * inside).numpy(), 30, 0.9, 0.999, 1e-8
        )
        self.directions = (directions * inside).numpy()
        self.checkpoint = Checkpoint(
            PerSampleGradients(self.model, self.manifest), size, self.preconditioner, self.moments
        )

    @cached_property
    def accumulator(self) -> Accumulator:
        return Accumulator(self.checkpoint, directions=self.directions)

    @cached_property
    def plain_batches(self) -> list[dict[str, torch.Tensor]]:
        return [_plain(batch) for batch in self.batches]

    def others(self) -> Mapping[str, Run]:
        """Return the other contenders by name."""
        if self.preconditioner == SGD:
            work = gradient_peers.Work(
                self.model,
                self.manifest,
                torch.from_numpy(self.directions),
                self.plain_batches,
                [PaddedBatch.of(batch) for batch in self.batches],
            )
            return gradient_peers.contenders(work)
        return {
            "plain-training": self.plain_training,
            "label-only-training": self.label_only_training,
            "batch-1-loop": self.batch_1_loop,
        }

    # The contenders ------------------------------------------------------------------------------------------

    def ours(self) -> np.ndarray:
        scores = []
        with self.accumulator:
            for batch in self.batches:
                found = self.accumulator(PaddedBatch.of(batch))
                scores.append(ops.finish(found.norm2, found.products))
        return np.concatenate(scores)

    def plain_training(self) -> None:
        self.model.train()
        for batch in self.plain_batches:
            self.model(**batch).loss.backward()
        self.model.zero_grad()

    def label_only_training(self) -> None:
        self.model.train()
        for batch in self.batches:
            sample_losses(self.model, PaddedBatch.of(batch)).sum().backward()
        self.model.zero_grad()

    def batch_1_loop(self) -> None:
        self.model.eval()
        directions = torch.from_numpy(self.directions)
        for batch in self.batches:
            for sample in batch:
                self.model(**_plain([sample])).loss.backward()
                update = self.update()
                _ = directions @ update / update.norm()

    def update(self) -> torch.Tensor:
        """Return the flat preconditioned gradient f32[P] of the weights, and clear their gradients."""
        gradient = torch.zeros(self.manifest.size)
        for one, weight in zip(self.manifest, self.weights, strict=True):
            gradient[one.offset : one.offset + one.size] = weight.grad.flatten()
        self.model.zero_grad()
        if self.preconditioner == SGD:
            return gradient
        m = 0.9 * torch.from_numpy(self.moments.m) + 0.1 * gradient
        v = 0.999 * torch.from_numpy(self.moments.v) + 0.001 * gradient.square()
        return m / (v + 1e-8).sqrt()  # eps inside the root, as in LESS

    def check(self) -> None:
        """Compare scores of samples in the first and the last batch with those of batch-1 autograd."""
        directions = torch.from_numpy(self.directions).double()
        for batch in (self.batches[0], self.batches[-1]):
            with self.accumulator:
                found = self.accumulator(PaddedBatch.of(batch))
                scores = ops.finish(found.norm2, found.products)
            self.model.eval()
            for row in {0, len(batch) - 1}:
                self.model(**_plain([batch[row]])).loss.backward()
                update = self.update().double()
                expected = (directions @ update / update.norm()).numpy()
                error = np.abs(scores[row] - expected).max() / np.linalg.norm(self.directions, axis=1).max()
                assert error < 1e-6, f"a score is wrong by {error}"

    def check_peers(self, peers: Mapping[str, Run]) -> None:
        """Compare all scores of the other libraries with ours.

        Raises:
            SystemExit: if their shape differs, or a score is off by 1e-4 of the largest or more.
        """
        ours = self.ours()
        for name, run in peers.items():
            theirs = np.asarray(run())
            if theirs.shape != ours.shape:
                raise SystemExit(
                    f"{name} gives scores of shape {theirs.shape}; expected {ours.shape}, as ours"
                )
            errors = np.abs(theirs - ours) / np.abs(ours).max()
            row, column = np.unravel_index(np.argmax(np.nan_to_num(errors, nan=np.inf)), errors.shape)
            if not errors[row, column] < 1e-4:
                raise SystemExit(
                    f"{name} scores sample {row} by direction {column} with {theirs[row, column]:.6g}, we with "
                    f"{ours[row, column]:.6g}: {errors[row, column]:.2g} of the largest; expected below 1e-4"
                )
            print(f"  {name}: its scores are ours within {errors.max():.1g} of the largest", flush=True)


def _plain(samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """Return a batch as keyword arguments of a `transformers` model."""
    batch = PaddedBatch.of(samples)
    mask = (torch.arange(batch.ids.shape[1]) < torch.tensor(batch.lengths)[:, None]).long()
    labels = torch.full_like(batch.ids, -100)
    labels.flatten()[batch.predicting + 1] = batch.predicted
    return {"input_ids": batch.ids, "attention_mask": mask, "labels": labels}


def samples_of(encoder: Encoder, kind: str, pool: Path) -> list[Encoded]:
    """Return encoded samples: single short conversations, or long ones that join several conversations."""
    read = [sample.messages for sample in read_pool([pool]).samples]
    random.Random(0).shuffle(read)
    if kind == "short":
        encoded = (encoder(messages) for messages in read)
        return list(islice((one for one in encoded if len(one) <= SHORT), COUNTS[kind]))
    found: list[Encoded] = []
    step = (LONG[1] - LONG[0]) // COUNTS[kind]
    turns: list[Message] = []
    for messages in read:
        turns += [message for message in messages if message.role != "system"]
        joined = encoder(turns)
        if len(joined) >= LONG[0] + len(found) * step:  # spread over the range of lengths
            if len(joined) <= LONG[1]:
                found.append(joined)
            turns = []
        if len(found) == COUNTS[kind]:
            return found
    raise AssertionError("the pool is too small")


def ratios(ours: Run, others: Mapping[str, Run], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median ratio of our time to each other contender's, and that contender's median seconds."""
    contenders = {"ours": ours, **others}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for number in range(rounds):
        names = list(contenders)
        random.Random(number).shuffle(names)
        for name in names:
            began = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - began)
    mine = np.array(seconds["ours"])
    return {
        name: (float(np.median(mine / np.array(seconds[name]))), statistics.median(seconds[name]))
        for name in others
    }


CONTENDERS = ("plain-training", "label-only-training", "batch-1-loop", "bergson", "dattri-llm")


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return the results as a Markdown table with one line for each kind of samples and LoRA."""
    found = {(str(row["case"]).removesuffix(" sgd"), row["ratio_to"]): row["ratio"] for row in rows}
    lines = [f"| our time over that of | {' | '.join(CONTENDERS)} |", f"|---|{'---|' * len(CONTENDERS)}"]
    for case in dict.fromkeys(case for case, _ in found):
        ratios = (found.get((case, name)) for name in CONTENDERS)
        shown = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {case} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = ModelSource(str(demo_model(Screen())))
    encoder = Encoder(source.tokenizer(), max_length=1024)
    pool, _ = demo_pool(Screen())
    found = gradient_peers.versions()
    if missing := [name for name in gradient_peers.PEERS if name not in found]:
        print(
            f"Not installed, so not measured: {', '.join(missing)}. `make bench-gradients` measures them too."
        )
    versions = ", ".join(f"{name} {one}" for name, one in {"torch": torch.__version__, **found}.items())
    device = f"{platform.machine()} CPU, {options.threads} threads, {versions}"
    rows = []
    for case in CASES:
        if options.only not in case.name or (case.preconditioner == SGD and not found):
            continue
        samples = samples_of(encoder, case.samples, pool)
        job = Job(case, source, samples)
        tokens = sum(map(len, samples))
        print(f"{case.name}: {len(samples)} samples, {tokens} tokens, p = {job.manifest.size:,}", flush=True)
        job.check()
        others = job.others()
        if case.preconditioner == SGD:
            job.check_peers(others)
        if not options.rounds:
            continue
        for name, (ratio, seconds) in ratios(job.ours, others, options.rounds).items():
            rows.append({"case": case.name, "ratio_to": name, "ratio": float(f"{ratio:.4g}")})
            print(f"  {ratio:.3f} of {name} ({seconds:.2f} s)", flush=True)
        if options.json:  # write after each case: all cases take an hour
            options.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
