"""The main job: read, encode, describe, cluster, draw and score, select, write.

`select` is what both `clusterucb select` and ``cu.select`` run. Everything it computes goes into the
run folder as it is computed, and everything that is in the folder is taken from there; so an
interrupted run, a larger budget, another number to select and a finished run all take the same path.

(The file is not called ``select.py``: a submodule of that name would hide the function ``cu.select``.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from clusterucb import filenames
from clusterucb.atomic import whole_file
from clusterucb.engine.allowance import NothingLeft
from clusterucb.engine.arms import check_labels, default_cold_start
from clusterucb.engine.blame import blamed
from clusterucb.engine.budget import Seconds
from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.loop import Selection, check_until, expected_draws, is_told, search
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.errors import ClusterUCBWarning, OptionError
from clusterucb.features.base import Feature
from clusterucb.jobs.stages.config_yaml import resolved
from clusterucb.jobs.stages.cost import selection_cost
from clusterucb.jobs.stages.prepare import Model, Rows, check_paths, folder_for, prepare
from clusterucb.jobs.stages.prior import opened
from clusterucb.jobs.stages.strategies import chosen
from clusterucb.model.loaded import borrowing
from clusterucb.options.settings import SelectSettings, Settings, settings_from, spelt_out
from clusterucb.plugins import describe
from clusterucb.progress import AnyObserver, observer_of
from clusterucb.report.result import Result
from clusterucb.report.written import finish
from clusterucb.run.folder import Run
from clusterucb.run.gradient_store import GradientStore
from clusterucb.run.ledger import Ledger, Scored
from clusterucb.wording import counted


@borrowing
@spelt_out(SelectSettings)
def select(
    pool: Rows,
    target: Rows,
    *,
    model: Model,
    out: str | PathLike[str] | None = None,
    features: Feature | None = None,
    clusterer: Clusterer | None = None,
    policy: Policy | None = None,
    overwrite: bool = False,
    observer: AnyObserver | None = None,
    **options: Any,
) -> Result:
    """Select the pool samples that influence the target most, within a gradient budget.

    Args:
        pool, target: files, folders and patterns, one or more; or rows in memory: a list of dicts, a Dataset, a
            DataFrame (`clusterucb.samples.sources`).
        model: folder of a causal language model in Hugging Face form, or a hub id; or a loaded model, perhaps of
            PEFT, with its ``tokenizer``. It is given back as it was.
        out: the run folder; the same call again resumes it, or returns what it found. Without one, nothing is kept
            but the result.
        features: what is known of samples beforehand; `Embedding` by default, `Gradient` with a store and a policy
            that does not predict scores.
        clusterer: what makes the arms; `KMeans` by default.
        policy: what spends the budget; `Surrogate` by default, `UCB` is the paper's.
        overwrite: begin anew in a folder that holds another run.
        observer: who is told how the run gets on: a function of (text, done, total), or a
            `clusterucb.progress.Observer`; by default nobody, but the screen in a notebook.
        **options: the fields of `clusterucb.options.settings.SelectSettings`: ``budget``, ``select``, ``seed``, ...

    Raises:
        ClusterUCBError: an option, a file, the model or the folder cannot be used; the message says
            what to do. What was computed before stays in the folder.
    """
    given = settings_from(options, SelectSettings)
    check_paths(model, out, target=target)
    if out is None and (given.tools or given.scores_parquet):
        name = "export" if given.tools else "scores_parquet"
        raise OptionError(f"{name} is given without out; expected a folder that what is written may stay in")
    observer = observer_of(observer)
    store = GradientStore(given.store) if given.store else None
    settings = store.applied_to(given) if store else given
    features, clusterer, policy = chosen(features, clusterer, policy, store=store is not None)
    earlier = [opened(folder) for folder in given.prior or ()]
    if earlier and not policy.predicts:
        raise OptionError(
            f"--prior is given, and {type(policy).__name__} does not predict scores; expected a policy that does, such "
            "as Surrogate"
        )
    if given.recall is not None:
        check_until(given.recall, policy, given.aggregate, given.max_per_source)
    prepared = prepare(pool, target, model, settings, observer)

    from clusterucb.gradients.session import AdaptedModel, load_base
    from clusterucb.jobs.stages.influence import Influence
    from clusterucb.jobs.stages.pass_times import seconds_per_token

    material, source, device = prepared.material, prepared.source, prepared.device
    if store:
        store.check(prepared.contents)
    elif features.gradients:
        _warn_of_gradients(len(material.target))
    deciding = {
        **settings.deciding(sketches=settings.by_sketch or bool(features.gradients)),
        "--device": device,
        "--features": describe(features),
        "--clusterer": describe(clusterer),
        "--policy": describe(policy),
        **prepared.contents,
        **({"store content": store.fingerprint} if store else {}),
        **({"prior content": [one.fingerprint for one in earlier]} if earlier else {}),
    }
    config = resolved(
        given,
        pool=pool,
        target=target,
        model=model,
        out=out,
        features=features,
        clusterer=clusterer,
        policy=policy,
    )
    lengths = material.encoded.lengths
    settings.counts(lengths)
    weights = material.weights(settings.subtask_weights)
    ids = [sample.id for sample in material.samples]
    known = [one.of_pool(ids, prepared.contents) for one in earlier]
    # Before an earlier run is removed, everything that can refuse the new one has had its say.
    base = (
        load_base(settings, source, device, material, observer, Path(out or gettempdir()))
        if overwrite
        else None
    )
    with (
        folder_for(out) as folder,
        Run(
            folder,
            deciding,
            budget=settings.budget,
            select=settings.select,
            config=config,
            overwrite=overwrite,
        ) as run,
        AdaptedModel(run, settings, source, device, material, observer, base) as adapted,
    ):
        observer.step(run.told("run"))
        if isinstance(settings.limit, Seconds) and run.manifest.seconds_per_token is None:
            run.manifest.seconds_per_token = seconds_per_token(adapted, settings, material, observer)
        n_budget, n_select = settings.counts(lengths, run.manifest.seconds_per_token)
        influence = Influence(run, settings, adapted, material, observer, store)
        with influence.ledger() as ledger:
            blocks = influence.features(features)
            columns = material.columns()
            if "similarity" in policy.columns:
                columns["similarity"] = influence.similarity(features, blocks)
            prior = influence.estimates() if policy.predicts else {}
            for number, one in enumerate(known, start=1):
                observer.step(one.said)
                prior[f"prior {number}"] = one.block(blocks, columns)
            done = ledger.totals()
            if not done[0]:
                n_samples = len(material.samples)
                planned = expected_draws(n_budget, n_samples, n_select, given.recall)
                told = is_told(policy, prior, settings.aggregate)
                _record_cold_start(run, settings, default_cold_start(planned, n_samples, told=told))
            spent = run.manifest.spent == given.end
            spend = partial(
                search,
                blocks,
                influence.score,
                clusterer=_Recorded(clusterer, run),
                policy=policy,
                budget=n_budget,
                n_select=n_select,
                cold_start=run.manifest.cold_start,
                batch_size=settings.batch_size,
                seed=settings.seed,
                columns=columns,
                aggregate=settings.aggregate,
                select_by=settings.select_by,
                max_per_source=settings.max_per_source,
                weights=weights,
                prior=prior,
                until=given.recall,
            )
            interrupted = None
            with influence.drawing(n_budget, done, settings.limit, spent=spent) as allowance:
                try:
                    selection = spend(allowance=allowance, watch=influence.found, journal=ledger)
                except KeyboardInterrupt as stop:
                    selection, interrupted = _found_so_far(spend, ledger, stop), stop
            run.manifest.spent = None if interrupted else given.end
            run.manifest.pool_files, run.manifest.target_files = prepared.pool_files, prepared.target_files
            run.manifest.n_budget, run.manifest.n_select = n_budget, n_select
            run.manifest.select_by, run.manifest.max_per_source = settings.select_by, settings.max_per_source
            drawn = selection.drawn_rows
            cost = selection_cost(
                run.manifest.cost, settings, material, drawn, features, policy, reused=influence.reused
            )
            result = finish(run, material, selection, ledger.failures(), cost, given, str(model))
            if interrupted:
                run.manifest.status = "running"
                if out is not None:
                    observer.step(
                        f"The best {len(result):,} of the {counted(len(drawn), 'sample')} scored so far are in "
                        f"{run.path('selected.jsonl')}"
                    )
                raise interrupted
            return result if out is not None else replace(result, out=None)


def _found_so_far(
    spend: Callable[..., Selection], ledger: Ledger, interrupted: KeyboardInterrupt
) -> Selection:
    """Return the selection of what has been scored when a search is interrupted.

    Raises:
        KeyboardInterrupt: nothing has been scored.
    """
    if not ledger.totals()[0]:
        raise interrupted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few draws
        found = spend(allowance=NothingLeft(), watch=lambda _: None, journal=Scored(ledger))
    return replace(found, stopped="interrupted")


def _warn_of_gradients(n_subtasks: int) -> None:
    warnings.warn(
        "clustering by gradients pays for a gradient of every pool sample before the first draw: for "
        f"{'this target' if n_subtasks == 1 else 'these subtasks'} alone, nothing is saved. Use `clusterucb sketch` "
        "once and --store for every target, or cheaper --features",
        ClusterUCBWarning,
        stacklevel=3,
    )


def _record_cold_start(run: Run, settings: Settings, by_default: float) -> None:
    """Keep the share of the cold start: a larger budget later on does not change how a run began."""
    run.manifest.cold_start = by_default if settings.cold_start is None else settings.cold_start
    run.save()


class _Recorded(Clusterer):
    """A clusterer whose labels are computed once in a run and then read from ``labels.safetensors``."""

    def __init__(self, clusterer: Clusterer, run: Run) -> None:
        self._clusterer = clusterer
        self._run = run

    def fit_predict(self, pool: PoolView, rng: np.random.Generator) -> NDArray[np.int64]:
        path = self._run.path(filenames.LABELS)
        if path.exists():
            return np.asarray(load_file(path)["labels"])
        with self._run.phase("clusters"):
            found = blamed(self._clusterer.fit_predict)(pool, rng)
        labels = check_labels(self._clusterer, found, len(pool))
        with whole_file(path) as partial:
            save_file({"labels": labels}, partial)
        return labels
