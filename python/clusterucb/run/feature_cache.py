"""Keep features in the user's cache for later runs.

Another target, budget or policy for the same pool and model needs the same features, and computing them may take hours.
The folder is ``$CLUSTERUCB_CACHE``, or else ``clusterucb`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``.

Decisions:
    - The key of an entry is the SHA-256 of everything that affects the features' numbers (`feature_key`), including the
      source code of the feature. If the code is unknown, as for a class in a notebook, nothing is cached.
    - An entry is complete or absent (`atomic`), and records the SHA-256 of each of its files. A file with another hash
      is never used; the entry is replaced once the features have been computed again.
    - Files are hard-linked if possible, so that run and cache share the bytes on the disk, and copied otherwise. A run
      keeps its files when the cache is removed.
    - Readers share a lock and a writer holds it alone, so any number of processes may use the cache.
    - The cache is a convenience: a cache that cannot be used causes a warning, never an error. It cannot be used if it
      belongs to another user, if its lock is held for `_PATIENCE` seconds, or if there is no home.
    - Files of an entry are named by the reader, never by the entry, so that an entry cannot replace another file of a
      run. An entry that is not what it should be is removed, and a warning says so.
    - The folder is private (0700), because whoever writes to it decides what later runs read.
    - Without file locks, as on some network file systems, the cache works without one: a file that is removed while
      it is read fails its hash, and is computed.
    - When the cache grows beyond ``$CLUSTERUCB_CACHE_LIMIT`` (in GB, 10 by default), the least recently used entries
      are removed. 0 switches the cache off.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from clusterucb.atomic import check_regular, file_sha256, remove_file, whole_file, whole_folder, write_whole
from clusterucb.errors import ClusterUCBError, OptionError, RunError, warn
from clusterucb.features.concatenation import Concatenation
from clusterucb.plugins import describe
from clusterucb.run.locks import lock
from clusterucb.versions import version_of

if TYPE_CHECKING:
    from clusterucb.features.base import Feature

_FORMAT = 1
_LIMIT = "CLUSTERUCB_CACHE_LIMIT"
_GIGABYTE = 10**9
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "transformers")
_PATIENCE = 30  # seconds to wait for the lock
_CODE = (".py", ".so", ".pyd")


class _BadEntry(Exception):
    """An entry of the cache is not what it should be."""


class _Busy(ClusterUCBError):
    """Another process holds the cache's lock."""


class Entry(msgspec.Struct):
    """The content of ``entry.json``.

    Attributes:
        files: the hex SHA-256 of each file of the entry, by file name.
        seconds: the time that computing the files took.
    """

    files: dict[str, str]
    seconds: float


