"""Keep the files that the stages of a run write for later stages, and verify each before it is read.

Decisions:
    - The manifest records the SHA-256 of each file as soon as the file is in place. A file whose content differs from
      its record is damaged, or belongs to another run, and is never read.
    - A file without a record is computed again: the process died between the file and its record, so the bytes will be
      the same; or the file is not the run's.
    - A recorded file that is missing is computed again, and the user is told. If the result differs, the job is
      refused, because the run's draws rest on the former file.
    - Before format 3, manifests had no records. Their files are recorded as they are found when the run is opened, and
      read without one from a folder that is only read.
    - Files are verified once in a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from clusterucb.atomic import check_regular, file_sha256, inner_folder, unreadable, whole_file
from clusterucb.errors import RunError, warn

Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[type[np.generic], tuple[int | None, ...]]]


class KeptFiles:
    """The files that a folder keeps for later stages.

    A file's name is its path inside the folder, with slashes.

    Args:
        folder: the folder.
        digests: the recorded hex SHA-256 of each file by its name, which is changed in place; None if the folder has
            no records.
        save: stores the records after a change. A folder that is only read has None.
        remedy: what the user can do about a damaged file.
    """

    def __init__(
        self,
        folder: Path,
        digests: dict[str, str] | None,
        save: Callable[[], None] | None = None,
        *,
        remedy: str = "remove it, and it is computed again",
    ) -> None:
        self.folder = folder
        self.remedy = remedy
        self._digests = digests
        self._save = save
        self._verified: set[str] = set()
        self._removed: set[Path] = set()

    def recorded(self, prefix: str) -> list[str]:
        """Return the recorded names that begin with ``prefix``, sorted."""
        return sorted(name for name in self._digests or () if name.startswith(prefix))

    def find(self, name: str) -> Path | None:
        """Return the path of a file, or None if the file has to be computed.

        Raises:
            RunError: the file is damaged or belongs to another run.
        """
        path = self.folder / name
        check_regular(path)
        if self._digests is None:
            return path if path.exists() else None
        recorded = self._digests.get(name)
        if recorded is None:
            return None
        if not path.exists():
            self._say_removed(path)
            return None
        if name not in self._verified:
            if _digest(path) != recorded:
                raise self.damaged(path, "its SHA-256 is not the one in manifest.json")
            self._verified.add(name)
        return path

    def path(self, name: str) -> Path:
        """Return the path of a file that should exist, whether it does or not.

        Raises:
            RunError: the file is damaged or belongs to another run.
        """
        return self.find(name) or self.folder / name

    def arrays(self, name: str, shapes: Shapes | None = None) -> dict[str, NDArray[Any]] | None:
        """Return the arrays of a file, or None if the file has to be computed.

        Args:
            name: the file's name.
            shapes: the dtype and the shape of each array; None stands for a length that may vary. By default, they are
                not checked.

        Raises:
            RunError: the file is damaged or belongs to another run.
        """
        path = self.find(name)
        if path is None:
            return None
        try:
            arrays = load_arrays(path)
            if shapes is not None:
                check_arrays(arrays, shapes)
        except ValueError as error:
            raise self.damaged(path, error) from error
        return arrays

    def damaged(self, path: Path, reason: object) -> RunError:
        """Return the error of a file that is not what the run wrote."""
        return RunError(f"{path} is damaged ({reason}): {self.remedy}")

    @contextmanager
    def written(self, name: str, *, apart: bool = False) -> Iterator[Path]:
        """Yield a path to write a file to, then move the file into place and record it, as `record` does.

        Args:
            name: the file's name.
            apart: whether it is written in a folder of its own (`clusterucb.atomic.whole_file`).
        """
        path = self.folder / name
        if path.parent != self.folder:
            inner_folder(path.parent)
        with whole_file(path, apart=apart) as partial:
            yield partial
            digest = file_sha256(partial)
            self._check_same(name, digest)
        self._record({name: digest})

    def write_arrays(self, name: str, arrays: Arrays, metadata: dict[str, str] | None = None) -> None:
        """Write arrays to a file and record it, as `record` does.

        Args:
            name: the file's name.
            arrays: the arrays.
            metadata: text for the file's header, with one name at most: several would be written in any order.
        """
        with self.written(name, apart=True) as partial:
            save_file(dict(arrays), partial, metadata=metadata)

    def record(self, *names: str) -> None:
        """Record files that are in place.

        Raises:
            RunError: a file was computed again, with another result than before.
        """
        digests = {name: _digest(self.folder / name) for name in names}
        for name, digest in digests.items():
            self._check_same(name, digest)
        self._record(digests)

    def forget(self, *names: str) -> None:
        """Drop the records of files, which may then have another content."""
        for name in names:
            if self._digests is not None:
                self._digests.pop(name, None)
            self._verified.discard(name)

    def renamed(self, before: str, now: str) -> None:
        """Move the records of a folder's files to its new name."""
        digests = {} if self._digests is None else self._digests
        for name in [name for name in digests if name.startswith(f"{before}/")]:
            digests[now + name.removeprefix(before)] = digests.pop(name)

    def find_folder(self, name: str) -> Path | None:
        """Return the path of a folder that holds just the recorded files, or None if it has to be computed.

        Raises:
            RunError: a file is damaged, missing or not recorded.
        """
        folder = self.folder / name
        recorded = {file for file in self._digests or () if file.startswith(f"{name}/")}
        if not folder.exists():
            if recorded:
                self._say_removed(folder)
            return None
        if self._digests is None:
            return folder
        present = set(self._inside(folder))
        if present and not recorded:
            return None
        for file in sorted(present ^ recorded):
            what = "does not belong to the run" if file in present else "is missing"
            raise self.damaged(folder, f"{file} {what}")
        for file in sorted(recorded):
            self.find(file)
        return folder

    def record_folder(self, name: str) -> None:
        """Record every file of a folder, as `record` does."""
        self.record(*self._inside(self.folder / name))

    def _say_removed(self, path: Path) -> None:
        if self._save is not None and path not in self._removed:
            self._removed.add(path)
            warn(f"{path} was removed; it is computed again")

    def _inside(self, folder: Path) -> list[str]:
        if folder.is_symlink() or not folder.is_dir():
            raise self.damaged(folder, "it is not a folder of its own")
        return [
            path.relative_to(self.folder).as_posix()
            for path in sorted(folder.rglob("*"))
            if not path.is_dir()
        ]

    def _check_same(self, name: str, digest: str) -> None:
        if self._digests is not None and self._digests.get(name, digest) != digest:
            raise RunError(
                f"{self.folder / name} was computed again, with another result: this machine or these versions "
                "compute other bits. The run's draws rest on the former file: restore it, or start again with "
                "--overwrite"
            )

    def _record(self, digests: Mapping[str, str]) -> None:
        self._verified |= digests.keys()
        if (
            self._digests is not None
            and self._save is not None
            and not digests.items() <= self._digests.items()
        ):
            self._digests |= digests
            self._save()


