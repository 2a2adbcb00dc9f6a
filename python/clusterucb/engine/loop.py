"""Run the algorithm: ask a policy for rows, score them, tell the policy their rewards, and decide when to stop.

`search` needs only numpy. `clusterucb select` calls it with a score function that computes gradients; a replay calls it
with a score function that looks up recorded scores. The engine provides what every strategy needs and no strategy
should have to implement: the cold start, empty and exhausted arms, the exact budget, batches, random numbers, failures
and the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.engine.arms import Schedule, cold_start, guide, make_arms, stream
from clusterucb.engine.blame import blamed
from clusterucb.engine.budget import Budget, planned_draws
from clusterucb.engine.checks import check_whole, checked_first
from clusterucb.engine.clusterer import Clusterer
from clusterucb.engine.draws import History, Journal, Score
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView, SideInformation, pool_view
from clusterucb.engine.recall import Outlook, Recall
from clusterucb.engine.rules import Rewards, Rules
from clusterucb.engine.stopping import Stopping, check_until
from clusterucb.errors import OptionError, warn
from clusterucb.wording import counted

Stopped = Literal["budget", "exhausted", "recall", "interrupted"]


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """The result of a search.

    Attributes:
        rows: i64[n_select], the selected rows, best first; the lower row wins a tie. There are fewer only if scoring
            failed for many rows, or if a cap excluded them.
        scores: f64[n_select], the rewards of the selected rows.
        drawn_rows: i64[n_scored], every row submitted for scoring, in order.
        drawn_scores: f64[n_scored], the rewards of the drawn rows; NaN where scoring failed.
        subtask_scores: f64[n_scored, S], the drawn rows' scores for each subtask, which the rewards aggregate.
        drawn_probability: f64[n_scored], the probability that random draws include the row; NaN where a policy chose
            the row.
        n_scored: the number of rows submitted for scoring, failures included.
        draws: i64[K], the number of draws from each arm, cold start included.
        labels: i64[N], the arm of each row.
        stopped: ``budget`` if the whole budget was spent, ``exhausted`` if the pool ended first, ``recall`` if the
            estimated recall was reached, ``interrupted`` if the search was interrupted.
        standardized: f64[2, S], the mean and deviation by which scores were standardized; None under rules that need
            none.
        recall: the estimated share of the best rows that was found; None if the estimate was not requested or is not
            possible (`clusterucb.engine.recall`).
        served: f64[S], the share of each subtask's own best rows that is selected: estimated, or exact if the whole
            pool was drawn. A subtask's own best are those that it would select alone (`Rules.seats`). None for a single
            subtask, or if the recall is None.
        outlook: what the draws and the features let one expect of each row; None if the recall is None, or if all rows
            are drawn.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    drawn_rows: NDArray[np.int64]
    drawn_scores: NDArray[np.float64]
    subtask_scores: NDArray[np.float64]
    drawn_probability: NDArray[np.float64]
    n_scored: int
    draws: NDArray[np.int64]
    labels: NDArray[np.int64]
    stopped: Stopped
    standardized: NDArray[np.float64] | None = None
    recall: Recall | None = None
    served: NDArray[np.float64] | None = None
    outlook: Outlook | None = None

    def __repr__(self) -> str:
        return (
            f"<Selection: {len(self.rows):,} of {counted(len(self.labels), 'row')} selected, {self.n_scored:,} scored "
            f"in {counted(len(self.draws), 'arm')}, stopped by {self.stopped}>"
        )


