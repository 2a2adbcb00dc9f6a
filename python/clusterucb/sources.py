"""Sources: files, folders and objects of every kind, each as lines of JSON.

Whatever a source is, what comes out of it is the same: a number and the bytes of one JSON value for every row, so
that the rest of the program knows nothing of formats, and what is selected of a table is written as JSON too.
A line of a JSONL file is passed on as it stands.

Decisions:
    - What a file is, its first bytes say; its ending decides only between JSONL and CSV, which have none of
      their own. Of an archive, a pickle or another kind of binary file nothing is opened.
    - Everything is read once, from front to back, in memory that does not grow; a pipe will do. The exception
      is a JSON array, which is decoded as a whole.
    - A row that cannot be passed on is an `Unreadable` in its place. A file that breaks off in the middle of its
      compression, or changes while it is read, is an error: nobody knows what is missing.
"""

from __future__ import annotations

import csv
import errno
import glob
import io
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from clusterucb.errors import InputError, OptionError, one_line
from clusterucb.progress import Advance
from clusterucb.shapes import Unreadable

Line = tuple[int, bytes | Unreadable]

LONGEST_LINE = 64 << 20  # bytes; a longer line is no sample, but a file without line breaks
_LARGEST_ARRAY = 4 << 30  # bytes of a JSON array
_ROWS = 1024  # rows of a table at a time
_ARROW = "__arrow_c_stream__"  # what a DataFrame or another table has
_LINES = re.compile(rb"[\r\n][ \t]*(?:\{\"|\{\}|\[)")  # a line of JSON among the first bytes
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive (or a spreadsheet, or a PyTorch file)",
    b"SQLite format 3": "an SQLite database",
    b"\xfd7zXZ": "an xz file",
    b"BZh91AY&SY": "a bzip2 file",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"%PDF-": "a PDF",
    b"\x7fELF": "a program",
    b"GGUF": "a GGUF model",
}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_STREAM = b"\xff\xff\xff\xff"  # how a stream of Arrow begins
_BOM = b"\xef\xbb\xbf"
_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
_EXPECTED = "expected JSONL, a JSON array, CSV, TSV, Parquet or Arrow, the text ones perhaps in .gz or .zst"


@dataclass(frozen=True)
class Source:
    """Rows from one place.

    Attributes:
        place: what messages and ``rejected.jsonl`` call it: a file as it was given, or ``<pool>``.
        name: the ``source`` of rows without one.
        size: bytes to read, as far as known; 0 otherwise.
        lines: called with what is told the number of bytes read, yields (number, line), numbers from 1.
    """

    place: str
    name: str
    size: int
    lines: Callable[[Advance], Iterator[Line]]


def sources_of(given: Any, what: str) -> list[Source]:
    """Return the sources of a pool or target.

    Args:
        given: paths and glob patterns of files and folders, or one of them; or rows in memory: a list of
            dicts, a ``datasets.Dataset``, a DataFrame or anything else with the Arrow interface.
        what: ``pool`` or ``target``.

    Raises:
        InputError: there is no such file, or no data in the folder.
        OptionError: it is nothing that holds rows.
    """
    if isinstance(given, str | os.PathLike):
        given = [given]
    elif not isinstance(given, Sequence) or not all(isinstance(one, str | os.PathLike) for one in given):
        if isinstance(given, Mapping | bytes) or not (hasattr(given, _ARROW) or isinstance(given, Iterable)):
            raise OptionError(
                f"{what} is of type {type(given).__name__}; expected paths, a list of dicts, a Dataset or a DataFrame"
            )
        return [Source(f"<{what}>", what, 0, lambda _: _in_memory(given, what))]
    if not all(map(str, given)):
        raise InputError(f"a {what} file has an empty name; {_EXPECTED}")
    files = [file for one in given for file in _files(Path(one))]
    if not files:
        raise InputError(f"no {what} given; {_EXPECTED}")
    return [
        Source(str(file), name, _size(file), _reader(file))
        for file, name in zip(files, _short_names(files), strict=True)
    ]


