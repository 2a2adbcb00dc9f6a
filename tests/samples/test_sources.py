"""Sources: the same rows, however they are stored, and files of which nothing should be read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusterucb.errors import InputError, OptionError
from clusterucb.samples import bounds, formats
from clusterucb.samples import files as files_module
from clusterucb.samples.pool import read_pool, read_target
from clusterucb.samples.shapes import Layout
from clusterucb.samples.sources import sources_of

ROWS = [
    {"id": "x", "prompt": "What?\nNow", "completion": 'ü, "so" 🙂', "source": "a"},
    {"id": "y", "prompt": "Why?", "completion": "No\r\n", "source": "b"},
    {"id": "z", "prompt": "", "completion": "Well;\t", "source": "b"},
]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


def table(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def columns() -> pa.Table:
    return pa.Table.from_pylist(ROWS)


def binary(write) -> bytes:
    sink = io.BytesIO()
    write(sink)
    return sink.getvalue()


def arrow(sink: io.BytesIO, rows: pa.Table) -> None:
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=2)


def stream(sink: io.BytesIO, rows: pa.Table) -> None:
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=2)


FILES = {
    "p.jsonl": LINES,
    "p.ndjson": b"\xef\xbb\xbf" + LINES.rstrip(),
    "p.txt": LINES.replace(b"\n", b"\r\n"),
    "p.json": json.dumps(ROWS, indent=2).encode(),
    "p.jsonl.gz": gzip.compress(LINES[:50]) + gzip.compress(LINES[50:]),
    "p.jsonl.zst": zstd(LINES[:50]) + zstd(LINES[50:]),
    "p.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "named-otherwise": gzip.compress(LINES),
    "p.csv": table(","),
    "p.csv.gz": gzip.compress(b"\xef\xbb\xbf" + table(";")),
    "p.tsv": table("\t"),
    "p.parquet": binary(lambda sink: pq.write_table(columns(), sink, row_group_size=2)),
    "p.arrow": binary(lambda sink: arrow(sink, columns())),
    "stream.arrow": binary(lambda sink: stream(sink, columns())),
    "blank-first.csv": b"\n\n" + table("|"),
    "blanks.json": b" \n" * 3000 + json.dumps(ROWS, indent=2).encode(),
    "more-blanks.json.zst": zstd(b"\xef\xbb\xbf" + b"\n" * (3 << 20) + json.dumps(ROWS).encode()),
}


def found(pool) -> list[tuple[str, ...]]:
    return sorted((sample.id, sample.prompt, sample.answer, sample.source) for sample in pool.samples)


EXPECTED = sorted((row["id"], row["prompt"], row["completion"], row["source"]) for row in ROWS)


@pytest.mark.parametrize("name", FILES)
def test_every_container_holds_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    pool = read_pool(tmp_path / name)
    assert found(pool) == EXPECTED
    assert not pool.rejected
    for sample in pool.samples:
        assert b"\n" not in sample.raw
        assert json.loads(sample.raw)["completion"] == sample.answer


def test_the_name_without_its_endings_is_the_source(tmp_path: Path) -> None:
    for name in ("one.jsonl.gz", "two.csv", "three.v2.jsonl", "four"):
        (tmp_path / name).write_bytes(
            b"prompt,completion\nq,a\n" if name == "two.csv" else b'{"text": "%s"}' % name.encode()
        )
    read = read_pool(sorted(tmp_path.iterdir()))
    assert {sample.source for sample in read.samples} == {"one", "two", "three.v2", "four"}


def test_a_saved_dataset_is_read_from_its_folder(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "made")
    pool = read_pool(folder)
    assert found(pool) == EXPECTED
    assert pool.files == (str(folder),)
    (tmp_path / "splits").mkdir()
    save_to_disk(tmp_path / "splits" / "test")
    save_to_disk(tmp_path / "splits" / "train")
    with pytest.raises(
        InputError, match=r"holds the splits test, train; expected one of them, such as .*splits/train"
    ):
        read_pool(tmp_path / "splits")
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    with pytest.raises(InputError, match=r"cannot read .*made: "):
        read_pool(folder)
    (folder / "state.json").write_text('["nonsense"]')
    with pytest.raises(InputError, match=r"state.json does not list a dataset's files"):
        read_pool(folder)


def save_to_disk(folder: Path) -> Path:
    """Write what ``datasets.Dataset.save_to_disk`` writes: streams of Arrow and their list."""
    folder.mkdir()
    for number, part in enumerate((columns().slice(0, 2), columns().slice(2))):
        with pa.ipc.new_stream(folder / f"data-0000{number}-of-00002.arrow", part.schema) as writer:
            writer.write_table(part)
    names = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_fingerprint": "x"}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_folder_of_files_and_a_pattern_are_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# a copy from a hub")
    (tmp_path / "data" / "train-00000-of-00002.parquet").write_bytes(FILES["p.parquet"])
    (tmp_path / "data" / "train-00001-of-00002.jsonl").write_bytes(b'{"text": "more"}\n')
    assert len(read_pool(tmp_path).samples) == 4
    assert len(read_pool(f"{tmp_path}/**/*.parquet").samples) == 3
    with pytest.raises(InputError, match=r"no file matches .*\*\.csv; expected a pattern of existing files"):
        read_pool([f"{tmp_path}/*.csv"])
    (tmp_path / "data" / "test-00000-of-00001.jsonl").write_bytes(LINES)
    with pytest.raises(
        InputError,
        match=r"holds the splits test, train; expected files of one split, such as '.*/\*\*/train\*' \(in quotes",
    ):
        read_pool(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"empty is a folder without data files; expected files ending in \.jsonl"
    ):
        read_pool(tmp_path / "empty")


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("**/train*", ["train-1.jsonl", "train/train-0.jsonl"]),
        ("data/train*", ["train-1.jsonl", "train/train-0.jsonl"]),
        ("**/*.jsonl", ["again.jsonl", "train/train-0.jsonl"]),
        ("data", ["again.jsonl", "train/train-0.jsonl"]),
    ],
)
def test_what_one_pattern_finds_twice_is_read_once(tmp_path: Path, pattern: str, files: list[str]) -> None:
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    (data / "train" / "train-0.jsonl").write_bytes(LINES)
    (data / "train-1.jsonl").write_text('{"text": "more"}')
    (data / "again.jsonl").symlink_to("train-1.jsonl")
    pool = read_pool(f"{tmp_path}/{pattern}")
    assert sorted(pool.files) == [str(data / name) for name in files]
    assert not pool.rejected
    twice = read_pool([f"{tmp_path}/{pattern}", data / "train-1.jsonl"])
    assert [line.reason for line in twice.rejected] == [f"duplicate of {data / files[0]}:1"]


def test_a_saved_dataset_that_a_pattern_finds_is_read_as_a_whole_alone(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "train")
    pool = read_pool(f"{tmp_path}/tr*/**")
    assert pool.files == (str(folder),)
    assert found(pool) == EXPECTED
    assert not pool.rejected


NAMES = st.lists(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda parts: Path("/", *parts)), min_size=1
)


@given(NAMES)
def test_a_short_name_has_as_many_folders_as_tell_it_apart(files: list[Path]) -> None:
    def name(file: Path, n_folders: int) -> str:
        return "/".join(file.parts[-1 - n_folders :])

    expected = []
    for file in files:
        others = set(files) - {file}
        n = next(n for n in range(9) if all(name(other, n) != name(file, n) for other in others))
        expected.append(name(file, n))
    assert files_module.short_names([file.with_suffix(".jsonl.gz") for file in files]) == expected


def test_files_that_only_their_endings_tell_apart_share_a_name() -> None:
    files = [Path(name) for name in ("x/a.jsonl", "x/a.csv", "y/a.csv.gz", "y/b.csv")]
    assert files_module.short_names(files) == ["x/a", "x/a", "y/a", "b"]
    assert files_module.short_names(files[:2]) == ["a", "a"]


def test_the_names_of_many_files_are_found_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(files_module, "_stem", lambda file: asked.append(file) or file.stem)
    files = [Path(f"{folder}/{number}.jsonl") for folder in "ab" for number in range(1000)]
    assert files_module.short_names(files) == [str(file.with_suffix("")) for file in files]
    assert len(asked) == len(files)


@pytest.mark.parametrize("name", ["linked", "real/deeper/linked"])
def test_a_folder_that_is_linked_is_read_once_and_a_circle_ends(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "pool.jsonl").write_bytes(LINES)
    (elsewhere / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "real" / "deeper").mkdir(parents=True)
    (tmp_path / "data" / "real" / ".hidden").symlink_to(elsewhere)
    (tmp_path / "data" / name).symlink_to(elsewhere)
    pool = read_pool(tmp_path / "data")
    assert found(pool) == EXPECTED
    assert pool.files == (str(tmp_path / "data" / name / "pool.jsonl"),)


def test_a_tilde_is_the_home_folder_unless_it_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "pool.jsonl").write_bytes(LINES)
    for name in ("~/pool.jsonl", "~/*.jsonl", Path("~")):
        assert read_pool([name]).files == (str(tmp_path / "pool.jsonl"),)
    Path("~").mkdir()
    Path("~/pool.jsonl").write_text('{"text": "literally"}')
    assert read_pool("~/pool.jsonl").files == ("~/pool.jsonl",)


def piped(pipe: Path, *parts: bytes) -> threading.Thread:
    """Make a pipe, and return who writes to it, slowly."""
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as end:
            for part in parts:
                end.write(part)
                time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    return writer


def test_a_pipe_is_read_like_a_file_however_it_comes(tmp_path: Path) -> None:
    content = FILES["p.jsonl.gz"]
    writer = piped(tmp_path / "pipe", content[:1], content[1:20], content[20:])
    assert found(read_pool(tmp_path / "pipe")) == EXPECTED
    writer.join()


@pytest.mark.parametrize("name", ["p.parquet", "p.arrow", "stream.arrow"])
def test_a_table_that_cannot_be_read_at_any_place_is_refused(tmp_path: Path, name: str) -> None:
    kind = "Parquet" if name == "p.parquet" else "Arrow"
    writer = piped(tmp_path / "pipe", FILES[name])
    expected = "expected a regular file"
    with pytest.raises(
        InputError, match=f"pipe is {kind} through a pipe; {expected}: write it to a file first"
    ):
        read_pool(tmp_path / "pipe")
    writer.join()
    for packed, pack in (("gzip", gzip.compress), ("zstd", zstd)):
        (tmp_path / name).write_bytes(pack(FILES[name]))
        with pytest.raises(
            InputError, match=f"{name} is {kind} inside {packed}; {expected}: unpack it to a file first"
        ):
            read_pool(tmp_path / name)


# Memory ---------------------------------------------------------------------------------------------------


class Arrow:
    """Anything with the Arrow interface: a DataFrame of pandas or polars, a Dataset."""

    def __arrow_c_stream__(self, requested_schema=None):
        return columns().__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "rows", [ROWS, tuple(ROWS), iter(ROWS), columns(), Arrow()], ids=lambda rows: type(rows).__name__
)
def test_rows_in_memory_are_a_pool(rows) -> None:
    pool = read_pool(rows)
    assert found(pool) == EXPECTED
    assert {sample.file for sample in pool.samples} == {"<pool>"}
    assert sorted(sample.line for sample in pool.samples) == [1, 2, 3]


def test_rows_in_memory_may_hold_what_json_has_no_word_for() -> None:
    rows = [
        {"text": "a", "vector": np.arange(2, dtype=np.float32), "n": np.int64(3)},
        {"text": "b", "x": float("nan")},
        {"text": "c", "x": object()},
        {"text": "d\ud800"},
        "e",
        None,
    ]
    pool = read_target(rows)
    assert [json.loads(sample.raw) for sample in sorted(pool.samples, key=lambda one: one.line)] == [
        {"text": "a", "vector": [0.0, 1.0], "n": 3},
        {"text": "b", "x": None},
    ]
    assert [(line.line, line.reason.partition(" (")[0]) for line in pool.rejected] == [
        (3, "not JSON: the row cannot be written as JSON"),
        (4, "not UTF-8: the row holds bytes that are not text"),
        (5, "not an object: the line is a string"),
        (6, "not an object: the line is null"),
    ]
    assert {sample.subtask for sample in pool.samples} == {"target"}


class DatasetDict(dict):
    """What ``datasets.load_dataset`` returns."""


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        (5, ""),
        (None, ""),
        (b"pool.jsonl", ""),
        ({"a.jsonl"}, ""),
        (io.StringIO("{}"), ""),
        ({"text": "a"}, ": put a single row in a list, or make columns a DataFrame"),
        (DatasetDict(), ": put a single row in a list, or make columns a DataFrame"),
        (DatasetDict(test=ROWS, train=ROWS), ", such as pool['train']"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_pool_is_refused_by_type(given, instead: str) -> None:
    expected = "expected paths, a list of dicts, a Dataset or a DataFrame"
    with pytest.raises(OptionError) as refused:
        read_pool(given)
    assert str(refused.value) == f"pool is of type {type(given).__name__}; {expected}{instead}"


@pytest.mark.parametrize("path", ["more.jsonl", Path("more")], ids=repr)
def test_paths_and_rows_are_not_mixed(path: str | Path) -> None:
    for number, rows in ((4, [*ROWS, path]), (1, [path, *ROWS]), (1, iter([path]))):
        with pytest.raises(
            OptionError,
            match=f"row {number} of the pool is the path '{path}'; expected only dicts, or only paths",
        ):
            read_pool(rows)


A_ROW = ". To give a text as a row, use a dict: {'text': ...}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "Tell me\nmore",
            r"cannot read 'Tell me\nmore': No such file or directory; expected the path of a file",
        ),
        ("Why blue?", "no file matches Why blue?; expected a pattern of existing files"),
        ("my\nfolder/*", "no file matches my folder/*; expected a pattern of existing files"),
    ],
)
def test_texts_are_neither_paths_nor_rows_and_a_path_is_no_text(text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        read_pool([text, text])
    assert str(refused.value) == message + A_ROW
    with pytest.raises(InputError) as refused:
        read_pool(Path(text))
    assert A_ROW not in str(refused.value)
    if "?" in text or "*" in text:
        assert str(refused.value) == message
    else:
        assert "more: No such file or directory; expected JSONL, a JSON array" in str(refused.value)


def test_a_row_that_is_a_text_is_no_path_for_its_last_word() -> None:
    pool = read_pool([*ROWS, "What is in data.json"])
    assert found(pool) == EXPECTED
    assert [(line.line, line.reason) for line in pool.rejected] == [
        (4, "not an object: the line is a string")
    ]


def test_times_are_texts_and_nothing_is_null(tmp_path: Path) -> None:
    times = pd.to_datetime(["2024-01-02", None])
    frame = pd.DataFrame({"text": ["a", "b"], "t": times.astype("datetime64[ns]")})
    frame.to_parquet(tmp_path / "pool.parquet")
    rows = [{"text": "a", "t": times[0]}, {"text": "b", "t": pd.NaT, "u": pd.NA}]
    for pool in (frame, tmp_path / "pool.parquet", rows):
        found = {sample.answer: json.loads(sample.raw)["t"] for sample in read_pool(pool).samples}
        assert found == {"a": "2024-01-02T00:00:00", "b": None}


def test_the_index_of_a_frame_is_no_column() -> None:
    frame = pd.DataFrame(ROWS)
    filtered = frame[frame["source"] == "b"]
    assert {tuple(json.loads(sample.raw)) for sample in read_pool(filtered).samples} == {tuple(ROWS[0])}
    assert read_pool(frame.sample(frac=1, random_state=1)).fingerprint == read_pool(frame).fingerprint


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"text": ["a", "b"], "x": [1, "a"]}),
        pd.DataFrame([["a", "b"]], columns=["text", "text"]),
        pd.DataFrame({"text": ["a"], "x": [1j]}),
        pd.Series(["a"]),
    ],
    ids=["mixed", "twice", "complex", "series"],
)
def test_a_frame_that_is_no_table_is_an_error(frame) -> None:
    with pytest.raises(
        InputError, match=r"the pool is a \w+ that cannot be read as a table .*Or give a list of dicts"
    ):
        read_pool(frame)


TWICE = pa.table([pa.array(["a"])] * 3, names=["text", "id", "text"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", b"text,id,text\na,b,c\n"),
        ("p.tsv", b"text\tid\ttext\na\tb\tc\n"),
        ("p.parquet", binary(lambda sink: pq.write_table(TWICE, sink))),
        ("p.arrow", binary(lambda sink: arrow(sink, TWICE))),
        ("stream.arrow", binary(lambda sink: stream(sink, TWICE))),
        ("the pool", None),
    ],
)
def test_two_columns_of_one_name_are_refused_in_every_table(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_pool(TWICE if content is None else path)
    place = name if content is None else path
    assert str(refused.value) == f"{place} has duplicate columns: text; expected different names"


def test_a_value_that_python_has_not_costs_its_row(tmp_path: Path) -> None:
    times = pa.array([0, 10**12, 1]).cast(pa.timestamp("s"))
    pq.write_table(pa.table({"text": ["a", "b", "c"], "time": times}), tmp_path / "pool.parquet")
    inner = pa.StructArray.from_arrays([pa.array(["a"])] * 2, names=["role", "role"])
    for rows, line, n_good in ((tmp_path / "pool.parquet", 2, 2), (pa.table({"x": inner}), 1, 0)):
        (source,) = sources_of(rows, "pool")
        lines = list(source.lines(lambda _: None))
        bad = [(number, str(row)) for number, row in lines if not isinstance(row, bytes)]
        assert len(lines) == n_good + 1
        assert [number for number, _ in bad] == [line]
        assert bad[0][1].startswith("not JSON: the row cannot be written as JSON (")


class Stubborn:
    def tolist(self) -> None:
        raise AttributeError("not today")


def test_an_object_that_fails_is_a_bad_row() -> None:
    pool = read_pool([{"text": "a", "x": Stubborn()}, {"text": "b"}])
    assert [line.reason for line in pool.rejected] == [
        "not JSON: the row cannot be written as JSON (not today)"
    ]


# What cannot be read --------------------------------------------------------------------------------------


def test_no_file_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"cannot read .*nothing.jsonl: No such file or directory; expected JSONL"
    ):
        read_pool([tmp_path / "nothing.jsonl"])
    with pytest.raises(InputError, match=r"^the target is empty; expected paths, a list of dicts, a Dataset"):
        read_target([])


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that all may enter, and no rights beyond that: to root nothing is closed."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "open" / "closed" / "inner").mkdir(parents=True)
        (Path(folder) / "open" / "closed" / "inner" / "pool.jsonl").write_bytes(LINES)
        (Path(folder) / "open" / "closed").chmod(0)
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)
            (Path(folder) / "open" / "closed").chmod(0o755)


@pytest.mark.parametrize("name", ["open", "open/closed", "open/closed/inner", "open/closed/inner/pool.jsonl"])
def test_a_closed_folder_is_an_error_and_not_left_out(nobody: Path, name: str) -> None:
    with pytest.raises(
        InputError, match=rf"^cannot read {nobody}/open/closed\S*: Permission denied; expected JSONL"
    ):
        read_pool(nobody / name)


def database(path: Path) -> bytes:
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (x)")
    return path.read_bytes()


def archive() -> bytes:
    return binary(lambda sink: zipfile.ZipFile(sink, "w").writestr("pool.jsonl", LINES))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (archive(), "a ZIP archive"),
        (b"\x80\x05\x95\x0c", "a pickle"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a binary file"),
        (b"BZh91AY&SY", "a bzip2 file"),
        (b"\xfd7zXZ\0\0", "an xz file"),
        (LINES.decode().encode("utf-16"), "UTF-16; expected UTF-8: iconv"),
        (gzip.compress(b"\x7fELF\0\0"), "a program"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_foreign_file_is_named_and_not_opened(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"pool.jsonl is {what}"):
        read_pool(path)


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.parquet", "pool.json"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4096\n")
    with pytest.raises(InputError, match=rf"{name} is a Git LFS pointer, not the data; .*: git lfs pull$"):
        read_pool(path)


def test_plain_lines_get_the_command_that_makes_rows_of_them(tmp_path: Path) -> None:
    path = tmp_path / "pool.txt"
    path.write_text("once upon\na time\n")
    with pytest.raises(InputError, match=r"is plain text; expected rows.*: jq -Rc '{text: \.}' .*pool.txt >"):
        read_pool(path)
    path.write_bytes(LINES)
    assert len(read_pool(path).samples) == len(ROWS)


def test_a_database_is_named(tmp_path: Path) -> None:
    database(tmp_path / "pool.db")
    with pytest.raises(InputError, match=r"pool.db is an SQLite database; expected JSONL, a JSON array, CSV"):
        read_pool(tmp_path / "pool.db")


@pytest.mark.parametrize("name", ["p" * 300, "a\0b", '{"prompt": "q"}' * 30])
def test_a_text_that_is_no_path_is_an_error(name: str) -> None:
    for path, advice in ((name, A_ROW), (Path(name), "")):
        with pytest.raises(
            InputError,
            match=r"cannot read '.*: (File name too long|embedded null byte); expected the path of a file"
            + re.escape(advice)
            + "$",
        ):
            read_pool(path)


def test_an_empty_path_is_not_this_folder() -> None:
    with pytest.raises(InputError, match="a pool file has an empty name"):
        read_pool("")


@pytest.mark.parametrize(
    "bad",
    [
        b"[1, 2",
        b"[broken line]",
        b"[1, NaN]",
        b"{",
        b'{"prompt": "q",',
        b"\0\0\0",
        b"x\0y",
        b"BZh",
        b"%PDFs are nice",
    ],
)
def test_the_place_of_a_bad_line_changes_nothing(tmp_path: Path, bad: bytes) -> None:
    lines = LINES.splitlines()
    for at in range(len(lines) + 1):
        (tmp_path / "pool.jsonl").write_bytes(b"\n".join([*lines[:at], bad, *lines[at:]]))
        pool = read_pool(tmp_path / "pool.jsonl")
        assert found(pool) == EXPECTED
        assert [line.line for line in pool.rejected] == [at + 1]


def test_a_quote_that_is_not_closed_loses_nothing_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "pool.csv"
    for lines in (b'a,b\nc,"d\ne,f\ng,h\n', b'a,b\ne,f\ng,h\nc,"d\n', b'a,b\n"c" d,e\n'):
        path.write_bytes(b"prompt,completion\n" + lines)
        with pytest.raises(InputError, match=r"pool.csv:\d: not CSV: .*; expected closed quotes"):
            read_pool(path)


def test_a_field_without_end_is_an_error_and_the_limit_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "LONGEST_LINE", 1 << 20)
    path = tmp_path / "pool.csv"
    before = csv.field_size_limit()
    path.write_bytes(b"prompt,completion\n" + b"q," + b"a" * (1 << 19) + b"\nq,b\n")
    (source,) = sources_of(path, "pool")
    for _ in source.lines(lambda _: None):
        assert csv.field_size_limit() == before
    path.write_bytes(b'prompt,completion\nq,a\nq,"' + b"a\n" * (1 << 20))
    with pytest.raises(
        InputError,
        match=r"pool.csv:3: not CSV: a row has more than 1,048,576 characters, which is the limit; expected clo",
    ):
        read_pool(path)
    assert csv.field_size_limit() == before


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "pool.csv"
    path.write_bytes(b'"prompt;;",completion,,\nq,a,1,2\n')
    pool = read_pool(path, Layout(columns={"prompt": "prompt;;"}))
    assert [json.loads(sample.raw) for sample in pool.samples] == [{"prompt;;": "q", "completion": "a"}]


def test_bytes_that_are_no_text_cost_one_row(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "pool.parquet")
    pool = read_pool(tmp_path / "pool.parquet")
    assert sorted(sample.answer for sample in pool.samples) == ["a", "c"]
    assert [(line.line, line.reason) for line in pool.rejected] == [(2, "not UTF-8: byte 0xff")]


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.jsonl.zst", "p.parquet", "p.arrow"])
def test_a_file_that_breaks_off_is_an_error(tmp_path: Path, name: str) -> None:
    for size in (10, len(FILES[name]) // 2, len(FILES[name]) - 3):
        (tmp_path / name).write_bytes(FILES[name][:size])
        with pytest.raises(
            InputError, match=r"cannot read .*; (the file is incomplete: download it again|expected JSONL)"
        ):
            read_pool(tmp_path / name)


def test_a_broken_array_is_an_error_and_a_list_on_a_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    path.write_text(json.dumps(ROWS, indent=1)[:-5])
    with pytest.raises(
        InputError, match=r"begins like a JSON array, but is not one .*; expected an array of objects, or an"
    ):
        read_pool(path)
    path.write_bytes(b"[1, 2]\n" + LINES)
    pool = read_pool(path)
    assert found(pool) == EXPECTED
    assert [(line.line, line.reason) for line in pool.rejected] == [(1, "not an object: the line is a list")]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"text": NaN}', "not JSON: NaN is not a JSON number; expected null"),
        (b'{"text": "\\ud800"}', "not JSON: half of a surrogate pair, \\ud800"),
        (b'{"text": "\xff"}', "not UTF-8: byte 0xff"),
        (b'{"text": "a\nb"}', "not JSON: JSON is malformed: invalid character (byte 11)"),
        (b'{"text": "he said "[no]" to me"}', "not JSON: JSON is malformed: expected ',' or '}' (byte 19)"),
        (b'{"text": [{"x": 1e999}]}', "not JSON: Number out of range"),
        (b'{"x": [NaN, {"y": "\\"]}"}]}', "not JSON: NaN is not a JSON number; expected null"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON: nested too deeply"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_value_of_an_array_costs_its_row(tmp_path: Path, bad: bytes, reason: str) -> None:
    path = tmp_path / "pool.json"
    rows = [json.dumps(row, indent=2).encode() for row in ROWS]
    for at in range(len(rows) + 1):
        path.write_bytes(b"[\n" + b",\n".join([*rows[:at], bad, *rows[at:]]) + b"\n]\n")
        pool = read_pool(path)
        assert found(pool) == EXPECTED
        assert all(b"\n" not in sample.raw for sample in pool.samples)
        (line,) = pool.rejected
        assert (line.line, line.reason) == (at + 1, reason)


@pytest.mark.parametrize("content", [b"[" * 3_000_000, b"[" * 3_000_000 + b"]" * 3_000_000])
def test_an_array_that_is_nested_without_end_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pool.json").write_bytes(content)
    with pytest.raises(InputError, match="it is nested more than 1000000 deep"):
        read_pool(tmp_path / "pool.json")


def test_a_small_file_does_not_unpack_to_a_large_one(tmp_path: Path) -> None:
    path = tmp_path / "pool.json.gz"
    path.write_bytes(gzip.compress(b"[" + b"1," * 40_000_000, 9))
    with pytest.raises(
        InputError, match=r"of more than 64.0 MB, 100 times its compressed size; expected JSONL"
    ):
        read_pool(path)


def test_an_array_of_other_values_takes_little_memory(tmp_path: Path) -> None:
    path, rows = tmp_path / "pool.json", [json.dumps(row).encode() for row in ROWS]
    path.write_bytes(b"[" + b",".join([*rows, *[b"1"] * 300_000, b"[1, 2]"]) + b"]")
    parts = list(formats.lines_of(path, lambda _: None))
    assert [number for number, _ in parts] == list(range(1, len(ROWS) + 300_002))
    tracemalloc.start()
    for _ in formats.lines_of(path, lambda _: None):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * path.stat().st_size
    pool = read_pool(path)
    assert found(pool) == EXPECTED
    assert len(pool.rejected) == 300_001


def test_a_comma_too_many_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    path.write_bytes(json.dumps(ROWS)[:-1].encode() + b",\n]")
    pool = read_pool(path)
    assert found(pool) == EXPECTED
    assert not pool.rejected


@given(texts=st.lists(st.text(st.sampled_from('[]{},:"\\\n a')), min_size=1, max_size=4), data=st.data())
def test_rows_are_split_whatever_their_texts_hold(texts: list[str], data: st.DataObject) -> None:
    rows = [json.dumps({text: [text, {"x": text}]}).encode() for text in texts]
    content = b" [" + b" ,\n".join(rows) + b"]\n"
    assert [content[part].strip() for part in formats._split_rows(content)] == rows
    cut = data.draw(st.integers(2, len(content.rstrip()) - 1))
    with pytest.raises(ValueError, match=r"its end is missing|do not match"):
        list(formats._split_rows(content[:cut]))


@pytest.mark.parametrize("content", [b"[1}", b'[{"a": [1}, {"b": 2]}]', b"[1] 2", b'["a]', b"[[1]"])
def test_where_brackets_do_not_match_nothing_is_split(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"its end is missing|do not match|something follows"):
        list(formats._split_rows(content))


SPREAD = json.dumps(ROWS[0], indent=2).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"\n".join(json.dumps(row, indent=2).encode() for row in ROWS),
        b"\n\n" + SPREAD.replace(b"\n", b"\r\n"),
        SPREAD + b"\n" + LINES,
        b'{\n\t"completion": NaN,\n\t"prompt": "cut o',
        b'{\n "more": [' + LINES.replace(b"\n", b",") * 20_000 + b"{}]}",
    ],
    ids=["many", "one", "mixed", "bad", "large"],
)
def test_an_object_over_several_lines_is_said_once(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "the pool.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_pool(path)
    assert str(refused.value) == (
        f"{path} has a JSON object over several lines; expected an object on each line: "
        f"jq -c . '{path}' > '{path}.jsonl'"
    )


@pytest.mark.parametrize("key", ["data", "rows", "instances"])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_that_holds_a_list_of_rows_is_that_list(
    tmp_path: Path, key: str, indent: int | None
) -> None:
    path = tmp_path / "pool.json"
    path.write_text(json.dumps({"version": 1.0, "name": "x", key: ROWS}, indent=indent))
    assert [sample.line for sample in read_pool(path).samples] == [
        sample.line for sample in sorted(read_pool(ROWS).samples, key=lambda one: one.content_hash)
    ]
    line = json.dumps({key: [{"role": "user", "content": "q"}], "prompt": "q", "completion": "a"})
    path.write_text(f"{line}\n{json.dumps(ROWS[0])}\n")
    assert len(read_pool(path).samples) == 2
    for more in ({"more": []}, {"more": [1]}):
        path.write_text(json.dumps({"version": 1, key: ROWS, **more}))
        told = rf"several lists \({key}, more\); expected one list of rows: jq -c '\.{key}\[\]'"
        with pytest.raises(InputError, match=told):
            read_pool(path)


@pytest.mark.parametrize("at", range(len(ROWS)))
@pytest.mark.parametrize("form", ['{"n": 1, "data": [%s]}', "[%s]", "%s"])
def test_a_row_that_is_not_utf8_is_rejected_alone(tmp_path: Path, form: str, at: int) -> None:
    lines = [json.dumps(row).encode() for row in ROWS]
    lines[at] = lines[at].replace(b'"completion": "', b'"completion": "\xff')
    path = tmp_path / "pool.json"
    path.write_bytes(form.encode() % (b"\n" if form == "%s" else b", ").join(lines))
    pool = read_pool(path)
    assert len(pool.samples) == len(ROWS) - 1
    assert [one.reason for one in pool.rejected] == ["not UTF-8: byte 0xff"]


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_line_with_a_carriage_return_stays_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"pool.{kind}"
    row = b'{"prompt": "q",\r "completion":\r"a\\r"}'
    path.write_bytes(row + b"\r\n" if kind == "jsonl" else b"[" + row + b"]")
    (sample,) = read_pool(path).samples
    assert sample.raw == row.replace(b"\r", b" ")
    assert sample.messages[1].content == "a\r"


def test_a_column_whose_name_is_not_utf8_is_said(tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"prompt": ["q"], "completion": ["a"]}), path)
    path.write_bytes(path.read_bytes().replace(b"prompt", b"\xf0rompt"))
    with pytest.raises(InputError, match=r"cannot read .*pool.parquet: 'utf-8' codec can't decode"):
        read_pool(path)


@pytest.mark.parametrize("key", ["data", "items"])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_that_holds_a_list_of_turns_is_one_row(
    tmp_path: Path, key: str, indent: int | None
) -> None:
    path = tmp_path / "pool.json"
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    path.write_text(json.dumps({"id": "x", key: turns}, indent=indent))
    with pytest.raises(InputError, match=f"1 line .*`{key}` holds turns: --columns messages={key}"):
        read_pool(path)
    (sample,) = read_pool(path, Layout(columns={"messages": key})).samples
    assert (sample.id, sample.prompt, sample.answer) == ("x", "q", "a")


def test_an_object_over_several_lines_is_mended_where_it_comes_from(tmp_path: Path) -> None:
    for name, pack in (("gzip", gzip.compress), ("zstd", zstd)):
        path = tmp_path / name
        path.write_bytes(pack(SPREAD[:1]) + pack(SPREAD[1:]))
        with pytest.raises(InputError, match=rf": {name} -dc {path} \| jq -c \. > {path}.jsonl$"):
            read_pool(path)
    writer = piped(tmp_path / "pipe", SPREAD)
    with pytest.raises(InputError, match=r"an object on each line: jq -c \. before the pipe$"):
        read_pool(tmp_path / "pipe")
    writer.join()


def test_the_commands_that_mend_a_file_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_LARGEST_ARRAY", 10)
    path = tmp_path / "a b.json"
    path.write_text(json.dumps(ROWS))
    with pytest.raises(InputError, match=rf"expected JSONL: jq -c '\.\[\]' '{path}' > '{path}.jsonl'$"):
        read_pool(path)
    path.write_text("[]", "utf-16")
    with pytest.raises(InputError, match=rf"iconv -f UTF-16 -t UTF-8 '{path}'$"):
        read_pool(path)


def test_blank_lines_are_counted(tmp_path: Path) -> None:
    for name, content in (("p.jsonl", b'{"text": "a"}\nx\n'), ("p.csv", b"text\na\nx,y\n")):
        for blanks in (b"\n\n", b" \n" * (1 << 20)):
            (tmp_path / name).write_bytes(blanks + content)
            pool = read_pool(tmp_path / name)
            first = 1 + blanks.count(b"\n") + (name == "p.csv")
            assert (pool.samples[0].line, pool.rejected[0].line) == (first, first + 1)


def test_a_line_without_end_is_refused_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "LONGEST_LINE", 1 << 20)
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b'{"text": "' + b"a" * (3 << 20) + b'"}\n' + LINES + b"x" * (2 << 20))
    pool = read_pool(path)
    assert found(pool) == EXPECTED
    assert [(line.line, line.reason) for line in pool.rejected] == [
        (1, "too long: the line has more than 1 MiB"),
        (5, "too long: the line has more than 1 MiB"),
    ]


def test_a_line_of_ten_megabytes_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps({"text": "ab " * 3_500_000}) + "\n")
    (sample,) = read_pool(path).samples
    assert len(sample.raw) > 10_000_000


def test_fields_that_do_not_fit_the_first_line_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.csv"
    path.write_bytes(b'prompt,completion\nq,a\nq,a,b\n"q\n2",a\n\nq\nq,\xff\n')
    pool = read_pool(path)
    assert sorted(sample.line for sample in pool.samples) == [2, 4]
    assert [(line.line, line.reason.partition(" (")[0]) for line in pool.rejected] == [
        (3, "not a row: 3 fields; the first line names 2"),
        (7, "not a row: 1 fields; the first line names 2"),
        (8, "not UTF-8: the row holds bytes that are not text"),
    ]


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(LINES)
    (source,) = sources_of(path, "pool")
    lines = source.lines(lambda _: None)
    next(lines)
    with path.open("ab") as more:
        more.write(LINES)
    with pytest.raises(
        InputError, match=r"pool.jsonl changed while it was read; repeat when nothing writes to it"
    ):
        list(lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_no_damage_to_a_file_ends_in_anything_but_an_error_of_ours(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        damage = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if damage == "flip" and at < len(content):
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif damage == "cut":
            del content[at : at + data.draw(st.integers(1, 100))]
        elif damage == "insert":
            content[at:at] = data.draw(st.binary(max_size=20))
        else:
            content[at:at] = content[: data.draw(st.integers(1, 200))]
    path = tmp_path / name
    path.write_bytes(content)
    message = None
    try:
        pool = read_pool(path)
    except InputError as error:
        message = str(error)
    if message is None:
        assert len(pool.samples) > 0
    else:
        assert str(path) in message


MEASURED = """
import resource, sys
from pathlib import Path
import pyarrow
from clusterucb.samples.pool import read_pool

small = read_pool(sys.argv[1])
del small
used = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + (24 << 20), -1))
pool = read_pool(sys.argv[2])
assert sum(len(sample.raw) for sample in pool.samples) > 100_000_000
print(len(pool.samples))
"""


def test_a_pool_larger_than_the_memory_allowed_is_read(tmp_path: Path) -> None:
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    small.write_bytes(LINES)
    with large.open("w") as lines:
        for number in range(30_000):
            lines.write(json.dumps({"prompt": f"{number}", "completion": "word " * 700}) + "\n")
    assert large.stat().st_size > 100_000_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, small, large],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == "30000", done.stderr
