"""Read CSV and TSV as lines of JSON. The first row names the columns."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from clusterucb.errors import InputError
from clusterucb.samples import bounds
from clusterucb.samples.files import ending
from clusterucb.samples.message import Unreadable
from clusterucb.samples.tables import Line, check_names, encoded


def delimited_lines(stream: IO[bytes], file: Path, first: int) -> Iterator[Line]:
    """Yield (number, line) for the rows of CSV or TSV. The numbers are lines of the file.

    Args:
        stream: the content of the file.
        file: its path.
        first: the number of the first line.

    Raises:
        InputError: a quote is not closed, or a row is too long.
    """
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    lines = enumerate(iter(lambda: text.readline(bounds.LONGEST_LINE), ""), start=first)
    number, header = next(((at, line) for at, line in lines if line.strip()), (first, ""))
    begin = number
    delimiters = "\t" if ending(file) == ".tsv" else ",;\t|"
    try:
        delimiter = max(delimiters, key=lambda mark: len(_fields(csv.reader([header], delimiter=mark)) or ()))
        length = [0]
        bounded = itertools.chain([header], _bounded(text, length))
        rows = csv.reader(bounded, delimiter=delimiter, strict=True)
        names = _fields(rows) or []
        check_names(names, file)
        number = begin + rows.line_num
        length[0] = 0
        while (fields := _fields(rows)) is not None:
            if len(fields) == len(names):
                yield number, encoded({name: text for name, text in zip(names, fields, strict=True) if name})
            elif fields:
                reason = f"not a row: {len(fields)} fields; the first line names {len(names)}"
                yield number, Unreadable(reason)
            number = begin + rows.line_num
            length[0] = 0
    except csv.Error as error:
        too_long = f"a row has more than {bounds.LONGEST_LINE:,} characters, which is the limit"
        raise InputError(
            f"{file}:{number}: not CSV: {too_long if 'field limit' in str(error) else error}; expected closed quotes, "
            "with inner quotes doubled"
        ) from error


def _bounded(text: io.TextIOWrapper, length: list[int]) -> Iterator[str]:
    """Yield the lines of a text, and add the number of their characters to ``length``, until it is too large.

    A reader of CSV asks for more and more lines until a row ends, and a line may have no end.
    """
    longest = bounds.LONGEST_LINE
    while line := text.readline(longest + 1):
        length[0] += len(line)
        if length[0] > longest:
            raise csv.Error("row larger than field limit")
        yield line


def _fields(rows: Iterator[list[str]]) -> list[str] | None:
    """Return the next row of CSV, or None at the end.

    The limit on a field's length belongs to the whole process, so it is set for this row only.
    """
    before = csv.field_size_limit(bounds.LONGEST_LINE)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(before)
