"""Open a run folder: lock it, compare its settings with the new ones, and keep its manifest.

Decisions:
    - ``manifest.json`` holds the resolved settings. When a run is resumed, the settings that affect computed numbers
      are compared one by one. Only a larger budget and another number of selected samples are allowed. Any other
      difference is an error that names the setting, because scores of two settings in one folder could not be
      compared.
    - Inputs are compared by content (fingerprints), not by path or time.
    - Stages are files: a file that exists is complete and is never computed again (`atomic`).
    - One process at a time may write. It holds an advisory lock, which the system releases when the process dies.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from clusterucb import filenames
from clusterucb.atomic import write_whole
from clusterucb.errors import RunError, warn
from clusterucb.options.amounts import parse_budget
from clusterucb.plugins import renewed
from clusterucb.versions import __version__, recorded_versions

_FORMAT = 1
FORWARD = 0.43  # cost of a forward pass in LoRA gradients, measured on a 135M-parameter model
# The file that marks a folder without manifest.json in which a run is being created or removed.
_UNSETTLED = f"{filenames.MANIFEST}.partial"


class PhaseCost(msgspec.Struct):
    """The cost of one phase of a run.

    Attributes:
        gradients: the number of per-sample gradients (a forward and a backward pass of one sample).
        forward_passes: the number of forward passes of one sample without a gradient.
        tokens: the number of tokens in these passes.
        seconds: the wall-clock time over all sessions of the run.
        reused: whether the phase's results came from an earlier run, so that the phase cost nothing.
    """

    gradients: int = 0
    forward_passes: float = 0
    tokens: int = 0
    seconds: float = 0.0
    reused: bool = False


class Cost(msgspec.Struct):
    """The cost of a run, with every pass counted.

    Attributes:
        pool_samples: N, the number of pool samples.
        phases: the cost of each phase, by name.
        unit: the unit of ``total``.
        total: the cost of all passes, where 1 is one gradient of every pool sample. A forward pass counts as `FORWARD`
            gradients.
    """

    pool_samples: int = 0
    phases: dict[str, PhaseCost] = {}
    unit: str = "one gradient of every pool sample"
    total: float = 0.0

    def share(self, phase: PhaseCost) -> float:
        """Return the cost of a phase, where 1 is one gradient of every pool sample."""
        return (phase.gradients + FORWARD * phase.forward_passes) / max(self.pool_samples, 1)

    @property
    def gradients(self) -> int:
        """The number of gradients over all phases."""
        return sum(phase.gradients for phase in self.phases.values())

    @property
    def forward_passes(self) -> float:
        """The number of forward passes over all phases."""
        return sum(phase.forward_passes for phase in self.phases.values())

    @property
    def seconds(self) -> float:
        """The seconds over all phases."""
        return sum(phase.seconds for phase in self.phases.values())


class Outcome(msgspec.Struct):
    """The result of a run.

    Attributes:
        n_selected: the number of samples in ``selected.jsonl``.
        n_scored: the number of draws, failures included.
        n_failed: the number of draws whose scoring failed.
        stopped: why the search ended: ``budget``, ``exhausted`` or ``recall``; ``interrupted`` while a run is
            interrupted.
        clusters: the number of arms.
        draws: the number of draws from each arm.
        selected_by_source: the number of samples selected from each source.
        standardized: the mean and deviation by which each subtask's scores were standardized; None for other
            aggregates.
        length_correlation: the Spearman correlation of score and answer length over the draws.
        recall: the estimated share of the best samples found, with the ends (low, high) of its interval and the
            interval's confidence; None if the recall cannot be estimated.
    """

    n_selected: int
    n_scored: int
    n_failed: int
    stopped: str
    clusters: int
    draws: list[int]
    selected_by_source: dict[str, int]
    length_correlation: float | None
    standardized: dict[str, list[float]] | None = None
    recall: dict[str, float] | None = None


class Limit(msgspec.Struct, frozen=True):
    """A limit on the size of the model's passes, set because memory ran out.

    Attributes:
        call: the name of the computation in which memory ran out. A computation is done completely or not at all
            (`clusterucb.gradients.passes.Passes.over`).
        part: the number of the computation's part, from 0.
        done: the number of samples of that part that were done before the limit.
        tokens: the largest number of padded tokens in a pass after that.
    """

    call: str
    part: int
    done: int
    tokens: int


class Manifest(msgspec.Struct):
    """The content of ``manifest.json``."""

    settings: dict[str, Any]
    budget: str | None
    select: str | None
    format: int = _FORMAT
    clusterucb: str = __version__
    versions: dict[str, str] = {}
    status: Literal["running", "finished"] = "running"
    pool_files: list[str] = []
    target_files: list[str] = []
    pool_samples: int = 0
    pool_rejected: int = 0
    target_samples: int = 0
    target_rejected: int = 0
    subtasks: list[str] = []
    subtask_contents: dict[str, str] = {}
    rejected: dict[str, int] = {}
    n_budget: int = 0
    n_select: int = 0
    select_by: str = "top"
    max_per_source: int | None = None
    cold_start: float | None = None
    seconds_per_token: float | None = None
    spent: str | None = None
    annotated: bool = False
    batch_tokens: int | None = None
    limits: list[Limit] = []
    cost: Cost = msgspec.field(default_factory=Cost)
    outcome: Outcome | None = None


class Run:
    """A run folder, open for writing: a context manager that holds the folder's lock.

    Args:
        folder: the folder. It is created if it does not exist.
        settings: everything that affects computed numbers, as JSON values by option name.
        budget: the budget as the user wrote it; None for a gradient store.
        select: the number to select as the user wrote it; None for a gradient store.
        config: the content of ``config.yaml``, which affects no result.
        overwrite: remove the files of an earlier run from the folder, and start again.

    Raises:
        RunError: the folder holds something else than a run, or a run with other settings; or another process uses it;
            or it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        budget: str | None = None,
        select: str | None = None,
        config: bytes | None = None,
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self._lock = _lock(folder)
        try:
            if overwrite or not self.path(filenames.MANIFEST).exists():
                _remove_run(folder)
            # as they will be read from the manifest, so that both can be compared
            plain = msgspec.json.decode(msgspec.json.encode(dict(settings)))
            self.manifest, self.resumed = self._take_up(plain, budget, select)
            self.save()
            if config is not None:
                write_whole(self.path(filenames.CONFIG), config)
        except BaseException:
            os.close(self._lock)
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
            os.close(self._lock)

    @property
    def finished(self) -> bool:
        """Whether the run has written all its results."""
        return self.manifest.status == "finished"

    def told(self, what: str) -> str:
        """Return one line that says whether the folder's ``what``, such as "run", is new, resumed or finished."""
        if self.finished:
            return f"The {what} in {self.folder} is finished"
        return f"{'Resuming' if self.resumed else 'Starting'} the {what} in {self.folder}"

    def path(self, name: str) -> Path:
        """Return the path of one of the run's files."""
        return self.folder / name

    def save(self) -> None:
        """Write ``manifest.json``."""
        content = msgspec.json.format(msgspec.json.encode(self.manifest), indent=2)
        write_whole(self.path(filenames.MANIFEST), content + b"\n")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a phase's cost."""
        cost = self.manifest.cost.phases.setdefault(name, PhaseCost())
        began = time.monotonic()
        try:
            yield
        finally:
            cost.seconds += time.monotonic() - began

    def _take_up(
        self, settings: dict[str, Any], budget: str | None, select: str | None
    ) -> tuple[Manifest, bool]:
        path = self.path(filenames.MANIFEST)
        if not path.exists():
            return Manifest(
                settings=settings, budget=budget, select=select, versions=recorded_versions()
            ), False
        try:
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RunError(f"{path} cannot be read ({error}); use --overwrite to start again") from error
        if manifest.format != _FORMAT:
            raise RunError(
                f"{self.folder} was written by clusterucb {manifest.clusterucb} in another format; choose "
                "another --out, or start again with --overwrite"
            )
        manifest.settings = renewed(manifest.settings)
        changed = [*_changes(manifest.settings, settings), *_smaller(manifest.budget, budget)]
        if changed and not self._holds_results():
            _remove(self.folder)
            manifest = Manifest(settings=settings, budget=budget, select=select, versions=recorded_versions())
            return manifest, False
        if changed:
            raise RunError(
                f"{self.folder} holds a run with other settings: {'; '.join(changed)}. Use the earlier "
                "settings to resume it, choose another --out, or start again with --overwrite"
            )
        now = recorded_versions()
        if manifest.versions != now:
            before = ", ".join(
                f"{name} {manifest.versions.get(name)}"
                for name in now
                if manifest.versions.get(name) != now[name]
            )
            warn(
                f"the run in {self.folder} was started with other versions ({before}): new results may differ from "
                "earlier ones in the last digits"
            )
        if (manifest.budget, manifest.select) != (budget, select):
            manifest.budget, manifest.select, manifest.status = budget, select, "running"
        return manifest, True

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
        names = {entry.name for entry in folder.iterdir()} - {filenames.LOCK} if folder.is_dir() else set()
    if names and not names & {filenames.MANIFEST, _UNSETTLED}:
        raise RunError(
            f"{folder} is not a run folder and not empty (it holds {min(names)!r}); choose another --out"
        )


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error


