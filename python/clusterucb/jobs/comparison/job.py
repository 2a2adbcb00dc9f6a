"""Compare strategies on one pool: score the whole pool once, then replay every strategy on the recorded scores.

The folder keeps scores and features, so the same command with other strategies, budgets or seeds takes seconds.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.atomic import write_whole
from clusterucb.engine import Schedule, SideInformation
from clusterucb.errors import ClusterUCBError, OptionError, RunError
from clusterucb.features.similarity import check_comparable
from clusterucb.jobs.comparison.replay import Clusterings, Contender, Replay, Terms, Truth, replay
from clusterucb.jobs.comparison.results import Comparison, budgets_of, folder_of, results, take_up_former
from clusterucb.jobs.score import score_all
from clusterucb.jobs.stages.config_yaml import resolved
from clusterucb.jobs.stages.opening import Session, open_job
from clusterucb.jobs.stages.prepare import Model, Prepared, Rows, check_paths
from clusterucb.model.loaded import borrowing
from clusterucb.options.amounts import parse_count, samples_of
from clusterucb.options.keywords import settings_from
from clusterucb.options.search import CompareSettings
from clusterucb.options.typed import CompareOptions
from clusterucb.plugins import describe
from clusterucb.progress import AnyObserver
from clusterucb.report.page import render
from clusterucb.run.cost import Cost
from clusterucb.run.ledger import Ledger
from clusterucb.run.manifest import Asked, Inputs, Manifest
from clusterucb.run.manifest_file import read_manifest
from clusterucb.versions import __version__

if TYPE_CHECKING:
    from clusterucb.jobs.stages.features import PoolFeatures

_TEMPLATE = Path(__file__).with_name("page.html")
_Blocks = dict[str, NDArray[np.float32]]
_Columns = dict[str, NDArray[np.float64]]

_REPLAYED = (
    "--cold-start",
    "--batch-size",
    "--rule",
    "--subtask-weights",
)  # affect only the replays, not the scores and features in the folder


@borrowing
def compare(
    pool: Rows,
    target: Rows,
    *,
    model: Model,
    out: str | PathLike[str],
    strategies: Sequence[Contender],
    budgets: Sequence[str | int] = ("5%", "10%", "20%"),
    seeds: int = 5,
    scores: str | PathLike[str] | None = None,
    overwrite: bool = False,
    observer: AnyObserver | None = None,
    **options: Unpack[CompareOptions],
) -> Comparison:
    """Compare strategies by how much of the exhaustive best they find, and at what cost.

    Args:
        pool, target: files, or rows in memory, as in `select`.
        model: the folder of a causal language model, a hub id, or a loaded model together with its ``tokenizer``.
        out: the comparison's folder. The same call again resumes the comparison, and may name other strategies,
            budgets or seeds.
        strategies: the strategies to compare.
        budgets: numbers of draws, as in `select`. Each must be at least the number to select.
        seeds: the number of searches for each strategy and budget.
        scores: the folder of a run that has scored the whole pool for this target, or for its subtasks among others.
            Without it and without a store, the comparison scores the pool itself.
        overwrite: delete the earlier run in the folder and start again.
        observer: receives the progress, as in `select`.
        **options: the options of `clusterucb.select` about rows, gradients, scores and draws, except ``budget``,
            ``until`` and ``prior``; see the documentation's list.

    Raises:
        ClusterUCBError: an option, a file, the model or a folder cannot be used.
    """
    if "budget" in options:
        raise OptionError("there is no option 'budget'; a comparison has budgets, such as ('10%', '20%')")
    settings = settings_from(options, CompareSettings)
    check_paths(model, out, needed=True, target=target)
    contenders = _checked(strategies, seeds)
    amounts = {str(budget): _parsed(settings, budget) for budget in budgets}
    if scores is not None:
        _manifest(Path(scores))
    given = {"budgets": list(budgets), "seeds": seeds, "scores": None if scores is None else Path(scores)}
    config = resolved(
        settings, pool=pool, target=target, model=model, out=out, strategies=contenders, **given
    )
    job = open_job(pool, target, model, settings, observer)
    counts = _draws(amounts, settings, len(job.material.samples))
    recorded = _Recorded(Path(scores), job.prepared) if scores is not None else None
    fingerprint = recorded.fingerprint if recorded else None
    identity = job.identity("compare", sketches=True, scores=fingerprint)
    identity.options = {name: value for name, value in identity.options.items() if name not in _REPLAYED}
    asked = Asked("100%", settings.select)
    with job.session(out, identity, asked=asked, config=config, overwrite=overwrite) as session:
        run, comparing = session.run, _Comparing(session, contenders, counts, seeds)
        content = {
            "clusterucb": __version__,
            "pool": job.material.pool_files,
            "target": job.material.target_files,
            "model": str(model),
            "select": settings.select,
            "seeds": seeds,
            **comparing.results(recorded),
        }
        encoded = msgspec.json.format(msgspec.json.encode(content), indent=1)
        write_whole(run.path(filenames.COMPARISON), encoded + b"\n")
        write_whole(run.path(filenames.COMPARISON_PAGE), render(_TEMPLATE, content).encode())
        run.finish(Inputs.of(job.material))
    return Comparison(content, Path(out))


def _parsed(settings: CompareSettings, budget: str | int) -> Fraction | int:
    """Return a budget as a share or a number of samples, if it covers the number to select."""
    count = parse_count("--budgets", budget)
    settings.check_covered("--budgets", count)
    return count


def _draws(
    budgets: Mapping[str, Fraction | int], settings: CompareSettings, n_samples: int
) -> dict[str, int]:
    """Return the number of draws of each budget by its spelling, in rising order.

    Raises:
        OptionError: a budget is below the number to select, or above the size of the pool.
    """
    n_select = settings.n_select(n_samples)
    counts = {spelling: samples_of(amount, n_samples) for spelling, amount in budgets.items()}
    for budget, count in counts.items():
        if not n_select <= count <= n_samples:
            raise OptionError(
                f"--budgets: {budget} is {count} of {n_samples} samples; expected at least --select "
                f"{settings.select}, which is {n_select}, and at most the pool"
            )
    return _rising(counts)


class _Comparing:
    """A comparison whose run folder is open.

    Args:
        session: the job, its run folder and its model.
        contenders: the strategies to compare.
        counts: the number of draws of each budget by its spelling.
        seeds: the number of searches for each contender and budget.
    """

    def __init__(
        self,
        session: Session[CompareSettings],
        contenders: Sequence[Contender],
        counts: dict[str, int],
        seeds: int,
    ) -> None:
        from clusterucb.jobs.stages.features import PoolFeatures
        from clusterucb.jobs.stages.influence import Influence

        self._session = session
        job = session.job
        self._contenders = contenders
        self._counts = counts
        self._seeds = seeds
        self._features, self._influence = PoolFeatures(session), Influence(session)
        self._columns = job.material.columns()
        take_up_former(session.run, [contender.features for contender in contenders])
        self._clusterings: dict[bytes, Clusterings] = {}
        settings = job.settings
        self._terms = Terms(
            settings.n_select(len(job.material.samples)),
            settings.rules(job.material.weights(settings.subtask_weights)),
            Schedule(cold_start=settings.cold_start, batch_size=settings.batch_size),
        )

    def results(self, recorded: _Recorded | None) -> dict[str, Any]:
        """Describe the pool, score it unless an earlier run did, replay every contender, and return the results."""
        n_samples = len(self._session.material.samples)
        self._described = _describe(self._features, self._contenders)
        predicting = [contender for contender in self._contenders if contender.policy.predicts]
        self._known = SideInformation()
        if predicting:  # all get the same estimates; the first one's features fill in what a store lacks
            blocks, _ = self._described[folder_of(predicting[0].features)]
            prior = self._influence.estimates(blocks, self._columns)
            self._known = SideInformation(prior=prior, first=self._influence.first(prior))
        self._rehearse(n_samples)
        scored = recorded.scores if recorded else score_all(self._influence, n_samples)[0]
        truth = Truth.of(scored, self._columns["source"], self._terms)
        replays: dict[str, list[list[Replay]]] = {}
        budgets = {
            one.name: list(budgets_of(one, self._counts, n_samples).values()) for one in self._contenders
        }
        n_searches = self._seeds * sum(map(len, budgets.values()))
        with self._session.observer.count("Replaying", n_searches, unit="searches") as advance:
            for contender in self._contenders:
                with _warnings_once(contender.name):
                    replays[contender.name] = self._play(
                        contender, truth, budgets[contender.name], self._seeds, advance
                    )
        timed = _timed(self._session.run.manifest.cost, recorded)
        passes = {
            one.name: self._features.passes(one.features, folder_of(one.features)) for one in self._contenders
        }
        settings, material = self._session.settings, self._session.material
        return results(self._contenders, replays, self._counts, truth, settings, material, timed, passes)

    def _play(
        self,
        contender: Contender,
        truth: Truth,
        budgets: Sequence[int],
        seeds: int,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[list[Replay]]:
        """Return a contender's replays. Contenders with the same clusterer and features share their clusterings."""
        blocks, more = self._described[folder_of(contender.features)]
        clusterer = contender.clusterer and describe(contender.clusterer)
        key = msgspec.json.encode([describe(contender.features), clusterer])
        return replay(
            contender,
            truth,
            blocks,
            {**self._columns, **more},
            budgets,
            seeds,
            self._terms,
            self._clusterings.setdefault(key, {}),
            advance,
            self._known,
        )

    def _rehearse(self, n_samples: int) -> None:
        """Run every strategy once on random scores, so that its faults show before the pool is scored.

        The clusters are kept for the replays, so little work is done twice.

        Raises:
            ClusterUCBError: a strategy failed. The error keeps its class, and its message names the strategy.
        """
        self._session.observer.step("Trying the strategies on random scores")
        anything = np.random.default_rng(0).normal(size=(n_samples, len(self._session.material.target)))
        truth = Truth.of(anything, self._columns["source"], self._terms)
        for contender in self._contenders:
            budgets = list(budgets_of(contender, self._counts, n_samples).values())
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._play(contender, truth, budgets[:1], 1)
            except ClusterUCBError as error:
                raise type(error)(f"strategy {contender.name}: {error}") from error


