"""Decide how many rows of a Parquet file are decoded at a time, so that they take little memory.

Arrow decodes whole rows, and the rows of a small page may be large: a page of a dictionary holds a value once, and the
others name it (``RLE_DICTIONARY``); a value may begin as the one before it (``DELTA_BYTE_ARRAY``); and a page is
unpacked at once. pyarrow does not show the sizes of pages, so their headers are read here: ``PageHeader`` in
parquet.thrift, in Thrift's compact protocol. What cannot be read is left to Arrow, which says what is wrong.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from clusterucb.errors import InputError
from clusterucb.samples import bounds
from clusterucb.wording import in_bytes

_DECODED = 256 << 20  # bytes of rows that are decoded at a time
_TEXTS = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_VALUE = 12  # bytes that a value takes besides its content: its levels, its place
_DICTIONARY_PAGE = 2
_BY_DICTIONARY, _BY_PREFIX = (2, 8), 7  # encodings


def batches_of(table: Any, file: Path, rows: int) -> Iterator[Any]:
    """Yield the rows of a Parquet file in batches of at most so many rows, and fewer where rows may be large.

    Args:
        table: the file as ``pyarrow.parquet.ParquetFile``.
        file: its path.
        rows: the largest number of rows in a batch.

    Raises:
        InputError: a page unpacks to far more than its size.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:

        def fitting(group: int) -> int:
            row = sum(_bytes_of_a_row(table, content, file, group))
            return min(rows, max(1, int(_DECODED // max(row, 1))))

        for count, groups in groupby(range(table.num_row_groups), fitting):
            yield from table.iter_batches(count, row_groups=list(groups))


@dataclass
class _Column:
    """What the headers of a column's pages say, in one group of rows.

    Attributes:
        dictionary: bytes of the dictionary.
        named: values that name one of the dictionary, beyond the first of each.
        widest: the largest number of bytes of a value that stands in a page, on average of the page.
    """

    dictionary: int = 0
    named: int = 0
    widest: float = 0


def _bytes_of_a_row(table: Any, content: mmap.mmap, file: Path, group: int) -> Iterator[float]:
    """Yield how many bytes a row of a group takes in each column, at most, when it is decoded."""
    about = table.metadata.row_group(group)
    doubtful: dict[str, tuple[float, int]] = {}
    for at in range(about.num_columns):
        column = about.column(at)
        values = column.num_values / max(about.num_rows, 1)  # of a row; the column may hold lists
        yield _VALUE * values
        if (read := _column(content, column, file)) is None or column.physical_type not in _TEXTS:
            continue
        yield read.widest * values
        if read.dictionary * read.named > _DECODED // 2:  # it may be one large value, or none is large
            doubtful[column.path_in_schema] = values, read.dictionary
        else:
            yield read.dictionary * read.named / max(about.num_rows, 1)
    if doubtful:
        widest = _widest_named(table, file, group, list(doubtful))
        yield sum(values * widest.get(path, size) for path, (values, size) in doubtful.items())


def _column(content: mmap.mmap, column: Any, file: Path) -> _Column | None:
    """Return what the pages of a column say; None if they cannot be read."""
    found = _Column()
    with suppress(IndexError, KeyError, RecursionError, TypeError, ValueError):
        at = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
        end = at + column.total_compressed_size
        while at < end:
            page, at = _struct(content, at)
            kind, unpacked, packed = page[1], page[2], page[3]
            if packed < 0:
                return None
            at += packed
            if unpacked > bounds.may_unpack_to(packed):
                raise InputError(
                    f"{file} has a page that unpacks to {in_bytes(unpacked)}, more than {bounds.RATIO} times its "
                    "compressed size; expected pages of some MB: write the file again"
                )
            if kind == _DICTIONARY_PAGE:
                found.dictionary = max(found.dictionary, unpacked)
                found.named -= page[7][1]
            elif header := page.get(5) or page.get(8):
                encoding = header[2] if 5 in page else header[4]
                if encoding in _BY_DICTIONARY:
                    found.named += header[1]
                else:
                    several = 1 if encoding == _BY_PREFIX else max(header[1], 1)
                    found.widest = max(found.widest, unpacked / several)
        found.named = max(found.named, 0)
        return found
    return None


def _widest_named(table: Any, file: Path, group: int, paths: list[str]) -> dict[str, int]:
    """Return the number of bytes of the widest value in the dictionaries of some columns, where it can be found."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: dict[str, int] = {}
    left: list[tuple[str, Any]]
    with pq.ParquetFile(file, metadata=table.metadata, read_dictionary=paths) as again:
        batch = next(again.iter_batches(1, row_groups=[group], columns=paths), None)
    left = [] if batch is None else list(zip(batch.schema.names, batch.columns, strict=True))
    while left:
        path, array = left.pop()
        of = array.type
        if pa.types.is_dictionary(of) and of.value_type in (pa.string(), pa.binary()):
            found[path] = pc.max(pc.binary_length(array.dictionary)).as_py() or 0
        elif pa.types.is_struct(of):
            left += [(f"{path}.{of.field(at).name}", array.field(at)) for at in range(of.num_fields)]
        elif pa.types.is_list(of) or pa.types.is_large_list(of):
            left.append((f"{path}.list.element", array.values))
    return found


def _struct(content: mmap.mmap, at: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct that are numbers or structs, by their own numbers, and its end."""
    fields: dict[int, Any] = {}
    number = 0
    while head := content[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _signed(content, at)
        fields[number], at = _value(content, at, head & 15)
    return fields, at + 1


def _value(content: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true, false
        return None, at
    if kind in (4, 5, 6):
        return _signed(content, at)
    if kind == 8:  # bytes
        length, at = _unsigned(content, at)
        return None, at + length
    if kind == 12:
        return _struct(content, at)
    raise ValueError(kind)  # no header of a page has it


def _signed(content: mmap.mmap, at: int) -> tuple[int, int]:
    number, at = _unsigned(content, at)
    return (number >> 1) ^ -(number & 1), at


def _unsigned(content: mmap.mmap, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = content[at + shift // 7]
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at + shift // 7 + 1
    raise ValueError(at)
