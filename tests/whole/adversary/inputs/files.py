"""Hostile files of samples: pickles, packed bombs, archives, tables in columns, links, pipes, names; and configurations."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from helpers.tiny import rows, write_rows
from whole.adversary.inputs.payloads import EVERY, Hostile, evils, select

_PIECE = bytes(1 << 20)
_NAMES = {
    "bytes that are no UTF-8": b"pool-\xff\xfe.jsonl",
    "controls": "pool\x1b[2J\x9b\u202e\r\n.jsonl".encode(),
    "a pattern": b"*?[a-z]**.jsonl",
    "an option": b"--out=canary.jsonl",
    "a shell's substitution": b"$(touch canary).jsonl",
    "a template": b"{{ 7*7 }}{% x %}.jsonl",
    "250 letters": b"x" * 244 + b".jsonl",
    "markup of rich": b"[bold][/bold][.jsonl",
    "a URL": b"file:x.jsonl",
    "blanks": b"   .jsonl",
}


def pickles() -> Iterator[Hostile]:
    """Yield pickles in place of data."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for ending in ("pkl", "jsonl", "npy", "parquet", "csv", "json"):
            yield Hostile(f"a pickle of protocol {protocol} as .{ending}", _pickled(protocol, ending))
    yield Hostile("an array of objects", lambda folder: select(_saved(folder / "pool.npy", np.save)))
    yield Hostile("arrays of objects", lambda folder: select(_saved(folder / "pool.npz", np.savez)))
    yield Hostile("a file of torch", _torch)


def _pickled(protocol: int, ending: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        path = folder / f"pool.{ending}"
        path.write_bytes(pickle.dumps([evils()["exec"]], protocol))
        return select(path)

    return make


def _saved(path: Path, save: Callable[..., None]) -> Path:
    with path.open("wb") as file:
        save(file, np.array([evils()["open"], evils()["exec"]], dtype=object))
    return path


def _torch(folder: Path) -> list[str]:
    torch.save({"rows": evils()["os.system"]}, folder / "pool.pt")
    return select(folder / "pool.pt")


def bombs() -> Iterator[Hostile]:
    """Yield small files that unpack to large ones."""
    row = json.dumps(rows(1)[0]).encode() + b"\n"
    contents = {
        "zeros": (b"", _PIECE, b""),
        "blanks": (row, b" " * (1 << 20), b""),
        "line breaks": (row, b"\n" * (1 << 20), row),
        "brackets": (b"", b"[" * (1 << 20), b""),
        "an array of rows": (b"[", (b"{}," * (1 << 18))[: 3 << 18], b"{}]"),
        "an object of rows": (b'{"data": [', b"{}," * (1 << 18), b"{}]}"),
        "one text": (b'{"prompt": "', b"x" * (1 << 20), b'"}'),
        "one field": (b'prompt,completion\n"', b"x" * (1 << 20), b'"'),
    }
    for name, content in contents.items():
        ending = "csv" if name == "one field" else "json" if name.startswith("a") else "jsonl"
        for kind in ("gz", "zst"):
            yield Hostile(f"{name} of 2 GB as .{kind}", _packed(content, f"{ending}.{kind}"))
    yield Hostile("gzip in gzip in gzip", _nested)
    yield Hostile(
        "a gzip of many members",
        lambda folder: select(_written(folder / "pool.jsonl.gz", gzip.compress(row) * 30_000)),
    )
    yield Hostile("a ZIP with paths", _zip)
    yield Hostile("a tar with paths", _tar)
    for ending in ("zip", "tar", "7z", "xz", "bz2", "rar", "lz4"):
        yield Hostile(
            f"noise as .{ending}",
            lambda folder, ending=ending: select(_written(folder / f"pool.{ending}", os.urandom(5000))),
        )


def _packed(content: tuple[bytes, bytes, bytes], ending: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        path, (begin, middle, end) = folder / f"pool.{ending}", content
        codec = pa.Codec("gzip" if ending.endswith("gz") else "zstd")
        many = 1 if middle.startswith(b"\n") else 32  # each empty line is read
        member = codec.compress(middle * 64, asbytes=True)
        ends = [codec.compress(part, asbytes=True) if part else b"" for part in (begin, end)]
        path.write_bytes(
            ends[0] + member * many + ends[1]
        )  # a file of members one after the other is one stream
        return select(path)

    return make


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _nested(folder: Path) -> list[str]:
    content = gzip.compress(bytes(300 << 20))
    for _ in range(3):
        content = gzip.compress(content)
    return select(_written(folder / "pool.jsonl.gz", content))


def _zip(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "pool.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../canary", "x")
        archive.writestr("/tmp/canary", "x")
        archive.writestr("pool.jsonl", bytes(100 << 20))
    return select(folder / "pool.zip")


def _tar(folder: Path) -> list[str]:
    with tarfile.open(folder / "pool.tar.gz", "w:gz") as archive:
        for name in ("../../canary", "pool.jsonl"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return select(folder / "pool.tar.gz")


def columns() -> Iterator[Hostile]:
    """Yield hostile Parquet and Arrow files.

    Time grows with the number of rows, some 40 us for each that is kept and 7 us for each that is rejected, and the
    limit holds on a busy machine, too. So the numbers are the smallest that would take too much memory or time if some
    of it grew faster: 2 GB of rows, a million of them.
    """
    yield Hostile("a Parquet of one row many times", _dictionary(200_000, 5_000))
    yield Hostile("a Parquet of one large row many times", _dictionary(800, 1_000_000, store_schema=False))
    yield Hostile("a Parquet of one large row many times, as categories", _dictionary(800, 1_000_000))
    yield Hostile("a Parquet of one large page", _page)
    yield Hostile("a Parquet of many small rows", _dictionary(500_000, 3))
    yield Hostile(
        "a Parquet of nulls",
        lambda folder: select(
            _table(
                folder,
                pa.table(
                    {
                        "prompt": pa.nulls(2_000_000, pa.string()),
                        "completion": pa.nulls(2_000_000, pa.string()),
                    }
                ),
            )
        ),
    )
    yield Hostile(
        "a Parquet of 3,000 columns",
        lambda folder: select(_table(folder, pa.table({f"c{at}": ["x"] for at in range(3000)}))),
    )
    yield Hostile(
        "a Parquet with controls as names",
        lambda folder: select(
            _table(folder, pa.table({EVERY: ["x"], "prompt": [EVERY], "completion": [EVERY], "id": [EVERY]}))
        ),
    )
    yield Hostile("a Parquet of deep lists", _deep)
    for at in (4, 8, -8, -200):
        yield Hostile(f"a Parquet with other bytes at {at}", _changed("parquet", at, b"\xff" * 4))
        yield Hostile(f"an Arrow file with other bytes at {at}", _changed("arrow", at, b"\xff\xff\xff\x7f"))
    yield Hostile(
        "an Arrow stream that promises much",
        lambda folder: select(
            _written(folder / "pool.arrow", b"\xff\xff\xff\xff" + struct.pack("<i", 2**31 - 1) + bytes(99))
        ),
    )
    yield Hostile(
        "a Parquet of a promise",
        lambda folder: select(
            _written(folder / "pool.parquet", b"PAR1" + bytes(50) + struct.pack("<I", 2**31 - 1) + b"PAR1")
        ),
    )
    yield Hostile("an Arrow file that unpacks to much", _arrow_bomb)
    yield Hostile("an Arrow file of one large row many times", _arrow_dictionary)
    for name, state in {
        "a path above": {"_data_files": [{"filename": "../../run/scores.parquet"}]},
        "an absolute path": {"_data_files": [{"filename": "/etc/passwd"}]},
        "a number": {"_data_files": [{"filename": 5}], "_split": {"a": 1}},
        "controls": {"_data_files": [{"filename": EVERY}], "_split": EVERY},
        "no list": {"_data_files": "x" * 99},
        "many files": {"_data_files": [{"filename": "data.arrow"}] * 100_000},
    }.items():
        yield Hostile(f"a saved dataset with {name}", _dataset(state))


def _table(folder: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, folder / "pool.parquet", compression="zstd", **options)
    return folder / "pool.parquet"


def _dictionary(count: int, length: int, **options: Any) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        indices = pa.array(np.zeros(count, dtype=np.int8))
        column = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * length]))
        return select(_table(folder, pa.table({"prompt": column, "completion": column}), **options))

    return make


