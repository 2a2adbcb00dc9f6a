"""Train on a selection and on other samples of the pool, and judge the trainings on unseen samples of the target.

All arms train the same LoRA from the same start: the adapter at which the run computed its gradients. What any training
gains first, the form of the answers, is then gained before. They take the same steps, at two learning rates, with the
same seeds. A cell is one training; the folder keeps each cell in a file, so an interrupted trial resumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.errors import OptionError, RunError, warn
from clusterucb.jobs.comparison.replay import Terms, Truth
from clusterucb.jobs.score import score_all
from clusterucb.jobs.stages.opening import Job, Session, open_job
from clusterucb.jobs.stages.prepare import Model, Rows, check_paths
from clusterucb.jobs.trial import arms as arms_of
from clusterucb.jobs.trial.arms import NOTHING, RANDOM, Arm
from clusterucb.jobs.trial.cells import Cell, order_of
from clusterucb.jobs.trial.results import Trial, results, write
from clusterucb.jobs.trial.runs import SelectedRun
from clusterucb.model.loaded import borrowing
from clusterucb.options.keywords import settings_from
from clusterucb.options.search import ScoringSettings
from clusterucb.options.trial import TrialSettings
from clusterucb.options.typed import TrialOptions
from clusterucb.progress import AnyObserver
from clusterucb.run.cost import FORWARD
from clusterucb.run.manifest import Inputs
from clusterucb.wording import counted

if TYPE_CHECKING:
    from clusterucb.jobs.trial.training import Trainer
    from clusterucb.samples.encoded import Encoded

_FEW = 10  # judges of a subtask; with fewer, a trial gives a warning


def trial(
    runs: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    judge: Rows | None = None,
    pool: Rows | None = None,
    target: Rows | None = None,
    model: Model | None = None,
    tokenizer: Any = None,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    observer: AnyObserver | None = None,
    **options: Unpack[TrialOptions],
) -> Trial:
    """Train on a selection, and judge it on samples that had no part in it.

    Args:
        runs: the folder of a finished selection, or of several that have the same pool, target and model.
        judge: files or rows of samples that judge, as for ``target``. By default, the samples judge that the first run
            held out (``hold_out``).
        pool, target, model, tokenizer: what the first run was given, if that was an object in memory.
        out: the folder of the trial. The same call again resumes the trial. By default, it is ``trial`` in the folder
            of the first run.
        overwrite: delete the earlier trial in the folder and start again.
        observer: receives the progress, as in `select`.
        **options: the options of a trial: ``arms``, ``seeds``, ``epochs``, ``learning_rate`` and ``no_lock``.

    Raises:
        ClusterUCBError: an option, a run, a judge or the folder cannot be used.
    """
    settings = settings_from(options, TrialSettings)
    folders = [runs] if isinstance(runs, str | PathLike) else list(runs)
    if not folders:
        raise OptionError("there is no run to try; expected the --out of a selection")
    tried = arms_of.names_of([SelectedRun.of(Path(folder)) for folder in folders])
    first = next(iter(tried.values()))
    if judge is None and first.search.held_out is None:
        raise OptionError(
            f"the run in {first.folder} held no target samples out; expected --judge with samples that had no part in "
            "the selection, or a run with --hold-out 50%"
        )
    asked = _Asked(
        tried, settings, judge, Path(out) if out is not None else first.folder / "trial", overwrite
    )
    rows, base = (first.given("pool", pool), first.given("target", target)), first.given("model", model)
    lent = {} if tokenizer is None else {"tokenizer": tokenizer}
    return _opened(*rows, model=base, asked=asked, observer=observer, **lent)


@dataclass(frozen=True)
class _Asked:
    """What a trial is asked for.

    Attributes:
        runs: the selections by the names of their arms.
        settings: the options.
        judge: files or rows of samples that judge, or None.
        out: the folder of the trial.
        overwrite: whether an earlier trial in the folder is deleted.
    """

    runs: Mapping[str, SelectedRun]
    settings: TrialSettings
    judge: Rows | None
    out: Path
    overwrite: bool

    @property
    def first(self) -> SelectedRun:
        """The run whose options and adapter the trial takes."""
        return next(iter(self.runs.values()))


@borrowing
def _opened(pool: Rows, target: Rows, *, model: Model, asked: _Asked, observer: AnyObserver | None) -> Trial:
    """Read and encode the samples, open the trial's folder, and run the trial."""
    first, settings = asked.first, asked.settings
    check_paths(model, asked.out, needed=True)
    options = replace(first.settings, no_lock=settings.no_lock, workers=None)  # it trains in this process
    job = open_job(pool, target, model, options, observer, first.search.held_out, asked.judge)
    _check_same(asked.runs, job.prepared.contents)
    judges = _judges(job)
    rows = {name: arms_of.rows_of(run, job.material.samples) for name, run in asked.runs.items()}
    assert job.prepared.judges is not None
    identity = job.identity(
        "try",
        sketches=False,
        judges=job.prepared.judges.fingerprint,
        selection=hashlib.sha256(next(iter(rows.values())).tobytes()).hexdigest(),
    )
    identity.options |= {"--epochs": settings.epochs, "--learning-rate": settings.learning_rate}
    with job.session(asked.out, identity, overwrite=asked.overwrite) as session:
        session.observer.step(session.run.progress_line("trial"))
        trying = _Trying(session, asked, judges, rows)
        content = {
            **results(trying.arms, trying.cells(), settings, trying.elsewhere),
            "runs": {name: str(run.folder) for name, run in asked.runs.items()},
            "pool": list(job.material.pool_files),
            "target": list(job.material.target_files),
            "model": str(model),
            "pool_samples": len(job.material.samples),
            "judges": {subtask: len(own) for subtask, own in judges.items()},
        }
        write(session.run, content)
        session.run.finish(Inputs.of(job.material))
    return Trial(content, asked.out)