# Files ----------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    """Return the files that a path means: itself, what a pattern matches, or the data in a folder."""
    try:
        path.stat()
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            reason = getattr(error, "strerror", None) or error  # a text that cannot be a path, such as a row
            raise InputError(
                f"cannot read {str(path)!r:.80}: {reason}; expected the path of a file"
            ) from error
    if path.is_dir():
        return _files_in(path)
    if not path.exists() and glob.has_magic(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if not found:
            raise InputError(f"no file matches {path}; expected a pattern of files that exist")
        return [file for one in found for file in _files(one)]
    return [path]


def _files_in(folder: Path) -> list[Path]:
    """Return a folder's data files: of a dataset that ``datasets`` saved, or of a copy from a hub."""
    if (folder / "state.json").is_file():
        return [folder]
    saved = sorted(path.parent.name for path in folder.glob("*/state.json"))
    if saved:
        raise InputError(
            f"{folder} holds the splits {', '.join(saved)}; expected one: {folder / _likely(saved)}"
        )
    found = sorted(
        path for path in folder.rglob("*") if path.is_file() and _ending(path) and not _hidden(path, folder)
    )
    if not found:
        raise InputError(
            f"{folder} is a folder without data files; expected files ending in {', '.join(_ENDINGS)}"
        )
    splits = {split for path in found if (split := _split(path))}
    if len(splits) > 1:
        raise InputError(
            f"{folder} holds the splits {', '.join(sorted(splits))}; expected files of one, such as "
            f"'{folder}/**/{_likely(splits)}*' (in quotes)"
        )
    return found


def _likely(splits: Iterable[str]) -> str:
    """Return the split that people mean."""
    return "train" if "train" in splits else min(splits)


def _hidden(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder)
    return any(part.startswith(".") for part in inside.parts) or inside.name in (
        "dataset_info.json",
        "state.json",
    )


def _split(path: Path) -> str | None:
    """Return the split that a hub's file name begins with, if it does."""
    name = path.name.split("-")[0].split(".")[0]
    return name if name in ("train", "test", "validation", "valid", "dev") else None


def _ending(path: Path) -> str:
    """Return the ending that says what a file is, without that of its compression; "" for an unknown one."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return next((ending for ending in _ENDINGS if name.endswith(ending)), "")


def _short_names(files: Sequence[Path]) -> list[str]:
    """Return each file's name without its endings; where two have the same, with as many folders as tell them apart."""
    places = [file.absolute() for file in files]
    longest = max(len(place.parts) for place in places)

    def name(place: Path, n_folders: int) -> str:
        folders = place.parts[len(place.parts) - 1 - n_folders : -1] if n_folders else ()
        return "/".join([*folders, _stem(place)])

    def distinct(place: Path, n_folders: int) -> bool:
        return all(other == place or name(other, n_folders) != name(place, n_folders) for other in places)

    needed = [next((n for n in range(longest) if distinct(place, n)), longest) for place in places]
    return [name(place, n) for place, n in zip(places, needed, strict=True)]


def _stem(file: Path) -> str:
    packed = file.suffix.lower() in (".gz", ".zst") and _ending(file)
    return Path(file.stem).stem if packed else file.stem


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0  # told when it is opened


def _reader(file: Path) -> Callable[[Advance], Iterator[Line]]:
    return lambda advance: _saved_dataset(file) if file.is_dir() else _file_lines(file, advance)


def _file_lines(file: Path, advance: Advance) -> Iterator[Line]:
    with _explained(file), file.open("rb", buffering=0) as raw:
        before = _state(raw)
        stream = io.BufferedReader(_Counted(raw, advance), 1 << 20)
        kind = next((kind for magic, kind in _COMPRESSED.items() if stream.peek(4).startswith(magic)), None)
        if kind is not None:
            import pyarrow as pa

            stream = io.BufferedReader(pa.CompressedInputStream(stream, kind), 1 << 20)
        yield from _by_content(stream, file)
        if _state(raw) != before:
            raise InputError(f"{file} changed while it was read; run again when nothing writes to it")


def _by_content(stream: io.BufferedReader[Any], file: Path) -> Iterator[Line]:
    start = stream.peek(4096)[:4096]
    if not start:
        return iter(())
    if start.startswith(b"PAR1"):
        return _parquet(file)
    if start.startswith(b"ARROW1"):
        return _arrow(file)
    if start.startswith(_STREAM):
        return _arrow_streams([file])
    content = start.removeprefix(_BOM).lstrip()
    if start.startswith(_UTF16):
        raise InputError(f"{file} is UTF-16; expected UTF-8: iconv -f UTF-16 -t UTF-8 {file}")
    foreign = next((kind for magic, kind in _FOREIGN.items() if start.startswith(magic)), None)
    binary = b"\0" in start and content.strip(b"\0") and not _LINES.search(b"\n" + start)
    if foreign or binary:
        raise InputError(f"{file} is {foreign or 'a binary file'}; {_EXPECTED}")
    if _ending(file) in (".csv", ".tsv"):
        return _table(stream, file)
    if content.startswith(b"["):
        return _array(stream, file)
    return _lines(stream)


def _lines(stream: IO[bytes]) -> Iterator[Line]:
    """Yield the lines that are not blank."""
    for number in itertools.count(1):
        line = stream.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            yield number, Unreadable(f"too long: the line has more than {LONGEST_LINE >> 20} MiB")
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST_LINE)
            continue
        if number == 1:
            line = line.removeprefix(_BOM)
        line = line.rstrip(b"\r\n")
        if line.strip():
            yield number, line


