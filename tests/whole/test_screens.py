"""Every command shows hostile names and texts, and the terminal obeys none of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import clusterucb as cu
from clusterucb.cli import main as cli
from helpers.terminals import EVERYTHING, obeyed
from helpers.tiny import interrupt, read_rows, rows, write_job, write_rows

HOSTILE = EVERYTHING.replace("\0", "").replace("/", "") + "\x1b]0;title\x07\x1b[2J"
SMALL = ["--warmup-steps", "2", "--batch-size", "4"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Return a folder in which every name and every text holds control characters."""
    folder = tmp_path_factory.mktemp("job") / f"a{HOSTILE}b"
    folder.mkdir()
    write_job(folder)
    changed = [
        {
            **row,
            "id": f"{row['id']}{HOSTILE}",
            "source": f"{row['source']}{HOSTILE}",
            "prompt": f"{row['prompt']} {HOSTILE}",
            f"column{HOSTILE}": 1,
        }
        for row in rows(40)
    ]
    write_rows(folder / f"pool{HOSTILE}.jsonl", [*changed, {f"odd{HOSTILE}": HOSTILE}, {"prompt": HOSTILE}])
    for number in range(2):
        target = [{**row, "subtask": f"{number}{HOSTILE}"} for row in rows(3, seed=3 + number)]
        write_rows(folder / f"dev-{number}{HOSTILE}.jsonl", target)
    return folder


@pytest.fixture
def job(hostile, monkeypatch):
    """Return the paths of a job on hostile files, as arguments, and the folder for its runs."""
    monkeypatch.chdir(hostile)
    pool = f"pool{HOSTILE}.jsonl"
    target = ["--target", *(f"dev-{number}{HOSTILE}.jsonl" for number in range(2))]
    return [pool, *target, "--model", "model"]


def screen(arguments, capsys, code=0):
    """Run a command and return what it shows, which no terminal obeys."""
    assert cli.run(arguments) == code
    out, err = capsys.readouterr()
    assert obeyed(out) == obeyed(err) == ""
    return out + err


def test_a_selection_and_what_follows_it(job, capsys):
    run = f"run{HOSTILE}"
    exports = ["--export", "llamafactory,trl,axolotl", "--scores-parquet"]
    shown = screen(["select", *job, "--out", run, *SMALL, "--budget", "50%", *exports], capsys)
    assert shown.count("Written to") == 3  # two tools refuse names with [
    assert "�" in shown
    screen(["select", *job, "--out", run, *SMALL, "--budget", "50%"], capsys)  # finished
    screen(["select", *job, "--out", run, *SMALL, "--budget", "50%", "--seed", "1"], capsys, 2)  # refused
    screen(["select", *job, "--out", f"other{HOSTILE}", *SMALL, "--prior", run, "--json"], capsys)
    screen(
        ["compare", *job, "--out", f"compared{HOSTILE}", *SMALL, "--seeds", "1", "--budgets", "50%"], capsys
    )


def test_a_store_a_plan_and_the_doctor(job, capsys):
    pool, *rest = job
    screen(
        ["sketch", pool, *rest[-2:], "--out", f"store{HOSTILE}", *SMALL[:2], "--sketch-dim", "256"], capsys
    )
    screen(
        ["select", *job, "--out", f"stored{HOSTILE}", "--batch-size", "4", "--store", f"store{HOSTILE}"],
        capsys,
    )
    screen(["plan", *job, *SMALL, "--out", f"planned{HOSTILE}"], capsys)
    assert "column" in screen(["doctor", "--pool", *job], capsys)
    screen(["plugins"], capsys)


def test_what_is_refused(job, capsys, tmp_path):
    pool, *rest = job
    nowhere = f"nowhere{HOSTILE}"
    for arguments in (
        [nowhere],
        ["select", nowhere, *rest, "--out", "x"],
        ["select", *job, "--out", pool],
        ["select", *job, "--out", "x", "--features", nowhere],
        ["select", *job, "--out", "x", f"--{nowhere}"],
        ["select", *job, "--out", "x", "--budget", nowhere],
        ["select", *job, "--out", "x", "--store", nowhere],
        ["select", *job, "--out", "x", "--adapter", nowhere],
        ["select", *job, "--out", "x", "--config", nowhere],
        ["select", pool, *rest[:-1], nowhere, "--out", "x"],
        ["try", nowhere],
    ):
        screen(arguments, capsys, 2)


def test_an_interrupt_says_how_to_go_on(job, capsys, monkeypatch):
    interrupt(monkeypatch, [2])
    shown = screen(["select", *job, "--out", f"cut{HOSTILE}", *SMALL], capsys, 130)
    assert "To resume: clusterucb select" in shown


# Signals and streams ---------------------------------------------------------------------------------------

