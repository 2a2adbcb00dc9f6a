"""Write files and folders so that each is whole or absent, whenever the machine or the program stops; hash files.

Everything is written beside its destination, flushed to the disk and renamed into place. A file that exists is
therefore complete, and its existence means that its stage is done. What stands at the name beside the destination is
removed first, and never written through, because it may be a link to a file elsewhere.

A loss of power takes back names that were not flushed, in any order. So the folder is flushed as well: after a rename,
after a folder is made, and after a file is removed that would mislead a later session.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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


def unreadable(path: Path, error: OSError) -> RunError:
    """Return the error of a file that the system cannot read now. Its content may be right, so nothing is removed."""
    return RunError(
        f"cannot read {path}: {error.strerror or error}. Its content may be right: repeat the command when the file "
        "can be read"
    )


@contextmanager
def whole_file(path: Path, *, apart: bool = False) -> Iterator[Path]:
    """Yield a path to write a file to. The file is moved to ``path`` when the block ends without an error.

    Args:
        path: the file's path.
        apart: whether the file is written in a folder of its own. A library may write beside the file first, as
            safetensors does; what an interrupted one leaves there is then removed by the next attempt.

    Raises:
        RunError: the file cannot be written.
    """
    partial = path.with_name(path.name + _SUFFIX)
    with _as_run_error(path):
        _remove(partial)
        try:
            if apart:
                partial.mkdir()
            written = partial / path.name if apart else partial
            mode = _create(written)
            yield written
            written.chmod(mode)  # safetensors makes files that only their owner can read, whatever the umask
            flush(written)
            written.replace(path)
            _remove(partial)
            flush(path.parent)
        finally:
            _remove(partial)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write to. The folder is moved to ``path`` when the block ends without an error.

    Raises:
        RunError: the folder cannot be written.
    """
    partial = path.with_name(path.name + _SUFFIX)
    with _as_run_error(path):
        _remove(partial)
        make_folder(path.parent)
        partial.mkdir()
        try:
            mode = partial.stat().st_mode & 0o666
            yield partial
            for entry in partial.rglob("*"):
                if entry.is_file():
                    entry.chmod(mode)
                flush(entry)
            flush(partial)
            _remove(path)
            partial.replace(path)
            flush(path.parent)
        finally:
            _remove(partial)


def make_folder(path: Path) -> None:
    """Create a folder and those above it, where they do not exist, and flush their names to the disk.

    Raises:
        OSError: a folder cannot be created.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        with suppress(PermissionError):  # a folder that others own may be writable and not readable
            flush(folder.parent)


def remove_file(path: Path) -> None:
    """Remove a file, if it exists, and flush the removal to the disk.

    Raises:
        OSError: it cannot be removed.
    """
    with suppress(FileNotFoundError):
        path.unlink()
        flush(path.parent)


def inner_folder(path: Path) -> Path:
    """Return a folder of ours inside a folder of ours. It is created if it does not exist.

    Raises:
        RunError: something else is there, such as a link, through which files elsewhere would be written.
    """
    with _as_run_error(path):
        make_folder(path)
    if path.is_symlink():
        raise RunError(
            f"{path} is a link; expected a folder of its own. Remove the link and repeat the command"
        )
    return path


def check_regular(path: Path, *, written: bool = False) -> None:
    """Check that what stands at a path, if anything does, is a file.

    Args:
        path: the path.
        written: whether the file is written in place. Then it must not be a link, which may lead to a file elsewhere.

    Raises:
        RunError: it is a folder or a link; or a pipe, a socket or a device, which a reader may wait for without end.
    """
    try:
        mode = path.stat(follow_symlinks=not written).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise RunError(f"{path} is {_kind(mode)}; expected a file. Remove it and repeat the command")


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


def _create(path: Path) -> int:
    """Create an empty file where nothing may stand, and return its mode."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        return os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove what stands at a path. Of a link, only the link is removed."""
    try:
        is_folder = stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def flush(path: Path) -> None:
    """Flush a file's content, or the names in a folder, to the disk.

    Raises:
        OSError: it cannot be flushed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