def _lock(folder: Path) -> int:
    """Lock a folder that is empty or holds a run, and return the lock's file descriptor."""
    check_folder(folder)
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / filenames.LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise RunError(
            f"{folder} is in use by another process; wait for it, or choose another --out"
        ) from error
    return descriptor


def _remove_run(folder: Path) -> None:
    """Remove a run's files: rename the manifest first and remove it last, so an interrupted removal can continue."""
    manifest, unsettled = folder / filenames.MANIFEST, folder / _UNSETTLED
    if manifest.exists():
        manifest.replace(unsettled)
    if not unsettled.exists():
        return
    _remove(folder)
    unsettled.unlink()


def _remove(folder: Path) -> None:
    for name in filenames.ALL:
        for path in {*folder.glob(name), *folder.glob(f"{name}.partial")}:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two settings, as phrases for an error message."""
    changed = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old != new:
            fingerprint = name.endswith(" content")
            changed.append(
                f"the {name} has changed" if fingerprint else f"{name} was {_show(old)}, now {_show(new)}"
            )
    return changed


def _show(value: object) -> str:
    if isinstance(value, dict) and value.keys() >= {"class", "options"}:
        options = ", ".join(f"{key}={_show_option(option)}" for key, option in value["options"].items())
        return f"{value['class'].rpartition('.')[2]}({options})"
    return "unset" if value is None else str(value)


def _show_option(option: object) -> str:
    """Return a hyper-parameter as text. It may be a strategy itself, or a list of strategies."""
    if isinstance(option, list) and any(isinstance(one, dict) for one in option):
        return f"[{', '.join(map(_show, option))}]"
    return _show(option) if isinstance(option, dict) else repr(option)


def _smaller(before: str | None, now: str | None) -> list[str]:
    """Return a complaint if the new budget is smaller than the old one (which may be spent) or has another unit."""
    if before is None or now is None:
        return []
    old: Any = parse_budget("--budget", before)
    new: Any = parse_budget("--budget", now)
    if before == now or (type(old) is type(new) and new >= old):
        return []
    return [f"--budget was {before}, now {now} (it may only grow, in the same unit)"]