def _check_same(runs: Mapping[str, SelectedRun], contents: Mapping[str, Any]) -> None:
    """Check that the runs had this pool, target and model.

    Raises:
        RunError: a run had another one, or a file has changed since.
    """
    for run in runs.values():
        then = run.manifest.identity.contents
        other = [name for name in ("pool", "target", "model", "encoding") if then.get(name) != contents[name]]
        if other:
            raise RunError(
                f"{run.folder} is a run of another {', another '.join(other)}, or the files have changed since; "
                "expected runs of one pool, target and model, as they were"
            )


def _judges(job: Job[ScoringSettings]) -> dict[str, list[Encoded]]:
    """Encode the judges, and return those of each subtask.

    Raises:
        OptionError: a subtask has a single judge.
    """
    from clusterucb.samples.pool_and_target import encode_subtasks

    prepared = job.prepared
    assert prepared.judges is not None
    strict = job.settings.strict
    judges, _, rejected = encode_subtasks(prepared.judges, prepared.encoder, "judges", strict=strict)
    if rejected:
        first = rejected[0]
        warn(
            f"{counted(len(rejected), 'judge')} cannot be used, the first is {first.file}:{first.line}: "
            f"{first.reason}"
        )
    for subtask, own in judges.items():
        if len(own) < 2:
            raise OptionError(
                f"subtask {subtask!r} has 1 judge; expected at least 2, and {_FEW} or more to be useful"
            )
    if few := [f"{subtask} {len(own)}" for subtask, own in judges.items() if len(own) < _FEW]:
        warn(
            f"few judges: {', '.join(few)}; with fewer than {_FEW} judges in a subtask, only a large difference can be "
            "told from chance"
        )
    return judges


