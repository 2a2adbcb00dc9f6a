"""Choose the pool samples that each arm of a trial trains on.

Decisions:
    - Every arm draws the same number of samples in a training: ``epochs`` times the size of the first selection. An arm
      with fewer samples sees them more often.
    - ``random`` and ``all`` have the same number of tokens as the first selection, within half a percent, because
      longer samples teach more and cost more.
    - The samples that show what a training costs elsewhere stand neither in the first selection nor in the random
      arms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import RunError
from clusterucb.jobs.trial.runs import SelectedRun
from clusterucb.options.trial import ARMS
from clusterucb.samples.sample import Sample
from clusterucb.wording import counted

RANDOM, NOTHING = "random", "nothing"  # the arms of every trial
_ELSEWHERE = 32  # pool samples that show what a training costs elsewhere
_TOLERANCE = 0.005  # the largest difference in tokens, as a share
_SWAPS = 20_000

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Arm:
    """The samples that an arm trains on.

    Attributes:
        name: the arm's name.
        rows: a function of the seed that returns the pool rows, i64[n]. None trains on nothing.
        passes: what choosing the rows cost, in gradients of one sample.
        seconds: the time that choosing the rows took.
    """

    name: str
    rows: Callable[[int], Rows] | None
    passes: float = 0.0
    seconds: float = 0.0


def of_run(name: str, run: SelectedRun, rows: Rows) -> Arm:
    """Return the arm that trains on a run's selection. The warm-up is no part of its cost: all arms begin there."""
    phases = {phase: cost for phase, cost in run.manifest.cost.phases.items() if phase != "warm-up"}
    passes = sum(run.manifest.cost.share(cost) for cost in phases.values()) * run.manifest.cost.pool_samples
    return Arm(name, lambda _: rows, passes, sum(cost.seconds for cost in phases.values()))


def rows_of(run: SelectedRun, samples: Sequence[Sample]) -> Rows:
    """Return the rows of a run's selection in the pool.

    Raises:
        RunError: a selected sample is not in the pool.
    """
    wanted = set(run.ids)
    rows = [row for row, sample in enumerate(samples) if sample.id in wanted]
    if len(rows) < len(wanted) or not rows:
        raise RunError(
            f"{counted(len(wanted) - len(rows), 'selected sample')} of {run.folder} cannot be found in its pool; "
            "repeat the run's command"
        )
    return np.array(rows, np.int64)


def elsewhere(n_rows: int, selected: Rows) -> Rows:
    """Return rows of the pool that are not selected, at random: at most a quarter of them."""
    others = np.setdiff1d(np.arange(n_rows), selected)
    return np.sort(np.random.default_rng(0).permutation(others)[: min(_ELSEWHERE, len(others) // 4)])


def at_random(name: str, lengths: NDArray[np.int64], reserved: Rows, count: int, n_tokens: int) -> Arm:
    """Return an arm of random rows.

    Args:
        name: the arm's name.
        lengths: i64[N], the number of tokens of each pool sample.
        reserved: rows that are not drawn.
        count: the number of rows; all others if there are fewer.
        n_tokens: the number of tokens that the rows have in all.
    """
    others = np.setdiff1d(np.arange(len(lengths)), reserved)

    def rows(seed: int) -> Rows:
        rng = np.random.default_rng([seed, 99])
        return others[of_tokens(lengths[others], min(count, len(others)), n_tokens, rng)]

    return Arm(name, rows)


def of_tokens(lengths: NDArray[np.int64], n: int, wanted: int, rng: np.random.Generator) -> Rows:
    """Return n random rows whose lengths add up to ``wanted`` within half a percent, if swaps of rows lead there."""
    order = rng.permutation(len(lengths))
    chosen, others = order[:n].copy(), order[n:].copy()
    total = int(lengths[chosen].sum())
    for _ in range(_SWAPS if len(others) else 0):
        if abs(total - wanted) <= _TOLERANCE * wanted:
            break
        ours, theirs = rng.integers(n), rng.integers(len(others))
        swapped = total - int(lengths[chosen[ours]]) + int(lengths[others[theirs]])
        if abs(swapped - wanted) < abs(total - wanted):
            chosen[ours], others[theirs], total = others[theirs], chosen[ours], swapped
    return chosen


def names_of(runs: Sequence[SelectedRun]) -> Mapping[str, SelectedRun]:
    """Return the runs by the names of their arms: ``selection`` for a single run, else the names of their folders."""
    different = {run.folder.resolve(): run for run in runs}
    if len(different) == 1:
        return {"selection": runs[0]}
    names = {path.name: run for path, run in different.items()}
    if len(names) < len(different) or names.keys() & {RANDOM, NOTHING, *ARMS}:
        names = {str(path): run for path, run in different.items()}
    return names
