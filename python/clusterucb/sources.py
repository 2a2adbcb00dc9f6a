"""Sources: files, folders and objects of every kind, each as lines of JSON.

Whatever a source is, what comes out of it is the same: a number and the bytes of one JSON value for every row, so
that the rest of the program knows nothing of formats, and what is selected of a table is written as JSON too.
A line of a JSONL file is passed on as it stands.

Decisions:
    - What a file is, its first bytes say; its ending decides only between JSONL and CSV, which have none of
      their own. Of an archive, a pickle or another kind of binary file nothing is opened.
    - Everything is read once, from front to back, in memory that does not grow; a pipe will do. The exceptions
      are a JSON array, which is decoded as a whole (or, where a value in it is bad, row by row as its brackets tell
      them apart), and Parquet and Arrow, which are refused where they cannot be read at any place.
    - An object of JSON over several lines is refused as a whole, with the command that mends it: read line by line
      each of its lines would be a bad one. What says so is its beginning, a line with nothing but ``{`` and a key.
    - Links to folders are followed, as a hub's cache is made of links; a folder that is found twice is read once.
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
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
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
_SPREAD = re.compile(rb'\{[ \t\r]*\n\s*"(?:[^"\\\n]|\\.)*"\s*:')  # an object of JSON over several lines
_TOKENS = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL
)  # strings, and what tells rows apart
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
_EXPECTED_OBJECTS = "expected paths, a list of dicts, a Dataset or a DataFrame"


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
        InputError: there is no such file, no data in the folder, or nothing in the list.
        OptionError: it is nothing that holds rows.
    """
    if isinstance(given, str | os.PathLike):
        given = [given]
    elif not isinstance(given, Sequence) or not all(isinstance(one, str | os.PathLike) for one in given):
        other = isinstance(given, Mapping | Set | bytes | io.IOBase)
        if other or not (hasattr(given, _ARROW) or isinstance(given, Iterable)):
            raise OptionError(
                f"{what} is of type {type(given).__name__}; {_EXPECTED_OBJECTS}{_instead(given, what)}"
            )
        return [Source(f"<{what}>", what, 0, lambda _: _in_memory(given, what))]
    if not all(map(str, given)):
        raise InputError(f"a {what} file has an empty name; {_EXPECTED}")
    if not given:
        raise InputError(f"the {what} is empty; {_EXPECTED_OBJECTS}")
    files = [file for one in given for file in _files(Path(one))]
    return [
        Source(str(file), name, _size(file), _reader(file))
        for file, name in zip(files, _short_names(files), strict=True)
    ]


# Files ----------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    """Return the files that a path means: itself, what a pattern matches, or the data in a folder."""
    if not os.path.lexists(path):
        path = Path(os.path.expanduser(path))
    try:
        path.stat()
    except (OSError, ValueError) as error:
        nameable = getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
        pattern = nameable and glob.has_magic(str(path))
        if pattern and (found := sorted(glob.glob(str(path), recursive=True))):
            return [file for one in found for file in _files(Path(one))]
        if not nameable or (re.search(r"\s", str(path)) and not _ending(path)):
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot read {str(path)!r:.80}: {reason}; expected the path of a file. A text that is itself a row "
                "goes into a dict: {'text': ...}"
            ) from error
        if pattern:
            raise InputError(f"no file matches {path}; expected a pattern of files that exist") from error
    if os.path.isdir(path):
        with _explained(path):
            return _files_in(path)
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
    found = sorted(_within(folder, set()))
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