def _checked(strategies: Sequence[Contender], seeds: int) -> Sequence[Contender]:
    if not isinstance(seeds, int) or seeds < 1:
        raise OptionError(f"--seeds is {seeds!r}; expected a whole number of at least 1")
    if not strategies:
        raise OptionError("there are no strategies to compare; expected one or more, such as random and ucb")
    for one in strategies:
        if not isinstance(one, Contender):
            raise OptionError(f"a strategy is {one!r:.80}; expected a clusterucb.Contender")
        check_comparable(one.policy, one.features, one.name)
    names = [one.name for one in strategies]
    if twice := {name for name in names if names.count(name) > 1}:
        raise OptionError(f"strategies are named twice: {', '.join(sorted(twice))}; expected different names")
    return strategies


class _Recorded:
    """The scores of an earlier run that has scored its whole pool, perhaps for further subtasks.

    Attributes:
        scores: f64[N, S], the scores for the target's subtasks.
        cost: the cost of the earlier run.
        fingerprint: the hash of the scores.

    Raises:
        RunError: the folder holds no such run, or the run has another pool, target or model.
    """

    def __init__(self, folder: Path, prepared: Prepared) -> None:
        manifest, material = _manifest(folder), prepared.material
        contents = manifest.identity.contents
        other = [
            name for name in ("pool", "model", "encoding") if contents.get(name) != prepared.contents[name]
        ]
        if not material.subtask_contents().items() <= manifest.inputs.subtask_contents.items():
            other.append("target")
        if other:
            raise RunError(
                f"--scores {folder} is a run of another {', another '.join(other)}; "
                "expected a run of the same pool and model, with all subtasks of the target"
            )
        n_samples, subtasks = len(material.samples), manifest.inputs.subtasks
        ledger = Ledger(
            folder / filenames.LEDGER,
            subtasks=subtasks,
            tokens=material.encoded.lengths,
            run=manifest.token,
            begun=True,
            read_only=True,
        )
        with ledger:
            n_scored, scores = ledger.totals()[0], ledger.scores()
        if n_scored < n_samples:
            raise RunError(
                f"--scores {folder} has scored {n_scored} of {n_samples} samples; expected all: repeat that run with "
                "--budget 100%"
            )
        self.scores = scores[:, [subtasks.index(name) for name in material.target]]
        self.cost = manifest.cost
        self.fingerprint = hashlib.sha256(self.scores.tobytes()).hexdigest()