class _Trying:
    """A trial whose folder is open.

    Args:
        session: the job, the trial's folder and the model.
        asked: what the trial is asked for.
        judges: the encoded judges of each subtask.
        rows: the rows of each selection.

    Attributes:
        elsewhere: the random pool rows on which the losses elsewhere are measured.
        arms: the arms by name.
    """

    def __init__(
        self,
        session: Session[ScoringSettings],
        asked: _Asked,
        judges: Mapping[str, Sequence[Encoded]],
        rows: Mapping[str, NDArray[np.int64]],
    ) -> None:
        self._session = session
        self._settings = asked.settings
        self._first = asked.first
        self._judges = judges
        selected = next(iter(rows.values()))
        self._n_draws = asked.settings.epochs * len(selected)
        self.elsewhere = arms_of.elsewhere(len(session.material.samples), selected)
        of_runs = {name: arms_of.of_run(name, run, rows[name]) for name, run in asked.runs.items()}
        self.arms = of_runs | {
            name: self._made(name, selected) for name in (RANDOM, *asked.settings.others, NOTHING)
        }

    def _made(self, name: str, selected: NDArray[np.int64]) -> Arm:
        """Return one of the arms that runs are compared with."""
        lengths = self._session.material.encoded.lengths
        tokens = int(lengths[selected].sum())
        if name == RANDOM:
            return arms_of.at_random(name, lengths, self.elsewhere, len(selected), tokens)
        if name == "all":
            epochs = self._settings.epochs
            return arms_of.at_random(name, lengths, self.elsewhere, self._n_draws, epochs * tokens)
        if name == "rds":
            return self._most_similar(len(selected))
        return self._exhaustive(len(selected)) if name == "exhaustive" else Arm(name, None)

    def _most_similar(self, n_select: int) -> Arm:
        """Return the arm of the samples that are most similar to the target, by the run's features."""
        from clusterucb.jobs.stages.features import PoolFeatures

        features, described = self._first.features, PoolFeatures(self._session)
        blocks = described.blocks(features)
        similarity = described.similarity(features, blocks)
        rows = np.argsort(-similarity, kind="stable")[:n_select]
        n_samples = len(similarity) + self._session.material.n_target
        passes = FORWARD * described.passes(features) * n_samples
        return Arm("rds", lambda _: rows, passes, self._session.run.seconds("features"))

    def _exhaustive(self, n_select: int) -> Arm:
        """Return the arm of the samples that the run's rule selects when every sample is scored."""
        from clusterucb.jobs.stages.influence import Influence

        session, search = self._session, self._first.search
        material, run = session.material, session.run
        scores, _ = score_all(Influence(session), len(material.samples))
        rules = search.rules(material.weights(search.subtask_weights))
        rows = Truth.of(scores, material.sources, Terms(n_select, rules)).best
        passes = len(session.settings.weights) * (len(scores) + material.n_target)
        return Arm("exhaustive", lambda _: rows, passes, run.seconds("target") + run.seconds("draws"))

    def cells(self) -> dict[str, dict[tuple[int, int], Cell]]:
        """Return the cells of every arm, by the number of the rate and the seed. Finished cells are read."""
        planned = [
            (name, number, seed, order, f"{filenames.CELLS}/{key}.json")
            for name, arm in self.arms.items()
            for number, seed, order, key in self._planned(arm)
        ]
        run = self._session.run
        missing = sum(len(order) for *_, order, file in planned if not run.path(file).exists())
        total = sum(len(order) for *_, order, _ in planned)
        cells: dict[str, dict[tuple[int, int], Cell]] = {name: {} for name in self.arms}
        with self._session.observer.count("Training", total, done=total - missing) as advance:
            for name, number, seed, order, file in planned:
                rate = self._settings.rates[number]
                cells[name][number, seed] = self._cell(file, order, rate, advance)
        return cells

    def _planned(self, arm: Arm) -> Iterator[tuple[int, int, NDArray[np.int64], str]]:
        """Yield each training of an arm: the number of the rate, the seed, the rows in order, and the name of its file.

        The name has a hash of the rows, so a cell is never taken for that of another selection.
        """
        if arm.rows is None:
            yield 0, 0, np.zeros(0, np.int64), arm.name
            return
        for seed in range(self._settings.seeds):
            order = order_of(arm.rows(seed), self._n_draws, np.random.default_rng([seed, 7]))
            key = hashlib.sha256(order.tobytes()).hexdigest()[:16]
            for number, rate in enumerate(self._settings.rates):
                yield number, seed, order, f"{key}-seed-{seed}-rate-{rate:g}"

    def _cell(self, name: str, order: NDArray[np.int64], rate: float, advance: Callable[[int], None]) -> Cell:
        """Return a cell from its file, or train and write it."""
        files = self._session.run.files
        if (kept := files.find(name)) is not None:
            try:
                return msgspec.json.decode(kept.read_bytes(), type=Cell)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise files.damaged(kept, error) from error
        with self._session.run.phase("training"):
            cell = self._trainer.trained(order, rate, advance) if len(order) else self._trainer.untrained()
        files.forget(name)  # a cell that is trained again has other seconds
        with files.written(name) as partial:
            partial.write_bytes(msgspec.json.encode(cell))
        return cell

    @cached_property
    def _trainer(self) -> Trainer:
        """The model at the run's last adapter, or with a fresh LoRA if the run differentiated other weights."""
        from clusterucb.gradients.checkpoints import fresh_lora
        from clusterucb.jobs.trial.training import Trainer

        session, material = self._session, self._session.material
        settings = session.settings
        if settings.given_checkpoints[-1][0] is None:
            model = fresh_lora(settings, session.model.base)
        else:
            last = session.model.checkpoints[-1].gradients
            model = last.model
            last.activate_adapter()
        elsewhere = [material.encoded[int(row)] for row in self.elsewhere]
        return Trainer(model, material.encoded, self._judges, elsewhere, settings, session.model.device)
