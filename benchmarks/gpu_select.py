"""Check whole selections on this machine's GPU, and time scoring against plain training steps, without a network.

    python benchmarks/gpu_select.py [--rows 600]

The package must be installed with its CUDA kernels. The model is a random Llama with the shape of SmolLM2-135M, so that
nothing is downloaded; the pool is synthetic. The checks:

    twice     the same selection in two folders writes the same bytes
    killed    a selection that is killed with SIGKILL and resumed writes the same bytes
    cpu       the GPU and the CPU give the same scores within a tolerance, in float32, at the same checkpoint
    speed     the time to score 512 samples against plain LoRA training steps on the same passes: the median ratio

The script writes its results to benchmarks/results/DEVICE-select.json, or to $OUT/DEVICE-select.json if OUT is set.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

from helpers import tiny  # noqa: E402  (it lies in tests/)
from helpers.models import tiny_llama  # noqa: E402

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "initializer_range": 0.04,
}
VOCABULARY = 49_152
FILES = ("selected.jsonl", "scores.jsonl", "rejected.jsonl")


def write_job(folder: Path, count: int) -> None:
    """Write a model, a pool of samples with 40 to about 400 tokens, and a target of two subtasks."""
    tiny.write_model(folder / "model", **SHAPE)
    choose = random.Random(0)
    pool = tiny.rows(count)
    for row in pool:
        words = [choose.choice(["river", "stone", "cloud", "seven", "green"]) for _ in range(60)]
        row["completion"] += " " + " ".join(words[: choose.randrange(60)])
    tiny.write_rows(folder / "pool.jsonl", pool)
    target = tiny.rows(16, seed=3)
    for row in target:
        row["subtask"] = row["source"]
    tiny.write_rows(folder / "dev.jsonl", target)


def command(job: Path, out: str, *options: str) -> list[str]:
    paths = (str(job / "pool.jsonl"), "--target", str(job / "dev.jsonl"), "--model", str(job / "model"))
    return [sys.executable, "-m", "clusterucb", "select", *paths, "--out", str(job / out), *options]


def run(arguments: list[str]) -> float:
    began = time.monotonic()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"exit {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return time.monotonic() - began


def same_files(one: Path, other: Path) -> None:
    wrong = [name for name in FILES if (one / name).read_bytes() != (other / name).read_bytes()]
    assert not wrong, f"other bytes in {', '.join(wrong)}"


def check_twice(job: Path) -> str:
    seconds = run(command(job, "a")), run(command(job, "b"))
    same_files(job / "a", job / "b")
    return f"same bytes, {seconds[0]:.0f} and {seconds[1]:.0f} s"


def check_killed(job: Path, kills: int = 3) -> str:
    """Kill a selection several times, shortly after its ledger appears, and resume it."""
    killed = 0
    for wait in np.linspace(0.2, 1.5, kills):
        child = subprocess.Popen(
            command(job, "k"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while child.poll() is None and not (job / "k/ledger.sqlite").exists():
            time.sleep(0.02)
        time.sleep(wait)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            killed += 1
        child.wait()
    run(command(job, "k"))
    same_files(job / "a", job / "k")
    return f"same bytes after {killed} kills"


def read_scores(run_folder: Path) -> dict[str, list[float]]:
    rows = tiny.read_rows(run_folder / "scores.jsonl")
    return {row["id"]: list(row["subtasks"].values()) for row in rows}


def check_cpu(job: Path) -> str:
    """Compare the scores of 40 random draws on GPU and CPU, at the checkpoint of the first selection."""
    options = ("--adapter", str(job / "a/adapter"), "--policy", "random", "--budget", "40", "--select", "10")
    found = {}
    for device in ("cuda", "cpu"):
        run(command(job, device, *options, "--device", device))
        found[device] = read_scores(job / device)
    assert found["cuda"].keys() == found["cpu"].keys(), "other samples were drawn"
    scores = {device: np.array([rows[name] for name in sorted(rows)]) for device, rows in found.items()}
    error = np.abs(scores["cuda"] - scores["cpu"]).max()
    spread = scores["cpu"].std()
    assert error <= 1e-3 * spread, f"scores differ by {error:.3g}; their spread is {spread:.3g}"
    return f"largest difference {error:.3g}; the scores' spread is {spread:.3g}"


def check_speed(_: Path, rounds: int = 7) -> list[dict[str, Any]]:
    """Time scoring against plain training steps on the same passes, in float32 and under bfloat16 autocast."""
    from peft import LoraConfig, get_peft_model

    from clusterucb.gradients.accumulate import Accumulator, Checkpoint
    from clusterucb.gradients.passes import PaddedBatch, micro_batches
    from clusterucb.gradients.per_sample import PerSampleGradients
    from clusterucb.kernels.preconditioner import Preconditioner
    from clusterucb.model.parameters import ParameterManifest
    from clusterucb.samples.encoded import Encoded

    rng = np.random.default_rng(0)
    model = tiny_llama(vocab_size=VOCABULARY, **SHAPE).to("cuda")
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.02)
    model.config.use_cache = False
    manifest = ParameterManifest.of(model)
    directions = rng.normal(size=(8, manifest.size)).astype(np.float32)
    lengths = rng.integers(40, 400, 512)
    samples = [
        Encoded(rng.integers(5, VOCABULARY, n), np.arange(n) >= n // 2, np.ones(n, bool)) for n in lengths
    ]
    rows = []
    for limit in (4096, 32768):
        batches = [
            PaddedBatch.of([samples[at] for at in rows_], "cuda")
            for rows_ in micro_batches([len(one) for one in samples], limit, limit)
        ]
        for autocast in (False, True):
            dtype = torch.bfloat16 if autocast else None
            gradients = PerSampleGradients(model, manifest, autocast=dtype)
            checkpoint = Checkpoint(gradients, manifest.size, Preconditioner("sgd"))
            accumulator = Accumulator(checkpoint, device="cuda", directions=directions)

            def ours(batches: list[Any] = batches, accumulator: Any = accumulator) -> None:
                with accumulator:
                    for batch in batches:
                        accumulator(batch)

            def plain(batches: list[Any] = batches, autocast: bool = autocast) -> None:
                model.train()
                for batch in batches:
                    labels = torch.full_like(batch.ids, -100)
                    labels.flatten()[batch.predicting + 1] = batch.predicted
                    mask = torch.ones_like(batch.ids)
                    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                        loss = model(input_ids=batch.ids, attention_mask=mask, labels=labels).loss
                    loss.backward()
                model.zero_grad()

            ratio, seconds = timed(ours, plain, rounds)
            rows.append(
                {
                    "case": f"{'bf16 autocast' if autocast else 'float32'}, passes of {limit} tokens",
                    "samples/s": round(len(samples) / seconds),
                    "of plain training": round(ratio, 3),
                }
            )
            print("  ", rows[-1], flush=True)
    return rows


def timed(ours: Callable[[], None], theirs: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Return the median ratio of our time to theirs, and our median time in seconds."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for number in range(-2, rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            torch.cuda.synchronize()
            began = time.perf_counter()
            (ours, theirs)[which]()
            torch.cuda.synchronize()
            if number >= 0:
                seconds[which].append(time.perf_counter() - began)
    return float(np.median(np.divide(seconds[0], seconds[1]))), statistics.median(seconds[0])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=600)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_select: torch finds no GPU; this check needs one")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        job = Path(temporary)
        write_job(job, options.rows)
        checks = {"twice": check_twice, "killed": check_killed, "cpu": check_cpu, "speed": check_speed}
        for name, check in checks.items():
            began = time.monotonic()
            try:
                results[name] = check(job)
            except Exception as error:  # run the remaining checks too
                results[name] = f"FAILED: {type(error).__name__}: {error}"
            print(f"{name:8} {results[name]} ({time.monotonic() - began:.1f} s)", flush=True)
    device = torch.cuda.get_device_name()
    folder = Path(os.environ.get("OUT") or ROOT / "benchmarks/results")
    path = folder / (re.sub(r"[^A-Za-z0-9._-]+", "-", device) + "-select.json")
    content = {"device": device, "torch": torch.__version__, "checks": results}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")
    return int(any(str(result).startswith("FAILED") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
