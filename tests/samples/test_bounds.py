"""What small files may take: compressed batches and pages, values that many rows name, lines and rows without end."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusterucb.errors import InputError
from clusterucb.samples import bounds, lines, parquet_pages
from clusterucb.samples.delimited import delimited_lines
from clusterucb.samples.formats import lines_of
from clusterucb.samples.message import Unreadable
from clusterucb.samples.pool import read_pool
from clusterucb.samples.rejected import RejectedLines
from clusterucb.samples.sample import Rejected
from clusterucb.samples.tables import batch_lines

LONG = "x" * 5000
SAME = pa.table({"prompt": [LONG] * 200, "completion": ["y"] * 200})
OTHERS = pa.table(
    {"prompt": [f"{random.Random(at).random()}" * 9 for at in range(200)], "completion": ["y"] * 200}
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set limits that small files reach."""
    monkeypatch.setattr(bounds, "LONGEST_LINE", 20_000)
    monkeypatch.setattr(bounds, "SMALL", 1000)
    monkeypatch.setattr(parquet_pages, "_DECODED", 40_000)


def read(path: Path) -> list[bytes | Unreadable]:
    found = list(lines_of(path, lambda _: None))
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    return [line for _, line in found]


def arrow(path: Path, table: pa.Table, codec: str | None, kind: str = "file") -> Path:
    made = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    place = path / "data.arrow" if kind == "saved" else path / "pool.arrow"
    place.parent.mkdir(exist_ok=True, parents=True)
    with made(place, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    if kind != "saved":
        return place
    (path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return path


@pytest.mark.parametrize("kind", ["file", "stream", "saved"])
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_batch_that_unpacks_to_far_more_is_refused_before_it_is_unpacked(
    tmp_path: Path, codec: str, kind: str
) -> None:
    path = arrow(tmp_path, SAME, codec, kind)
    with pytest.raises(
        InputError, match=r"has a record batch that unpacks to 1.0 MB, more than 100 times its"
    ):
        read(path)
    dictionary = pa.table({"prompt": pa.array([LONG * 9] * 9).dictionary_encode(), "completion": ["y"] * 9})
    with pytest.raises(InputError, match=r"has a record batch that unpacks to [\d.]+ kB"):
        read(arrow(tmp_path, dictionary, codec, kind))
    assert read(arrow(tmp_path, OTHERS, codec, kind)) == read(arrow(tmp_path, OTHERS, None, kind))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["file", "stream", "parquet"]))
def test_damage_to_what_says_the_sizes_is_an_error_of_ours(
    tmp_path: Path, data: st.DataObject, kind: str
) -> None:
    if kind == "parquet":
        path = tmp_path / "pool.parquet"
        pq.write_table(OTHERS, path)
    else:
        path = arrow(tmp_path, OTHERS, "zstd", kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(4, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 0x1C, 127, 255]))
    path.write_bytes(content)
    message = str(path)
    try:
        read_pool(path)
    except InputError as error:
        message = str(error)
    assert str(path) in message


def repeated() -> dict[str, pa.Array]:
    """Return arrays whose rows are larger than the arrays: 300 rows of 5,000 letters or more."""
    zeros, texts = pa.array(np.zeros(300, np.int32)), pa.array([LONG])
    named = pa.DictionaryArray.from_arrays(zeros, texts)
    offsets = pa.array(np.arange(301, dtype=np.int32))
    view, data = struct.pack("<i4sii", 5000, b"xxxx", 0, 0), pa.py_buffer(LONG.encode())
    return {
        "texts": pa.array([LONG] * 300),
        "named": named,
        "named in lists": pa.ListArray.from_arrays(offsets, named),
        "named in large lists": pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), named),
        "named in lists of one": pa.FixedSizeListArray.from_arrays(named, 1),
        "named in objects": pa.StructArray.from_arrays([named], ["a"]),
        "named in maps": pa.MapArray.from_arrays(offsets, pa.array(["k"] * 300), named),
        "objects that are named": pa.DictionaryArray.from_arrays(zeros, pa.array([{"a": LONG}])),
        "a run": pa.RunEndEncodedArray.from_arrays(pa.array([300], pa.int32()), texts),
        "a union": pa.UnionArray.from_dense(pa.array(np.zeros(300, np.int8)), zeros, [texts]),
        "views": pa.Array.from_buffers(pa.string_view(), 300, [None, pa.py_buffer(view * 300), data]),
        "views that are named": pa.DictionaryArray.from_arrays(zeros, pa.array([LONG], pa.string_view())),
        "views of lists": pa.ListViewArray.from_arrays(
            zeros, pa.array([5000] * 300, pa.int32()), pa.array([7] * 5000, pa.int32())
        ),
        "nulls": pa.ListArray.from_arrays(pa.array(np.arange(301, dtype=np.int32) * 1000), pa.nulls(300_000)),
        "booleans": pa.ListArray.from_arrays(
            pa.array(np.arange(301, dtype=np.int32) * 1000), pa.array([True] * 300_000)
        ),
    }


@pytest.mark.parametrize("name", repeated())
def test_rows_are_written_out_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    column = repeated()[name]
    batch = pa.RecordBatch.from_arrays([column.slice(5)], ["column"])
    largest = 0

    def measured(batch: pa.RecordBatch) -> list[dict[str, Any]]:
        nonlocal largest
        rows = batch.to_pylist()
        largest = max(largest, sum(len(f"{row}") for row in rows))
        return rows

    monkeypatch.setattr("clusterucb.samples.tables._rows", measured)
    found = [line for _, line in batch_lines([batch], "x")]
    if name == "views of lists":  # 28 KB each
        assert {f"{line}" for line in found} == {"too long: the row has more than 0 MiB"}
    else:
        assert found == [found[0]] * 295
        assert isinstance(found[0], bytes)
    assert largest <= 20_000


