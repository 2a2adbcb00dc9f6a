"""Run the main job: read, encode, describe, cluster, draw and score, select, write.

Both the command `clusterucb select` and the function ``cu.select`` run `select`. The job writes everything to the run
folder as soon as it is computed, and reads whatever the folder already holds. An interrupted run, a larger budget,
another number to select and a finished run therefore all take the same path.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.engine import Budget, Schedule, Selection, SideInformation, search
from clusterucb.engine.arms import check_labels, default_cold_start, is_guided
from clusterucb.engine.blame import blamed
from clusterucb.engine.budget import NothingLeft, planned_draws
from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.recall import Recall
from clusterucb.engine.stopping import check_until
from clusterucb.errors import OptionError, warn
from clusterucb.features.base import Feature
from clusterucb.jobs.stages.config_yaml import resolved
from clusterucb.jobs.stages.cost import selection_cost
from clusterucb.jobs.stages.links import Links
from clusterucb.jobs.stages.opening import Job, Session, open_job
from clusterucb.jobs.stages.page import RunPage
from clusterucb.jobs.stages.prepare import Model, Prepared, Rows, check_paths
from clusterucb.jobs.stages.prior import Earlier, Known, earlier_runs
from clusterucb.jobs.stages.spending import check_unsketched
from clusterucb.jobs.stages.strategies import ChosenStrategies, chosen
from clusterucb.model.checkpoint_files import checkpoint_fingerprints
from clusterucb.model.loaded import LoadedModel, borrowing
from clusterucb.options.amounts import Seconds
from clusterucb.options.keywords import settings_from, spelt_out
from clusterucb.options.search import SelectSettings
from clusterucb.options.typed import SelectOptions
from clusterucb.plugins import describe
from clusterucb.progress import AnyObserver, Observer
from clusterucb.report.export.reselection import reselection
from clusterucb.report.result import Result
from clusterucb.report.written import finish
from clusterucb.run.folder import Run
from clusterucb.run.ledger import Ledger, ScoredBatches
from clusterucb.run.manifest import Asked, Identity
from clusterucb.wording import counted

if TYPE_CHECKING:
    from clusterucb.gradients.program import Spread


@borrowing
@spelt_out(SelectSettings)
def select(
    pool: Rows,
    target: Rows,
    *,
    model: Model,
    out: str | PathLike[str] | None = None,
    features: Feature | str | None = None,
    clusterer: Clusterer | str | None = None,
    policy: Policy | str | None = None,
    overwrite: bool = False,
    observer: AnyObserver | None = None,
    **options: Unpack[SelectOptions],
) -> Result:
    """Select the pool samples that influence the target most, within a gradient budget.

    Args:
        pool, target: one or several files, folders and patterns; or rows in memory: a list of dicts, a Dataset or a
            DataFrame.
        model: the folder of a causal language model in Hugging Face format, a hub id, or a loaded model together with
            its ``tokenizer``. A loaded model may be a PEFT model. The job does not change it.
        out: the run folder. The same call again resumes the run, or returns the result of a finished one. By default,
            nothing is kept but the returned result.
        features: computes the features that describe a sample. The default is `Embedding`; with a gradient store and
            a policy that does not predict scores, it is `Gradient`.
        clusterer: makes the arms; `KMeans` by default.
        policy: spends the budget; `Surrogate` by default. The paper's policy is `UCB`. Like features and clusterer, it
            may be a text, as on the command line: ``ucb`` or ``ucb[beta=1.5]``.
        overwrite: delete the earlier run in the folder and start again.
        observer: receives the progress: a function of (text, done, total), or an object with the methods ``step`` and
            ``count``. By default, progress is shown in notebooks only.
        **options: the options of a selection, such as ``budget``, ``select`` and ``seed``; see the documentation's
            list.

    Raises:
        ClusterUCBError: an option, a file, the model or the folder cannot be used. The message says what to do.
            Everything that was computed before the error stays in the folder.
    """
    given = settings_from(options, SelectSettings)
    check_paths(model, out, target=target)
    _check_output(given, out)
    strategies = chosen(features, clusterer, policy, store=given.store is not None)
    earlier = earlier_runs(given.prior, strategies.policy)
    if given.recall is not None:
        check_until(given.recall, strategies.policy, given.max_per_source)
    job = open_job(pool, target, model, given, observer, given.held_out)  # read, encode
    config = resolved(given, pool=pool, target=target, model=model, out=out, **strategies._asdict())
    anew = None
    if given.every:
        n_select = given.n_select(len(job.material.samples))
        anew = reselection(given, pool, target, strategies._asdict(), n_select)
    return _run(
        job, given, strategies, earlier, str(model), out, config=config, anew=anew, overwrite=overwrite
    )


@borrowing
def select_again(
    prepared: Prepared,
    *,
    model: LoadedModel,
    out: Path,
    features: Feature | None,
    clusterer: Clusterer | None,
    policy: Policy | None,
    observer: Observer,
    links: Links = Links(),
    spread: Spread | None = None,
    **options: Unpack[SelectOptions],
) -> Result:
    """Select from a pool that was read and encoded before, with a loaded model: as `select` does, without reading.

    Args:
        prepared: the pool and the target.
        links: what the selection takes from one just before, and leaves for later ones.
        spread: spreads passes over other processes that hold the same model, or None.
        model, out, features, clusterer, policy, observer, **options: as for `select`.
    """
    given = settings_from(options, SelectSettings)
    strategies = chosen(features, clusterer, policy, store=False)
    contents = prepared.contents | {
        "model": model.fingerprint(),
        **checkpoint_fingerprints(given.given_checkpoints),
    }
    now = replace(prepared, source=model, device=model.device(given.device), contents=contents)
    earlier = earlier_runs(given.prior, strategies.policy)
    return _run(
        Job(given, now, None, observer, spread), given, strategies, earlier, str(model), out, links=links
    )


def _run(
    job: Job[SelectSettings],
    given: SelectSettings,
    strategies: ChosenStrategies,
    earlier: Sequence[Earlier],
    model: str,
    out: str | PathLike[str] | None,
    *,
    config: bytes | None = None,
    anew: str | None = None,
    overwrite: bool = False,
    links: Links = Links(),
) -> Result:
    """Describe, cluster, draw and score, select and write."""
    ids = [sample.id for sample in job.material.samples] if earlier else []
    known = [run.of_pool(ids, job.material.contents, job.prepared.contents) for run in earlier]
    identity = _identity(job, strategies, [one.fingerprint for one in known])
    asked = Asked(given.budget, given.select, given.until)
    with job.session(out, identity, asked=asked, config=config, overwrite=overwrite) as session:
        selecting = _Selecting(session, given, strategies, known, out is not None, anew, links)
        with selecting.influence.ledger() as ledger:
            spend = selecting.prepared_search(ledger)  # describe
            selection = selecting.draw(spend, ledger)  # cluster, draw and score
            result = selecting.write(selection, ledger, model)  # select, write
        if selecting.interrupted:
            _say_where(session, result, kept=out is not None)
            raise selecting.interrupted
        return result if out is not None else replace(result, out=None)


@dataclass
class _Selecting:
    """A selection whose run folder is open.

    Attributes:
        kept: whether the run folder stays, with a page.
        anew: the call that selects anew in a training, for exports, or None.
        links: what the selection takes from one just before, and leaves for later ones.
        interrupted: the interrupt that ended the search early, or None.
    """

    session: Session[SelectSettings]
    given: SelectSettings
    strategies: ChosenStrategies
    known: Sequence[Known]
    kept: bool
    anew: str | None = None
    links: Links = Links()
    interrupted: KeyboardInterrupt | None = None

    def __post_init__(self) -> None:
        from clusterucb.jobs.stages.features import PoolFeatures
        from clusterucb.jobs.stages.influence import Influence
        from clusterucb.jobs.stages.pass_times import seconds_per_token

        session, state = self.session, self.session.run.manifest.search
        settings, material = session.settings, session.material
        session.observer.step(session.run.progress_line("run"))
        if isinstance(settings.limit, Seconds) and state.seconds_per_token is None:
            state.seconds_per_token = seconds_per_token(session.model, settings, material, session.observer)
        self.n_budget, self.n_select = settings.counts(material.encoded.lengths, state.seconds_per_token)
        self.features = PoolFeatures(session)
        self.page = RunPage(session, kept=self.kept)
        self.influence = Influence(session, settings.batch_size, self.links)

    def prepared_search(self, ledger: Ledger) -> Callable[..., Selection]:
        """Describe the pool, and return the search: a function of a budget and a journal."""
        session, policy, settings = self.session, self.strategies.policy, self.session.settings
        blocks = self.features.blocks(self.strategies.features)
        self.page.describe(blocks)
        session.material.forget()
        columns = session.material.columns()
        if "similarity" in policy.columns:
            columns["similarity"] = self.features.similarity(self.strategies.features, blocks)
        prior = self.influence.estimates(blocks, columns) if policy.predicts else {}
        for number, known in enumerate(self.known, start=1):
            session.observer.step(known.description)
            prior[f"prior {number}"] = known.block(blocks, columns)
        if not ledger.totals()[0]:
            self._record_cold_start(is_guided(policy, prior))
        return partial(
            search,
            blocks,
            self.influence.score,
            clusterer=_KeptClusterer(self.strategies.clusterer, session.run),
            policy=policy,
            n_select=self.n_select,
            rules=settings.rules(session.material.weights(settings.subtask_weights)),
            side=SideInformation(columns=columns, prior=prior, first=self.influence.first(prior)),
            schedule=Schedule(
                cold_start=session.run.manifest.search.cold_start,
                batch_size=settings.batch_size,
                seed=settings.seed,
            ),
        )

    def draw(self, spend: Callable[..., Selection], ledger: Ledger) -> Selection:
        """Spend the budget. If the search is interrupted, select from the samples scored so far.

        Raises:
            KeyboardInterrupt: the search was interrupted before any sample was scored.
        """
        influence, state = self.influence, self.session.run.manifest.search
        limit, until = self.session.settings.limit, self.given.recall
        drawing = influence.drawing(self.n_budget, ledger.totals(), limit, spent=state.spent)
        with drawing as allowance:
            try:
                selection = spend(
                    budget=Budget(
                        draws=self.n_budget,
                        allowance=allowance,
                        until=until,
                        watch=partial(self._watch, ledger),
                    ),
                    journal=ledger,
                )
            except KeyboardInterrupt as interrupted:
                if not ledger.totals()[0]:
                    raise
                self.interrupted = interrupted
                so_far = Budget(
                    draws=self.n_budget, allowance=NothingLeft(), until=until, watch=lambda _: None
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # hides the warning about too few draws
                    selection = spend(budget=so_far, journal=ScoredBatches(ledger))
                selection = replace(selection, stopped="interrupted")
        state.spent = self.interrupted is None
        return selection

    def write(self, selection: Selection, ledger: Ledger, model: str) -> Result:
        """Write the selection and its cost to the run folder."""
        run, material = self.session.run, self.session.material
        cost = selection_cost(
            run.manifest.cost,
            self.session.settings,
            material,
            selection.drawn_rows,
            self.strategies.features,
            self.strategies.policy,
            passes=self.features.passes(self.strategies.features),
            reused=self.features.reused,
        )
        planned = (self.n_budget, self.n_select)
        judges = self.session.job.prepared.judges
        result = finish(
            run,
            material,
            selection,
            ledger.failures(),
            cost,
            self.given,
            model,
            planned,
            judges.samples if judges else (),
            self.anew,
        )
        if self.interrupted:
            run.manifest.status = "running"
        self.page.finish(result)
        return result

    def _watch(self, ledger: Ledger, recall: Recall) -> None:
        self.influence.show_recall(recall)
        self.page.watch(ledger.totals()[0], recall)

    def _record_cold_start(self, guided: bool) -> None:
        """Store the cold start's share, so that a larger budget later does not change how the run began."""
        n_samples, share = len(self.session.material.samples), self.session.settings.cold_start
        planned = planned_draws(self.n_budget, n_samples, self.n_select, self.given.recall)
        by_default = default_cold_start(planned, n_samples, guided=guided)
        run = self.session.run
        run.manifest.search.cold_start = by_default if share is None else share
        run.save()


