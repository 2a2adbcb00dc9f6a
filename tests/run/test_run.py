"""A run folder is taken up again, refused or removed, and never mixes two runs."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from clusterucb.atomic import whole_file, whole_folder, write_whole
from clusterucb.errors import RunError
from clusterucb.run.folder import Run, check_folder
from clusterucb.run.manifest import Asked, Identity
from clusterucb.run.manifest_file import read_manifest, write_manifest

OPTIONS = {"--seed": 0, "--adapter": None, "--lora-targets": ["q", "v"], "--warmup-lr": 1e-4}
OWN = [
    "adapter/adapter_model.safetensors",
    "adapter.partial/x",
    "directions.safetensors",
    "features-00000.safetensors",
    "features-00001.safetensors.partial",
    "features-0123456789ab/features-00000.safetensors",
    "features-0123456789ab/similarity.safetensors",
    "similarity.safetensors",
    "comparison.json",
    "comparison.html",
    "labels.safetensors",
    "ledger.sqlite",
    "ledger.sqlite-wal",
    "selected.jsonl",
    "scores.jsonl",
    "rejected.jsonl",
]
FOREIGN = ["notes.txt", "download.partial", "sub/selected.jsonl", "my-manifest.json"]


def open_run(
    folder: Path,
    *,
    budget: str = "20%",
    select: str = "5%",
    until: str | None = None,
    overwrite: bool = False,
    **changes: Any,
) -> Run:
    contents = {"pool": changes.pop("pool", "ab")}
    options = {**OPTIONS, **{name.replace("__", "--"): value for name, value in changes.items()}}
    return Run(folder, Identity(options, contents), asked=Asked(budget, select, until), overwrite=overwrite)


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(name)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"lock"}


def finish(folder: Path, **options: Any) -> None:
    with open_run(folder, **options) as run:
        run.manifest.status = "finished"
    fill(folder, ["scores.jsonl"])


# Taking up -----------------------------------------------------------------------------------------------


def test_new_run_begins_and_the_same_settings_resume_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with open_run(folder) as run:
        assert (run.resumed, run.finished) == (False, False)
        run.manifest.inputs.pool_samples = 7
        run.manifest.status = "finished"
    with open_run(folder) as run:
        assert (run.resumed, run.finished) == (True, True)
        assert run.progress_line("run") == f"The run in {run.folder} is finished"
        assert run.manifest.inputs.pool_samples == 7
        assert {"python", "numpy"} <= run.manifest.versions.keys()
    stored = json.loads((folder / "manifest.json").read_bytes())
    assert stored["identity"] == {"options": OPTIONS, "contents": {"pool": "ab"}}
    assert files(folder) == {"manifest.json"}


def test_settings_survive_json(tmp_path: Path) -> None:
    options = {
        "class": "x.KMeans",
        "options": {"n_clusters": None, "range": (1, 2), "share": 0.1, "on": True},
    }
    finish(tmp_path, __clusterer=options)
    with open_run(tmp_path, __clusterer=options) as run:
        assert run.resumed


def test_time_of_a_phase_adds_up_over_sessions_even_when_it_fails(tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), open_run(tmp_path) as run, run.phase("draws"):
            raise KeyboardInterrupt
        seconds.append(
            json.loads((tmp_path / "manifest.json").read_bytes())["cost"]["phases"]["draws"]["seconds"]
        )
    assert 0 < seconds[0] < seconds[1] < seconds[2]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"__seed": 1}, "--seed was 0, now 1"),
        ({"__adapter": "x"}, "--adapter was unset, now x"),
        ({"__lora_targets": ["q"]}, None),
        ({"pool": "cd"}, "the pool content has changed"),
        ({"__new": 3}, "--new was unset, now 3"),
        ({"budget": "19%"}, "--budget was 20%, now 19% (it may only grow, in the same unit)"),
        ({"budget": "500"}, "--budget was 20%, now 500 (it may only grow, in the same unit)"),
        ({"__seed": 1, "budget": "1%"}, "--seed was 0, now 1; --budget was 20%, now 1%"),
    ],
    ids=str,
)
def test_changed_setting_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], complaint: str | None
) -> None:
    finish(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(RunError) as caught:
        open_run(tmp_path, **changes)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path} holds a run with other settings: {complaint or '--lora_targets'}")
    assert message.endswith("choose another --out, or start again with --overwrite")
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_settings_may_change_while_nothing_is_computed(tmp_path: Path) -> None:
    open_run(tmp_path).__exit__(None, None, None)
    with open_run(tmp_path, __seed=1, budget="1%") as run:
        assert (run.resumed, run.manifest.identity.options["--seed"], run.manifest.asked.budget) == (
            False,
            1,
            "1%",
        )


def test_strategies_are_shown_as_they_are_written_in_python(tmp_path: Path) -> None:
    def described(beta: float) -> dict[str, Any]:
        return {"class": "clusterucb.policies.ucb.UCB", "options": {"beta": beta}}

    finish(tmp_path, __policy=described(1.0))
    with pytest.raises(RunError, match=r"--policy was UCB\(beta=1.0\), now UCB\(beta=2.0\)"):
        open_run(tmp_path, __policy=described(2.0))


@pytest.mark.parametrize("now", ["21%", "100%", "20.5%"])
def test_larger_budget_goes_on(tmp_path: Path, now: str) -> None:
    finish(tmp_path)
    with open_run(tmp_path, budget=now) as run:
        assert (run.resumed, run.finished) == (True, False)
        assert run.progress_line("run") == f"Resuming the run in {run.folder}"
    with open_run(tmp_path, budget=now) as run:
        assert (run.finished, run.manifest.asked.budget) == (False, now)
    with pytest.raises(RunError, match="--budget was"):
        open_run(tmp_path)


@pytest.mark.parametrize("changed", [{"budget": "30%"}, {"select": "4%"}, {"until": "recall=0.9"}])
def test_the_budget_is_spent_until_the_amounts_change(tmp_path: Path, changed: dict[str, str]) -> None:
    with open_run(tmp_path) as run:
        run.manifest.search.spent, run.manifest.status = True, "finished"
    fill(tmp_path, ["scores.jsonl"])
    with open_run(tmp_path) as run:
        assert (run.manifest.search.spent, run.finished) == (True, True)
    with open_run(tmp_path, **changed) as run:
        assert (run.manifest.search.spent, run.finished) == (False, False)


def test_larger_count_goes_on_and_smaller_is_refused(tmp_path: Path) -> None:
    finish(tmp_path, budget="500")
    with pytest.raises(RunError, match="--budget was 500, now 499"):
        open_run(tmp_path, budget="499")
    with open_run(tmp_path, budget="501") as run:
        assert run.resumed


@pytest.mark.parametrize("now", ["1%", "6%", "3"])
def test_other_number_of_selected_samples_goes_on(tmp_path: Path, now: str) -> None:
    finish(tmp_path)
    with open_run(tmp_path, select=now) as run:
        assert (run.resumed, run.finished, run.manifest.asked.select) == (True, False, now)


def test_larger_budget_is_remembered_when_the_run_is_killed(tmp_path: Path) -> None:
    finish(tmp_path)
    run = open_run(tmp_path, budget="30%")
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())  # as a kill would leave it
    assert (manifest["asked"]["budget"], manifest["status"]) == ("30%", "running")
    run.__exit__(None, None, None)


# Refusals ------------------------------------------------------------------------------------------------


def test_folder_in_use_is_refused_until_it_is_let_go(tmp_path: Path) -> None:
    with open_run(tmp_path):
        for overwrite in (False, True):
            with pytest.raises(
                RunError, match="is in use by another process; wait for it, or choose another"
            ):
                open_run(tmp_path, overwrite=overwrite)
    with open_run(tmp_path) as run:
        assert run.resumed


def test_refused_run_lets_go_of_the_folder(tmp_path: Path) -> None:
    finish(tmp_path)
    for _ in range(2):
        with pytest.raises(RunError, match="holds a run with other settings"):
            open_run(tmp_path, __seed=1)


LOCKED = """
import sys
from pathlib import Path
from clusterucb.run.folder import Run
from clusterucb.run.manifest import Asked, Identity
run = Run(Path(sys.argv[1]), Identity(), asked=Asked("20%", "5%"))
print("locked", flush=True)
sys.stdin.read()
"""


def test_lock_of_a_killed_process_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCKED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(RunError, match="in use by another process"):
            Run(tmp_path, Identity(), asked=Asked("20%", "5%"))
        other.send_signal(signal.SIGKILL)
    with Run(tmp_path, Identity(), asked=Asked("20%", "5%")) as run:
        assert run.resumed


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("held", ["notes.txt", "selected.jsonl", "ledger.sqlite", "adapter/x"])
def test_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path, held: str, overwrite: bool) -> None:
    fill(tmp_path, [held])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError) as caught:
        open_run(tmp_path, overwrite=overwrite)
    first = held.partition("/")[0]
    expected = f"{tmp_path} is not a run folder and not empty (it holds '{first}'); choose another --out"
    assert str(caught.value) == expected
    assert sorted(tmp_path.rglob("*")) == before


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ["file"])
    for folder in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(RunError, match=r"cannot write to .*(file|run).*: .*; choose another --out"):
            open_run(folder)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (None, "--out {} is a file; expected a folder, new or existing"),
        (["b", "a"], "{} is not a run folder and not empty (it holds 'a'); choose another --out"),
        (
            ["manifest.json.bak"],
            "{} is not a run folder and not empty (it holds 'manifest.json.bak'); choose another --out",
        ),
    ],
)
def test_what_is_no_run_is_refused_in_the_same_words_before_it_is_opened(
    tmp_path: Path, held: list[str] | None, message: str
) -> None:
    folder = tmp_path / "run"
    folder.touch() if held is None else fill(folder, held)
    for refusing in (check_folder, open_run):
        with pytest.raises(RunError) as caught:
            refusing(folder)
        assert str(caught.value) == message.format(folder)


@pytest.mark.parametrize("held", [None, [], ["lock"], ["manifest.json"], ["lock", "manifest.json.partial"]])
def test_what_may_be_a_run_is_let_pass_and_left_alone(tmp_path: Path, held: list[str] | None) -> None:
    folder = tmp_path / "run"
    if held is not None:
        folder.mkdir()
        fill(folder, held)
    before = sorted(tmp_path.rglob("*"))
    check_folder(folder)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"settings": 5}',
        b'{"format": 1, "settings": 5}',
        b"\xff\xfe",
        b'{"settings": {"a": "\xff"}}',
        b"\x00" * 9,
    ],
)
def test_broken_manifest_is_refused_and_can_be_overwritten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(
        RunError, match=r"manifest.json is damaged \(.*\): restore it, or use --overwrite to start again"
    ):
        open_run(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == content
    with open_run(tmp_path, overwrite=True) as run:
        assert not run.resumed


def test_manifest_of_another_format_names_the_version_that_wrote_it(tmp_path: Path) -> None:
    finish(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = {**json.loads(path.read_bytes()), "format": 99, "clusterucb": "7.1", "of the future": 1}
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        RunError, match=r"written by clusterucb 7.1 in another format; choose another --out, or"
    ):
        open_run(tmp_path)


# Overwriting ---------------------------------------------------------------------------------------------


def test_overwrite_removes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    finish(tmp_path)
    fill(tmp_path, OWN + FOREIGN)
    with open_run(tmp_path, overwrite=True, __seed=1) as run:
        assert (run.resumed, run.finished) == (False, False)
    assert files(tmp_path) == {"manifest.json", *FOREIGN}


def test_overwrite_does_not_follow_links(tmp_path: Path) -> None:
    finish(tmp_path / "run")
    fill(tmp_path, ["mine/optimizer.pt"])
    (tmp_path / "run" / "adapter").symlink_to(tmp_path / "mine")
    open_run(tmp_path / "run", overwrite=True).__exit__(None, None, None)
    assert files(tmp_path / "mine") == {"optimizer.pt"}
    assert files(tmp_path / "run") == {"manifest.json"}


@pytest.mark.parametrize("removed", range(10))  # of its files
def test_overwrite_that_was_killed_midway_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    finish(tmp_path)
    fill(tmp_path, OWN)
    left = removed
    unlink = Path.unlink

    def dying(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", dying)
        with pytest.raises(KeyboardInterrupt):
            open_run(tmp_path, overwrite=True)
    assert not (tmp_path / "manifest.json").exists()
    with open_run(tmp_path) as run:
        assert not run.resumed
    assert files(tmp_path) == {"manifest.json"}


def test_a_removal_that_ends_before_the_next_manifest_leaves_a_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    with open_run(tmp_path):
        fill(tmp_path, ["export-trl/sft.py", "export-trl/the user's own"])
    with monkeypatch.context() as patched:
        patched.setattr("clusterucb.run.folder.write_manifest", dying)
        with pytest.raises(KeyboardInterrupt):
            open_run(tmp_path, overwrite=True)
    with open_run(tmp_path) as run:
        assert not run.resumed
    assert files(tmp_path) == {"manifest.json", "export-trl/the user's own"}


def test_a_folder_in_place_of_a_manifest_is_not_overwritten(tmp_path: Path) -> None:
    fill(tmp_path, ["manifest.json/inside"])
    with pytest.raises(RunError, match=r"manifest\.json is a folder; expected a file"):
        open_run(tmp_path, overwrite=True)
    assert files(tmp_path) == {"manifest.json/inside"}


def test_run_that_was_killed_while_beginning_begins_again(tmp_path: Path) -> None:
    fill(tmp_path, ["lock", "manifest.json.partial"])
    with open_run(tmp_path) as run:
        assert not run.resumed
    assert files(tmp_path) == {"manifest.json"}


# Whole or absent -----------------------------------------------------------------------------------------


def test_file_is_whole_or_as_it_was_before(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_whole(path, b"one")

    def interrupted() -> None:
        with whole_file(path) as partial:
            partial.write_bytes(b"tw")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"one"
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert files(tmp_path) == {"x.json"}


def test_folder_is_whole_or_as_it_was_before(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    fill(tmp_path, ["adapter.partial/left by a kill"])
    with whole_folder(path) as partial:
        fill(partial, ["a", "b/c"])

    def interrupted() -> None:
        with whole_folder(path) as partial:
            fill(partial, ["d"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files(tmp_path) == {"adapter/a", "adapter/b/c"}
    with whole_folder(path) as partial:
        fill(partial, ["e"])
    assert files(tmp_path) == {"adapter/e"}


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_what_cannot_be_written_is_named(tmp_path: Path, whole: Any) -> None:
    def fail() -> None:
        with whole(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"cannot write .*/x: No space left on device\..*free some space"):
        fail()
    assert files(tmp_path) == set()


def test_whoever_may_read_the_folder_may_read_what_is_written(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "x.safetensors") as partial:
            save_file({"x": np.zeros(1)}, partial)
        with whole_folder(tmp_path / "adapter") as partial:
            save_file({"x": np.zeros(1)}, partial / "x.safetensors")
    finally:
        os.umask(before)
    for name in ("x.safetensors", "adapter/x.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_the_time_of_a_phase_is_without_that_of_phases_inside_it(tmp_path: Path, monkeypatch) -> None:
    clock = iter(range(100, 200))
    monkeypatch.setattr("clusterucb.run.folder.time.monotonic", lambda: float(next(clock)))
    with open_run(tmp_path) as run:
        with run.phase("target"), run.phase("warm-up"), run.phase("features"):
            pass
        with run.phase("target"):
            pass
        phases = run.manifest.cost.phases
        assert {name: phase.seconds for name, phase in phases.items()} == {
            "target": 3.0,
            "warm-up": 2.0,
            "features": 1.0,
        }
        assert run.manifest.cost.seconds == 6  # the clock of the test moved by as much inside of phases


@pytest.mark.parametrize("budget", ["soon", "\x1b[2J", "-3"])
def test_a_budget_that_no_run_has_is_refused_with_the_folder(tmp_path: Path, budget: str) -> None:
    finish(tmp_path)
    manifest = read_manifest(tmp_path)
    manifest.asked = Asked(budget=budget)
    write_manifest(tmp_path, manifest)
    with pytest.raises(
        RunError, match=rf"{tmp_path} holds a run with other settings: --budget was .*, which is none"
    ):
        open_run(tmp_path)