def home() -> Path:
    """Return the folder of the cache, which may not exist yet.

    Raises:
        RunError: the user has no home.
    """
    if own := os.environ.get("CLUSTERUCB_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clusterucb"
    except RuntimeError as error:
        raise RunError(
            "there is no home folder to keep a cache in; set CLUSTERUCB_CACHE to a folder"
        ) from error


class FeatureCache:
    """The cache of features from earlier runs.

    Raises:
        OptionError: ``CLUSTERUCB_CACHE_LIMIT`` is not a size.
    """

    def __init__(self) -> None:
        self._limit = _limit()
        try:
            self._folder = home() / "features" if self._limit else Path()
        except RunError as error:
            self._limit = 0
            self._folder = Path()
            warn(str(error))

    def holds(self, key: str) -> bool:
        """Return whether there is an entry for ``key``. The entry may still be unreadable."""
        try:
            return bool(self._limit) and self._about(key).is_file()
        except OSError:
            return False

    def take(self, key: str, folder: Path, names: Sequence[str]) -> float | None:
        """Put an entry's files into a folder. Each file is put there completely or not at all.

        Args:
            key: the entry's key, from `feature_key`.
            folder: an existing folder.
            names: the names of the files that the entry must have.

        Returns:
            The seconds that computing the files took. None if there is no entry, if it cannot be read or copied, or if
            a file does not have the recorded hash.
        """
        if not self.holds(key):
            return None
        try:
            self._check_owner()
            with self._locked(fcntl.LOCK_SH):
                entry = self._entry(key, names)
                for name in names:
                    _put(self._about(key).with_name(name), folder / name)
                os.utime(self._about(key))
        except FileNotFoundError:  # another process has just removed the entry
            return None
        except _BadEntry as bad:
            self.drop(key, bad)
        except (OSError, ClusterUCBError) as error:
            self._give_up(error)
        else:
            return entry.seconds
        return None

    def _entry(self, key: str, names: Sequence[str]) -> Entry:
        """Return an entry whose files have the recorded hashes.

        Raises:
            _BadEntry: it has other files or other content.
        """
        for name in ("entry.json", *names):
            check_regular(self._about(key).with_name(name))
        try:
            entry = msgspec.json.decode(self._about(key).read_bytes(), type=Entry)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _BadEntry(f"entry.json: {error}") from error
        if entry.files.keys() != set(names):
            raise _BadEntry("it has other files than expected")
        for name in names:
            try:
                digest = file_sha256(self._about(key).with_name(name))
            except FileNotFoundError as error:
                raise _BadEntry(f"{name} is missing") from error
            if digest != entry.files[name]:
                raise _BadEntry(f"{name} has another SHA-256 than entry.json records")
        return entry

    def drop(self, key: str, reason: object) -> None:
        """Remove an entry that is not what it should be, with a warning."""
        try:
            with self._locked(fcntl.LOCK_EX):
                self._remove(self._about(key).parent)
        except (OSError, ClusterUCBError) as error:
            self._give_up(error)
            return
        warn(
            f"an entry of the cache {self._folder} is damaged ({reason}): it is removed, and the features are computed"
        )

    def keep(self, key: str, files: Sequence[Path], seconds: float) -> None:
        """Keep files for later runs, and remove the least recently used entries if the cache is too large.

        Args:
            key: the entry's key, from `feature_key`.
            files: the files, each with another name.
            seconds: the time that computing the files took.
        """
        if sum(path.stat().st_size for path in files) > self._limit:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_owner()
            with self._locked(fcntl.LOCK_EX):
                with whole_folder(self._folder / key) as partial:
                    for path in files:
                        _put(path, partial / path.name)
                    entry = Entry({path.name: file_sha256(path) for path in files}, seconds)
                    write_whole(partial / "entry.json", msgspec.json.encode(entry))
                self._trim()
        except (OSError, ClusterUCBError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        warn(
            f"cannot use the cache of features: {error}. Set CLUSTERUCB_CACHE to another folder, or {_LIMIT}=0"
        )

    def _check_owner(self) -> None:
        """Check that nobody else can write to the cache, and make it private if others can read it.

        Raises:
            PermissionError: the folder belongs to another user, or is a link.
        """
        about = self._folder.lstat()
        if not stat.S_ISDIR(about.st_mode):
            raise PermissionError(f"{self._folder} is not a folder of its own")
        if about.st_uid != os.geteuid():
            raise PermissionError(f"{self._folder} belongs to another user")
        if about.st_mode & 0o077:
            self._folder.chmod(0o700)

    def _trim(self) -> None:
        """Remove what interrupted processes left, and the least recently used entries until the rest fits."""

        def last_used(folder: Path) -> float:
            about = folder / "entry.json"
            return about.stat().st_mtime if about.exists() else 0

        folders = [path for path in self._folder.iterdir() if path.is_dir() and not path.is_symlink()]
        for folder in folders:
            if folder.suffix == ".partial":
                self._remove(folder)
        folders = sorted((one for one in folders if one.suffix != ".partial"), key=last_used)
        sizes = [sum(file.lstat().st_size for file in folder.iterdir()) for folder in folders]
        excess = sum(sizes) - self._limit
        for folder, size in zip(folders, sizes, strict=True):
            if excess > 0:
                self._remove(folder)
                excess -= size

    def _remove(self, folder: Path) -> None:
        # entry.json goes first: a folder whose removal is interrupted is then no entry
        remove_file(folder / "entry.json")
        shutil.rmtree(folder, ignore_errors=True)

    def _about(self, key: str) -> Path:
        return self._folder / key / "entry.json"

    @contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        path = self._folder / "lock"
        check_regular(path, written=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            with suppress(OSError):  # there are no locks on this file system
                if not lock(descriptor, mode, patience=_PATIENCE):
                    raise _Busy(f"another process has held {path} for {_PATIENCE} s")
            yield
        finally:
            os.close(descriptor)


def feature_key(feature: Feature, deciding: Mapping[str, Any]) -> str | None:
    """Return the key of a pool's features, a hex SHA-256; None if something that affects their numbers is unknown.

    Args:
        feature: the feature that describes the pool.
        deciding: everything else that affects the numbers, as JSON values. None means that a value is unknown.
    """
    classes = [cls for one in _parts(feature) for cls in type(one).__mro__]
    if (
        feature.gradients
        or None in deciding.values()
        or any("<locals>" in cls.__qualname__ for cls in classes)
    ):
        return None
    packages = {cls.__module__.partition(".")[0] for cls in classes} - sys.stdlib_module_names
    code = {package: _code(package) for package in sorted(packages)}
    if None in code.values():
        return None
    plugin = packages != {"clusterucb"}
    libraries = sorted({one.name for one in distributions()}) if plugin else _LIBRARIES
    everything = {
        "format": _FORMAT,
        "feature": describe(feature),
        "code": code,
        "versions": {name: version_of(name) for name in libraries},
        "machine": platform.machine(),
        **deciding,
    }
    return hashlib.sha256(msgspec.json.encode(everything, order="deterministic")).hexdigest()


def _parts(feature: Feature) -> list[Feature]:
    inside = feature.parts if isinstance(feature, Concatenation) else ()
    return [feature, *(one for part in inside for one in _parts(part))]


def _code(package: str) -> str | None:
    """Return a hex SHA-256 of a package's code, or None if the code is not in files."""
    file = getattr(sys.modules.get(package), "__file__", None)
    if package == "__main__" or not file:
        return None
    path = Path(file)
    inside = sorted(path.parent.rglob("*")) if path.name == "__init__.py" else [path]
    digest = hashlib.sha256()
    for one in inside:
        if one.suffix in _CODE and one.is_file():
            digest.update(f"{one.relative_to(path.parent)} {file_sha256(one)}\n".encode())
    return digest.hexdigest()


def _limit() -> int:
    """Return the size limit of the cache in bytes.

    Raises:
        OptionError: ``CLUSTERUCB_CACHE_LIMIT`` is not a size.
    """
    text = os.environ.get(_LIMIT) or "10"
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise OptionError(f"{_LIMIT} is {text!r}; expected gigabytes, such as 10, or 0 to keep nothing")
    return int(size * _GIGABYTE)


def _put(source: Path, path: Path) -> None:
    """Hard-link a file to another path, or copy it there if links are not possible."""
    with whole_file(path) as partial:
        partial.unlink()
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
