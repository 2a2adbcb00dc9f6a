"""Bytes of a file as a pool, in every format that is known by its ending or its first bytes; also a saved dataset."""

from __future__ import annotations

import gzip

import msgspec
import pyarrow as pa

from clusterucb.samples.pool import read_pool
from whole.adversary.harnesses.judged import check, outcome, scratch

SAVED = ".saved"  # a folder that ``datasets`` wrote
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt", "", ".parquet", ".arrow", SAVED)
PACKINGS = ("", ".gz", ".zst")


def case(data: bytes) -> str:
    """Read a pool from a file. The first byte gives the file's ending and compression, the others its content."""
    if not data:
        return ""
    packing, ending = divmod(data[0] % (len(ENDINGS) * len(PACKINGS)), len(ENDINGS))
    content = data[1:]
    if PACKINGS[packing] == ".gz":
        content = gzip.compress(content, 1)
    elif PACKINGS[packing] == ".zst":
        content = bytes(pa.compress(content, "zstd", asbytes=True))
    with scratch() as folder:
        file = folder / f"pool{ENDINGS[ending]}{PACKINGS[packing]}"
        if ENDINGS[ending] == SAVED:
            file.mkdir()
            (file / "state.json").write_bytes(data[1:])
        else:
            file.write_bytes(content)

        def use() -> None:
            pool = read_pool(str(file))
            for sample in pool.samples:
                check(b"\n" not in sample.raw and b"\r" not in sample.raw, "a sample's line has a line break")
                check(isinstance(msgspec.json.decode(sample.raw), dict), "a sample's line is no object")
                check(any(message.learnt for message in sample.messages), "nothing of a sample is learnt")
                check(sample.id and len(sample.digest()) == 32, "a sample has no id")
            for line in pool.rejected:
                check(line.reason and line.kind and line.line > 0, f"a rejected line lacks a reason: {line}")

        return outcome(use)
