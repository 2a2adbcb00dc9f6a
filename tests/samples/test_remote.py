"""Pools and targets on web servers and object stores."""

from __future__ import annotations

import http.server
import json
import os
import threading
from functools import partial
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clusterucb.errors import InputError
from clusterucb.progress import Silent
from clusterucb.samples.pool import read_pool, read_target
from clusterucb.samples.remote import url_of
from clusterucb.samples.sources import sources_of

ROWS = [{"prompt": f"q{at}", "completion": f"a{at}"} for at in range(5)]


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "table.parquet")
    (folder / "notes.md").write_text("none")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """A web server on this machine."""
    folder = tmp_path_factory.mktemp("served")
    write(folder)
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()


@pytest.fixture
def store():
    """An object store, in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name in ("data/one.jsonl", "data/deep/two.jsonl"):
        with system.open(f"/{name}", "w") as file:
            file.write(json.dumps({"prompt": name, "completion": "a"}) + "\n")
    with system.open("/data/readme.md", "w") as file:
        file.write("none")
    yield "memory://data"
    system.store.clear()


def prompts(given: object) -> list[str]:
    return sorted(sample.prompt for sample in read_pool(given, observer=Silent()).samples)


@pytest.mark.parametrize("name", ["pool.jsonl", "table.parquet", "pool.jsonl?token=secret"])
def test_a_file_of_a_web_server_is_a_pool(server: str, name: str) -> None:
    read = read_pool(f"{server}/{name}", observer=Silent())
    assert sorted(sample.prompt for sample in read.samples) == [row["prompt"] for row in ROWS]
    assert list(read.files) == [f"{server}/{name.partition('?')[0]}"]
    assert {sample.source for sample in read.samples} == {name.partition(".")[0]}


def test_a_target_may_be_remote_too_and_so_may_a_path_of_the_command_line(server: str) -> None:
    read = read_target([Path(f"{server}/pool.jsonl")], observer=Silent())
    assert {sample.subtask for sample in read.samples} == {"pool"}


def test_a_folder_and_a_pattern_of_an_object_store(store: str) -> None:
    both = ["data/deep/two.jsonl", "data/one.jsonl"]
    assert prompts(store) == both
    assert prompts(f"{store}/**/*.jsonl") == both
    assert prompts(f"{store}/*.jsonl") == ["data/one.jsonl"]
    assert prompts([f"{store}/one.jsonl", f"{store}/deep/two.jsonl"]) == both


def test_nothing_is_left_behind(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (source,) = sources_of(f"{server}/pool.jsonl", "pool")
    assert len(list(source.lines(lambda _: None))) == len(ROWS)
    next(source.lines(lambda _: None))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("{server}/none.jsonl", r"cannot read http://127.0.0.1:\d+/none.jsonl: there is no such file"),
        (
            "http://127.0.0.1:9/x.jsonl",
            r"cannot read http://127.0.0.1:9/x.jsonl: .*Check the name, the connection",
        ),
        ("http://me:secret@127.0.0.1:9/x.jsonl?key=secret", r"cannot read http://127.0.0.1:9/x.jsonl: "),
        ("memory://nowhere", "cannot read memory://nowhere: there is no such file"),
        ("memory://nowhere/*.jsonl", r"no data file at memory://nowhere/\*.jsonl"),
        (
            "nope://x/y.jsonl",
            "nope is not a known protocol; expected a path, or a URL of s3, gs, hf or https",
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence(server: str, url: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        sources_of(url.format(server=server), "pool")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(
        InputError, match=r"s3:// needs s3fs, which is not installed; expected it \(pip install s3fs\)"
    ):
        sources_of("s3://bucket/pool.jsonl", "pool")


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("huggingface_hub.HfFileSystem.isdir", offline)
    with pytest.raises(InputError, match="cannot read hf://datasets/some/where: offline; expected a file"):
        sources_of("hf://datasets/some/where", "pool")


def test_damage_names_the_url(server: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"http://127.0.0.1:\d+/notes.md") as caught:
        prompts(f"{server}/notes.md")
    assert "/tmp" not in str(caught.value)


def test_a_path_of_this_machine_is_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.makedirs("s3:/bucket")
    Path("s3:/bucket/pool.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert url_of("s3://bucket/pool.jsonl") is None
    assert prompts("s3://bucket/pool.jsonl") == ["q0"]
    assert url_of(Path("s3://other/pool.jsonl")) == "s3://other/pool.jsonl"
    assert [
        url_of(given) for given in ("pool.jsonl", "C:/pool.jsonl", "a text: with colon", 3, b"s3://x")
    ] == [None] * 5
