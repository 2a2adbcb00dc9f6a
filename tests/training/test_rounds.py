"""Rounds that lie on the disk are verified before a training goes on with them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from clusterucb.errors import RunError
from clusterucb.training.rounds import Round, Rounds

ABOUT = {"pool": "a", "options": "b"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint with the rounds before steps 2, 4 and 8, of which the second failed."""
    rounds = Rounds(tmp_path / "own", ABOUT, 20)
    rounds.begin()
    (tmp_path / "scores").write_text("{}")
    for number, start in ((1, 2), (2, 4), (3, 8)):
        failed = "no" if number == 2 else ""
        rounds.add(
            Round(number, start, [number, 7], gradients=30, failed=failed),
            None if failed else tmp_path / "scores",
        )
    rounds.save(tmp_path / "saved")
    return tmp_path / "saved"


def loaded(saved: Path, step: int = 9, n_rounds: int = 3, *, n_rows: int = 20, **about: str) -> Rounds:
    rounds = Rounds(saved.parent / "other", {**ABOUT, **about}, n_rows)
    rounds.load(saved, step, n_rounds)
    return rounds


def test_the_rounds_before_a_step_are_loaded(saved: Path) -> None:
    rounds = loaded(saved)
    assert [(one.number, one.start, one.rows) for one in rounds] == [
        (1, 2, [1, 7]),
        (2, 4, [2, 7]),
        (3, 8, [3, 7]),
    ]
    assert [path.parent.name + "/" + path.name for path in rounds.scored] == [
        "other/round-0001",
        "other/round-0003",
    ]
    assert [one.number for one in loaded(saved, 8, 2)] == [1, 2]
    assert sorted(path.name for path in (saved.parent / "other").glob("round-*")) == [
        "round-0001",
        "round-0002",
    ]
    again = Rounds(saved.parent / "other", ABOUT, 20)
    again.load(saved.parent / "other", 3, 1)
    assert [one.number for one in again] == [1]


def damage_scores(round_: Path) -> None:
    (round_ / "scores.jsonl").write_text("[]")


def damage_round(round_: Path) -> None:
    (round_ / "round.json").write_bytes(b"\xff")


def change_rows(round_: Path) -> None:
    about = json.loads((round_ / "round.json").read_text())
    (round_ / "round.json").write_text(json.dumps({**about, "rows": [-1]}))


def put_a_pipe(round_: Path) -> None:
    (round_ / "round.json").unlink()
    os.mkfifo(round_ / "round.json")


def remove_scores(round_: Path) -> None:
    (round_ / "scores.jsonl").unlink()


@pytest.mark.parametrize("change", [damage_scores, damage_round, change_rows, put_a_pipe, remove_scores])
def test_damaged_rounds_are_refused(saved: Path, change: object) -> None:
    assert callable(change)
    change(saved / "round-0001")
    with pytest.raises(RunError, match=r"is damaged|is a pipe"):
        loaded(saved)


def test_the_rounds_of_another_selection_are_refused(saved: Path) -> None:
    with pytest.raises(RunError, match="holds rounds with another pool; expected those of this selection"):
        loaded(saved, pool="c")
    with pytest.raises(RunError, match="it has no rows, or some that the pool has not"):
        loaded(saved, n_rows=5)
    shutil.rmtree(saved)
    with pytest.raises(RunError, match="holds no rounds of selection"):
        loaded(saved)


@pytest.mark.parametrize("change", [{"rows": []}, {"scored": [20]}, {"rows": [20]}])
def test_rounds_with_impossible_rows_are_refused(saved: Path, change: dict[str, object]) -> None:
    file = saved / "round-0001" / "round.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(RunError, match="is damaged"):
        loaded(saved)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_round_that_is_missing_is_said(saved: Path, number: int) -> None:
    shutil.rmtree(saved / f"round-000{number}")
    with pytest.raises(RunError, match=r"holds the rounds .* before step 9; expected all 3. Resume from"):
        loaded(saved)


def test_folders_of_others_stay(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "round-of-golf").mkdir(parents=True)
    with pytest.raises(RunError, match="is not empty, and holds no rounds of selection"):
        Rounds(own, ABOUT, 20).begin()
    (own / "round-of-golf").rmdir()
    Rounds(own, ABOUT, 20).begin()
    for name in ("round-of-golf", "round-0007"):
        (own / name).mkdir()
    (own / "round-table.txt").write_text("")
    Rounds(own, ABOUT, 20).begin()
    assert sorted(path.name for path in own.iterdir()) == [
        "round-of-golf",
        "round-table.txt",
        "selection.json",
    ]
