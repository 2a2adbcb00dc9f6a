"""The schedules of rounds: the paper's, exhaustive rounds, and ours."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import clusterucb as cu
from clusterucb.errors import OptionError
from clusterucb.training import Reselect, audit, selecting
from clusterucb.training.clusters import OfSketches
from helpers.loops import trained
from helpers.selections import write_job

N_POOL = 90
PAPER: dict[str, Any] = {"schedule": "paper", "budget": "40%"}
AUTO: dict[str, Any] = {"every": "auto", "budget": "70%"}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_job(folder)
    return folder


@pytest.fixture(scope="module")
def dynamic(job: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reselect, Path]:
    out = tmp_path_factory.mktemp("dynamic")
    return trained(job, out, schedule="dynamic"), out


@pytest.fixture(scope="module")
def paper(job: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reselect, Path]:
    out = tmp_path_factory.mktemp("paper")
    return trained(job, out, **PAPER), out


@pytest.fixture(scope="module")
def auto(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Reselect:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "FEWEST", 6)
        return trained(job, tmp_path_factory.mktemp("auto"), **AUTO)


def scored(round_folder: Path) -> list[bytes]:
    return (round_folder / "scores.jsonl").read_bytes().splitlines()


def test_dynamic_computes_every_gradient_in_each_round(dynamic: tuple[Reselect, Path]) -> None:
    selection, out = dynamic
    n_gradients = {one.gradients for one in selection.rounds}
    assert [len(scored(out / f"round-000{number}")) for number in (1, 2, 3)] == [N_POOL] * 3
    assert len(n_gradients) == 1
    assert n_gradients.pop() > N_POOL  # and those of the target


def test_the_paper_computes_every_gradient_once(
    paper: tuple[Reselect, Path], dynamic: tuple[Reselect, Path]
) -> None:
    selection, out = paper
    assert [len(scored(out / f"round-000{number}")) for number in (1, 2, 3)] == [N_POOL, 36, 36]
    first, *later = (one.gradients for one in selection.rounds)
    assert later == [first - N_POOL + 36] * 2
    # sketches leave the scores of the same model as they are, bit for bit
    assert (out / "round-0001/scores.jsonl").read_bytes() == (
        dynamic[1] / "round-0001/scores.jsonl"
    ).read_bytes()
    assert [one.sketches != "" for one in selection.rounds] == [True, False, False]


def test_the_papers_clusters_are_those_of_the_first_rounds_gradients(paper: tuple[Reselect, Path]) -> None:
    selection, _ = paper
    found = load_file(selection.rounds.sketches(1))
    assert found["rows"].tolist() == list(range(N_POOL))
    norms = np.linalg.norm(found["values"].astype(np.float32), axis=1)
    assert norms == pytest.approx(1, abs=0.05)
    pool = cu.engine.poolview.PoolView(
        {"other": np.ones((N_POOL, 2), np.float32)},
        np.zeros(N_POOL, np.int64),
        np.zeros(N_POOL),
        budget=36,
        n_select=12,
    )
    clusterer = OfSketches((cu.KMeans(),), str(selection.rounds.sketches(1)))
    labels = clusterer.fit_predict(pool, np.random.default_rng(0))
    alone = cu.KMeans().fit_predict(
        cu.engine.poolview.PoolView(
            {"gradient": found["values"].astype(np.float32)}, pool.labels, pool.priority, budget=36
        ),
        np.random.default_rng(0),
    )
    assert labels.tolist() == alone.tolist()
    assert len(set(labels.tolist())) > 1


@pytest.mark.parametrize(("name", "n_prior"), [("ours", [0, 1, 2]), ("paper", [0, 0, 0])])
def test_only_our_rounds_learn_from_earlier_ones(
    name: str, n_prior: list[int], job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    again = selecting.select_again

    def spied(*arguments: Any, **options: Any) -> Any:
        seen.append((len(options.get("prior") or ()), type(options["policy"]).__name__))
        return again(*arguments, **options)

    monkeypatch.setattr(selecting, "select_again", spied)
    trained(job, tmp_path, schedule=name, budget="40%")
    later = "Surrogate" if name == "ours" else "UCB"
    assert seen == list(zip(n_prior, ["Exhaustive" if name == "paper" else later, later, later], strict=True))


def test_schedules_that_cannot_be_used_are_refused(job: Path) -> None:
    files = job / "pool.jsonl", job / "dev.jsonl"
    with pytest.raises(OptionError, match="schedule is 'papers'; expected one of ours, paper, dynamic"):
        Reselect(*files, schedule="papers")
    for options in ({"budget": "10%"}, {"policy": cu.UCB()}):
        with pytest.raises(OptionError, match="schedule is 'dynamic', which computes every gradient"):
            Reselect(*files, schedule="dynamic", **options)


@pytest.mark.parametrize(("name", "step"), [("paper", 5), ("auto", 3), ("auto", 8)])
def test_a_training_that_is_resumed_selects_the_same(
    name: str,
    step: int,
    job: Path,
    paper: tuple[Reselect, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "FEWEST", 6)
    options = (
        {"schedule": "paper", "budget": "40%"} if name == "paper" else {"every": "auto", "budget": "70%"}
    )
    whole = paper[0] if name == "paper" else trained(job, tmp_path / "whole", **options)
    again = trained(job, tmp_path / "again", resumed_at=step, **options)
    for one, other in zip(whole.rounds, again.rounds, strict=True):
        one.seconds = other.seconds = 0.0
        assert one == other
    audited = [one.audit is not None for one in again.rounds]
    assert audited == [name == "auto" and one.number > 1 for one in again.rounds]


def test_exhaustive_rounds_may_select_any_share(job: Path, tmp_path: Path) -> None:
    selection = trained(job, tmp_path, schedule="dynamic", select="50%", every=1000)
    assert [len(one.rows) for one in selection.rounds] == [N_POOL // 2]
    with pytest.raises(OptionError, match="schedule is 'dynamic', which computes every gradient"):
        Reselect(job / "pool.jsonl", job / "dev.jsonl", schedule="dynamic", until="recall=0.9")
    with pytest.raises(OptionError, match=r"schedule is \['ours'\]; expected one of ours, paper, dynamic"):
        Reselect(job / "pool.jsonl", job / "dev.jsonl", schedule=["ours"])
    with pytest.raises(OptionError, match="rows is called before open; expected open"):
        Reselect(job / "pool.jsonl", job / "dev.jsonl").rows(0, None, None)


def test_other_processes_are_let_go_if_a_round_cannot_begin(job: Path, tmp_path: Path) -> None:
    """They wait for passes of the round: an error before it must end that, too."""
    states = []

    class Waiting:
        @contextmanager
        def round(self) -> Any:
            states.append("waiting")
            try:
                yield
            finally:
                states.append("free")

    selection = Reselect(job / "pool.jsonl", job / "dev.jsonl", every=3, warmup=2, select=12)
    tokenizer = AutoTokenizer.from_pretrained(job / "model")
    model = AutoModelForCausalLM.from_pretrained(job / "model")
    selection.open(tokenizer, model, batch_size=4, out=tmp_path, ranks=Waiting())
    selection.begin()
    assert selection.is_due(3)
    with pytest.raises(
        OptionError, match="step 3 belongs to round 1, which selects before step 2 and is not there"
    ):
        selection.rows(3, model, None)
    assert states == ["waiting", "free"]
