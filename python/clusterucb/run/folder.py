"""Open a run folder: lock it, compare its settings with the new ones, and keep its manifest.

Decisions:
    - ``manifest.json`` (`clusterucb.run.manifest`) holds everything that affects computed numbers. When a run is
      resumed, these values are compared one by one. Only a larger budget, another number of selected samples and
      another recall to reach are allowed. Any other difference is an error that names the setting, because scores of
      two settings in one folder could not be compared.
    - Inputs are compared by content (fingerprints), not by path or time.
    - Stages are files: a file that exists is complete and is never computed again (`atomic`).
    - One process at a time may write. It holds an advisory lock, which the system releases when the process dies.
    - A finished run in a folder that cannot be written is opened read-only, without a lock, so that its result can be
      shown.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from clusterucb import filenames
from clusterucb.atomic import check_regular, flush, make_folder, remove_file, write_whole
from clusterucb.errors import RunError, warn
from clusterucb.plugins import packages
from clusterucb.run.cost import Cost, PhaseCost
from clusterucb.run.kept_files import KeptFiles
from clusterucb.run.locks import FolderLock
from clusterucb.run.manifest import Asked, Identity, Inputs, Manifest, RunOutcome
from clusterucb.run.manifest_file import read_manifest, write_manifest
from clusterucb.versions import recorded_versions

# The files that mark a folder without manifest.json in which a run is being created or removed.
_PARTIAL = f"{filenames.MANIFEST}.partial"
_UNSETTLED = {_PARTIAL, filenames.REMOVED}


class Run:
    """A run folder, open for writing: a context manager that holds the folder's lock.

    Args:
        folder: the folder. It is created if it does not exist.
        identity: everything that determines the job's numbers.
        asked: the budget, the number to select and the recall to reach, as the user wrote them.
        config: the content of ``config.yaml``, which affects no result.
        overwrite: remove the files of an earlier run from the folder, and start again.
        lock: whether to lock the folder; if not, the caller is certain that no other process uses it.

    Attributes:
        read_only: whether the folder holds a finished run and cannot be written.

    Raises:
        RunError: the folder holds something else than a run, or a run with other settings; or another process uses it;
            or it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        *,
        asked: Asked = Asked(),
        config: bytes | None = None,
        overwrite: bool = False,
        lock: bool = True,
    ) -> None:
        self.folder = folder
        self._timed = 0.0  # seconds of this session that belong to phases
        self.read_only = not overwrite and _shown_only(folder)
        self._lock = None if self.read_only else _lock(folder, wanted=lock)
        try:
            if overwrite or not self.path(filenames.MANIFEST).exists():
                _remove_run(folder)
            # as it will be read from the manifest, so that both can be compared
            identity = msgspec.json.decode(msgspec.json.encode(identity), type=Identity)
            self.manifest, self.resumed = self._opened(identity, asked)
            self.files = self._kept_files()
            if self.read_only and not self.finished:
                raise RunError(
                    f"{folder} cannot be written, and these options ask for more than it holds; choose another --out"
                )
            self.save()
            if not self.read_only:
                remove_file(self.path(filenames.REMOVED))
            if config is not None and not self.read_only:
                self.files.forget(filenames.CONFIG)
                write_whole(self.path(filenames.CONFIG), config)
                self.files.record(filenames.CONFIG)
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Self:
        """Return the run itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save the manifest, with the time spent so far, and unlock the folder."""
        try:
            self.save()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def finished(self) -> bool:
        """Whether the run has written all its results."""
        return self.manifest.status == "finished"

    def progress_line(self, what: str) -> str:
        """Return one line that says whether the folder's ``what``, such as "run", is new, resumed or finished."""
        if self.finished:
            return f"The {what} in {self.folder} is finished"
        return f"{'Resuming' if self.resumed else 'Starting'} the {what} in {self.folder}"

    def path(self, name: str) -> Path:
        """Return the path of one of the run's files."""
        return self.folder / name

    def save(self) -> None:
        """Write ``manifest.json``, unless the folder cannot be written."""
        if not self.read_only:
            write_manifest(self.folder, self.manifest)

    def seconds(self, phase: str) -> float:
        """Return the time spent in a phase so far, over all sessions."""
        return self.manifest.cost.phases.get(phase, PhaseCost()).seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a phase's cost, without the time of phases inside the block."""
        self.add_seconds(name, 0)
        began, timed_before = time.monotonic(), self._timed
        try:
            yield
        finally:
            own = time.monotonic() - began - (self._timed - timed_before)
            self._timed += own
            self.add_seconds(name, own)

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Add time to a phase's cost."""
        self.manifest.cost.phases.setdefault(phase, PhaseCost()).seconds += seconds

    def finish(self, inputs: Inputs, *, cost: Cost | None = None, outcome: RunOutcome | None = None) -> None:
        """Record what the job read, cost and found, and mark the run as finished."""
        manifest = self.manifest
        manifest.inputs, manifest.outcome = inputs, outcome
        manifest.cost = cost or manifest.cost
        manifest.status = "finished"
        self.save()

    def _opened(self, identity: Identity, asked: Asked) -> tuple[Manifest, bool]:
        """Return the run's manifest, and whether it was there before.

        Raises:
            RunError: the folder holds a run with other settings, or its manifest cannot be read.
        """
        versions = recorded_versions(packages(identity.options))
        fresh = Manifest(identity, asked, versions=versions, token=identity.fingerprint)
        try:
            manifest = read_manifest(self.folder)
        except FileNotFoundError:
            return fresh, False
        changed = [*manifest.identity.changes(identity), *manifest.asked.refusal(asked)]
        other = changed or manifest.identity.contents != identity.contents
        if other and not self.read_only and not self._holds_results():
            _remove(self.folder)
            return fresh, False
        if changed:
            raise RunError(
                f"{self.folder} holds a run with other settings: {'; '.join(changed)}. Use the earlier "
                "settings to resume it, choose another --out, or start again with --overwrite"
            )
        self._warn_of_versions(manifest.versions, fresh.versions)
        if manifest.asked != asked:
            manifest.asked, manifest.status, manifest.search.spent = asked, "running", False
        return manifest, True

    def _kept_files(self) -> KeptFiles:
        """Return the files that the folder keeps. Those of a folder without records are recorded as they are."""
        if self.read_only:
            return KeptFiles(self.folder, self.manifest.files)
        had_records = self.manifest.files is not None
        self.manifest.files = self.manifest.files or {}
        files = KeptFiles(self.folder, self.manifest.files, self.save)
        if self.resumed and not had_records:
            paths = (path for name in filenames.KEPT for path in self.folder.glob(name) if path.is_file())
            files.record(*(path.relative_to(self.folder).as_posix() for path in paths))
        return files

    def _warn_of_versions(self, then: Mapping[str, str], now: Mapping[str, str]) -> None:
        changed = [name for name in now if name in then and then[name] != now[name]]
        if changed:
            before = ", ".join(f"{name} {then[name]}" for name in changed)
            warn(
                f"the run in {self.folder} was started with other versions ({before}): new results may differ from "
                "earlier ones in the last digits"
            )

    def _holds_results(self) -> bool:
        """Return whether anything was computed. If not, the settings may change."""
        return any(any(self.folder.glob(name)) for name in filenames.ALL if name not in filenames.AT_ONCE)