def test_a_row_that_is_too_large_is_rejected_alone() -> None:
    texts = ["a", "x" * 20_001, None, "b"]
    for column in (pa.array(texts), pa.array(texts).dictionary_encode(), pa.array(texts, pa.string_view())):
        found = list(batch_lines([pa.RecordBatch.from_arrays([column], ["text"])], "x"))
        assert [number for number, _ in found] == [1, 2, 3, 4]
        reasons = [f"{line}" if isinstance(line, Unreadable) else line for _, line in found]
        assert reasons == [
            b'{"text":"a"}',
            "too long: the row has more than 0 MiB",
            b'{"text":null}',
            b'{"text":"b"}',
        ]


def decoded(path: Path) -> list[int]:
    """Return the bytes of each batch of a Parquet file, as it is decoded."""
    with pq.ParquetFile(path) as table:
        return [batch.nbytes for batch in parquet_pages.batches_of(table, path, 1024)]


NAMED: dict[str, Callable[[], tuple[pa.Table, dict[str, Any]]]] = {
    "a dictionary": lambda: (SAME, {}),
    "two groups": lambda: (pa.concat_tables([OTHERS, SAME]), {"row_group_size": 200}),
    "lists": lambda: (pa.table({"prompt": [[LONG, "x"]] * 200}), {}),
    "objects in lists": lambda: (pa.table({"messages": [[{"content": LONG}]] * 200}), {}),
    "prefixes": lambda: (
        SAME,
        {"use_dictionary": False, "column_encoding": {"prompt": "DELTA_BYTE_ARRAY", "completion": "PLAIN"}},
    ),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_rows_of_a_small_page_are_decoded_a_few_at_a_time(tmp_path: Path, name: str, version: str) -> None:
    table, options = NAMED[name]()
    path = tmp_path / "pool.parquet"
    pq.write_table(table, path, data_page_version=version, compression="none", **options)
    sizes = decoded(path)
    assert sum(sizes) >= table.nbytes - 100 * len(sizes)
    assert max(sizes) <= 60_000


def test_other_rows_are_decoded_as_many_at_a_time_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    few = [f"s{at % 9}" for at in range(5000)]
    many = [f"{at} {LONG[:500]}" for at in range(5000)]
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in many]
    path = tmp_path / "pool.parquet"
    for options in ({}, {"row_group_size": 2000}, {"use_dictionary": False}, {"data_page_version": "2.0"}):
        pq.write_table(pa.table({"source": few, "prompt": many, "messages": chats}), path, **options)
        with pq.ParquetFile(path) as table:
            counts = [batch.num_rows for batch in parquet_pages.batches_of(table, path, 1024)]
        assert counts == [1024, 1024, 1024, 1024, 904]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_page_that_unpacks_to_far_more_is_refused(tmp_path: Path, version: str) -> None:
    path = tmp_path / "pool.parquet"
    pq.write_table(SAME, path, compression="zstd", use_dictionary=False, data_page_version=version)
    with pytest.raises(
        InputError, match=r"pool.parquet has a page that unpacks to 1.0 MB, more than 100 times"
    ):
        read(path)
    pq.write_table(OTHERS, path, compression="zstd", data_page_version=version)
    assert len(read(path)) == 200


@pytest.mark.parametrize(
    "row",
    ["q," + "a" * 30_000, '"' + "a" * 30_000, "a," * 15_000, '"' + "a\n" * 15_000],
    ids=lambda row: row[:3],
)
def test_a_row_of_csv_without_end_is_an_error(tmp_path: Path, row: str) -> None:
    path = tmp_path / "pool.csv"
    path.write_text(f"prompt,completion\nq,a\n{row}\n")
    with pytest.raises(InputError, match=r"pool.csv:3: not CSV: a row has more than 20,000 characters"):
        read(path)


class Kept(io.BytesIO):
    def close(self) -> None:
        """Stay open, so that a test may ask how far it was read."""


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    stream = Kept(b'prompt,completion\n"' + b"x" * 10_000_000)
    with pytest.raises(InputError, match="a row has more than 20,000 characters"):
        list(delimited_lines(stream, tmp_path / "pool.csv", 1))
    assert stream.tell() < 100_000


def test_lines_that_are_read_back_are_forgotten_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(lines, "_FORGOTTEN", 50_000)
    forgotten = []
    forget = lines.Lines.forget
    monkeypatch.setattr(lines.Lines, "forget", lambda self: (forgotten.append(self), forget(self)))
    path = tmp_path / "pool.parquet"
    pq.write_table(SAME, path)
    pool = read_pool(path)  # of 200 times the same, 199 are read back
    assert len(pool.rejected) == 199
    assert len(forgotten) >= 199 * 5000 // 60_000
    assert pool.samples[0].prompt == LONG


def test_rejected_lines_that_are_alike_take_their_place_once() -> None:
    rejected = RejectedLines(["a"])
    for at in range(1000):
        rejected.add(Rejected("a", at, "not an object: the line is a number", f"{at // 500}"))
    assert len(rejected._texts._cuts) == 2
    assert [line.text for line in rejected] == ["0"] * 500 + ["1"] * 500
    empty = RejectedLines(["a"])
    empty.add(Rejected("a", 1, "", ""))
    assert empty[0] == Rejected("a", 1, "", "")