def _page(folder: Path) -> list[str]:
    table = pa.table({"prompt": ["x" * (1 << 20)] * 1000, "completion": ["y"] * 1000})
    whole = {"data_page_size": 2**31 - 1, "write_batch_size": 4000}
    path = _table(folder, table, use_dictionary=False, **whole)
    del table
    pa.default_memory_pool().release_unused()  # else the command, a fork, begins with it
    return select(path)


def _deep(folder: Path) -> list[str]:
    kind: pa.DataType = pa.string()
    for _ in range(90):
        kind = pa.list_(kind)
    schema = pa.schema([("prompt", kind), ("completion", pa.string())])
    return select(_table(folder, schema.empty_table()))


def _changed(ending: str, at: int, content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        table, path = pa.Table.from_pylist(rows(12)), folder / f"pool.{ending}"
        if ending == "parquet":
            _table(folder, table)
        else:
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
        whole = bytearray(path.read_bytes())
        begin = at % len(whole)
        whole[begin : begin + len(content)] = content
        return select(_written(path, bytes(whole)))

    return make


def _arrow_bomb(folder: Path) -> list[str]:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    table = pa.table({"prompt": ["x" * (1 << 20)] * 1900, "completion": ["y"] * 1900})
    with pa.ipc.new_file(folder / "pool.arrow", table.schema, options=options) as writer:
        writer.write_table(table)
    del table
    pa.default_memory_pool().release_unused()  # as above
    return select(folder / "pool.arrow")


def _arrow_dictionary(folder: Path) -> list[str]:
    texts = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(800, dtype=np.int8)), pa.array(["x" * 1_000_000])
    )
    table = pa.table({"prompt": texts, "completion": texts})
    with pa.ipc.new_file(folder / "pool.arrow", table.schema) as writer:
        writer.write_table(table)
    return select(folder / "pool.arrow")