def search(
    features: ArrayLike | Mapping[str, ArrayLike],
    score: Score,
    *,
    clusterer: Clusterer | ArrayLike | None,
    policy: Policy,
    budget: int | Budget,
    n_select: int,
    rules: Rules = Rules(),
    side: SideInformation = SideInformation(),
    schedule: Schedule = Schedule(),
    journal: Journal | None = None,
) -> Selection:
    """Spend a budget of draws on a pool, and return the best ``n_select`` of the drawn rows.

    Args:
        features: f32[N, k], or named blocks of this shape.
        score: a function of rows i64[m] that returns f64[m] or f64[m, S] (a score for each subtask), or `RowScores`. It
            must be pure and deterministic by row. A row with NaN failed: it costs budget, is never selected and enters
            no statistics.
        clusterer: a `Clusterer`, labels [N] (-1 = noise), or None for a single arm.
        policy: the policy that chooses the rows after the cold start.
        budget: the number of rows that may be submitted to ``score`` (clipped to N), or a `Budget`.
        n_select: the number of rows to return, at most the budget.
        rules: how scores become rewards, and which rows are selected.
        side: information about the rows beside their features.
        schedule: the size of the cold start and of the batches, and the seed.
        journal: the record of the search, from which it also resumes. By default, nothing is recorded.

    Raises:
        OptionError: an argument cannot be used.
        PluginError: the clusterer or the policy broke its contract.
    """
    budget = budget if isinstance(budget, Budget) else Budget(draws=budget)
    pool = _pool_of(features, clusterer, policy, budget, n_select, rules, side, schedule.seed)
    history = History(
        pool, budget.within(len(pool)), journal, None if rules.counts is None else len(rules.counts)
    )
    rewards = Rewards(rules, len(pool), pool.n_select, guide(pool, policy))
    stopping = Stopping(pool, budget, rules)
    cold, size = cold_start(pool, policy, schedule), schedule.size(policy, pool.budget)
    blamed(policy.start)(pool)
    tell = blamed(policy.tell)
    stopped: Stopped = "budget"
    first = checked_first(side.first, len(pool))[: 0 if policy.uniform else pool.budget // 4]
    for batch in history.batches(cold, first, policy, size, schedule.seed):  # ask
        history.add(batch, score)  # score
        for rows, reward, scores in rewards.news(history):
            tell(rows, reward, scores)  # tell
        if stopping.enough(history, rewards):  # stop
            stopped = "recall"
            break
    if not history.n_drawn:
        raise OptionError("the budget is too small for a single draw; expected a larger one")
    if stopped == "budget" and history.exhausted(budget):
        stopped = "exhausted"
    rewards.fit(history)
    return _selection(pool, history, rewards, stopped, stopping)


def _pool_of(
    features: ArrayLike | Mapping[str, ArrayLike],
    clusterer: Clusterer | ArrayLike | None,
    policy: Policy,
    budget: Budget,
    n_select: int,
    rules: Rules,
    side: SideInformation,
    seed: int,
) -> PoolView:
    """Check the arguments of `search`, and return the pool with its arms."""
    if not isinstance(policy, Policy):
        raise OptionError(f"policy is {policy!r}; expected a Policy object such as clusterucb.UCB()")
    pool = pool_view(features, side, rules, priority=lambda n_rows: stream(seed, "priority").random(n_rows))
    draws = min(check_whole("budget", budget.draws), len(pool))
    if check_whole("n_select", n_select) > draws:
        raise OptionError(
            f"n_select is {n_select}; expected at most the budget, {draws:,} of {counted(len(pool), 'row')}"
        )
    if budget.until is not None:
        check_until(budget.until, policy, rules.max_per_source)
    if rules.max_per_source is not None and "source" not in pool.columns:
        raise OptionError("max_per_source is given, but the pool has no column 'source'; pass it in columns")
    pool = replace(pool, budget=planned_draws(draws, len(pool), n_select, budget.until), n_select=n_select)
    return replace(pool, labels=make_arms(pool, clusterer, seed))


def _selection(
    pool: PoolView, history: History, rewards: Rewards, stopped: Stopped, stopping: Stopping
) -> Selection:
    """Select the best of the drawn rows, and return the result of the search."""
    rules, recall = pool.rules, stopping.recall(history, rewards)
    rows, scores, chance = history.draws()
    values = rewards(scores)
    groups = pool.columns["source"][rows] if rules.max_per_source else None
    best = rules.choose(rows, scores, values, pool.n_select, groups)
    if len(best) < pool.n_select:
        _warn_of_few(len(best), values, pool.n_select, rules.max_per_source)
    return Selection(
        rows=rows[best],
        scores=values[best],
        drawn_rows=rows,
        drawn_scores=values,
        subtask_scores=scores,
        drawn_probability=chance,
        n_scored=len(rows),
        draws=np.bincount(pool.labels[rows], minlength=pool.n_arms),
        labels=pool.labels,
        stopped=stopped,
        standardized=rewards.scale,
        recall=recall,
        served=stopping.served(history, rewards, best),
        outlook=stopping.outlook(history, rewards),
    )


def _warn_of_few(n_found: int, rewards: NDArray[np.float64], n_select: int, cap: int | None) -> None:
    n_failed = int(np.isnan(rewards).sum())
    few = len(rewards) - n_failed < n_select
    reason = f" of {counted(len(rewards), 'draw')} " + (
        "could be scored" if few else f"fit under at most {cap} of each source"
    )
    if n_found == len(rewards):
        reason = f" {'draw' if n_found == 1 else 'draws'} fit into the budget"
    warn(f"only {n_found:,}{reason}: fewer than the {counted(n_select, 'row')} to be selected")
