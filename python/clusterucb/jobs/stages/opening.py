"""Begin a job: open the gradient store and read the files, then open the run folder and the model.

`open_job` writes nothing. `Job.session` opens the run folder. With ``overwrite``, it loads the model before it removes
an earlier run from the folder, so that a job that cannot run is refused while the earlier run still exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from clusterucb.jobs.stages.prepare import Model, Prepared, Rows, folder_for, prepare
from clusterucb.options.gradients import GradientSettings
from clusterucb.progress import AnyObserver, Observer, observer_of
from clusterucb.run.folder import Run
from clusterucb.run.gradient_store import GradientStore
from clusterucb.samples.pool_and_target import Material

if TYPE_CHECKING:
    from clusterucb.gradients.session import AdaptedModel

Options = TypeVar("Options", bound=GradientSettings)


@dataclass(frozen=True)
class Job(Generic[Options]):
    """A job whose files have been read.

    Attributes:
        settings: the options; with a gradient store, its checkpoint and sketch are among them.
        prepared: the samples, the model's source and the device.
        store: the gradient store that the options name, or None.
        observer: receives the progress.
    """

    settings: Options
    prepared: Prepared
    store: GradientStore | None
    observer: Observer

    @property
    def material(self) -> Material:
        """The encoded pool and target."""
        return self.prepared.material

    def identity(self, *, sketches: bool, **named: Any) -> dict[str, Any]:
        """Return everything that determines the job's numbers, by name. A folder resumes only a job that has the same.

        Args:
            sketches: whether gradients are sketched.
            **named: further values that determine the numbers. Underscores in a name become spaces. Values of None
                are left out.
        """
        more = {name.replace("_", " "): value for name, value in named.items() if value is not None}
        return {
            **self.settings.deciding(sketches=sketches),
            "--device": self.prepared.device,
            **self.prepared.contents,
            **({"store content": self.store.fingerprint} if self.store else {}),
            **more,
        }

    @contextmanager
    def session(
        self,
        out: str | PathLike[str] | None,
        identity: Mapping[str, Any],
        *,
        config: bytes | None = None,
        budget: str | None = None,
        select: str | None = None,
        overwrite: bool = False,
    ) -> Iterator[tuple[Run, AdaptedModel]]:
        """Open the run folder, and the model at its checkpoint. Yields both.

        Without ``overwrite``, the model is loaded only when it is needed.

        Args:
            out: the run folder. By default, it is a temporary folder that is removed at the end.
            identity: the job's identity, from `identity`.
            config, budget, select, overwrite: see `clusterucb.run.folder.Run`.

        Raises:
            RunError: the folder holds another run, or cannot be written.
        """
        from clusterucb.gradients.session import AdaptedModel, load_base

        where = (self.settings, self.prepared.source, self.prepared.device, self.material, self.observer)
        base = load_base(*where, Path(out or gettempdir())) if overwrite else None
        with (
            folder_for(out) as folder,
            Run(folder, identity, budget=budget, select=select, config=config, overwrite=overwrite) as run,
            AdaptedModel(run, *where, base) as adapted,
        ):
            yield run, adapted


def open_job(
    pool: Rows, target: Rows | None, model: Model, given: Options, observer: AnyObserver | None
) -> Job[Options]:
    """Open the gradient store that the options name, then read and encode the pool and the target.

    Args:
        pool, target: files, or rows in memory. ``target`` is None for a job without a target.
        model: the base model.
        given: the options.
        observer: receives the progress.

    Raises:
        ClusterUCBError: a file, the model, the device or the store cannot be used.
    """
    watcher = observer_of(observer)
    folder: Path | None = getattr(given, "store", None)
    store = GradientStore(folder) if folder else None
    settings = store.applied_to(given) if store else given
    prepared = prepare(pool, target, model, settings, watcher)
    if store:
        store.check(prepared.contents)
    return Job(settings, prepared, store, watcher)