def _within(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the data files of a folder and of the folders in it, but of none whose real path has been seen."""
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    with _explained(folder):
        inside = sorted(folder.iterdir())
    for path in inside:
        if path.name.startswith(".") or path.name in ("dataset_info.json", "state.json"):
            continue
        if path.is_dir():
            yield from _within(path, seen)
        elif path.is_file() and _ending(path):
            yield path


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
    return lambda advance: _saved_dataset(file) if os.path.isdir(file) else _file_lines(file, advance)


def _file_lines(file: Path, advance: Advance) -> Iterator[Line]:
    with _explained(file), file.open("rb", buffering=0) as raw:
        before = _state(raw)
        stream = io.BufferedReader(_Counted(raw, advance), 1 << 20)
        kind = next((kind for magic, kind in _COMPRESSED.items() if stream.peek(4).startswith(magic)), None)
        if kind is not None:
            import pyarrow as pa

            stream = io.BufferedReader(pa.CompressedInputStream(stream, kind), 1 << 20)
        yield from _by_content(stream, file, kind)
        if _state(raw) != before:
            raise InputError(f"{file} changed while it was read; run again when nothing writes to it")


def _by_content(stream: io.BufferedReader[Any], file: Path, packed: str | None) -> Iterator[Line]:
    first = 1 + _skip_blanks(stream)
    buffered = stream.peek()
    start, content = buffered[:4096], buffered.removeprefix(_BOM).lstrip()[:4096]
    if not start:
        return iter(())
    if start.startswith((b"PAR1", b"ARROW1", _STREAM)):
        return _columns(start, file, packed)
    if start.startswith(_UTF16):
        raise InputError(
            f"{file} is UTF-16; expected UTF-8: iconv -f UTF-16 -t UTF-8 {shlex.quote(str(file))}"
        )
    foreign = next((kind for magic, kind in _FOREIGN.items() if start.startswith(magic)), None)
    binary = b"\0" in start and content.strip(b"\0") and not _LINES.search(b"\n" + start)
    if foreign or binary:
        raise InputError(f"{file} is {foreign or 'a binary file'}; {_EXPECTED}")
    if _ending(file) in (".csv", ".tsv"):
        return _table(stream, file, first)
    if content.startswith(b"["):
        return _array(stream, file, packed)
    if _SPREAD.match(content):
        raise InputError(
            f"{file} has an object of JSON over several lines; expected an object on each line: "
            f"{_jq('.', file, packed)}"
        )
    return _lines(stream, first)


def _skip_blanks(stream: io.BufferedReader[Any]) -> int:
    """Read on until the buffer holds anything but blanks; return how many ends of lines were read."""
    passed = 0
    while (buffered := stream.peek()) and not buffered.removeprefix(_BOM).strip():
        passed += stream.read(len(buffered)).count(b"\n")
    return passed


def _jq(program: str, file: Path, packed: str | None) -> str:
    """Return the command that makes JSONL of a file."""
    command, name = f"jq -c {shlex.quote(program)}", shlex.quote(str(file))
    if not file.is_file():
        return f"{command} before the pipe"
    read = f"{packed} -dc {name} | {command}" if packed else f"{command} {name}"
    return f"{read} > {shlex.quote(f'{file}.jsonl')}"


def _lines(stream: IO[bytes], first: int = 1) -> Iterator[Line]:
    """Yield the lines that are not blank."""
    for number in itertools.count(first):
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


def _array(stream: io.BufferedReader, file: Path, packed: str | None) -> Iterator[Line]:
    content = stream.read(_LARGEST_ARRAY + 1).removeprefix(_BOM)
    if len(content) > _LARGEST_ARRAY:
        raise InputError(
            f"{file} is a JSON array of more than 4 GiB; expected JSONL: {_jq('.[]', file, packed)}"
        )
    try:
        rows = msgspec.json.decode(content, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        lines = [line for line in content.splitlines() if line.strip()]
        if 2 * sum(map(_is_json, lines)) >= len(lines):  # JSONL whose first line is a bad one
            yield from _lines(io.BytesIO(content))
            return
        apart = _told_apart(content)
        if not apart:
            raise InputError(
                f"{file} begins like a JSON array, but is none ({one_line(error):.120}); expected an array of "
                "objects, or an object on each line"
            ) from error
        for number, part in enumerate(apart, start=1):
            if row := content[part].strip():
                yield number, _joined(row) if _is_json(row) else row
        return
    for number, whole in enumerate(rows, start=1):
        yield number, _joined(bytes(whole))


def _told_apart(content: bytes) -> list[slice]:
    """Return where the rows of an array stand that holds a bad value; [] where its brackets do not match."""
    rows, begin, open_ = [], content.index(b"[") + 1, bytearray()
    for token in _TOKENS.finditer(content):
        one = token[0]
        if one in (b"[", b"{"):
            open_ += one
        elif one in (b"]", b"}") and open_.pop() != b"[{"[b"]}".index(one)]:
            return []
        if not open_ or (len(open_) == 1 and one == b","):
            rows.append(slice(begin, token.start()))
            begin = token.end()
        if not open_:
            return [] if content[begin:].strip() else rows
    return []


def _joined(row: bytes) -> bytes:
    """Return JSON on one line: its strings have no breaks."""
    return row.replace(b"\r", b" ").replace(b"\n", b" ")


def _is_json(line: bytes) -> bool:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        msgspec.json.decode(line)
        return True
    return False


def _table(stream: IO[bytes], file: Path, first: int) -> Iterator[Line]:
    """Yield the rows of CSV or TSV under the names of its first row; numbers are lines of the file."""
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    lines = enumerate(iter(lambda: text.readline(LONGEST_LINE), ""), start=first)
    number, header = next(((at, line) for at, line in lines if line.strip()), (first, ""))
    begin = number
    delimiters = "\t" if _ending(file) == ".tsv" else ",;\t|"
    try:
        delimiter = max(delimiters, key=lambda one: len(_fields(csv.reader([header], delimiter=one)) or ()))
        rows = csv.reader(itertools.chain([header], text), delimiter=delimiter, strict=True)
        names = _fields(rows) or []
        if twice := sorted({name for name in names if name and names.count(name) > 1}):
            raise InputError(
                f"{file} names columns twice in its first line: {', '.join(twice)}; expected different names"
            )
        number = begin + rows.line_num
        while (fields := _fields(rows)) is not None:
            if len(fields) == len(names):
                yield number, _encoded({name: one for name, one in zip(names, fields, strict=True) if name})
            elif fields:
                reason = f"not a row: {len(fields)} fields; the first line names {len(names)}"
                yield number, Unreadable(reason)
            number = begin + rows.line_num
    except csv.Error as error:
        too_long = f"a field has more than {LONGEST_LINE:,} characters, the most that are read"
        raise InputError(
            f"{file}:{number}: not CSV: {too_long if 'field limit' in str(error) else error}; expected quotes that "
            "are closed, with the quotes inside them doubled"
        ) from error


def _fields(rows: Iterator[list[str]]) -> list[str] | None:
    """Return the next row of CSV, None at its end. How long a field may be is a setting of the whole process."""
    before = csv.field_size_limit(LONGEST_LINE)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(before)


def _columns(start: bytes, file: Path, packed: str | None) -> Iterator[Line]:
    """Return the rows of a file that cannot be read from front to back."""
    parquet = start.startswith(b"PAR1")
    if packed or not file.is_file():
        where, how = (f"inside {packed}", "unpack") if packed else ("through a pipe", "write")
        raise InputError(
            f"{file} is {'Parquet' if parquet else 'Arrow'} {where}; expected a file that can be read at any place: "
            f"{how} it to a file first"
        )
    if parquet:
        return _parquet(file)
    return _arrow(file) if start.startswith(b"ARROW1") else _arrow_streams([file])


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
        for number, row in enumerate(rows, start=1):
            if isinstance(row, os.PathLike) or (isinstance(row, str) and _ending(Path(row))):
                raise OptionError(
                    f"row {number} of the {what} is the path {str(row)!r:.80}; expected dicts alone, or a list of "
                    "paths alone"
                )
            yield number, _encoded(row)
        return
    import pyarrow as pa

    try:
        yield from _batches(pa.RecordBatchReader.from_stream(rows))
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"the {what} is a {type(rows).__name__} that cannot be read as a table ({one_line(error):.200}); expected "
            "columns of different names, each with values of one type. Or give a list of dicts: to_dict('records')"
        ) from error


def _instead(given: object, what: str) -> str:
    """Return what to give in place of an object that holds rows, but is no list of them."""
    if type(given).__name__.endswith("DatasetDict") and isinstance(given, Mapping) and given:
        return f", such as {what}[{_likely(given)!r}]"
    return ": one row in a list, columns as a DataFrame" if isinstance(given, Mapping) else ""


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