def _array(stream: io.BufferedReader, file: Path) -> Iterator[Line]:
    content = stream.read(_LARGEST_ARRAY + 1).removeprefix(_BOM)
    if len(content) > _LARGEST_ARRAY:
        raise InputError(f"{file} is a JSON array of more than 4 GiB; expected JSONL: jq -c '.[]' {file}")
    try:
        rows = msgspec.json.decode(content, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        lines = [line for line in content.splitlines() if line.strip()]
        if 2 * sum(map(_is_json, lines)) >= len(lines):  # JSONL whose first line is a bad one
            yield from _lines(io.BytesIO(content))
            return
        raise InputError(
            f"{file} begins like a JSON array, but is none ({one_line(error):.120}); expected an array of objects, or "
            "an object on each line"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield (
            number,
            bytes(row).replace(b"\r", b" ").replace(b"\n", b" "),
        )  # between tokens: strings have none


def _is_json(line: bytes) -> bool:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        msgspec.json.decode(line)
        return True
    return False


def _table(stream: IO[bytes], file: Path) -> Iterator[Line]:
    """Yield the rows of CSV or TSV under the names of its first row; numbers are lines of the file."""
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    header = next((line for line in iter(lambda: text.readline(LONGEST_LINE), "") if line.strip()), "")
    csv.field_size_limit(LONGEST_LINE)
    delimiters = "\t" if _ending(file) == ".tsv" else ",;\t|"
    delimiter = max(delimiters, key=lambda one: len(next(csv.reader([header], delimiter=one), ())))
    rows = csv.reader(itertools.chain([header], text), delimiter=delimiter, strict=True)
    number = 1
    try:
        names = next(rows, [])
        if twice := sorted({name for name in names if name and names.count(name) > 1}):
            raise InputError(
                f"{file} names columns twice in its first line: {', '.join(twice)}; expected different names"
            )
        number = rows.line_num + 1
        for fields in rows:
            if len(fields) == len(names):
                yield number, _encoded({name: one for name, one in zip(names, fields, strict=True) if name})
            elif fields:
                reason = f"not a row: {len(fields)} fields; the first line names {len(names)}"
                yield number, Unreadable(reason)
            number = rows.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{file}:{number}: not CSV: {error}; expected quotes that are closed, with the quotes inside them doubled"
        ) from error


def _parquet(file: Path) -> Iterator[Line]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        yield from _batches(table.iter_batches(_ROWS))


def _arrow(file: Path) -> Iterator[Line]:
    import pyarrow as pa

    with pa.memory_map(str(file)) as mapped:
        reader = pa.ipc.open_file(mapped)
        yield from _batches(_valid(reader.get_batch(number)) for number in range(reader.num_record_batches))


def _arrow_streams(files: Sequence[Path]) -> Iterator[Line]:
    import pyarrow as pa

    def batches() -> Iterator[Any]:
        for file in files:
            with pa.memory_map(str(file)) as mapped:
                yield from map(_valid, pa.ipc.open_stream(mapped))

    return _batches(batches())


def _valid(batch: Any) -> Any:
    """Return a batch of a file whose offsets lie within it: Arrow believes what a file says."""
    batch.validate(full=True)
    return batch


def _saved_dataset(folder: Path) -> Iterator[Line]:
    """Yield the rows of a dataset that ``datasets`` saved: streams of Arrow that ``state.json`` lists."""
    state = folder / "state.json"
    with _explained(folder):
        try:
            names = [
                Path(one["filename"]).name for one in msgspec.json.decode(state.read_bytes())["_data_files"]
            ]
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise InputError(
                f"{state} does not list a dataset's files; expected a folder of save_to_disk"
            ) from error
        yield from _arrow_streams([folder / name for name in names])


def _batches(batches: Iterable[Any]) -> Iterator[Line]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            for row in _rows(batch.slice(start, _ROWS)):
                number += 1
                yield number, row if isinstance(row, Unreadable) else _encoded(row)


def _rows(batch: Any) -> list[dict[str, Any] | Unreadable]:
    """Return the rows of a table; those with text that is no UTF-8 as `Unreadable`."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [Unreadable(f"not UTF-8: byte 0x{error.object[error.start]:02x}")]
        return [row for at in range(batch.num_rows) for row in _rows(batch.slice(at, 1))]
    for name in batch.schema.names:
        if name.startswith("__index_level_"):  # pandas' own
            for row in rows:
                del row[name]
    return list(rows)


# Memory ---------------------------------------------------------------------------------------------------


def _in_memory(rows: Any, what: str) -> Iterator[Line]:
    if not hasattr(rows, _ARROW):
        yield from ((number, _encoded(row)) for number, row in enumerate(rows, start=1))
        return
    import pyarrow as pa

    try:
        yield from _batches(pa.RecordBatchReader.from_stream(rows))
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"the {what} is a {type(rows).__name__} that cannot be read as a table ({one_line(error):.200}); expected "
            "columns of different names, each with values of one type. Or give a list of dicts: to_dict('records')"
        ) from error


def _encoded(row: object) -> bytes | Unreadable:
    """Return a row as a line of JSON."""
    try:
        return _ENCODER.encode(row)
    except UnicodeEncodeError:
        return Unreadable("not UTF-8: the row holds bytes that are no text")
    except Exception as error:  # of any kind: objects in a row do what they want
        return Unreadable(f"not JSON: the row cannot be written as JSON ({one_line(error):.120})")


def _plain(value: Any) -> Any:
    """Return what JSON has no word for as something that it has: an array as a list, a time as a text."""
    if hasattr(value, "tolist"):
        return value.tolist()  # numpy's
    if isinstance(value, Mapping):
        return dict(value)
    if type(value).__name__ in ("NaTType", "NAType"):  # pandas' nothing
        return None
    if hasattr(value, "isoformat"):  # pandas' times
        return value.isoformat()
    raise TypeError(f"it holds {type(value).__name__}")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)


# Failures -------------------------------------------------------------------------------------------------


class _Counted(io.RawIOBase):
    """A file that says how far it has been read."""

    def __init__(self, raw: IO[bytes], advance: Advance) -> None:
        self._raw = raw
        self._advance = advance

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, unless the file ends: what a pipe gives at a time says nothing."""
        view, count = memoryview(buffer), 0
        while count < len(view) and (more := self._raw.readinto(view[count:])):  # type: ignore[attr-defined]
            count += more
        self._advance(count)
        return count


def _state(file: IO[bytes]) -> tuple[int, int] | None:
    """Return what changes when a file is written to; None of a pipe."""
    found = os.fstat(file.fileno())
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system or pyarrow says of a file into one clear line."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        broken = "truncated" in reason.lower()
        advice = "the file breaks off: fetch it again" if broken else _EXPECTED
        raise InputError(f"cannot read {path}: {reason:.200}; {advice}") from error
