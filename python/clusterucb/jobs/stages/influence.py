"""Compute directions and scores with the model.

Each of them is a stage on disk. A run reads back what it has already written, and never computes it again. Sketches
that a gradient store holds are not computed at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clusterucb import filenames
from clusterucb.engine.budget import Allowance, NothingLeft
from clusterucb.engine.draws import RowScores
from clusterucb.engine.poolview import ESTIMATES
from clusterucb.engine.recall import Recall
from clusterucb.errors import warn
from clusterucb.gradients.directions import compute_directions, sketch_directions
from clusterucb.gradients.scorer import Scorer
from clusterucb.jobs.stages.links import Links
from clusterucb.jobs.stages.opening import Session, Stage
from clusterucb.jobs.stages.prior import filled
from clusterucb.jobs.stages.spending import Spending, spending
from clusterucb.options.amounts import Seconds, Tokens
from clusterucb.options.search import ScoringSettings
from clusterucb.run.ledger import Ledger
from clusterucb.run.pool_sketches import PoolSketches, StoredScores
from clusterucb.wording import counted


class Influence(Stage):
    """The influence of pool samples on a target.

    Args:
        session: the job, its run folder and its model.
        batch_size: the samples of a call to `score`; None if they always suffice for all workers.
        links: what a round of a training takes from before, and leaves for later.
    """

    def __init__(
        self, session: Session[ScoringSettings], batch_size: int | None = None, links: Links = Links()
    ) -> None:
        super().__init__(session)
        self._batch_size = batch_size
        self._links = links
        self._spending: Spending | None = None

    def ledger(self) -> Ledger:
        """Return the run's ledger. The caller opens and closes it.

        Raises:
            RunError: it was removed, is damaged or belongs to another run.
        """
        manifest = self._run.manifest
        ledger = Ledger(
            self._run.path(filenames.LEDGER),
            subtasks=list(self._material.target),
            tokens=self._material.encoded.lengths,
            run=manifest.token,
            begun=manifest.search.begun,
            n_draws=manifest.outcome.n_scored if manifest.outcome else 0,
            read_only=self._run.read_only,
        )
        if not manifest.search.begun:
            manifest.search.begun = True
            self._run.save()
        return ledger

    def estimates(
        self, features: Mapping[str, NDArray[np.float32]], columns: Mapping[str, NDArray[np.generic]]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the scores that the store's sketches estimate, as a block f32[N, S]; 0 where a gradient failed.

        There is no block without a store, or if scores are read from sketches. Scores of samples that the store does
        not hold are predicted from the features, as those of a prior are.

        Args:
            features: the pool's blocks, each f32[N, k].
            columns: the pool's columns.
        """
        if self._store is None or self._settings.by_sketch:
            return {}
        shapes = {ESTIMATES: (np.float32, (len(self._store), len(self._material.target)))}
        stored = self._run.files.arrays(filenames.ESTIMATES, shapes)
        if stored is None:
            targets = self._sketched_directions()
            title = "Reading the store's sketches"
            with self._run.phase("features"), self._observer.count(title, len(self._store)) as advance:
                found = np.nan_to_num(self._store.scores(targets, advance), nan=0.0)
                known = np.flatnonzero(self._store.covered)
                stored = {ESTIMATES: filled(known, found[known], features, columns)}
            self._run.files.write_arrays(filenames.ESTIMATES, stored)
        return stored

    def first(self, prior: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64] | None:
        """Return the samples that are drawn first; None if there are none.

        Scores that are at hand are drawn first, because they cost nothing. Else these are the samples that a store does
        not hold, the most promising first. Their estimates are predictions, which a search would trust like sketches.
        So a part of its budget tells what they are worth.

        Args:
            prior: the blocks that the search gets, with those of `estimates`.
        """
        if self._links.at_hand is not None:
            return self._links.at_hand.rows
        if self._store is None or not self._store.n_uncovered or ESTIMATES not in prior:
            return None
        return most_promising(prior[ESTIMATES], self._store.covered)

    @contextmanager
    def drawing(
        self,
        budget: int,
        done: tuple[int, int],
        limit: Tokens | Seconds | None = None,
        *,
        spent: bool = False,
    ) -> Iterator[Allowance | None]:
        """Show progress while the block draws. Yields the allowance, or None if the budget is a number of draws.

        Args:
            budget: the number of draws, or the expected number.
            done: the number of draws already recorded, and their tokens.
            limit: the budget if it is a number of tokens or a time; None if it is a number of draws.
            spent: whether the budget in ``limit`` is already spent.
        """
        lengths = self._material.encoded.lengths
        if spent or done[0] >= (budget if limit is None else len(lengths)):
            yield None if limit is None else NothingLeft()
            return
        self._scorer  # noqa: B018  (computes what the scorer needs now, because that shows progress of its own)
        with spending(
            self._run, self._observer, lengths, limit, budget, done, self._model.note
        ) as self._spending:
            yield self._spending.allowance

    def score(self, rows: NDArray[np.int64]) -> RowScores:
        """Return the scores of pool rows i64[m] for every subtask, f64[m, S], and why scoring failed."""
        if self._spending:
            self._spending.scoring(self._material.encoded.lengths[rows])
        at_hand = self._links.at_hand
        return self._scorer(rows) if at_hand is None else at_hand.completed(rows, self._scorer)

    def show_recall(self, recall: Recall) -> None:
        """Show the estimated recall beside the progress."""
        if self._spending:
            self._spending.note = f"estimated recall {recall}"

    def _advance(self, n: int) -> None:
        if self._spending:
            self._spending.advance(n)

    @property
    def _n_checkpoints(self) -> int:
        return len(self._settings.weights)

    @cached_property
    def _scorer(self) -> Scorer | StoredScores:
        settings = self._settings
        if not settings.by_sketch:
            sketch = settings.sketch if self._links.keep else None
            accumulators = self._model.accumulators(directions=self._directions(), sketch=sketch)
            targets = None
        else:
            targets = self._sketched_directions()
            if self._store is not None:
                return self._stored(self._store, targets)
            accumulators = self._model.accumulators(sketch=self._settings.sketch)
        if self._batch_size is not None:
            self._model.say_idle_workers(self._batch_size)
        return Scorer(
            accumulators,
            self._material.encoded,
            self._model.passes,
            targets=targets,
            keep=None if settings.by_sketch else self._links.keep,
            advance=self._advance,
        )

    def _stored(self, store: PoolSketches, targets: NDArray[np.float32]) -> StoredScores:
        """Return what reads scores from a store's sketches, and computes those that the store does not hold."""
        if not store.n_uncovered:
            return StoredScores(store, targets, advance=self._advance)
        accumulators = self._model.accumulators(directions=self._directions())
        exact = Scorer(accumulators, self._material.encoded, self._model.passes, advance=self._advance)
        return StoredScores(store, targets, exact, advance=self._advance)

    def _sketched_directions(self) -> NDArray[np.float32]:
        sketch = self._settings.sketch if self._store is None else self._store.sketch
        return sketch_directions(self._directions(), self._settings.weights, sketch)

    def _directions(self) -> list[NDArray[np.float32]]:
        """Return the directions of the S subtasks, f32[S, P] for each checkpoint."""
        names = [
            f"directions-{number + 1}" if number else "directions" for number in range(self._n_checkpoints)
        ]
        target = self._material.target
        shapes = {name: (np.float32, (len(target), None)) for name in names}
        stored = self._run.files.arrays(filenames.DIRECTIONS, shapes)
        if stored is None and self._links.at_hand is not None:
            stored = self._links.at_hand.directions(names)
            self._run.files.write_arrays(filenames.DIRECTIONS, stored)
        if stored is not None:
            return [stored[name] for name in names]
        title = f"Target gradients ({counted(len(target), 'subtask')})"
        found = []
        failures: dict[str, list[str]] = {}
        with (
            self._run.phase("target"),
            self._observer.count(
                title, self._n_checkpoints * self._material.n_target, note=self._model.note
            ) as advance,
        ):
            for step in self._model.unit_gradients():
                directions, failed = compute_directions(step, target, self._model.passes, advance=advance)
                found.append(directions)
                failures = {subtask: failures.get(subtask, []) or failed[subtask] for subtask in failed}
        for subtask, reasons in failures.items():
            if reasons:
                warn(
                    f"{counted(len(reasons), 'target sample was', 'target samples were')} left out of subtask "
                    f"{subtask!r}: {reasons[0]}"
                )
        self._run.files.write_arrays(filenames.DIRECTIONS, dict(zip(names, found, strict=True)))
        return found


def most_promising(estimates: NDArray[np.float32], covered: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the rows that a store does not cover, those with the largest z-score for any subtask first, i64[n].

    Args:
        estimates: f32[N, S], the estimated scores of all rows.
        covered: bool[N], whether the store covers a row.
    """
    known = estimates[covered].astype(np.float64)
    spread = known.std(axis=0)
    lacking = np.flatnonzero(~covered)
    scaled = (estimates[lacking] - known.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return lacking[np.argsort(-scaled.max(axis=1), kind="stable")]
