"""The doctor: what it says of the installation, and of files before they are used."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clusterucb.cli import main as cli
from clusterucb.errors import ModelError
from clusterucb.jobs.doctor import dry_run, installation, probes
from clusterucb.jobs.doctor import screen as doctor
from clusterucb.jobs.doctor.dry_run import FIRST
from clusterucb.jobs.doctor.measuring import Change
from clusterucb.jobs.doctor.probes import Finding, Probed
from clusterucb.options.search import Settings
from clusterucb.progress import Silent
from clusterucb.terminal import Terminal
from helpers.tiny import rows, write_model, write_rows

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
    with pytest.warns(UserWarning, match="in both the pool and the target: 1"):
        return dry_run.examine_files(
            [job / "pool.jsonl"], [job / "dev.jsonl"], job / "model", Settings(max_length=64), Silent()
        )


def test_the_first_lines_of_every_file_are_looked_at(job, found) -> None:
    pool, dev = (found.files[str(job / name)] for name in ("pool.jsonl", "dev.jsonl"))
    assert pool.read == FIRST
    assert pool.shapes == {"prompt-completion": FIRST - 2}  # what is neither rejected nor a duplicate
    assert pool.rejected == {"duplicate": 1, "no conversation": 1}
    assert pool.total == pytest.approx(N + 2, rel=0.05)
    assert (dev.read, dev.total, dev.rejected) == (7, 7, {})
    assert (found.duplicates, found.overlap) == (1, 1)
    assert sum(found.sources.values()) == FIRST - 2


def test_lines_that_cannot_be_used_count_in_the_estimate_of_all(tmp_path: Path) -> None:
    good, bad = rows(300), [{"bad": "a row of no known shape, and a long one " * 4} for _ in range(900)]
    mixed = [row for number, one in enumerate(good) for row in (one, *bad[3 * number : 3 * number + 3])]
    write_rows(tmp_path / "pool.jsonl", mixed)
    (facts,) = dry_run.examine_files(
        [tmp_path / "pool.jsonl"], None, None, Settings(), Silent()
    ).files.values()
    assert facts.rejected == {"no conversation": FIRST * 3 // 4}
    assert facts.total == pytest.approx(len(mixed), rel=0.05)


def test_lines_that_only_the_content_shows_are_not_counted_by_size(tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_text(json.dumps(rows(300)))  # an array, whatever its name says
    (facts,) = dry_run.examine_files(
        [tmp_path / "pool.jsonl"], None, None, Settings(), Silent()
    ).files.values()
    assert (facts.read, facts.total) == (FIRST, None)


def test_a_pipe_is_read_but_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pool.jsonl")
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows(FIRST))
    writer = threading.Thread(target=(tmp_path / "pool.jsonl").write_bytes, args=(lines,))
    writer.start()
    (facts,) = dry_run.examine_files(
        [tmp_path / "pool.jsonl"], None, None, Settings(), Silent()
    ).files.values()
    writer.join()
    assert (facts.read, facts.total) == (FIRST, None)


@pytest.mark.parametrize("model", ["./modle", "/nowhere/at/all"])
def test_a_model_that_is_nowhere_is_refused_before_the_hub_is_asked(job, model: str) -> None:
    with pytest.raises(
        ModelError, match=f"there is no folder '{model}'; expected a model's folder, or a hub id"
    ):
        dry_run.examine_files([job / "pool.jsonl"], None, model, Settings(), Silent())


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
    found = dry_run.examine_files([tmp_path / "pool.parquet"], None, None, Settings(), Silent())
    (facts,) = found.files.values()
    assert (facts.read, facts.total, facts.shapes) == (FIRST, 300, {"text": FIRST})
    assert found.expected is None
    assert found.sample == []


def test_the_installation_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLUSTERUCB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file").write_bytes(b"x" * 1000)
    found = installation.examine_machine()
    assert found.versions["python"].startswith("3.")
    assert all(found.versions.values())
    assert "the self-test passed" in found.kernels
    assert " of " in found.threads
    assert found.memory[0] > found.memory[1] > 0
    assert found.disk["cache"][0] == str(tmp_path / "cache")
    assert found.cached == 1000
    assert any(name.startswith("clusterucb ") for name in found.plugins)


def test_a_cache_that_is_being_emptied_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLUSTERUCB_CACHE", str(tmp_path))
    for name in ("kept", "gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 1000)
    found_at = os.walk

    def others_at_work(folder):
        for inside, folders, names in found_at(folder):
            if Path(inside).name == "gone":
                (Path(inside) / "file").unlink()
            yield inside, folders, names

    monkeypatch.setattr(os, "walk", others_at_work)
    assert installation.examine_machine().cached == 1000


def test_kernels_that_cannot_be_used_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from clusterucb.errors import ClusterUCBError
    from clusterucb.kernels import ops

    def broken() -> str:
        raise ClusterUCBError("the compiled extension cannot be loaded (no such file)")

    monkeypatch.setattr(ops, "simd", broken)
    assert (
        installation.examine_machine().kernels
        == "none: the compiled extension cannot be loaded (no such file)"
    )


def test_the_screen_colours_what_is_predicted(found) -> None:
    texts = []
    for colours in ("standard", None):
        console = Terminal(force_terminal=True, color_system=colours, width=400)
        with console.capture() as captured:
            doctor.show_dry_run(found, console)
        texts.append(captured.get())
    label = next(piece for piece, kind in found.sample if kind == "label")
    assert f"\x1b[30;42m{label}" in texts[0]
    assert "gradients (a pool of" in texts[1]
    assert "rejected: 1 duplicate, 1 no conversation" in texts[1]
    assert re.search(r"a selection takes +(under 1 s|about \d+ s) for", texts[1])


def test_one_is_said_as_one() -> None:
    found = dry_run.DryRun(
        files={"a.jsonl": dry_run.FileFacts(1, 1, {"text": 1}, {}, [])},
        duplicates=0,
        overlap=None,
        sources={},
        lengths={"pool": dry_run.Lengths(1, 1, 1, 1, 1)},
        expected=dry_run.Expected(1, True, 2, 0.2, 10**8, 10**6),
    )
    console = Terminal(width=200)
    with console.capture() as captured:
        doctor.show_dry_run(found, console)
    shown = captured.get()
    assert "1 line: 1 of text" in shown
    assert "of which 1 is predicted; 1 reaches --max-length" in shown
    assert "under 1 s for 2 gradients" in shown


PROMISED = Change(1e-6, 1e-4)
FINDINGS = {
    "usable": Finding("usable", fine=True),
    "sound": Finding("sound", 1.23e-7, 0.0, PROMISED, True, "sdpa is in use"),
    "unmeasured": Finding("unmeasured", note="memory ran out"),
    "moved": Finding("moved", 0.02, 0.5, PROMISED, False, remedy="--batch-tokens 1"),
    "noisy": Finding("noisy", 1e-9, 0.0, Change(0.0, 0.0), False, "it varies", "none"),
    "refused": Finding("refused", fine=False, note="it sees the padding [bold]"),
}


def probed_screen(finding: Finding, **console) -> str:
    found = Probed("m\x1b[2J", "cpu", "float32", "bfloat16", "sdpa", "4 samples", 1000, [finding])
    screen = Terminal(width=200, **console)
    with screen.capture() as captured:
        doctor.show_probed(found, screen)
    return captured.get()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("usable", "fine"),
        ("sound", "1.2e-07 0 fine; sdpa is in use"),
        ("unmeasured", "not measured: memory ran out"),
        ("moved", "2.0e-02 5.0e-01 BAD: expected at most 1.0e-06 and 1.0e-04. Remedy: --batch-tokens 1"),
        ("noisy", "1.0e-09 0 BAD: it varies; expected the same bits. Remedy: none"),
        ("refused", "BAD: it sees the padding [bold]"),
    ],
)
def test_the_screen_says_what_a_probe_found(name: str, shown: str) -> None:
    plain = probed_screen(FINDINGS[name])
    assert " ".join(plain.splitlines()[-1].split()) == f"{name} {shown}"
    coloured = probed_screen(FINDINGS[name], force_terminal=True, color_system="standard")
    assert ("\x1b[1;31m" in coloured) is ("BAD" in shown)


def test_the_screen_says_what_was_probed() -> None:
    plain = probed_screen(FINDINGS["usable"])
    assert re.search(r"model +m�\[2J on cpu", plain)
    assert re.search(r"dtype +float32, layers compute in bfloat16", plain)
    assert re.search(r"gradients +1,000 numbers each", plain)
    assert re.search(r"probed with +4 samples", plain)


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
    out, err = capsys.readouterr()
    assert "Timing a few passes of" in err
    assert "(1 step)" not in err  # the warm-up is the job's, not that of these few
    assert "A sample as the model sees it" in out
    assert "a selection takes" in out
    assert cli.run(["doctor", *files, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["dry_run"]["files"][str(job / "pool.jsonl")]["read"] == FIRST
    assert content["machine"]["versions"]["clusterucb"]
    assert cli.run(["doctor", "--target", str(job / "dev.jsonl")]) == 2
    assert "error: --target is given without a pool" in capsys.readouterr().err
    assert cli.run(["doctor", "--pool", str(job / "nothing.jsonl")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_the_command_probes_a_model_without_a_pool(job, capsys) -> None:
    assert cli.run(["doctor", "--model", str(job / "model")]) == 0
    out, err = capsys.readouterr()
    for what in (probes.AGAIN, probes.BESIDE, probes.PADDED, probes.AUTOGRAD, probes.EAGER):
        assert what in out
    assert "Probing the model with" in err
    assert cli.run(["doctor", "--model", str(job / "model"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["probed"]
    assert found["dtype"] == "float32"
    assert all(finding["fine"] for finding in found["findings"])


def test_samples_that_the_model_cannot_take_are_counted_with_the_reason(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    tool = {"messages": [{"role": "user", "content": "q"}, called]}
    write_rows(tmp_path / "pool.jsonl", [*rows(4), tool])
    found = dry_run.examine_files([tmp_path / "pool.jsonl"], None, tmp_path / "model", Settings(), Silent())
    (reason,) = found.unusable
    assert found.unusable[reason] == 1
    assert reason.startswith("chat template: it has no place for tool calls")
    console = Terminal(width=200)
    with console.capture() as captured:
        doctor.show_dry_run(found, console)
    assert f"1 sample: {reason}" in captured.get()
