"""Turn the rows of Arrow tables, from files or from memory, into lines of JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from clusterucb.errors import InputError
from clusterucb.samples.arrow_sizes import pieces
from clusterucb.samples.files import explained
from clusterucb.samples.message import Unreadable
from clusterucb.samples.packed_batches import check_batches
from clusterucb.samples.parquet_pages import batches_of
from clusterucb.samples.tools import CALLS
from clusterucb.wording import one_line

Line = tuple[int, bytes | Unreadable]

_ROWS = 1024  # the number of rows converted at a time

# Columns that hold turns or tools. So do those with objects that have such fields: turns, questions with their answers,
# calls, and tools.
_NESTED = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "tools", "functions")
_OF_TURNS = (
    *product(("role", "from"), ("content", "value", "text", "parts", *CALLS)),
    *(("input", "output"), ("human", "assistant"), ("user", "assistant")),
    *(("name", "arguments"), ("name", "parameters")),
)


def parquet_lines(file: Path) -> Iterator[Line]:
    """Yield (number, line) for the rows of a Parquet file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        yield from batch_lines(batches_of(table, file, _ROWS), file)


def arrow_lines(file: Path) -> Iterator[Line]:
    """Yield (number, line) for the rows of an Arrow file."""
    import pyarrow as pa

    check_batches(file)
    with pa.memory_map(str(file)) as mapped:
        reader = pa.ipc.open_file(mapped)
        batches = (_valid(reader.get_batch(number)) for number in range(reader.num_record_batches))
        yield from batch_lines(batches, file)


def stream_lines(files: Sequence[Path], place: Path) -> Iterator[Line]:
    """Yield (number, line) for the rows of several Arrow streams, one after the other.

    Args:
        files: the files that hold the streams.
        place: the source's name in messages.
    """
    import pyarrow as pa

    def batches() -> Iterator[Any]:
        for file in files:
            check_batches(file)
            with pa.memory_map(str(file)) as mapped:
                yield from map(_valid, pa.ipc.open_stream(mapped))

    return batch_lines(batches(), place)


def _valid(batch: Any) -> Any:
    """Return a batch after checking that its offsets lie within it, since Arrow trusts the file."""
    batch.validate(full=True)
    return batch


def saved_lines(folder: Path) -> Iterator[Line]:
    """Yield (number, line) for the rows of a dataset that ``datasets`` saved as Arrow streams."""
    state = folder / "state.json"
    with explained(folder):
        try:
            files = msgspec.json.decode(state.read_bytes())["_data_files"]
            names = [Path(file["filename"]).name for file in files]
        except (msgspec.MsgspecError, KeyError, TypeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(
                f"{state} does not list a dataset's files; expected a folder written by save_to_disk"
            ) from error
        yield from stream_lines([folder / name for name in names], folder)


def batch_lines(batches: Iterable[Any], place: object) -> Iterator[Line]:
    """Yield (number, line) for the rows of Arrow batches.

    Args:
        batches: the batches of one table.
        place: the table's name in messages.

    Raises:
        InputError: two columns have the same name.
    """
    number = 0
    for batch in batches:
        check_names(batch.schema.names, place)
        for start in range(0, batch.num_rows, _ROWS):
            for piece in pieces(batch.slice(start, _ROWS)):
                for row in [piece] if isinstance(piece, Unreadable) else _rows(piece):
                    number += 1
                    yield number, row if isinstance(row, Unreadable) else encoded(row)


def check_names(names: Sequence[str], place: object) -> None:
    """Check that no two columns of a table have the same name, because one of them would be lost.

    Raises:
        InputError: two columns have the same name.
    """
    if twice := sorted(name for name, count in Counter(names).items() if name and count > 1):
        raise InputError(f"{place} has duplicate columns: {', '.join(twice)}; expected different names")


def _rows(batch: Any) -> list[dict[str, Any] | Unreadable]:
    """Return the rows of a batch. Rows with text that is not UTF-8, or with impossible times, become `Unreadable`."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows > 1:
            return [row for at in range(batch.num_rows) for row in _rows(batch.slice(at, 1))]
        if isinstance(error, UnicodeDecodeError):
            return [Unreadable(f"not UTF-8: byte 0x{error.object[error.start]:02x}")]
        return [_unwritable(error)]
    for name in columns_of_turns(batch.schema):
        for row in rows:
            row[name] = without_nulls(row[name])
    for name in batch.schema.names:
        if name.startswith("__index_level_"):  # the index that pandas adds
            for row in rows:
                del row[name]
    return list(rows)


def columns_of_turns(schema: Any) -> list[str]:
    """Return the columns of an Arrow schema that hold turns, calls or tools, whatever their names are."""
    return [field.name for field in schema if field.name in _NESTED or _holds_turns(field.type)]


def _holds_turns(type_: Any) -> bool:
    """Return whether values of an Arrow type are turns, calls or tools, or hold some."""
    names = {type_.field(at).name for at in range(type_.num_fields)}
    inner = any(_holds_turns(type_.field(at).type) for at in range(type_.num_fields))
    return inner or any(names.issuperset(pair) for pair in _OF_TURNS)


def without_nulls(value: Any) -> Any:
    """Return a value without the fields that are null inside of it.

    A table gives every object in a column the fields of all, so a call of one tool would have the arguments of all.
    """
    if isinstance(value, list):
        return [without_nulls(one) for one in value]
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return value


def encoded(row: object) -> bytes | Unreadable:
    """Return a row as a line of JSON, or as `Unreadable` if JSON cannot hold it."""
    try:
        return _ENCODER.encode(row)
    except UnicodeEncodeError:
        return Unreadable("not UTF-8: the row holds bytes that are not text")
    except Exception as error:  # objects in a row run their own code, which may raise any exception
        return _unwritable(error)


def _unwritable(error: Exception) -> Unreadable:
    return Unreadable(f"not JSON: the row cannot be written as JSON ({one_line(error):.120})")


def _plain(value: Any) -> Any:
    """Return a value that JSON cannot hold as a value that it can hold: an array as a list, a time as a string."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if type(value).__name__ in ("NaTType", "NAType"):  # pandas' missing values
        return None
    if hasattr(value, "isoformat"):  # pandas' times
        return value.isoformat()
    raise TypeError(f"it holds {type(value).__name__}")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)