def _manifest(folder: Path) -> Manifest:
    try:
        return read_manifest(folder)
    except (FileNotFoundError, RunError) as error:
        raise RunError(
            f"--scores {folder} holds no run ({error}); expected the --out of an earlier run"
        ) from error


def _describe(features: PoolFeatures, contenders: Sequence[Contender]) -> dict[str, tuple[_Blocks, _Columns]]:
    """Return the blocks of every feature by its folder, and the similarity to the target if a policy needs it."""
    described: dict[str, tuple[_Blocks, _Columns]] = {}
    for one in contenders:
        folder = folder_of(one.features)
        blocks, columns = described.get(folder) or (features.blocks(one.features, folder), {})
        if "similarity" in one.policy.columns and not columns:
            columns = {"similarity": features.similarity(one.features, blocks, folder)}
        described[folder] = blocks, columns
    return described


def _rising(counts: dict[str, int]) -> dict[str, int]:
    """Return the budgets by their spelling, in rising order. Of equal budgets, the first is kept."""
    rising: dict[int, str] = {}
    for spelling, count in sorted(counts.items(), key=lambda one: one[1]):
        rising.setdefault(count, spelling)
    return {spelling: count for count, spelling in rising.items()}


@contextmanager
def _warnings_once(strategy: str) -> Iterator[None]:
    """Issue each repeated warning of a strategy's searches once, with the strategy's name.

    Warnings that differ only in their numbers count as repeated.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    of_a_kind: dict[str, list[warnings.WarningMessage]] = {}
    for one in caught:
        of_a_kind.setdefault(re.sub(r"\d+", "", str(one.message)), []).append(one)
    for first, *others in of_a_kind.values():
        more = f" (and in {len(others)} more searches)" if others else ""
        warnings.warn(f"strategy {strategy}: {first.message}{more}", first.category, stacklevel=4)


def _timed(own: Cost, recorded: _Recorded | None) -> Cost:
    """Return the seconds of every phase. The seconds of scoring come from the run that scored the pool."""
    return Cost(phases={**(recorded.cost.phases if recorded else {}), **own.phases})
