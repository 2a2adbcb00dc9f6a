"""Begin a job: open the gradient store and read the files, then open the run folder and the model.

`open_job` writes nothing. `Job.session` opens the run folder. With ``overwrite``, it loads the model before it removes
an earlier run from the folder, so that a job that cannot run is refused while the earlier run still exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from os import PathLike
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from clusterucb.errors import OptionError
from clusterucb.jobs.stages.prepare import Model, Prepared, Rows, folder_for, prepare
from clusterucb.options.gradients import GradientSettings
from clusterucb.progress import AnyObserver, Observer, observer_of
from clusterucb.run.folder import Run
from clusterucb.run.gradient_store import GradientStore
from clusterucb.run.manifest import Asked, Identity, JobKind
from clusterucb.run.pool_sketches import PoolSketches
from clusterucb.samples.pool_and_target import Material

if TYPE_CHECKING:
    from clusterucb.gradients.program import Spread
    from clusterucb.gradients.session import AdaptedModel
    from clusterucb.options.search import ScoringSettings

Options = TypeVar("Options", bound=GradientSettings, covariant=True)
Given = TypeVar("Given", bound=GradientSettings)


@dataclass(frozen=True)
class Job(Generic[Options]):
    """A job whose files have been read.

    Attributes:
        settings: the options; with a gradient store, its checkpoint and sketch are among them.
        prepared: the samples, the model's source and the device.
        store: the pool's sketches in the gradient store that the options name, or None.
        observer: receives the progress.
        spread: spreads passes over other processes, or None; see `AdaptedModel`.
    """

    settings: Options
    prepared: Prepared
    store: PoolSketches | None
    observer: Observer
    spread: Spread | None = None

    @property
    def material(self) -> Material:
        """The encoded pool and target."""
        return self.prepared.material

    def identity(self, kind: JobKind, *, sketches: bool, **contents: Any) -> Identity:
        """Return everything that determines the job's numbers. A folder resumes only a job that has the same.

        Args:
            kind: the kind of job.
            sketches: whether gradients are sketched.
            **contents: fingerprints of further contents, by name; None for what is not read.
        """
        more = {name: value for name, value in contents.items() if value is not None}
        if self.store:
            more["store"] = self.store.fingerprint
        return Identity(
            options={**self.settings.deciding(sketches=sketches), "--device": self.prepared.device},
            contents={**self.prepared.contents, **more},
            job=kind,
        )

    @contextmanager
    def session(
        self,
        out: str | PathLike[str] | None,
        identity: Identity,
        *,
        asked: Asked = Asked(),
        config: bytes | None = None,
        overwrite: bool = False,
    ) -> Iterator[Session[Options]]:
        """Open the run folder, and the model at its checkpoint.

        Without ``overwrite``, the model is loaded only when it is needed.

        Args:
            out: the run folder. By default, it is a temporary folder that is removed at the end.
            identity: the job's identity, from `identity`.
            asked, config, overwrite: see `clusterucb.run.folder.Run`.

        Raises:
            RunError: the folder holds another run, or cannot be written.
        """
        from clusterucb.gradients.session import AdaptedModel, load_base

        where = (self.settings, self.prepared.source, self.prepared.device, self.material, self.observer)
        base = load_base(*where, Path(out or gettempdir())) if overwrite else None
        with (
            folder_for(out) as folder,
            Run(
                folder,
                identity,
                asked=asked,
                config=config,
                overwrite=overwrite,
                lock=not self.settings.no_lock,
            ) as run,
            AdaptedModel(run, *where, base, self.spread) as model,
        ):
            base = None  # the model may free it
            yield Session(self, run, model)


@dataclass(frozen=True)
class Session(Generic[Options]):
    """A job whose run folder and model are open.

    Attributes:
        job: the job.
        run: the run folder.
        model: the model at its checkpoint.
    """

    job: Job[Options]
    run: Run
    model: AdaptedModel

    @property
    def settings(self) -> Options:
        """The job's options."""
        return self.job.settings

    @property
    def material(self) -> Material:
        """The encoded pool of N samples, and the encoded target of S subtasks."""
        return self.job.material

    @property
    def observer(self) -> Observer:
        """The observer, which receives the progress."""
        return self.job.observer

    @property
    def store(self) -> PoolSketches | None:
        """The pool's sketches in a gradient store, or None."""
        return self.job.store


class Stage:
    """A part of a job that works in an open session, and keeps what it uses of it at hand.

    Args:
        session: the job, its run folder and its model.
    """

    def __init__(self, session: Session[ScoringSettings]) -> None:
        self._run = session.run
        self._settings = session.settings
        self._model = session.model
        self._material = session.material
        self._observer = session.observer
        self._store = session.store


def open_job(
    pool: Rows,
    target: Rows | None,
    model: Model,
    given: Given,
    observer: AnyObserver | None,
    held_out: Fraction | None = None,
    judges: Rows | None = None,
) -> Job[Given]:
    """Open the gradient store that the options name, then read and encode the pool and the target.

    Args:
        pool, target: files, or rows in memory. ``target`` is None for a job without a target.
        model: the base model.
        given: the options.
        observer: receives the progress.
        held_out: the share of the target that is held out, or None.
        judges: files or rows of samples that judge a selection, or None.

    Raises:
        ClusterUCBError: a file, the model, the device or the store cannot be used.
    """
    watcher = observer_of(observer)
    folder: Path | None = getattr(given, "store", None)
    store = GradientStore(folder) if folder else None
    settings = store.applied_to(given) if store else given
    prepared = prepare(pool, target, model, settings, watcher, held_out, judges)
    if store is None:
        return Job(settings, prepared, None, watcher)
    store.check(prepared.contents)
    material = prepared.material
    sketches = PoolSketches(store, store.places(material.contents, prepared.contents["pool"]))
    watcher.step(sketches.described())
    if not sketches.covered.any():
        raise OptionError(
            f"{sketches.described()}; expected a store of this pool or of a part of it. `clusterucb sketch` with this "
            f"pool and --out {folder} adds its samples"
        )
    material = replace(material, sketched=sketches.covered)
    return Job(settings, replace(prepared, material=material), sketches, watcher)
