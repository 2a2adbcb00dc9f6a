"""What a later stage reads is what an earlier stage wrote, or the job is refused."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from clusterucb.atomic import (
    check_regular,
    inner_folder,
    make_folder,
    remove_file,
    whole_file,
    whole_folder,
    write_whole,
)
from clusterucb.errors import ClusterUCBWarning, RunError
from clusterucb.run.folder import Run
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.manifest import Identity
from clusterucb.run.manifest_file import read_manifest

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(3, 2)}
SHAPES = {"a": (np.float32, (3, None))}


def opened(folder: Path) -> Run:
    return Run(folder, Identity({"--seed": 0}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder with one file of arrays and a folder."""
    with opened(tmp_path / "run") as run:
        run.files.write_arrays("labels.safetensors", ARRAYS)
        with whole_folder(run.path("adapter")) as partial:
            (partial / "weights").write_bytes(b"weights")
            (partial / "optimizer").mkdir()
            (partial / "optimizer" / "0").write_bytes(b"state")
        run.files.record_folder("adapter")
    return tmp_path / "run"


def test_what_was_written_is_read(run: Path) -> None:
    with opened(run) as again:
        found = again.files.arrays("labels.safetensors", SHAPES)
        assert found is not None
        assert np.array_equal(found["a"], ARRAYS["a"])
        assert again.files.find_folder("adapter") == run / "adapter"
        assert again.files.find("scores.jsonl") is None


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def randomised(path: Path) -> None:
    path.write_bytes(os.urandom(len(path.read_bytes())))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replaced(path: Path) -> None:
    save_file({"a": ARRAYS["a"] + 1}, path)


DAMAGES = [truncated, emptied, randomised, flipped, replaced]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_a_remedy_that_works(run: Path, damage: Callable[[Path], None]) -> None:
    path = run / "labels.safetensors"
    damage(path)
    with (
        opened(run) as again,
        pytest.raises(RunError, match=r"labels\.safetensors is damaged .*: remove it, and"),
    ):
        again.files.arrays("labels.safetensors", SHAPES)
    path.unlink()
    with opened(run) as again:
        with pytest.warns(ClusterUCBWarning, match="was removed; it is computed again"):
            assert again.files.arrays("labels.safetensors", SHAPES) is None
        again.files.write_arrays("labels.safetensors", ARRAYS)
        assert again.files.arrays("labels.safetensors", SHAPES) is not None


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["weights", "optimizer/0"])
def test_a_damaged_file_of_a_folder_is_named(run: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(run / "adapter" / name)
    with opened(run) as again, pytest.raises(RunError, match=f"adapter/{name} is damaged"):
        again.files.find_folder("adapter")


def test_a_folder_holds_just_what_was_recorded(run: Path) -> None:
    (run / "adapter" / "tokenizer.json").write_text("{}")
    with opened(run) as again, pytest.raises(RunError, match=r"tokenizer\.json does not belong to the run"):
        again.files.find_folder("adapter")
    (run / "adapter" / "tokenizer.json").unlink()
    (run / "adapter" / "weights").unlink()
    with opened(run) as again, pytest.raises(RunError, match=r"adapter/weights is missing\): remove it, and"):
        again.files.find_folder("adapter")


def test_another_result_than_before_is_refused(run: Path) -> None:
    (run / "labels.safetensors").unlink()
    with (
        opened(run) as again,
        pytest.raises(RunError, match=r"computed again, with another result: .*--overwrite"),
    ):
        again.files.write_arrays("labels.safetensors", {"a": ARRAYS["a"] + 1})
    assert not (run / "labels.safetensors").exists()


def test_a_file_without_a_record_is_computed_again(run: Path) -> None:
    save_file({"a": ARRAYS["a"] + 1}, run / "estimates.safetensors")
    with opened(run) as again:
        assert again.files.arrays("estimates.safetensors") is None
        again.files.write_arrays("estimates.safetensors", ARRAYS)
        assert again.files.arrays("estimates.safetensors") is not None


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"b": ARRAYS["a"]}, "it holds b; expected a"),
        ({**ARRAYS, "b": ARRAYS["a"]}, "it holds a, b; expected a"),
        ({"a": ARRAYS["a"][:2]}, "a is float32 2x2; expected float32 3xany"),
        ({"a": ARRAYS["a"].astype(np.float64)}, "a is float64 3x2; expected float32 3xany"),
        ({"a": ARRAYS["a"][0]}, "a is float32 2; expected float32 3xany"),
    ],
)
def test_a_folder_without_records_is_checked_by_shape(
    tmp_path: Path, arrays: dict[str, np.ndarray], reason: str
) -> None:
    save_file(arrays, tmp_path / "x.safetensors")
    with pytest.raises(RunError) as caught:
        KeptFiles(tmp_path, None).arrays("x.safetensors", SHAPES)
    assert reason in str(caught.value)


def edits(content: object) -> list[object]:
    """Return the content with one value changed, removed or added, for each place in it."""
    if isinstance(content, dict):
        changed: list[object] = [{**content, "more": 1}]
        for name, value in content.items():
            changed.append({key: other for key, other in content.items() if key != name})
            changed += [{**content, name: other} for other in edits(value)]
        return changed
    if isinstance(content, list):
        return [[*content, "more"], *([*content[:at], *content[at + 1 :]] for at in range(len(content)))]
    if isinstance(content, str):
        return [f"{content}x", 5]
    if isinstance(content, bool) or content is None:
        return [not content, 5]
    return [content + 1, "text"]  # type: ignore[operator]


