"""Compare strategies on one pool: score all of it once, then replay every strategy on the recorded scores.

The folder keeps scores and features, so that the same command with other strategies, budgets or seeds takes
seconds. (The file is not called ``compare.py``: a submodule of that name would hide the function ``cu.compare``.)
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.atomic import write_whole
from clusterucb.engine.budget import resolve_count
from clusterucb.errors import ClusterUCBError, OptionError, RunError
from clusterucb.features.similarity import check_comparable
from clusterucb.jobs.comparison import page as comparison_page
from clusterucb.jobs.comparison.replay import Clusterings, Contender, Replay, Rules, Truth, replay
from clusterucb.jobs.comparison.results import Comparison, budgets_of, folder_of, results
from clusterucb.jobs.score import score_all
from clusterucb.jobs.stages.config_yaml import resolved
from clusterucb.jobs.stages.prepare import Model, Prepared, Rows, check_paths, prepare
from clusterucb.model.loaded import borrowing
from clusterucb.options.settings import CompareSettings, check_counts, settings_from
from clusterucb.plugins import describe
from clusterucb.progress import AnyObserver, observer_of
from clusterucb.run.folder import Cost, Manifest, Run
from clusterucb.run.gradient_store import GradientStore
from clusterucb.run.ledger import Ledger
from clusterucb.versions import __version__

if TYPE_CHECKING:
    from clusterucb.jobs.stages.influence import Influence

_Blocks = dict[str, NDArray[np.float32]]
_Columns = dict[str, NDArray[np.float64]]

_REPLAYED = (
    "--cold-start",
    "--batch-size",
    "--aggregate",
    "--subtask-weights",
)  # decide about replays, not about what is kept


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
    **options: Any,
) -> Comparison:
    """Compare strategies by what they find of the exhaustive best, and at what price.

    Args:
        pool, target: files, or rows in memory, as in `select`.
        model: folder of a causal language model, a hub id, or a loaded model with its ``tokenizer``.
        out: the folder; the same call again goes on with it, also with other strategies, budgets or seeds.
        strategies: what to compare.
        budgets: draws, as in `select`; each at least the number to select.
        seeds: searches of every strategy and budget.
        scores: folder of a run that has scored the whole pool for this target, or for its subtasks among others;
            without it, or a store, the pool is scored here.
        overwrite: begin anew in a folder that holds something else.
        observer: who is told how it gets on.
        **options: the fields of `clusterucb.options.settings.CompareSettings`.

    Raises:
        ClusterUCBError: an option, a file, the model or a folder cannot be used.
    """
    if "budget" in options:
        raise OptionError("there is no option 'budget'; a comparison has budgets, such as ('10%', '20%')")
    settings = settings_from(options, CompareSettings)
    check_paths(model, out, needed=True, target=target)
    contenders = _checked(strategies, seeds)
    for budget in budgets:
        check_counts("--budgets", budget, settings.select)
    if scores is not None:
        _manifest(Path(scores))
    observer = observer_of(observer)
    config = resolved(
        settings,
        pool=pool,
        target=target,
        model=model,
        out=out,
        strategies=contenders,
        budgets=list(budgets),
        seeds=seeds,
        scores=None if scores is None else Path(scores),
    )
    store = GradientStore(settings.store) if settings.store else None
    settings = store.applied_to(settings) if store else settings
    prepared = prepare(pool, target, model, settings, observer)
    material = prepared.material
    n_samples = len(material.samples)
    n_select = resolve_count("--select", settings.select, n_samples)
    counts = {str(budget): resolve_count("--budgets", budget, n_samples) for budget in budgets}
    for budget, count in counts.items():
        if not n_select <= count <= n_samples:
            raise OptionError(
                f"--budgets: {budget} is {count} of {n_samples} samples; expected at least --select "
                f"{settings.select}, which is {n_select}, and at most the pool"
            )
    counts = _rising(counts)
    recorded = _Recorded(Path(scores), prepared) if scores is not None else None

    from clusterucb.gradients.session import AdaptedModel
    from clusterucb.jobs.stages.influence import Influence

    if store:
        store.check(prepared.contents)
    deciding = {
        "job": "compare",
        **settings.deciding(sketches=True),
        "--device": prepared.device,
        **prepared.contents,
        **({"store content": store.fingerprint} if store else {}),
        **({"scores content": recorded.fingerprint} if recorded else {}),
    }
    deciding = {name: value for name, value in deciding.items() if name not in _REPLAYED}
    rules = Rules(
        n_select,
        settings.cold_start,
        settings.batch_size,
        settings.aggregate,
        settings.select_by,
        settings.max_per_source,
        material.weights(settings.subtask_weights),
    )
    columns = material.columns()
    with Run(
        Path(out), deciding, budget="100%", select=settings.select, config=config, overwrite=overwrite
    ) as run:
        with AdaptedModel(run, settings, prepared.source, prepared.device, material, observer) as adapted:
            influence = Influence(run, settings, adapted, material, observer, store)
            described = _describe(influence, contenders)
            clusterings: dict[bytes, Clusterings] = {}
            budgets_by_name = {one.name: budgets_of(one, counts, n_samples) for one in contenders}
            predicting = any(one.policy.predicts for one in contenders)
            play = partial(
                _play,
                described=described,
                columns=columns,
                rules=rules,
                clusterings=clusterings,
                prior=influence.estimates() if predicting else {},
            )
            observer.step("Rehearsing the strategies")
            anything = np.random.default_rng(0).normal(size=(n_samples, len(material.target)))
            rehearsed = Truth.of(anything, columns["source"], rules)
            for one in contenders:
                _rehearse(play, one, rehearsed, list(budgets_by_name[one.name].values())[:1])
            scored = recorded.scores if recorded else score_all(influence, n_samples)[0]
        truth = Truth.of(scored, columns["source"], rules)
        replays: dict[str, list[list[Replay]]] = {}
        n_searches = seeds * sum(map(len, budgets_by_name.values()))
        with observer.count("Replaying", n_searches, unit="searches") as advance:
            for one in contenders:
                with _warnings_once(one.name):
                    budgets_of_one = list(budgets_by_name[one.name].values())
                    replays[one.name] = play(one, truth, budgets_of_one, seeds, advance=advance)
        content = {
            "clusterucb": __version__,
            "pool": prepared.pool_files,
            "target": prepared.target_files,
            "model": str(model),
            "select": settings.select,
            "seeds": seeds,
            **results(
                contenders, replays, counts, truth, settings, material, _timed(run.manifest.cost, recorded)
            ),
        }
        encoded = msgspec.json.format(msgspec.json.encode(content), indent=1)
        write_whole(run.path(filenames.COMPARISON), encoded + b"\n")
        write_whole(run.path(filenames.COMPARISON_PAGE), comparison_page.render(content).encode())
        run.manifest.subtasks, run.manifest.subtask_contents = (
            list(material.target),
            material.subtask_contents(),
        )
        run.manifest.status = "finished"
    return Comparison(content, Path(out))


def _checked(strategies: Sequence[Contender], seeds: int) -> Sequence[Contender]:
    if not isinstance(seeds, int) or seeds < 1:
        raise OptionError(f"--seeds is {seeds!r}; expected a whole number from 1")
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
    """The scores of an earlier run that has scored its whole pool, perhaps for more subtasks.

    Attributes:
        scores: f64[N, S], of the target's subtasks.
        cost: what the run cost.
        fingerprint: of the scores.

    Raises:
        RunError: it is no such run, or one of another pool, target or model.
    """

    def __init__(self, folder: Path, prepared: Prepared) -> None:
        manifest, material = _manifest(folder), prepared.material
        names = ("pool content", "model content", "encoding content")
        other = [name for name in names if manifest.settings.get(name) != prepared.contents[name]]
        if not material.subtask_contents().items() <= manifest.subtask_contents.items():
            other.append("target content")
        if other:
            raise RunError(
                f"--scores {folder} is a run of another {', another '.join(n.partition(' ')[0] for n in other)}; "
                "expected one of the same pool and model, and of the target's subtasks, perhaps among others"
            )
        n_samples, subtasks = len(material.samples), manifest.subtasks
        with Ledger(
            folder / filenames.LEDGER, subtasks=subtasks, tokens=material.encoded.lengths, failure=str
        ) as ledger:
            n_scored, scores = ledger.totals()[0], ledger.scores()
        if n_scored < n_samples:
            raise RunError(
                f"--scores {folder} has scored {n_scored} of {n_samples} samples; expected all: run it again with "
                "--budget 100%"
            )
        self.scores = scores[:, [subtasks.index(name) for name in material.target]]
        self.cost = manifest.cost
        self.fingerprint = hashlib.sha256(self.scores.tobytes()).hexdigest()


def _manifest(folder: Path) -> Manifest:
    try:
        return msgspec.json.decode((folder / filenames.MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise RunError(
            f"--scores {folder} holds no run ({error}); expected the --out of an earlier one"
        ) from error


def _describe(influence: Influence, contenders: Sequence[Contender]) -> dict[str, tuple[_Blocks, _Columns]]:
    """Return the blocks of every feature, and the similarity to the target where a policy needs it."""
    described: dict[str, tuple[_Blocks, _Columns]] = {}
    for one in contenders:
        folder = folder_of(one.features)
        blocks, columns = described.get(folder) or (influence.features(one.features, folder), {})
        influence.count_passes(one.features, folder)
        if "similarity" in one.policy.columns and not columns:
            columns = {"similarity": influence.similarity(one.features, blocks, folder)}
        described[folder] = blocks, columns
    return described


def _rising(counts: dict[str, int]) -> dict[str, int]:
    """Return budgets by their spelling in rising order; of those that are equal, the first."""
    rising: dict[int, str] = {}
    for spelling, count in sorted(counts.items(), key=lambda one: one[1]):
        rising.setdefault(count, spelling)
    return {spelling: count for count, spelling in rising.items()}


def _play(
    one: Contender,
    truth: Truth,
    budgets: Sequence[int],
    seeds: int,
    *,
    described: Mapping[str, tuple[_Blocks, _Columns]],
    columns: Mapping[str, NDArray[np.generic]],
    rules: Rules,
    clusterings: dict[bytes, Clusterings],
    prior: _Blocks,
    advance: Callable[[int], None] = lambda _: None,
) -> list[list[Replay]]:
    """Return a contender's replays; contenders with the same clusterer and features share their clusterings."""
    blocks, more = described[folder_of(one.features)]
    key = msgspec.json.encode([describe(one.features), one.clusterer and describe(one.clusterer)])
    found = clusterings.setdefault(key, {})
    return replay(one, truth, blocks, {**columns, **more}, budgets, seeds, rules, found, advance, prior)


def _rehearse(play: Callable[..., object], one: Contender, truth: Truth, budgets: Sequence[int]) -> None:
    """Run a strategy once on made-up scores: what is wrong with it is told before the pool has been scored.

    Its clusters are kept, so that little is done twice.

    Raises:
        ClusterUCBError: of the same kind, with the strategy's name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            play(one, truth, budgets, 1)
    except ClusterUCBError as error:
        raise type(error)(f"strategy {one.name}: {error}") from error


@contextmanager
def _warnings_once(strategy: str) -> Iterator[None]:
    """Give a warning that many searches of a strategy repeat, perhaps with other numbers, once and with its name."""
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
    """Return the seconds of every phase, those of scoring from the run that did it."""
    return Cost(phases={**(recorded.cost.phases if recorded else {}), **own.phases})