def check_folder(folder: Path) -> None:
    """Check that ``folder`` can hold a run. Whether a run in it can resume is only known when it is opened.

    Raises:
        RunError: ``folder`` is a file, holds something else than a run, or cannot be read.
    """
    with _writable(folder):
        if folder.exists() and not folder.is_dir():
            raise RunError(f"--out {folder} is a file; expected a folder, new or existing")
        names = (
            {entry.name for entry in folder.iterdir()} - {filenames.LOCK, filenames.LEASE}
            if folder.is_dir()
            else set()
        )
    if names and not names & {filenames.MANIFEST, *_UNSETTLED}:
        raise RunError(
            f"{folder} is not a run folder and not empty (it holds {min(names)!r}); choose another --out"
        )


def _shown_only(folder: Path) -> bool:
    """Return whether a folder holds a finished run and cannot be written."""
    if os.access(folder, os.W_OK) or not folder.is_dir():
        return False
    try:
        return read_manifest(folder).status == "finished"
    except FileNotFoundError:
        return False


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error


def _lock(folder: Path, *, wanted: bool) -> FolderLock:
    """Lock a folder that is empty or holds a run."""
    check_folder(folder)
    with _writable(folder):
        make_folder(folder)
        return FolderLock(folder, wanted=wanted)


def _remove_run(folder: Path) -> None:
    """Remove a run's files, but for its manifest under another name: an interrupted removal can then continue.

    Whoever writes the next manifest removes that file. Until then, it tells that the folder is ours.

    Raises:
        RunError: a manifest is no file.
    """
    removed = folder / filenames.REMOVED
    check_regular(removed)
    for name in (_PARTIAL, filenames.MANIFEST):
        check_regular(folder / name)
        if (folder / name).exists():
            (folder / name).replace(removed)
            flush(folder)
    if removed.exists():
        _remove(folder)
        flush(folder)


def _remove(folder: Path) -> None:
    for name in filenames.ALL:
        for path in {*folder.glob(name), *folder.glob(f"{name}.partial")}:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
