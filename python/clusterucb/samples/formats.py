"""Read a file of any supported format as lines of JSON.

Decisions:
    - A file's first bytes determine its format. Its ending only decides between JSONL and CSV, which have no such
      bytes. Archives, pickles and other kinds of binary files are never opened.
    - Every file is read once, from front to back, in memory that does not grow, so a pipe can be read too. There are
      two exceptions. A JSON array is decoded as a whole; if it holds a bad value, it is split at its brackets and
      decoded row by row. Parquet and Arrow files need random access and are refused where that is impossible.
    - A JSON object that is spread over several lines is refused as a whole, with the command that converts it: read
      line by line, every line of it would be rejected. Such a file begins with a line that holds only ``{``, and a
      key follows. The exception is an object that holds one list of rows, such as ``{"data": [...]}``.
    - An array of turns is one row, because no turn is a sample.
    - A row that cannot be decoded becomes an `Unreadable` in its place. A file whose compressed data breaks off, or
      that changes while it is read, is an error, because nobody knows what is missing.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import shlex
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from clusterucb.errors import InputError
from clusterucb.progress import Advance
from clusterucb.samples import bounds
from clusterucb.samples.delimited import delimited_lines
from clusterucb.samples.files import EXPECTED, ending, explained
from clusterucb.samples.message import Unreadable
from clusterucb.samples.tables import Line, arrow_lines, parquet_lines, saved_lines, stream_lines
from clusterucb.samples.turns import is_message
from clusterucb.wording import in_bytes, one_line

_LARGEST_ARRAY = 4 << 30  # bytes of a JSON array
_FEW = 64  # in an array of objects, there are at most so many commas for each object
_DEEPEST = 1_000_000  # brackets inside each other in a JSON array; more are read in vain for minutes
_LINES = re.compile(rb"[\r\n][ \t]*(?:\{\"|\{\}|\[)")  # a line that begins like a JSON value
_SPREAD = re.compile(rb'\{[ \t\r]*\n\s*"(?:[^"\\\n]|\\.)*"\s*:')  # a JSON object over several lines
_WRAPPED = re.compile(  # a JSON object whose first list holds rows
    rb'\{\s*(?:"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[\w.+-]+)\s*,\s*)*"(?:data|rows|examples|instances|items|train)"\s*:\s*\[\s*[\[{]'
)
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)  # strings, brackets and commas
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
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_STREAM = b"\xff\xff\xff\xff"  # the first bytes of an Arrow stream
_BOM = b"\xef\xbb\xbf"


def lines_of(file: Path, advance: Advance) -> Iterator[Line]:
    """Yield (number, line) for every row of a file or of a saved dataset's folder. Numbers count from 1.

    Args:
        file: the file or folder to read.
        advance: a function that is called with each number of bytes read. It is not called for a folder.

    Raises:
        InputError: the file cannot be read, or not to its end.
    """
    return saved_lines(file) if os.path.isdir(file) else _file_lines(file, advance)


def _file_lines(file: Path, advance: Advance) -> Iterator[Line]:
    with explained(file), file.open("rb", buffering=0) as raw:
        before = _state(raw)
        stream = io.BufferedReader(_CountingFile(raw, advance), 1 << 20)
        kind = next((kind for magic, kind in _COMPRESSED.items() if stream.peek(4).startswith(magic)), None)
        if kind is not None:
            import pyarrow as pa

            stream = io.BufferedReader(pa.CompressedInputStream(stream, kind), 1 << 20)
        yield from _by_content(stream, file, kind)
        if _state(raw) != before:
            raise InputError(f"{file} changed while it was read; repeat when nothing writes to it")


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
        raise InputError(f"{file} is {foreign or 'a binary file'}; {EXPECTED}")
    if ending(file) in (".csv", ".tsv"):
        return delimited_lines(stream, file, first)
    if content.startswith(b"["):
        return _array(stream, file, packed)
    if content.startswith(_LFS_POINTER):
        raise InputError(
            f"{file} is a Git LFS pointer, not the data; expected the file that it points to: git lfs pull"
        )
    if file.suffix.lower() == ".txt" and not content.startswith(b"{"):
        raise InputError(
            f"{file} is plain text; expected rows, such as JSONL. If each of its lines is a text: "
            f"{_jq('{text: .}', file, packed, raw=True)}"
        )
    if _WRAPPED.match(content):
        return _wrapped(stream, file, packed, first)
    if _SPREAD.match(content):
        raise _spread(file, packed)
    return _lines(stream, first)


def _spread(file: Path, packed: str | None) -> InputError:
    return InputError(
        f"{file} has a JSON object over several lines; expected an object on each line: {_jq('.', file, packed)}"
    )


def _wrapped(stream: IO[bytes], file: Path, packed: str | None, first: int) -> Iterator[Line]:
    """Yield (number, line) for the rows of a JSON object that holds one list of rows, such as ``{"data": [...]}``.

    A file of several such objects, each on a line, is read line by line.
    """
    content = _whole(stream, file, packed, "one JSON object", "expected JSONL")
    try:
        fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        if _SPREAD.match(content):
            raise _spread(file, packed) from None
        yield from _lines(io.BytesIO(content), first)
        return
    lists = {name: bytes(value) for name, value in fields.items() if bytes(value).startswith(b"[")}
    if len(lists) != 1:
        likely = next((name for name, value in lists.items() if value[1:].lstrip()[:1] in (b"{", b"[")), None)
        raise InputError(
            f"{file} is a JSON object with several lists ({', '.join(lists)}); expected one list of rows: "
            f"{_jq(f'.{likely or next(iter(lists))}[]', file, packed)}"
        )
    rows = msgspec.json.decode(next(iter(lists.values())), type=list[msgspec.Raw])
    if _are_turns(rows):  # the object is a row
        yield 1, _on_one_line(content.strip())
        return
    for number, row in enumerate(rows, start=1):
        yield number, _on_one_line(bytes(row))


def _skip_blanks(stream: io.BufferedReader[Any]) -> int:
    """Skip leading blanks and blank lines; return the number of line ends that were read."""
    n_line_ends = 0
    while (buffered := stream.peek()) and not buffered.removeprefix(_BOM).strip():
        n_line_ends += stream.read(len(buffered)).count(b"\n")
    return n_line_ends


def _jq(program: str, file: Path, packed: str | None, *, raw: bool = False) -> str:
    """Return the command that converts a file to JSONL; ``raw`` for a file of plain lines."""
    command, name = f"jq -{'R' if raw else ''}c {shlex.quote(program)}", shlex.quote(str(file))
    if not file.is_file():
        return f"{command} before the pipe"
    read = f"{packed} -dc {name} | {command}" if packed else f"{command} {name}"
    return f"{read} > {shlex.quote(f'{file}.jsonl')}"


def _lines(stream: IO[bytes], first: int = 1) -> Iterator[Line]:
    """Yield (number, line) for the lines that are not blank; ``first`` is the number of the first line."""
    for number in itertools.count(first):
        line = stream.readline(bounds.LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > bounds.LONGEST_LINE:
            yield number, Unreadable(f"too long: the line has more than {bounds.LONGEST_LINE >> 20} MiB")
            while line and not line.endswith(b"\n"):
                line = stream.readline(bounds.LONGEST_LINE)
            continue
        if number == 1:
            line = line.removeprefix(_BOM)
        line = line.rstrip(b"\r\n")
        if b"\r" in line and _is_json(line):  # a selected line would be two for some readers
            line = _on_one_line(line)
        if line.strip():
            yield number, line


def _array(stream: io.BufferedReader, file: Path, packed: str | None) -> Iterator[Line]:
    content = _whole(stream, file, packed, "a JSON array", f"expected JSONL: {_jq('.[]', file, packed)}")
    try:
        if content.count(b"{") * _FEW < content.count(b","):
            raise ValueError(
                "most of its values are no objects"
            )  # as objects of Python, they would take memory
        rows = msgspec.json.decode(content, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        good = [_is_json(line) for line in io.BytesIO(content) if line.strip()]
        if len(good) > 1 and 2 * sum(good) >= len(good):  # JSONL whose first line is bad
            yield from _lines(io.BytesIO(content))
            return
        try:  # once before the first row is passed on: rows of an array that is none would be wrong
            for _ in _split_rows(content):
                pass
        except ValueError as wrong:
            raise InputError(
                f"{file} begins like a JSON array, but is not one ({wrong}; {one_line(error):.120}); expected an array "
                "of objects, or an object on each line"
            ) from error
        for number, part in enumerate(_split_rows(content), start=1):
            if row := content[part].strip():
                yield number, _on_one_line(row) if _is_json(row) else row
        return
    if _are_turns(rows):
        yield 1, _on_one_line(content.strip())
        return
    for number, row in enumerate(rows, start=1):
        yield number, _on_one_line(bytes(row))


def _whole(stream: IO[bytes], file: Path, packed: str | None, what: str, remedy: str) -> bytes:
    """Return the content of a file that is read at once.

    Raises:
        InputError: it is too large, or unpacks to far more than files of samples do.
    """
    largest = _LARGEST_ARRAY
    if packed:
        largest = min(largest, bounds.may_unpack_to(file.stat().st_size))
    kept = io.BytesIO()  # read() of so many bytes would allocate them all
    while kept.tell() <= largest and (piece := stream.read(1 << 20)):
        kept.write(piece)
    content = kept.getvalue()
    if len(content) > largest:
        more = f"of more than {in_bytes(largest)}" + (
            f", {bounds.RATIO} times its compressed size" if packed else ""
        )
        raise InputError(f"{file} is {what} {more}; {remedy}")
    return content.removeprefix(_BOM)


def _split_rows(content: bytes) -> Iterator[slice]:
    """Yield the span of every row of a JSON array, which may hold bad values.

    Raises:
        ValueError: the brackets do not match, or are nested too deeply.
    """
    begin, open_ = content.index(b"[") + 1, bytearray()
    for token in _TOKENS.finditer(content):
        text = token[0]
        if text in (b"[", b"{"):
            open_ += text
            if len(open_) > _DEEPEST:
                raise ValueError(f"it is nested more than {_DEEPEST} deep")
        elif text in (b"]", b"}") and open_.pop() != b"[{"[b"]}".index(text)]:
            raise ValueError("its brackets do not match")
        if not open_ or (len(open_) == 1 and text == b","):
            yield slice(begin, token.start())
            begin = token.end()
        if not open_:
            if content[begin:].strip():
                raise ValueError("something follows its end")
            return
    raise ValueError("its end is missing")


def _are_turns(rows: Sequence[msgspec.Raw]) -> bool:
    """Return whether the first row of a list is a turn: then the list is a conversation. A bad row is none."""
    if not rows or not _is_json(bytes(rows[0])):
        return False
    return is_message(msgspec.json.decode(rows[0]))


def _on_one_line(row: bytes) -> bytes:
    """Return valid JSON on one line. Line breaks can only be between its tokens, never in its strings."""
    return row.replace(b"\r", b" ").replace(b"\n", b" ")


def _is_json(line: bytes) -> bool:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        msgspec.json.decode(line)
        return True
    return False


def _columns(start: bytes, file: Path, packed: str | None) -> Iterator[Line]:
    """Return (number, line) for the rows of a Parquet or Arrow file, which needs random access."""
    parquet = start.startswith(b"PAR1")
    if packed or not file.is_file():
        where, how = (f"inside {packed}", "unpack") if packed else ("through a pipe", "write")
        raise InputError(
            f"{file} is {'Parquet' if parquet else 'Arrow'} {where}; expected a regular file: {how} it to a file first"
        )
    if parquet:
        return parquet_lines(file)
    return arrow_lines(file) if start.startswith(b"ARROW1") else stream_lines([file], file)


class _CountingFile(io.RawIOBase):
    """A file that reports how many bytes are read."""

    def __init__(self, raw: IO[bytes], advance: Advance) -> None:
        self._raw = raw
        self._advance = advance

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or read to the end of the file. A pipe may return less at a time without being at its end."""
        view, count = memoryview(buffer), 0
        while count < len(view) and (more := self._raw.readinto(view[count:])):  # type: ignore[attr-defined]
            count += more
        self._advance(count)
        return count


def _state(file: IO[bytes]) -> tuple[int, int] | None:
    """Return a file's size and time of modification, which change when it is written to; None for a pipe."""
    status = os.fstat(file.fileno())
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
