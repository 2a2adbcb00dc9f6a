"""Compute a round of a training: select with the live model, learn from earlier rounds, and keep what was found."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.errors import ClusterUCBError, warn
from clusterucb.jobs.select import select_again
from clusterucb.jobs.stages.links import AtHand, Links
from clusterucb.jobs.stages.prepare import Prepared
from clusterucb.jobs.stages.strategies import ChosenStrategies
from clusterucb.options.search import SelectSettings
from clusterucb.policies.baselines import Exhaustive
from clusterucb.progress import Observer
from clusterucb.report.result import Result
from clusterucb.training import audit
from clusterucb.training.clusters import OfSketches
from clusterucb.training.plans import Plan, among
from clusterucb.training.ranks import Ranks
from clusterucb.training.rounds import Round, Rounds, Sketches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Selecting:
    """Computes the rounds of a training.

    Attributes:
        prepared: the pool and the target.
        tokenizer: the model's tokenizer.
        settings: the options of a round.
        options: the same options as they were given.
        plan: how rounds select.
        strategies: the strategies of rounds that spend a budget.
        rounds: keeps the rounds.
        ranks: the processes that share the passes, or None.
        observer: receives the progress.
        audits: whether rounds begin with an audit.
        seconds: how long the rounds took that this object has computed.
    """

    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    settings: SelectSettings
    options: Mapping[str, Any]
    plan: Plan
    strategies: ChosenStrategies
    rounds: Rounds
    ranks: Ranks | None
    observer: Observer
    audits: bool
    seconds: float = 0.0

    def round(self, number: int, step: int, model: Any, optimizer: Any) -> Round:
        """Select with the model as it is, and keep the round. If that fails, the rows of the round before stay.

        Args:
            number: the round's number, from 1.
            step: the step before which it selects.
            model: the live model.
            optimizer: the live optimiser.

        Raises:
            ClusterUCBError: the first round fails.
        """
        before, began = self.rounds.find(number - 1), time.monotonic()
        sketching = _Sketching() if among(self.plan.sketches, number) else None
        with tempfile.TemporaryDirectory(prefix="clusterucb-") as folder, random_state():
            one = _One(self, model, optimizer, Path(folder), sketching)
            try:
                found = one.audited(number, step) or one.whole(number, step)
            except ClusterUCBError as error:
                if before is None:
                    raise
                warn(
                    f"round {number} of the selection failed, so the training goes on with its rows: {error}"
                )
                found = Round(number, step, before.rows, failed=str(error))
            found.seconds = time.monotonic() - began
            self.seconds += found.seconds
            if before is not None:
                found.overlap = len({*before.rows} & {*found.rows}) / len(found.rows)
            scores = None if found.failed else one.out / filenames.SCORES
            self.rounds.add(found, scores, sketching.found() if sketching else None)
        return found


@dataclass
class _One:
    """A round that is being computed.

    Attributes:
        selecting: computes the rounds.
        model, optimizer: the live model and optimiser.
        folder: a temporary folder.
        sketching: collects sketches, or None.
        audit: the recall of the audit after which the round selects anew, or None.
        at_hand: the scores of that audit, or None.
    """

    selecting: Selecting
    model: Any
    optimizer: Any
    folder: Path
    sketching: _Sketching | None
    audit: float | None = None
    at_hand: AtHand | None = None

    def __post_init__(self) -> None:
        self.out = self.folder / "round"

    def whole(self, number: int, step: int) -> Round:
        """Select anew."""
        plan, rounds = self.selecting.plan, self.selecting.rounds
        changes: dict[str, Any] = {}
        features, clusterer, policy = self.selecting.strategies
        if among(plan.exhaustive, number):
            policy = Exhaustive()
            changes = {"budget": "100%", "until": None}
        elif plan.clusterer:
            clusterer = OfSketches((clusterer,), str(rounds.sketches(1)))
        if plan.remembers and policy.predicts and rounds.scored:
            changes["prior"] = rounds.scored
        links = Links(self.at_hand, self.sketching)
        result = self._selected(ChosenStrategies(features, clusterer, policy), self.out, links, changes)
        return Round(
            number,
            step,
            result.rows.tolist(),
            scored=_scored(result).tolist(),
            gradients=result.cost.gradients,
            audit=self.audit,
            recall=result.outcome.found,
        )

    def audited(self, number: int, step: int) -> Round | None:
        """Keep the rows of the last round that selected, if an audit finds that its ranking still holds."""
        base = self.selecting.rounds.last_that_selected()
        if not self.selecting.audits or base is None:
            return None
        settings = self.selecting.settings
        n_budget, _ = settings.counts(self.selecting.prepared.material.encoded.lengths)
        rows = audit.rows_of_audit(base.rows, base.scored, n_budget, settings.seed + number)
        if not len(rows):
            return None
        strategies = self.selecting.strategies._replace(policy=audit.These(tuple(rows.tolist())))
        changes = {"budget": str(len(rows)), "select": str(len(rows)), "until": None, "max_per_source": None}
        out = self.folder / "audit"
        result = self._selected(strategies, out, Links(), changes)
        scored = _scored(result)
        old, new = self._both_scores(base, result)
        material = self.selecting.prepared.material
        rules = replace(settings.rules(material.weights(settings.subtask_weights)), max_per_source=None)
        recall = audit.recall(old, new, rules)
        if recall < audit.HOLDS:
            self.audit, self.at_hand = recall, AtHand(scored, new, out)
            return None
        self.out = out
        return Round(
            number,
            step,
            base.rows,
            gradients=result.cost.gradients,
            scored=scored.tolist(),
            audit=recall,
            stayed=True,
        )

    def _both_scores(self, base: Round, result: Result) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the scores of the audit's rows, f64[m, S] each: those of an earlier round, and the new ones."""
        selection = result.selection
        usable = np.isfinite(selection.drawn_scores)
        of_row = dict(zip(base.scored, self.selecting.rounds.scores(base.number), strict=True))
        old = [of_row[row] for row in selection.drawn_rows[usable].tolist()]
        return np.array(old), selection.subtask_scores[usable]

    def _selected(
        self,
        strategies: ChosenStrategies,
        out: Path,
        links: Links,
        changes: Mapping[str, Any],
    ) -> Result:
        selecting = self.selecting
        return select_again(
            selecting.prepared,
            model=self.model,
            tokenizer=selecting.tokenizer,
            optimizer=self.optimizer,
            out=out,
            **strategies._asdict(),
            observer=selecting.observer,
            links=links,
            spread=selecting.ranks.spread if selecting.ranks else None,
            **{**selecting.options, **changes},
        )


def _scored(result: Result) -> NDArray[np.int64]:
    """Return the rows of the lines of a run's scores."""
    selection = result.selection
    return selection.drawn_rows[np.isfinite(selection.drawn_scores)]


def plain(optimizer: Any) -> Any:
    """Return an optimiser without what accelerate wraps it in."""
    return getattr(optimizer, "optimizer", optimizer)


class _Sketching:
    """Collects the sketches of scored samples in half precision."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float16]] = []

    def __call__(self, rows: NDArray[np.int64], sketches: NDArray[np.float32]) -> None:
        """Keep the sketches f32[m, d] of rows i64[m]."""
        self._rows.append(rows)
        self._values.append(sketches.astype(np.float16))

    def found(self) -> Sketches | None:
        """Return all sketches in the order of their rows, or None if there are none."""
        if not self._rows:
            return None
        rows = np.concatenate(self._rows)
        order = np.argsort(rows)
        return Sketches(rows[order], np.concatenate(self._values)[order])


@contextmanager
def random_state() -> Iterator[None]:
    """Give the states of all random numbers back as they were."""
    ours, theirs = random.getstate(), np.random.get_state()  # noqa: NPY002  (a training may use it)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(theirs)  # noqa: NPY002
