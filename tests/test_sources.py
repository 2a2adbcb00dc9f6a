"""Sources: the same rows, however they are stored, and files of which nothing should be read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusterucb import sources
from clusterucb.errors import InputError, OptionError
from clusterucb.pool import read_pool, read_target
from clusterucb.shapes import Layout
from clusterucb.sources import sources_of

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


def arrow(sink: io.BytesIO) -> None:
    with pa.ipc.new_file(sink, columns().schema) as writer:
        writer.write_table(columns(), max_chunksize=2)


def stream(sink: io.BytesIO) -> None:
    with pa.ipc.new_stream(sink, columns().schema) as writer:
        writer.write_table(columns(), max_chunksize=2)


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
    "p.arrow": binary(arrow),
    "stream.arrow": binary(stream),
    "blank-first.csv": b"\n\n" + table("|"),
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
    with pytest.raises(InputError, match=r"holds the splits test, train; expected one: .*splits/train"):
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
    with pytest.raises(
        InputError, match=r"no file matches .*\*\.csv; expected a pattern of files that exist"
    ):
        read_pool([f"{tmp_path}/*.csv"])
    (tmp_path / "data" / "test-00000-of-00001.jsonl").write_bytes(LINES)
    with pytest.raises(
        InputError,
        match=r"holds the splits test, train; expected files of one, such as '.*/\*\*/train\*' \(in quotes",
    ):
        read_pool(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"empty is a folder without data files; expected files ending in \.jsonl"
    ):
        read_pool(tmp_path / "empty")


def test_a_pipe_is_read_like_a_file_however_it_comes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        content = FILES["p.jsonl.gz"]
        with pipe.open("wb", buffering=0) as end:
            for part in (content[:1], content[1:20], content[20:]):
                end.write(part)
                time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    assert found(read_pool(pipe)) == EXPECTED
    writer.join()


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
        (4, "not UTF-8: the row holds bytes that are no text"),
        (5, "not an object: the line is a string"),
        (6, "not an object: the line is null"),
    ]
    assert {sample.subtask for sample in pool.samples} == {"target"}


@pytest.mark.parametrize("given", [5, {"text": "a"}, b"pool.jsonl", None], ids=repr)
def test_what_is_no_pool_is_refused_by_type(given) -> None:
    with pytest.raises(
        OptionError, match=f"pool is of type {type(given).__name__}; expected paths, a list of dicts"
    ):
        read_pool(given)


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
    assert read_pool(frame.sample(frac=1, random_state=1)).fingerprint() == read_pool(frame).fingerprint()


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
    with pytest.raises(InputError, match="no target given; expected JSONL"):
        read_target([])


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


def test_a_database_is_named(tmp_path: Path) -> None:
    database(tmp_path / "pool.db")
    with pytest.raises(InputError, match=r"pool.db is an SQLite database; expected JSONL, a JSON array, CSV"):
        read_pool(tmp_path / "pool.db")


@pytest.mark.parametrize("name", ["p" * 300, "a\0b", '{"prompt": "q"}' * 30])
def test_a_text_that_is_no_path_is_an_error(name: str) -> None:
    with pytest.raises(
        InputError, match=r"cannot read '.*: (File name too long|embedded null byte); expected the path"
    ):
        read_pool(name)


def test_an_empty_path_is_not_this_folder() -> None:
    with pytest.raises(InputError, match="a pool file has an empty name"):
        read_pool("")


@pytest.mark.parametrize(
    "bad", [b"[1, 2", b"[broken line]", b"[1, NaN]", b"\0\0\0", b"x\0y", b"BZh", b"%PDFs are nice"]
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
        with pytest.raises(InputError, match=r"pool.csv:\d: not CSV: .*; expected quotes that are closed"):
            read_pool(path)


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
            InputError, match=r"cannot read .*; (the file breaks off: fetch it again|expected JSONL)"
        ):
            read_pool(tmp_path / name)


def test_a_broken_array_is_an_error_and_a_list_on_a_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    path.write_text(json.dumps(ROWS, indent=1)[:-5])
    with pytest.raises(
        InputError, match=r"begins like a JSON array, but is none .*; expected an array of objects, or an"
    ):
        read_pool(path)
    path.write_bytes(b"[1, 2]\n" + LINES)
    pool = read_pool(path)
    assert found(pool) == EXPECTED
    assert [(line.line, line.reason) for line in pool.rejected] == [(1, "not an object: the line is a list")]


def test_a_line_without_end_is_refused_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LONGEST_LINE", 1 << 20)
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
        (8, "not UTF-8: the row holds bytes that are no text"),
    ]
    path.write_bytes(b"text,text\na,b\n")
    with pytest.raises(
        InputError, match="names columns twice in its first line: text; expected different names"
    ):
        read_pool(path)


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(LINES)
    (source,) = sources_of(path, "pool")
    lines = source.lines(lambda _: None)
    next(lines)
    with path.open("ab") as more:
        more.write(LINES)
    with pytest.raises(
        InputError, match=r"pool.jsonl changed while it was read; run again when nothing writes to it"
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
from clusterucb.pool import read_pool

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
