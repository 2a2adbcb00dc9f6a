"""Read files from object stores, hubs and web servers: ``s3://``, ``gs://``, ``hf://datasets/...``, ``https://``.

Decisions:
    - fsspec finds the library for each protocol; those of S3, Google Cloud and HTTP are installed by the user.
    - A file is copied into a temporary folder when it is read, because Parquet needs random access. The copy is removed
      when it has been read. A run that is resumed reads the file again, and its content is compared as for any file.
    - Names in messages and results are the URLs, without passwords and without queries, which may hold signatures.
    - A path of one of these forms that exists on this machine is a local path.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from clusterucb.errors import InputError
from clusterucb.samples.files import EXPECTED, ending
from clusterucb.samples.lines import room_for
from clusterucb.wording import one_line

_URL = re.compile(r"([a-z][a-z0-9+]+):/+([^/].*)", re.DOTALL)  # a `Path` keeps one slash of the two
_CREDENTIALS, _QUERY = re.compile(r"(?<=://)[^/@]*@"), re.compile(r"\?.*", re.DOTALL)
_LIBRARIES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
}


class RemoteFile(NamedTuple):
    """A file that is not on this machine.

    Attributes:
        name: its URL, without password and query.
        size: its size in bytes; 0 if it is not known.
        copied: copies it to a path.
    """

    name: str
    size: int
    copied: Callable[[Path], None]


def url_of(given: object) -> str | None:
    """Return the URL that a path stands for; None if it is a path of this machine."""
    if not isinstance(given, str | os.PathLike):
        return None
    text = os.fspath(given)
    if not isinstance(text, str) or not (found := _URL.fullmatch(text)) or os.path.lexists(text):
        return None
    return f"{found[1]}://{found[2]}"


def remote_files(url: str) -> list[RemoteFile]:
    """Return the files that a URL stands for: itself, a pattern's matches, or the data files in a folder.

    Raises:
        InputError: the library for the protocol is missing, the server cannot be reached, or there is no such file.
    """
    shown = _shown(url)
    system, path = _opened(url, shown)
    try:
        if "*" in path and not url.startswith(("http:", "https:")):
            paths = sorted(system.glob(path))
        elif not url.startswith(("http:", "https:")) and system.isdir(path):
            paths = sorted(file for file in system.find(path) if ending(Path(PurePosixPath(file).name)))
        else:
            paths = [path]
        sizes = [int(system.info(file).get("size") or 0) for file in paths]
    except Exception as error:  # each library has its own
        raise _unreachable(shown, error) from error
    if not paths:
        raise InputError(f"no data file at {shown}; {EXPECTED}")
    protocol = url.partition("://")[0]

    def named(file: str) -> str:
        return (
            shown
            if len(paths) == 1
            else _shown(system.unstrip_protocol(file) if protocol != "hf" else f"hf://{file}")
        )

    def copying(file: str) -> Callable[[Path], None]:
        def copied(to: Path) -> None:
            try:
                system.get_file(file, str(to))
            except Exception as error:
                raise _unreachable(named(file), error) from error

        return copied

    return [RemoteFile(named(file), size, copying(file)) for file, size in zip(paths, sizes, strict=True)]


@contextmanager
def local_copy(file: RemoteFile) -> Iterator[Path]:
    """Yield the path of a temporary copy of a file, with the file's own name; it is removed afterwards.

    Raises:
        InputError: the file cannot be copied, or an error inside names the copy; it then names the file.
    """
    with room_for("a copy of a remote file"):
        folder = Path(tempfile.mkdtemp(prefix="clusterucb-"))
    try:
        path = folder / PurePosixPath(file.name).name
        with room_for("a copy of a remote file"):
            file.copied(path)
        yield path
    except InputError as error:
        raise InputError(
            str(error).replace(str(folder / PurePosixPath(file.name).name), file.name)
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _opened(url: str, shown: str) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]

    protocol = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(
            f"cannot read {shown}: {protocol}:// needs {_LIBRARIES.get(protocol, 'another library')}, which is not "
            f"installed; expected it (pip install {_LIBRARIES.get(protocol, '...')}), or a local copy of the file"
        ) from error
    except ValueError as error:
        raise InputError(
            f"cannot read {shown}: {protocol} is not a known protocol; expected a path, or a URL of s3, gs, hf or https"
        ) from error
    except Exception as error:
        raise _unreachable(shown, error) from error
    return system, str(path)


def _unreachable(shown: str, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
        error = cause  # fsspec calls a server that does not answer a missing file
    if isinstance(error, FileNotFoundError):
        return InputError(f"cannot read {shown}: there is no such file; {EXPECTED}")
    reason = one_line(_QUERY.sub("", str(error)) or type(error).__name__)
    return InputError(
        f"cannot read {shown}: {reason:.200}; expected a file that can be read from this machine. Check the name, the "
        "connection and the access rights, or give a local copy"
    )


def _shown(url: str) -> str:
    return _CREDENTIALS.sub("", _QUERY.sub("", url))
