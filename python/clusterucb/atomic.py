"""Write files and folders so that each is whole or absent, whenever the machine or the program stops; hash files.

Everything is written beside its destination, flushed to the disk and renamed into place. A reader may therefore
trust every file that exists, and a file's existence means that its stage is done.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError

from clusterucb.errors import RunError

_SUFFIX = ".partial"


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to. The file is moved to ``path`` when the block ends without an error.

    Raises:
        RunError: the file cannot be written.
    """
    partial = path.with_name(path.name + _SUFFIX)
    with _as_run_error(path):
        try:
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)  # safetensors makes files that only their owner can read, whatever the umask
            _flush(partial)
            partial.replace(path)
            _flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write to. The folder is moved to ``path`` when the block ends without an error.

    Raises:
        RunError: the folder cannot be written.
    """
    partial = path.with_name(path.name + _SUFFIX)
    with _as_run_error(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            mode = partial.stat().st_mode & 0o666
            yield partial
            for entry in partial.rglob("*"):
                if entry.is_file():
                    entry.chmod(mode)
                _flush(entry)
            _flush(partial)
            shutil.rmtree(path, ignore_errors=True)
            partial.replace(path)
            _flush(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, all or nothing."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one line of JSON for each row to ``path``, all or nothing."""
    with whole_file(path) as partial, partial.open("wb") as lines:
        lines.writelines(msgspec.json.encode(row) + b"\n" for row in rows)


@contextmanager
def _as_run_error(path: Path) -> Iterator[None]:
    """Turn an error in writing ``path`` into a `RunError` that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(
            f"cannot write {path}: {reason}. Earlier files are kept: free some space or "
            "repair the folder, then repeat the command"
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
