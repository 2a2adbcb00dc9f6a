"""Time workers against one process, and against what they would reach if the driver took no time.

    python benchmarks/bench_workers.py [--samples 400] [--workers 2] [--sleepers 64] [--json FILE]

Three measurements:

- Sketches of the first samples of the templated pool with SmolLM2-135M-Instruct, by one process with one thread and by
  workers with one thread each. Both have loaded the model before the clock starts. The bytes must be the same.
- The driver's processor time for each pass, with one worker that answers at once.
- Many workers whose passes sleep, 20 passes a worker in a batch: the time that the sleeping alone takes, as a share of
  the time that the batches take.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray

import clusterucb as cu
import real_pool
from clusterucb.demo.model import demo_model
from clusterucb.demo.wheels import cache_folder
from clusterucb.progress import Screen
from clusterucb.samples.encoded import Encoded
from clusterucb.workers.crew import Crew
from clusterucb.workers.ray_transport import RayTransport

SECONDS = 0.5  # that a pass sleeps
A_WORKER, BATCHES = 20, 3  # passes of a worker in a batch; batches


@dataclass(frozen=True)
class Sleeps:
    """Sleeps for some seconds, in place of a pass."""

    seconds: float

    def load(self, device: str, shared: dict[str, Any]) -> tuple[None, Callable[..., int]]:
        del device, shared
        return None, self.sleep

    def sleep(self, samples: list[Encoded]) -> int:
        time.sleep(self.seconds)
        return len(samples)


def sketched(rows: list[dict[str, Any]], model: Path, out: Path, **options: Any) -> tuple[float, bytes]:
    """Return the seconds of the passes, and the bytes of the sketches."""
    store = cu.sketch(rows, model=str(model), out=out, warmup_steps=5, observer=Screen(), **options)
    seconds = json.loads((out / "manifest.json").read_text())["cost"]["phases"]["sketches"]["seconds"]
    return seconds, b"".join(path.read_bytes() for path in sorted(Path(store.folder).glob("sketches-*")))


def of_a_model(n_samples: int, workers: int) -> dict[str, Any]:
    """Time sketches here and on workers."""
    folder = cache_folder() / "training" / "templated"
    if not (folder / "pool.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        real_pool.main(folder)
    rows = [json.loads(line) for line in (folder / "pool.jsonl").read_bytes().splitlines()[:n_samples]]
    model = demo_model(Screen())
    with TemporaryDirectory() as scratch:
        here, expected = sketched(rows, model, Path(scratch) / "here")
        there, found = sketched(rows, model, Path(scratch) / "there", workers=workers)
    if found != expected:
        raise SystemExit("the sketches differ; expected the same bytes")
    return {
        "samples": n_samples,
        "workers": workers,
        "seconds_alone": round(here, 1),
        "seconds": round(there, 1),
        "times_as_fast": round(here / there, 2),
    }


def computed(crew: Crew, key: str, n_passes: int) -> None:
    """Compute passes as a job does: some have begun before the first is read."""
    tokens = np.arange(256)
    samples = [Encoded(tokens, tokens > 0, tokens > 0)] * 4
    numbers: list[int] = []
    for _ in range(n_passes):
        numbers.append(crew.begin(key, samples))
        if len(numbers) == 4 * crew.size:
            crew.answer(numbers.pop(0))
    for number in numbers:
        crew.answer(number)


def of_the_driver(n_passes: int = 2000) -> dict[str, Any]:
    """Measure the driver's processor time for each pass."""
    crew = Crew(RayTransport("cpu", 1), 1)
    key, _ = crew.load(Sleeps(0))
    computed(crew, key, 100)
    began = time.process_time()
    computed(crew, key, n_passes)
    used = time.process_time() - began
    crew.close()
    return {"passes": n_passes, "driver_ms_a_pass": round(1000 * used / n_passes, 2)}


def of_sleepers(size: int) -> dict[str, Any]:
    """Compare the time of batches on many workers with that of the sleeping alone."""
    crew = Crew(RayTransport("cpu", size), size)
    key, _ = crew.load(Sleeps(SECONDS))
    computed(crew, key, 4 * size)  # all have started
    began = time.monotonic()
    for _ in range(BATCHES):
        computed(crew, key, A_WORKER * size)
    seconds = time.monotonic() - began
    crew.close()
    return {"workers": size, "of_ideal": round(BATCHES * A_WORKER * SECONDS / seconds, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=400, help="0 leaves the model out")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sleepers", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = {"driver": of_the_driver(), "sleepers": of_sleepers(options.sleepers)}
    if options.samples:
        found["model"] = of_a_model(options.samples, options.workers)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    ray.cloudpickle.register_pickle_by_value(__import__("__main__"))
    main()
