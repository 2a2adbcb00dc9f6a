"""One process at a time writes to a folder, also where the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import time
from pathlib import Path

import msgspec
import pytest

import clusterucb as cu
from clusterucb.errors import ClusterUCBWarning, RunError
from clusterucb.run import locks
from clusterucb.run.folder import Run
from clusterucb.run.locks import FolderLock
from clusterucb.run.manifest import Identity
from helpers.tiny import write_job


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the locks of the file system."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def taken(folder: Path) -> FolderLock:
    with pytest.warns(
        ClusterUCBWarning, match=r"without file locks \(No locks available\): a lease .* --no-lock"
    ):
        return FolderLock(folder)


def test_a_lock_is_for_one(tmp_path: Path) -> None:
    held = FolderLock(tmp_path)
    with pytest.raises(RunError, match="is in use by another process"):
        FolderLock(tmp_path)
    FolderLock(tmp_path, wanted=False).release()
    held.release()
    FolderLock(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.usefixtures("without")
def test_a_lease_is_for_one(tmp_path: Path) -> None:
    held = taken(tmp_path)
    with pytest.raises(RunError, match=rf"in use by process {os.getpid()} on .*, whose lease is 0 s old"):
        taken(tmp_path)
    held.release()
    taken(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.usefixtures("without")
def test_a_run_works_with_a_lease_and_without_any_lock(tmp_path: Path) -> None:
    with pytest.warns(ClusterUCBWarning, match="a lease protects it"):
        run = Run(tmp_path / "run", Identity({"--seed": 0}))
    with run:
        assert (tmp_path / "run" / "lease").exists()
    assert not (tmp_path / "run" / "lease").exists()
    with Run(tmp_path / "run", Identity({"--seed": 0}), lock=False) as again:
        assert again.resumed


def leave(folder: Path, **changes: object) -> Path:
    """Leave the lease of another process in a folder."""
    holder = {"host": "elsewhere", "process": 1, "token": "x", **changes}
    (folder / "lease").write_bytes(msgspec.json.encode(holder))
    return folder / "lease"


@pytest.mark.usefixtures("without")
def test_a_lease_of_another_machine_is_taken_over_once_it_is_old(tmp_path: Path) -> None:
    lease = leave(tmp_path)
    with pytest.raises(RunError, match="in use by process 1 on elsewhere"):
        taken(tmp_path)
    os.utime(lease, (time.time() - 59, time.time() - 59))
    with pytest.raises(RunError, match=r"whose lease is (59|60) s old"):
        taken(tmp_path)
    os.utime(lease, (time.time() - 61, time.time() - 61))
    taken(tmp_path).release()


@pytest.mark.usefixtures("without")
def test_a_lease_of_a_process_that_died_here_is_taken_over_at_once(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
    child.start()
    child.join()
    leave(tmp_path, host=locks.socket.gethostname(), process=child.pid)
    taken(tmp_path).release()
    leave(tmp_path, host=locks.socket.gethostname(), process=1)
    with pytest.raises(RunError, match="in use by process 1"):
        taken(tmp_path)


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"host": 5}'])
def test_a_lease_that_is_no_lease_ends_by_its_age(tmp_path: Path, content: bytes) -> None:
    lease = leave(tmp_path)
    lease.write_bytes(content)
    with pytest.raises(RunError, match="in use by another process"):
        taken(tmp_path)
    os.utime(lease, (0, 0))
    taken(tmp_path).release()


@pytest.mark.usefixtures("without")
def test_a_lease_is_touched_and_not_removed_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_TOUCH", 0.02)
    held = taken(tmp_path)
    os.utime(tmp_path / "lease", (0, 0))
    end = time.monotonic() + 60
    while (tmp_path / "lease").stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / "lease").stat().st_mtime > 0
    leave(tmp_path)
    held.release()
    assert (tmp_path / "lease").exists()


def _compete(folder: Path, wins: multiprocessing.Queue) -> None:
    import warnings

    warnings.simplefilter("ignore")
    try:
        FolderLock(folder)
    except RunError:
        return
    wins.put(os.getpid())
    time.sleep(1)
    os._exit(0)


@pytest.mark.usefixtures("without")
def test_of_several_processes_one_takes_an_old_lease_over(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        folder = tmp_path / str(turn)
        folder.mkdir()
        os.utime(leave(folder), (0, 0))
        wins = context.Queue()
        children = [context.Process(target=_compete, args=(folder, wins)) for _ in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert wins.get(timeout=10)
        assert wins.empty()


def test_the_option_does_without_a_lock(tmp_path: Path) -> None:
    write_job(tmp_path)
    job = {"pool": tmp_path / "pool.jsonl", "target": tmp_path / "dev.jsonl", "model": tmp_path / "model"}
    (tmp_path / "run").mkdir()
    held = FolderLock(tmp_path / "run")
    with pytest.raises(RunError, match="is in use by another process"):
        cu.select(**job, out=tmp_path / "run", warmup_steps=2)
    cu.select(**job, out=tmp_path / "run", warmup_steps=2, no_lock=True)
    cu.select(**job, out=tmp_path / "run", warmup_steps=2, no_lock=True)
    held.release()
    cu.select(**job, out=tmp_path / "run", warmup_steps=2)