def _check_output(given: SelectSettings, out: object) -> None:
    if out is None and (given.tools or given.scores_parquet):
        name = "export" if given.tools else "scores_parquet"
        raise OptionError(f"{name} is given without out; expected out, the folder for the files")


def _identity(job: Job[SelectSettings], strategies: ChosenStrategies, prior: list[str]) -> Identity:
    """Check the budget and the subtask weights, then return everything that determines the selection's numbers."""
    job.settings.counts(job.material.encoded.lengths)
    check_unsketched(job.settings, job.material)
    job.material.weights(job.settings.subtask_weights)
    if strategies.features.gradients and not job.store:
        _warn_of_gradients(len(job.material.target))
    sketches = job.settings.by_sketch or bool(strategies.features.gradients)
    described = {f"--{name}": describe(strategy) for name, strategy in strategies._asdict().items()}
    identity = job.identity("select", sketches=sketches, prior=prior or None)
    identity.options |= described
    if len(job.material.target) == 1:
        identity.options["--rule"] = None
    return identity


def _say_where(session: Session[SelectSettings], result: Result, *, kept: bool) -> None:
    if kept:
        n_scored = counted(result.selection.n_scored, "sample")
        path = session.run.path(filenames.SELECTED)
        session.observer.step(f"The best {len(result):,} of the {n_scored} scored so far are in {path}")


def _warn_of_gradients(n_subtasks: int) -> None:
    warn(
        "clustering by gradients computes a gradient of every pool sample before the first draw, which saves "
        f"nothing for {'this target' if n_subtasks == 1 else 'these subtasks'} alone. Use `clusterucb sketch` "
        "once and --store for every target, or cheaper --features"
    )


class _KeptClusterer(Clusterer):
    """A clusterer that computes its labels once in a run, and then reads them from the run folder."""

    def __init__(self, clusterer: Clusterer, run: Run) -> None:
        self._clusterer = clusterer
        self._run = run

    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:
        files = self._run.files
        kept = files.arrays(filenames.LABELS, {"labels": (np.int64, (len(pool),))})
        if kept is not None:
            return check_labels(self._clusterer, kept["labels"], len(pool))
        with self._run.phase("clusters"):
            found = blamed(self._clusterer.fit_predict)(pool, rng)
        labels = check_labels(self._clusterer, found, len(pool))
        files.write_arrays(filenames.LABELS, {"labels": labels})
        return labels