def _dataset(state: dict[str, object]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        data = folder / "data"
        data.mkdir()
        (data / "state.json").write_text(json.dumps(state))
        (data / "dataset_info.json").write_text(json.dumps({"features": {EVERY: {"_type": "Value"}}}))
        table = pa.Table.from_pylist(rows(12))
        with pa.ipc.new_stream(data / "data.arrow", table.schema) as writer:
            writer.write_table(table)
        return select(data)

    return make


def folders() -> Iterator[Hostile]:
    """Yield folders with links, pipes, devices, loops and odd names."""

    def inside(name: str, put: Callable[[Path], object]) -> Hostile:
        def make(folder: Path) -> list[str]:
            write_rows(folder / "good.jsonl", rows(12))
            put(folder)
            return select(folder)

        return Hostile(f"{name} in a folder", make)

    yield inside("a pipe", lambda folder: os.mkfifo(folder / "a.jsonl"))
    yield inside(
        "a link to a pipe",
        lambda folder: (os.mkfifo(folder / "pipe"), (folder / "a.jsonl").symlink_to("pipe")),
    )
    yield inside("a link to itself", lambda folder: (folder / "a.jsonl").symlink_to("a.jsonl"))
    yield inside("a link to the folder", lambda folder: (folder / "again").symlink_to(folder, True))
    yield inside("a link to nothing", lambda folder: (folder / "a.jsonl").symlink_to("/nowhere"))
    yield inside("a link to a device", lambda folder: (folder / "a.jsonl").symlink_to("/dev/zero"))
    yield inside("a link to random bytes", lambda folder: (folder / "a.jsonl").symlink_to("/dev/urandom"))
    yield inside("a link to the root", lambda folder: (folder / "root").symlink_to("/", True))
    yield inside("a socket", _socket)
    yield inside("a script", lambda folder: (folder / "data.py").write_text("open('canary', 'w')"))
    yield inside("deep folders", lambda folder: folder.joinpath(*["d"] * 300).mkdir(parents=True))
    yield inside(
        "many files", lambda folder: [(folder / f"{at}.jsonl").write_text("{}\n") for at in range(3000)]
    )
    yield inside("a folder named as a file", lambda folder: (folder / "a.jsonl").mkdir())
    for name, raw in _NAMES.items():
        yield inside(f"a name of {name}", lambda folder, raw=raw: _copied(folder, raw))
        yield Hostile(
            f"a target with a name of {name}", lambda folder, raw=raw: select(target=_copied(folder, raw))
        )
        yield Hostile(
            f"an output with a name of {name}",
            lambda _, raw=raw: [part if part != "out" else os.fsdecode(b"out/" + raw) for part in select()],
        )


def _copied(folder: Path, raw: bytes) -> Path:
    path = folder / os.fsdecode(raw)
    path.parent.mkdir(parents=True, exist_ok=True)  # the name may have a slash
    path.write_bytes(Path("dev.jsonl").read_bytes())
    return path


def _socket(folder: Path) -> None:
    before = Path.cwd()
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("a.jsonl")
    os.chdir(before)


def configurations() -> Iterator[Hostile]:
    """Yield hostile files for --config."""
    laughs = "a0: &a0 [x]\n" + "".join(
        f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]\n" for at in range(1, 12)
    )
    texts = {
        "anchors": laughs,
        "an alias of itself": "pool: &a [*a]\n",
        "a merge": "<<: {pool: x}\npool: y\n",
        "an object": "pool: !!python/object/apply:os.system ['touch canary']\n",
        "a name of Python": "pool: !!python/name:os.system\n",
        "an unknown tag": "pool: !x y\n",
        "deep lists": "pool: " + "[" * 5000,
        "deep mappings": "".join(" " * at + "a:\n" for at in range(500)),
        "controls": json.dumps({"pool": EVERY, EVERY: 1}),
        "raw controls": "pool: \x1b[2J\n",
        "10 MB": "# x\n" * 2_500_000,
        "many keys": "".join(f"k{at}: 1\n" for at in range(20_000)),
        "a huge number": "seed: " + "9" * 5000 + "\n",
        "a number of base 60": "seed: 1:1:1\n",
        "bytes": "pool: !!binary aGVsbG8=\n",
        "documents": "---\npool: x\n---\npool: y\n",
        "NUL": "pool: \0\n",
        "a strategy of code": "policy: {name: 'os:system', command: touch canary}\n",
        "attributes": "policy: {name: ucb, __class__: x, __init__: y}\n",
        "the same key": "seed: 1\nseed: 2\n",
        "a long key": "x" * 200_000 + ": 1\n",
        "a directive": "%YAML 9.9\n---\nseed: 1\n",
    }
    for name, text in texts.items():
        yield Hostile(
            f"a configuration with {name}",
            lambda folder, text=text: select(
                "pool.jsonl", "--config", _written(folder / "config.yaml", text.encode())
            ),
        )


def all_files() -> Iterator[Hostile]:
    """Yield every hostile file of samples, and every hostile configuration."""
    for family in (pickles, bombs, columns, folders, configurations):
        yield from family()
