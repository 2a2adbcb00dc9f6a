"""The doctor: what it says of the installation, and of files before they are used."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from clusterucb import cli, doctor, dry_run, machine
from clusterucb.dry_run import FIRST
from clusterucb.progress import Silent
from clusterucb.settings import Settings
from tiny import rows, write_model, write_rows

N = 450


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    write_model(folder / "model")
    made = rows(N)
    write_rows(folder / "pool.jsonl", [made[0], {"bad": 1}, made[0], *made[1:]])
    write_rows(folder / "dev.jsonl", [*rows(6, seed=3), made[5]])
    return folder


@pytest.fixture(scope="module")
def found(job) -> dry_run.DryRun:
    with pytest.warns(UserWarning, match="also stand in the target: 1"):
        return dry_run.examine(
            [job / "pool.jsonl"], [job / "dev.jsonl"], job / "model", Settings(max_length=64), Silent()
        )


def test_the_first_lines_of_every_file_are_looked_at(job, found) -> None:
    pool, dev = (found.files[str(job / name)] for name in ("pool.jsonl", "dev.jsonl"))
    assert pool.read == FIRST
    assert pool.shapes == {"prompt-completion": FIRST - 1}
    assert pool.rejected == {"duplicate": 1, "no conversation": 1}
    assert pool.total == pytest.approx(N + 2, rel=0.05)
    assert (dev.read, dev.total, dev.rejected) == (7, 7, {})
    assert (found.duplicates, found.overlap) == (1, 1)
    assert sum(found.sources.values()) == FIRST - 2


def test_lengths_and_what_is_cut_are_counted(found) -> None:
    lengths = found.lengths["pool"]
    assert lengths.longest == 64
    assert 0 < lengths.at_limit < FIRST
    assert lengths.shortest <= lengths.median <= lengths.longest
    assert lengths.answers < lengths.median
    assert set(found.lengths) == {"pool", "target"}


def test_a_sample_is_shown_as_the_model_sees_it(job, found) -> None:
    by_kind = {kind: "".join(text for text, one in found.sample if one == kind) for _, kind in found.sample}
    (row,) = [row for row in rows(N) if f"{row['completion']}<|im_end|>" == by_kind["label"]]
    assert by_kind["content"] == row["prompt"]
    assert "<|im_start|>assistant" in by_kind["template"]


def test_what_a_selection_takes_is_measured(job, found) -> None:
    expected = found.expected
    assert expected is not None
    assert expected.samples == pytest.approx(N, rel=0.05)
    assert expected.gradients == expected.samples // 5 + 7 + 30 * 4
    assert expected.seconds > 0
    assert expected.memory > 10**8
    assert 0 < expected.disk < 10**8


def test_without_a_model_only_the_rows_are_looked_at(job, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"text": f"text {number}"} for number in range(300)])
    pq.write_table(table, tmp_path / "pool.parquet")
    found = dry_run.examine([tmp_path / "pool.parquet"], None, None, Settings(), Silent())
    (facts,) = found.files.values()
    assert (facts.read, facts.total, facts.shapes) == (FIRST, 300, {"text": FIRST})
    assert found.expected is None
    assert found.sample == []


def test_the_installation_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLUSTERUCB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file").write_bytes(b"x" * 1000)
    found = machine.examine()
    assert found.versions["python"].startswith("3.")
    assert all(found.versions.values())
    assert "reproduce the known results" in found.kernels
    assert " of " in found.threads
    assert found.memory[0] > found.memory[1] > 0
    assert found.disk["cache"][0] == str(tmp_path / "cache")
    assert found.cached == 1000
    assert any(name.startswith("clusterucb ") for name in found.plugins)


def test_kernels_that_cannot_be_used_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from clusterucb import ops

    def broken() -> str:
        raise ops.ClusterUCBError("the compiled extension cannot be loaded (no such file)")

    monkeypatch.setattr(ops, "simd", broken)
    assert machine.examine().kernels == "none: the compiled extension cannot be loaded (no such file)"


def test_the_screen_colours_what_is_predicted(found) -> None:
    texts = []
    for colours in ("standard", None):
        console = Console(force_terminal=True, color_system=colours, width=400, highlight=False)
        with console.capture() as captured:
            doctor.show_dry_run(found, console)
        texts.append(captured.get())
    label = next(piece for piece, kind in found.sample if kind == "label")
    assert f"\x1b[30;42m{label}" in texts[0]
    assert "gradients (a pool of" in texts[1]
    assert "not used: 1 duplicate, 1 no conversation" in texts[1]


def test_the_command(job, capsys) -> None:
    assert cli.run(["doctor"]) == 0
    assert "kernels" in capsys.readouterr().out
    files = [
        "--pool",
        str(job / "pool.jsonl"),
        "--target",
        str(job / "dev.jsonl"),
        "--model",
        str(job / "model"),
    ]
    assert cli.run(["doctor", *files, "--max-length", "64"]) == 0
    out = capsys.readouterr().out
    assert "A sample as the model sees it" in out
    assert "a selection takes" in out
    assert cli.run(["doctor", *files, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["dry_run"]["files"][str(job / "pool.jsonl")]["read"] == FIRST
    assert content["machine"]["versions"]["clusterucb"]
    assert cli.run(["doctor", "--target", str(job / "dev.jsonl")]) == 2
    assert "error: --target is given without --pool" in capsys.readouterr().err
    assert cli.run(["doctor", "--pool", str(job / "nothing.jsonl")]) == 2
    assert "No such file" in capsys.readouterr().err
