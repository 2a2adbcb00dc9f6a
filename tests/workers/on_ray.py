"""Workers on Ray give the same bytes as this process, and survive kills. `test_ray.py` runs these tests."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

import clusterucb as cu
from clusterucb.errors import OptionError, WorkerError
from clusterucb.workers import ray_transport
from clusterucb.workers.crew import DEATHS, Crew
from clusterucb.workers.lane import Deadly
from clusterucb.workers.ray_transport import RayTransport
from helpers.selections import write_job

OUTPUTS = ("selected.jsonl", "scores.jsonl", "rejected.jsonl")


@dataclass(frozen=True)
class Processes:
    """Answers with the process that computes; -1 kills it."""

    def load(self, device: str, shared: dict[str, Any]) -> tuple[int, Any]:
        return os.getpid(), self.square

    def square(self, x: int) -> tuple[int, int]:
        if x < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return x * x, os.getpid()


@pytest.fixture
def crew() -> Iterator[Crew]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests
    crew = Crew(RayTransport("cpu", 2), 2)
    yield crew
    crew.close()


def test_killed_workers_are_replaced(crew: Crew) -> None:
    before = signal.getsignal(signal.SIGTERM)
    key, _ = crew.load(Processes())
    rng = random.Random(0)
    seen: set[int] = set()
    for _ in range(12):
        numbers = [crew.begin(key, x) for x in range(20)]
        for x, number in enumerate(numbers):
            square, process = crew.answer(number)
            assert square == x * x
            seen.add(process)
        os.kill(rng.choice([process]), signal.SIGKILL)
    assert crew.n_deaths >= 11
    assert len(seen) >= 12
    assert signal.getsignal(signal.SIGTERM) is before
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


def test_a_request_that_kills_is_given_up(crew: Crew) -> None:
    key, _ = crew.load(Processes())
    numbers = [crew.begin(key, x) for x in (1, -1, 2, 3)]
    with pytest.raises(Deadly, match="process has died"):
        crew.answer(numbers[1])
    assert [crew.answer(number)[0] for number in (numbers[0], *numbers[2:])] == [1, 4, 9]
    assert DEATHS <= crew.n_deaths <= DEATHS + 1  # once, it may have been one of two in hand


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster that the process has joined already, as in a program that uses Ray itself."""
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_job(tmp_path_factory.mktemp("job"))
    return {
        "pool": folder / "pool.jsonl",
        "target": folder / "dev.jsonl",
        "model": folder / "model",
        "warmup_steps": 2,
        "budget": "60%",
        "batch_size": 8,
        "batch_tokens": 64,
    }


def read(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in OUTPUTS]


@pytest.mark.usefixtures("cluster")
def test_a_selection_has_the_same_bytes_with_workers(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the workers is killed while it computes."""
    cu.select(**job, out=tmp_path / "local")
    begin, n_left = Crew.begin, 5

    def killing(self: Crew, key: str, *request: Any) -> int:
        nonlocal n_left
        n_left -= 1
        if not n_left:
            ray_transport.ray_module().kill(self._hands[0].worker)
        return begin(self, key, *request)

    monkeypatch.setattr(Crew, "begin", killing)
    cu.select(**job, out=tmp_path / "workers", workers=2)
    assert n_left < 0
    assert read(tmp_path / "workers") == read(tmp_path / "local")
    again = cu.select(**job, out=tmp_path / "workers")
    assert again.outcome is not None
    assert ray.is_initialized()
    assert read(tmp_path / "workers") == read(tmp_path / "local")


@pytest.mark.usefixtures("cluster")
def test_features_have_the_same_bytes_with_workers(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERUCB_CACHE_LIMIT", "0")
    seen: list[str] = []

    def observer(text: str, *_: int) -> None:
        seen.append(text)

    job = {**job, "batch_size": 1, "budget": "10%"}
    for name, options in (("local", {}), ("workers", {"workers": 2})):
        cu.select(**job, features=cu.Hidden(), observer=observer, out=tmp_path / name, **options)
    idle = (
        "A batch of 1 draw makes 1 pass, so some of the 2 workers wait. --batch-size 2 would keep them busy;"
    )
    assert sum(text.startswith(idle) for text in seen) == 1
    assert read(tmp_path / "workers") == read(tmp_path / "local")
    (ours,), (theirs,) = (list((tmp_path / name).glob("features-0*")) for name in ("workers", "local"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.usefixtures("cluster")
def test_a_store_has_the_same_bytes_with_workers(job: dict[str, Any], tmp_path: Path) -> None:
    asked = {name: job[name] for name in ("pool", "model", "warmup_steps", "batch_tokens")}
    cu.sketch(**asked, sketch_dim=256, out=tmp_path / "local")
    cu.sketch(**asked, sketch_dim=256, out=tmp_path / "workers", workers="3")
    (ours,), (theirs,) = (list((tmp_path / name).glob("sketches-*")) for name in ("workers", "local"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("spec", ["0", "some", "-1", True, "http://x", "100000000"])
def test_other_numbers_of_workers_are_refused(job: dict[str, Any], spec: object) -> None:
    with pytest.raises(OptionError, match=r"--workers is '.*'; expected a number of workers, all, or"):
        cu.select(**job, workers=spec)


def test_a_model_in_memory_is_refused(job: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(job["model"]) for kind in (AutoModelForCausalLM, AutoTokenizer))
    with pytest.raises(OptionError, match="a model in memory, which workers cannot load"):
        cu.select(**{**job, "model": model}, tokenizer=tokenizer, workers=2)


def test_ray_that_is_missing_is_said(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        OptionError, match=r"needs Ray, which is not installed: pip install 'clusterucb\[ray\]'"
    ):
        cu.select(**job, workers=2)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "head:6379",
            r"the cluster at head:6379: no answer\. If it asks for a token, set RAY_AUTH_MODE=token",
        ),
        (None, r"a cluster on this machine: no answer$"),
    ],
)
@pytest.mark.parametrize("error", [ConnectionError, PermissionError, RuntimeError])
def test_a_cluster_that_cannot_be_used_is_said(
    address: str | None, said: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise error("no\nanswer")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(WorkerError, match=said):
        RayTransport("cpu", 1, address=address)