SLOW = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started the tests may have ignored it, as nohup does
import clusterucb as cu
from clusterucb.cli import main as cli
from clusterucb.gradients.accumulate import Accumulator
compute = Accumulator.__call__
def slow(self, batch):
    time.sleep(0.2)
    return compute(self, batch)
Accumulator.__call__ = slow
cli.main(sys.argv[1:])
"""


@pytest.fixture
def plain(tmp_path):
    write_job(tmp_path)
    options = ["--batch-size", "2", "--warmup-steps", "2", "--budget", "80%", "--select", "2"]
    files = ["pool.jsonl", "--target", "dev.jsonl", "--model", "model", "--out", "run"]
    return tmp_path, ["select", *files, *options]


def started(folder, arguments, **streams):
    return subprocess.Popen([sys.executable, "-c", SLOW, *arguments], cwd=folder, **streams)


def await_draws(folder):
    """Wait until the run has scored something."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        wal = folder / "run" / "ledger.sqlite-wal"
        if wal.exists() and wal.stat().st_size > 60_000:
            return
        time.sleep(0.05)
    raise AssertionError("nothing was drawn")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_signals_end_like_an_interrupt(plain, number, code):
    folder, arguments = plain
    process = started(folder, arguments, stderr=subprocess.PIPE, text=True)
    await_draws(folder)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code
    assert "To resume: clusterucb select pool.jsonl" in err
    assert "Traceback" not in err
    assert json.loads((folder / "run" / "manifest.json").read_text())["outcome"]["stopped"] == "interrupted"
    assert len(read_rows(folder / "run" / "selected.jsonl")) == 2  # the best so far


def test_a_second_signal_ends_at_once(plain):
    folder, arguments = plain
    code = SLOW.replace(
        "cli.main(", "import clusterucb.report.written as w\nw.finish = lambda *_: time.sleep(600)\ncli.main("
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=folder, stderr=subprocess.DEVNULL
    )
    await_draws(folder)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_messages_that_cannot_be_shown_end_nothing(plain):
    folder, arguments = plain
    arguments = [*arguments[:-4], "--budget", "10%"]
    ends = {}
    for name, redirection in {
        "plain": "",
        "full": "2> /dev/full",
        "closed": "2>&-",
        "no output": ">&-",
        "neither": ">&- 2>&-",
    }.items():
        shutil.rmtree(folder / "run", ignore_errors=True)
        line = f'"$0" -m clusterucb "$@" {redirection}'
        done = subprocess.run(
            ["sh", "-c", line, sys.executable, *arguments], cwd=folder, capture_output=True, check=False
        )
        ends[name] = (done.returncode, (folder / "run" / "selected.jsonl").read_bytes())
    assert ends["plain"][0] == 0
    assert set(ends.values()) == {ends["plain"]}


def test_a_reader_that_leaves_ends_nothing(plain):
    folder, arguments = plain
    read, write = os.pipe()
    os.close(read)
    process = started(folder, [*arguments[:-4], "--budget", "10%"], stderr=write)
    os.close(write)
    assert process.wait(timeout=300) == 0
    assert (folder / "run" / "selected.jsonl").exists()


# Names that are not UTF-8 ----------------------------------------------------------------------------------


def test_names_that_are_not_utf_8_are_refused_before_anything_is_computed(plain, capsys, monkeypatch):
    folder, arguments = plain
    monkeypatch.chdir(folder)
    odd = os.fsdecode(b"odd\xff")
    for name in ("pool.jsonl", "dev.jsonl"):
        shutil.copy(name, odd + name)
    (folder / "inside").mkdir()
    shutil.copy("pool.jsonl", f"inside/{odd}.jsonl")
    shutil.copytree("model", f"{odd}model")
    for wrong, right in {
        f"{odd}pool.jsonl": "pool.jsonl",
        "inside": "pool.jsonl",
        "inside/*.jsonl": "pool.jsonl",
        f"{odd}dev.jsonl": "dev.jsonl",
        f"{odd}model": "model",
        f"{odd}run": "run",
    }.items():
        shown = screen([wrong if one == right else one for one in arguments], capsys, 2)
        assert "is not UTF-8; expected a name in UTF-8: rename it" in shown
    screen(["doctor", "--pool", "inside"], capsys, 2)
    screen(["try", odd], capsys, 2)
    assert not (folder / "run").exists()
    options = {"pool": "pool.jsonl", "target": "dev.jsonl", "model": "model", "out": "run", "warmup_steps": 2}
    for name, value in {
        "pool": f"{odd}pool.jsonl",
        "target": "inside",
        "model": f"{odd}model",
        "out": odd,
    }.items():
        with pytest.raises(cu.ClusterUCBError, match="is not UTF-8"):
            cu.select(**{**options, name: value})