def test_every_edit_of_a_manifest_is_noticed(run: Path) -> None:
    path = run / "manifest.json"
    content = json.loads(path.read_text())
    changed = edits(content)
    assert len(changed) > 50
    for edited in changed:
        path.write_text(json.dumps(edited, indent=1))
        with pytest.raises(RunError, match=r"manifest\.json is damaged|in another format"):
            read_manifest(run)
    path.write_text(json.dumps(content))  # other blanks are no edit
    assert read_manifest(run).files == content["files"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300, 0.1, -0.0, 1 / 3])
def test_numbers_of_a_manifest_survive_its_checksum(tmp_path: Path, number: float) -> None:
    with opened(tmp_path) as run:
        run.manifest.search.cold_start = number
    assert read_manifest(tmp_path).search.cold_start == msgspec.json.decode(msgspec.json.encode(number))


# Links, pipes and other things in place of files -----------------------------------------------------------


def link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def hard_link(path: Path, elsewhere: Path) -> None:
    path.hardlink_to(elsewhere)


def pipe(path: Path, elsewhere: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, elsewhere: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def folder(path: Path, elsewhere: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("")


OBSTACLES = [link, hard_link, pipe, unix_socket, folder]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_stands_beside_a_file_is_not_written_through(
    tmp_path: Path, obstacle: Callable[[Path, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    for number, write in enumerate((write_whole, _write_folder)):
        path = tmp_path / f"file-{number}"
        obstacle(path.with_name(f"{path.name}.partial"), elsewhere)
        write(path, b"new")
        assert elsewhere.read_bytes() == b"mine"
        assert (path / "x" if path.is_dir() else path).read_bytes() == b"new"
        assert not path.with_name(f"{path.name}.partial").exists()


def _write_folder(path: Path, content: bytes) -> None:
    with whole_folder(path) as partial:
        (partial / "x").write_bytes(content)


@pytest.mark.parametrize("obstacle", [link, hard_link, pipe, unix_socket])
def test_what_stands_at_the_place_of_a_file_is_replaced(
    tmp_path: Path, obstacle: Callable[[Path, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    obstacle(tmp_path / "file", elsewhere)
    write_whole(tmp_path / "file", b"new")
    assert elsewhere.read_bytes() == b"mine"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()


def test_a_link_to_a_folder_is_not_a_folder_of_ours(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link; expected a folder of its own"):
        inner_folder(tmp_path / "link")
    with opened(tmp_path / "run") as run:
        run.path("cells").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RunError, match="is a link"), run.files.written("cells/one.json") as partial:
            partial.write_bytes(b"")
    with whole_folder(tmp_path / "link") as partial:
        (partial / "x").write_bytes(b"new")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "link" / "x").read_bytes() == b"new"


@pytest.mark.parametrize("obstacle", [pipe, unix_socket, folder])
@pytest.mark.parametrize("name", ["lock", "manifest.json", "labels.safetensors"])
def test_a_pipe_or_folder_in_place_of_a_file_is_refused(
    run: Path, name: str, obstacle: Callable[[Path, Path], None]
) -> None:
    (run / name).unlink()
    obstacle(run / name, run)
    reason = rf"{name} is a (pipe|socket|folder); expected a file\. Remove it"
    with pytest.raises(RunError, match=reason), opened(run) as again:
        again.files.arrays("labels.safetensors", SHAPES)


def test_a_file_that_is_written_in_place_is_no_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"mine")
    (run / "lock").unlink()
    (run / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="lock is a link; expected a file"):
        opened(run)
    check_regular(run / "lock")
    check_regular(run / "nothing", written=True)


def test_a_file_cannot_be_written_where_a_folder_is(tmp_path: Path) -> None:
    folder(tmp_path / "file", tmp_path)
    with pytest.raises(RunError, match="cannot write"), whole_file(tmp_path / "file") as partial:
        partial.write_bytes(b"new")
    assert (tmp_path / "file" / "inside").exists()


def test_what_a_library_writes_beside_a_file_is_not_left(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(run.iterdir())

    def killed(_: object, path: Path, **__: object) -> None:
        (path.parent / ".tmpBh6Ahw").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, opened(run) as again:
        patch.setattr("clusterucb.run.kept_files.save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            again.files.write_arrays("similarity.safetensors", ARRAYS)
    assert sorted(run.iterdir()) == before
    left = run / "similarity.safetensors.partial"
    left.mkdir()
    (left / ".tmpBh6Ahw").write_bytes(b"half")  # after a kill
    with opened(run) as again:
        again.files.write_arrays("similarity.safetensors", ARRAYS)
    assert sorted(run.iterdir()) == sorted([*before, run / "similarity.safetensors"])


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list of what is flushed to the disk from now on."""
    paths: list[Path] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        paths.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return paths


def test_names_that_a_later_session_relies_on_are_flushed(tmp_path: Path, flushed: list[Path]) -> None:
    make_folder(tmp_path / "a" / "b")
    assert {*flushed} == {tmp_path, tmp_path / "a"}
    flushed.clear()
    make_folder(tmp_path / "a" / "b")
    assert not flushed
    (tmp_path / "a" / "x").touch()
    remove_file(tmp_path / "a" / "x")
    assert flushed == [tmp_path / "a"]
    flushed.clear()
    remove_file(tmp_path / "a" / "x")
    assert not flushed


def test_a_new_run_is_in_its_folder_after_a_loss_of_power(tmp_path: Path, flushed: list[Path]) -> None:
    with opened(tmp_path / "new" / "run"):
        pass
    assert {tmp_path, tmp_path / "new", tmp_path / "new" / "run"} <= {*flushed}
