"""Looking at runs: their summaries again, a list of them, and how two differ."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import clusterucb as cu
from clusterucb import filenames
from clusterucb.cli import main as cli
from clusterucb.errors import RunError
from clusterucb.jobs.difference import difference
from clusterucb.jobs.runs import runs
from clusterucb.run.manifest_file import read_manifest, write_manifest
from helpers.selections import arguments, write_job
from helpers.tiny import read_rows


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def folder(job, tmp_path_factory) -> Path:
    """Return a folder with two selections, ``a`` and ``in/b``, which differ in seed and size."""
    place = tmp_path_factory.mktemp("runs")
    cu.select(**arguments(job, place / "a"))
    cu.select(**arguments(job, place / "in" / "b", seed=1, select=6))
    return place


def command(job: Path, out: Path) -> list[str]:
    files = [str(job / "pool.jsonl"), "--target", str(job / "dev.jsonl"), "--model", str(job / "model")]
    return ["select", *files, "--warmup-steps", "5", "--batch-size", "4", "--out", str(out)]


def test_a_summary_shown_again_is_that_of_the_selection(job, tmp_path, capsys) -> None:
    assert cli.run(command(job, tmp_path / "run")) == 0
    first = capsys.readouterr().out
    assert cli.run(["show", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == first
    assert cli.run([*command(job, tmp_path / "run"), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert cli.run(["show", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected


def test_looking_imports_neither_torch_nor_transformers(folder) -> None:
    first, second = str(folder / "a"), str(folder / "in" / "b")
    commands = [["show", first], ["report", first], ["runs", str(folder)], ["diff", first, second]]
    program = (
        f"import sys; from clusterucb.cli import main; assert not any(map(main.run, {commands!r})); "
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_not_finished_is_not_summed_up(folder, tmp_path, capsys) -> None:
    copy = shutil.copytree(folder / "a", tmp_path / "copy")
    manifest = read_manifest(copy)
    manifest.status = "running"
    write_manifest(copy, manifest)
    for arguments_ in (["show", str(copy)], ["diff", str(copy), str(folder / "a")]):
        assert cli.run(arguments_) == 2
        shown = capsys.readouterr().err
        assert "is not finished: repeat its clusterucb select command to resume it" in shown.replace(
            "\n", " "
        )


def test_every_job_below_a_folder_is_listed_the_latest_first(folder, job, tmp_path, capsys) -> None:
    place = shutil.copytree(folder, tmp_path / "runs")
    (place / "damaged").mkdir()
    (place / "damaged" / filenames.MANIFEST).write_text("{")
    (place / "damaged" / filenames.CONFIG).touch()
    (place / "web").mkdir()
    (place / "web" / filenames.MANIFEST).write_text('{"name": "another program"}')
    (place / "gone").mkdir()
    (place / "gone" / filenames.MANIFEST).symlink_to("nowhere")
    (place / "other").mkdir()
    (place / "link").symlink_to(place / "a")
    os.utime(place / "a" / filenames.MANIFEST, (2e9, 2e9))
    found = runs(place)
    assert found[0].folder == str(place / "a")
    assert {Path(one.folder).name for one in found} == {"a", "b", "damaged"}
    by_name = {Path(one.folder).name: one for one in found}
    assert (by_name["a"].job, by_name["a"].status, by_name["a"].selected) == ("select", "finished", 4)
    assert by_name["b"].selected == 6
    assert by_name["damaged"].fault is not None
    assert cli.run(["runs", str(place)]) == 0
    shown = capsys.readouterr().out
    assert "damaged" in shown
    assert "manifest.json is damaged" in shown.replace("\n", " ")
    assert cli.run(["runs", str(place), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert cli.run(["runs", str(place / "other")]) == 0
    assert "No run lies below" in capsys.readouterr().out
    assert cli.run(["runs", str(place / "nowhere")]) == 2
    assert "is not there; expected a folder with runs in it" in capsys.readouterr().err.replace("\n", " ")


def test_two_runs_differ_in_what_their_files_say(folder, capsys) -> None:
    first, second = folder / "a", folder / "in" / "b"
    found = difference(first, second)
    assert found.settings["--seed"] == (0, 1)
    assert found.settings["--select"] == ("5%", "6")
    chosen, scored = (
        [
            {line["id"] for line in read_rows(one / "scores.jsonl") if all_ or line["selected"]}
            for one in (first, second)
        ]
        for all_ in (False, True)
    )
    for counts, (a, b) in ((found.selected, chosen), (found.scored, scored)):
        assert counts == (len(a & b), len(a - b), len(b - a))
    assert {one.id for one in found.only_first} == chosen[0] - chosen[1]
    order = [json.loads(line)["id"] for line in (first / "selected.jsonl").read_text().splitlines()]
    assert all(order[one.rank - 1] == one.id for one in found.only_first)
    for one in found.only_second:
        assert one.scored == (one.id in scored[0])
    assert cli.run(["diff", str(first), str(second)]) == 0
    shown = capsys.readouterr().out
    assert "--seed" in shown
    assert "Selected by both" in shown
    assert cli.run(["diff", str(first), str(second), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overlap"] == found.overlap


def test_a_run_does_not_differ_from_itself(folder) -> None:
    found = difference(folder / "a", folder / "a")
    assert (found.settings, found.contents, found.overlap) == ({}, [], 1.0)
    assert (found.only_first, found.only_second) == ([], [])
    assert set(found.correlation.values()) == {1.0}


@pytest.mark.parametrize("damage", [b"{", b"[]\n", b'{"id": 3}\n', b"\xff"])
def test_damaged_scores_are_named(folder, tmp_path, damage) -> None:
    copy = shutil.copytree(folder / "a", tmp_path / "copy")
    (copy / "scores.jsonl").write_bytes(damage)
    with pytest.raises(RunError, match=r"scores.jsonl is damaged .* which writes it again"):
        difference(copy, folder / "a")


def test_scores_that_were_changed_by_hand_are_not_believed(folder, tmp_path) -> None:
    copy = shutil.copytree(folder / "a", tmp_path / "copy")
    path = copy / "scores.jsonl"
    path.write_text(path.read_text().replace('"selected":true', '"selected":false', 1))
    with pytest.raises(
        RunError, match=r"scores.jsonl is damaged \(its SHA-256 is not the one in manifest.json\)"
    ):
        difference(copy, folder / "a")


@pytest.mark.parametrize("command", ["show", "diff"])
def test_a_finished_run_without_an_outcome_is_no_bug(folder, tmp_path, capsys, command) -> None:
    copy = shutil.copytree(folder / "a", tmp_path / "copy")
    manifest = read_manifest(copy)
    manifest.outcome = None
    write_manifest(copy, manifest)
    assert cli.run([command, str(copy), *([str(copy)] if command == "diff" else [])]) == 2
    assert "is not finished" in capsys.readouterr().err
