"""Kill workers, nodes and drivers at random moments while they compute, and compare the results.

    python tests/whole/adversary/deaths.py [WORKERS [NODES [DRIVERS]]]

WORKERS, NODES and DRIVERS are the numbers of kills (300, 30 and 30). The selections run on a cluster of Ray in this
machine. Workers are killed with SIGKILL; nodes are removed hard, and others take their place; a killed driver's command
is repeated with another number of workers. The verdict is the results of one process, byte for byte, with every draw
counted once.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
import ray
from ray.cluster_utils import Cluster

import clusterucb as cu
from helpers.selections import write_job
from helpers.tiny import rows, write_rows
from whole.adversary import damage

NODES = 2
JOB: dict[str, Any] = {
    "pool": "pool.jsonl",
    "target": "dev.jsonl",
    "model": "model",
    "warmup_steps": 2,
    "budget": "80%",
    "batch_size": 16,
    "batch_tokens": 48,
}
SPREAD = 3  # the longest time between two kills, in times that a selection takes
Killer = Callable[[random.Random], int]


def worker_processes() -> list[int]:
    """Return the processes of this cluster's workers that are alive."""
    raylets = {raylet.pid for raylet in psutil.Process().children() if raylet.name() == "raylet"}
    found = []
    for process in psutil.process_iter(["ppid"]):
        with suppress(psutil.Error):
            if process.info["ppid"] in raylets and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process.pid)
    return found


def kill_worker(rng: random.Random) -> int:
    """Kill one of the workers. Returns the number of kills."""
    alive = worker_processes()
    if not alive:
        return 0
    with suppress(ProcessLookupError):
        os.kill(rng.choice(alive), signal.SIGKILL)
    return 1


class Nodes:
    """The nodes of a cluster, of which one is replaced at a time."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._nodes = [self._added() for _ in range(NODES)]

    def _added(self) -> Any:
        with mock.patch("ray._private.utils.set_sigterm_handler"):  # it works in the main thread alone
            return self.cluster.add_node(num_cpus=2, object_store_memory=100 << 20)

    def kill(self, rng: random.Random) -> int:
        """Remove a node hard, and add another one. Returns the number of kills."""
        if not worker_processes():
            return 0
        node = self._nodes.pop(rng.randrange(len(self._nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._added())
        return 1


def results(out: Path) -> dict[str, bytes]:
    """Return the results of a run, and what it counted."""
    manifest = json.loads((out / "manifest.json").read_bytes())
    counted = {name: manifest["outcome"][name] for name in ("n_scored", "n_selected")}
    return {
        **{name: (out / name).read_bytes() for name in ("selected.jsonl", "scores.jsonl", "rejected.jsonl")},
        "counts": json.dumps(counted).encode(),
    }


def with_kills(kill: Killer, wanted: int, expected: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """Yield the outcomes of selections, until enough kills have hit them."""
    shutil.rmtree("work", ignore_errors=True)
    began = time.monotonic()
    cu.select(**JOB, out="work", workers=1)
    longest = SPREAD * (time.monotonic() - began)
    done, number = 0, 0
    while done < wanted:
        number += 1
        rng, over, hits = random.Random(number), threading.Event(), []

        def killer(rng: random.Random = rng, over: threading.Event = over, hits: list[int] = hits) -> None:
            while not over.wait(rng.uniform(0, longest)):
                hits.append(kill(rng))

        thread = threading.Thread(target=killer)
        shutil.rmtree("work", ignore_errors=True)
        thread.start()
        try:
            cu.select(**JOB, out="work", workers=rng.choice((1, 2, 3)))
            wrong = "" if results(Path("work")) == expected else "other results"
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        finally:
            over.set()
            thread.join()
        done += sum(hits)
        yield f"{kill.__qualname__}, selection {number} with {sum(hits)} kills", wrong


def with_dead_drivers(wanted: int, expected: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """Yield the outcomes of selections whose driver is killed, and which are then repeated."""
    command = [sys.executable, "-m", "clusterucb", "select", "pool.jsonl"]
    for name, value in JOB.items():
        command += [] if name == "pool" else [f"--{name.replace('_', '-')}", str(value)]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    for number in range(1, wanted + 1):
        rng = random.Random(-number)
        shutil.rmtree("work", ignore_errors=True)
        first = subprocess.Popen(
            [*command, "--out", "work", "--workers", "2"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(3, 25))
        first.kill()
        first.wait()
        try:
            cu.select(**JOB, out="work", **rng.choice(({}, {"workers": 1}, {"workers": 3})))
            wrong = "" if results(Path("work")) == expected else "other results"
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        yield f"driver {number}", wrong


def main(n_workers: int = 300, n_nodes: int = 30, n_drivers: int = 30) -> int:
    """Kill, and print the faults. Returns their number."""
    with damage.elsewhere():
        write_job(Path())
        write_rows(Path("pool.jsonl"), rows(400))
        cu.select(**JOB, out="alone")
        expected = results(Path("alone"))
        nodes = Nodes()
        ray.init(address=nodes.cluster.address, log_to_driver=False, logging_level="ERROR")
        try:
            faults = damage.report(with_kills(kill_worker, n_workers, expected))
            faults += damage.report(with_kills(nodes.kill, n_nodes, expected))
            return faults + damage.report(with_dead_drivers(n_drivers, expected))
        finally:
            ray.shutdown()
            nodes.cluster.shutdown()


if __name__ == "__main__":
    os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