def _digest(path: Path) -> str:
    """Return the hex SHA-256 of a file.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file.

    Raises:
        RunError: the system cannot read the file now.
        ValueError: the file is damaged.
    """
    try:
        arrays: dict[str, NDArray[Any]] = load_file(path)
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, KeyError) as error:
        raise ValueError(error) from error
    return arrays


def check_arrays(arrays: Arrays, shapes: Shapes) -> None:
    """Check the dtype and the shape of each array.

    Args:
        arrays: the arrays.
        shapes: the dtype and the shape that are expected of each; None stands for a length that may vary.

    Raises:
        ValueError: an array is missing, too many, or another than expected.
    """
    if arrays.keys() != shapes.keys():
        raise ValueError(f"it holds {', '.join(sorted(arrays)) or 'nothing'}; expected {', '.join(shapes)}")
    for name, (dtype, shape) in shapes.items():
        found = arrays[name]
        fits = len(found.shape) == len(shape) and all(
            wanted in (None, there) for wanted, there in zip(shape, found.shape, strict=True)
        )
        if found.dtype != dtype or not fits:
            wanted = "x".join("any" if length is None else str(length) for length in shape)
            got = "x".join(map(str, found.shape))
            raise ValueError(f"{name} is {found.dtype} {got}; expected {np.dtype(dtype)} {wanted}")
