"""Read sources (files, folders and objects of every kind) as lines of JSON.

Every source yields the same for each row: its number and the bytes of one JSON value. The rest of the program therefore
knows nothing of file formats, and rows selected from a table are written as JSON. A line of a JSONL file is passed on
unchanged.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clusterucb.errors import InputError, OptionError, check_utf8
from clusterucb.progress import Advance
from clusterucb.samples.files import EXPECTED, ending, files_of, is_word, likely, short_names
from clusterucb.samples.formats import lines_of
from clusterucb.samples.remote import RemoteFile, local_copy, remote_files, url_of
from clusterucb.samples.tables import Line, batch_lines, columns_of_turns, encoded, without_nulls
from clusterucb.wording import one_line

_ARROW = "__arrow_c_stream__"  # the method of DataFrames and other tables with the Arrow interface
_EXPECTED_OBJECTS = "expected paths, a list of dicts, a Dataset or a DataFrame"


@dataclass(frozen=True)
class RowSource:
    """A file, a folder or an object that rows are read from.

    Attributes:
        place: the source's name in messages and ``rejected.jsonl``: a file's path as it was given, or ``<pool>``.
        name: the ``source`` of rows that have none.
        size: the number of bytes to read; 0 if it is not known.
        lines: a function of ``advance`` that yields (number, line), where numbers count from 1. It calls ``advance``
            with each number of bytes read.
    """

    place: str
    name: str
    size: int
    lines: Callable[[Advance], Iterator[Line]]


class RowSources(tuple[RowSource, ...]):
    """The sources of a pool or target, with patterns and folders expanded into files."""


def sources_of(given: Any, what: str) -> RowSources:
    """Return the sources of a pool or target. `RowSources` are returned unchanged.

    Args:
        given: a path or glob pattern of files or folders, a URL of an object store, a hub or a web server
            (`clusterucb.samples.remote`), or a list of these; or rows in memory: a list of dicts, a
            ``datasets.Dataset``, a DataFrame or any other object with the Arrow interface.
        what: ``pool`` or ``target``.

    Raises:
        InputError: a file does not exist, a folder holds no data, or the list is empty.
        OptionError: ``given`` is not an object that holds rows.
    """
    if isinstance(given, RowSources):
        return given
    if isinstance(given, str | os.PathLike):
        given = [given]
    elif not isinstance(given, Sequence) or not all(isinstance(path, str | os.PathLike) for path in given):
        other = isinstance(given, Mapping | Set | bytes | io.IOBase)
        if other or not (hasattr(given, _ARROW) or isinstance(given, Iterable)):
            raise OptionError(
                f"{what} is of type {type(given).__name__}; {_EXPECTED_OBJECTS}{_instead(given, what)}"
            )
        return RowSources([RowSource(f"<{what}>", what, 0, lambda _: _in_memory(given, what))])
    if not all(map(str, given)):
        raise InputError(f"a {what} file has an empty name; {EXPECTED}")
    if not given:
        raise InputError(f"the {what} is empty; {_EXPECTED_OBJECTS}")
    found: list[Path | RemoteFile] = []
    for path in given:
        found += remote_files(url) if (url := url_of(path)) else files_of(path)
    for file in found:
        check_utf8(f"the name of the {what} file", file, InputError)
    names = short_names(
        [Path("/", file.name.partition("://")[2]) if isinstance(file, RemoteFile) else file for file in found]
    )
    return RowSources(_source(file, name) for file, name in zip(found, names, strict=True))


def _source(file: Path | RemoteFile, name: str) -> RowSource:
    if isinstance(file, RemoteFile):
        return RowSource(file.name, name, file.size, partial(_remote_lines, file))
    return RowSource(str(file), name, _size(file), partial(lines_of, file))


def _remote_lines(file: RemoteFile, advance: Advance) -> Iterator[Line]:
    with local_copy(file) as path:
        yield from lines_of(path, advance)


def _in_memory(rows: Any, what: str) -> Iterator[Line]:
    if not hasattr(rows, _ARROW):
        nested = _nested(rows)
        for number, row in enumerate(rows, start=1):
            if isinstance(row, os.PathLike) or (isinstance(row, str) and is_word(row) and ending(Path(row))):
                raise OptionError(
                    f"row {number} of the {what} is the path {str(row)!r:.80}; expected only dicts, or only paths"
                )
            if nested and isinstance(row, dict):
                row = {name: without_nulls(one) if name in nested else one for name, one in row.items()}
            yield number, encoded(row)
        return
    import pyarrow as pa

    try:
        yield from batch_lines(pa.RecordBatchReader.from_stream(rows), f"the {what}")
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"the {what} is a {type(rows).__name__} that cannot be read as a table ({one_line(error):.200}); expected "
            "columns of different names, each with values of one type. Or give a list of dicts: to_dict('records')"
        ) from error


def _nested(rows: Any) -> frozenset[str]:
    """Return the columns of a ``datasets.Dataset`` that hold turns, calls or tools: its schema adds nulls to them."""
    schema = getattr(getattr(rows, "features", None), "arrow_schema", None)
    return frozenset() if schema is None else frozenset(columns_of_turns(schema))


def _instead(given: object, what: str) -> str:
    """Return advice for an object that holds rows but is not a list of them: what to give instead."""
    if type(given).__name__.endswith("DatasetDict") and isinstance(given, Mapping) and given:
        return f", such as {what}[{likely(given)!r}]"
    return ": put a single row in a list, or make columns a DataFrame" if isinstance(given, Mapping) else ""


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0  # the error is reported when the file is opened
