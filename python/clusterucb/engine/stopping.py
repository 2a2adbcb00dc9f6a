"""Decide whether a search ends before its budget is spent.

Decision: the recall is estimated at fixed numbers of draws. A search that stops at a recall therefore stops at the same
draw, however often it was interrupted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.budget import Budget
from clusterucb.engine.draws import History
from clusterucb.engine.policy import Policy
from clusterucb.engine.poolview import PoolView
from clusterucb.engine.recall import Outlook, Recall, RecallEstimator
from clusterucb.engine.rules import Rewards, Rules
from clusterucb.errors import OptionError, warn

_ESTIMATES = 20  # estimates of the recall in a search that spends its whole budget


class Stopping:
    """Estimates the recall while a search runs, and decides whether the search may end.

    Args:
        pool: the pool, with its arms.
        budget: the recall at which the search ends, and the function that watches the recall. Without either, the
            recall is not estimated.
        rules: the rules of the selection. With a cap on sources, the recall is not estimated.
    """

    def __init__(self, pool: PoolView, budget: Budget, rules: Rules) -> None:
        self._budget = budget
        self._step = max(pool.budget // _ESTIMATES, 1)
        self._estimator: RecallEstimator | None = None
        if (budget.until is not None or budget.watch) and not rules.max_per_source:
            self._estimator = RecallEstimator(pool)
        self._recall: Recall | None = None
        self._n_estimated = 0

    def enough(self, history: History, rewards: Rewards) -> bool:
        """Return whether the estimated recall is high enough for the search to end."""
        if not (self._estimator and rewards.ready and history.passed(self._step)):
            return False
        recall = self._estimate(self._estimator, history, rewards)
        if recall and self._budget.watch:
            self._budget.watch(recall)
        return bool(recall and self._budget.until is not None and recall.estimate >= self._budget.until)

    def recall(self, history: History, rewards: Rewards) -> Recall | None:
        """Return the estimated recall at the end of a search; None if it was not requested or cannot be estimated."""
        if self._estimator and self._n_estimated < history.n_drawn:
            self._estimate(self._estimator, history, rewards)
        if self._budget.until is not None and self._recall is None:
            warn(
                "too few draws were random to estimate the recall, so the search stopped only at the end of its "
                "budget. Use a larger cold start"
            )
        return self._recall

    def outlook(self, history: History, rewards: Rewards) -> Outlook | None:
        """Return what to expect of each row, after `recall`; None if the recall is not estimated."""
        return self._estimator.outlook(history.draws(), rewards) if self._recall and self._estimator else None

    def served(
        self, history: History, rewards: Rewards, chosen: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """Return the share of each subtask's own best rows that is selected, f64[S].

        It is None for a single subtask, and if the recall is not estimated.

        Args:
            history: the draws.
            rewards: turns scores into rewards.
            chosen: i64[m], the positions of the selected rows among the draws.
        """
        draws = history.draws()
        if not self._estimator or draws.scores.shape[1] == 1:
            return None
        selected = np.zeros(len(draws.rows), np.bool_)
        selected[chosen] = True
        return self._estimator.served(draws, selected, rewards)

    def _estimate(self, estimator: RecallEstimator, history: History, rewards: Rewards) -> Recall | None:
        self._recall, self._n_estimated = estimator(history.draws(), rewards), history.n_drawn
        return self._recall


def check_until(until: float, policy: Policy, max_per_source: int | None) -> None:
    """Check that a search can stop at the recall ``until``.

    Raises:
        OptionError: ``until`` is not above 0 and at most 1, there is a cap on sources, or no draw would be random.
    """
    if isinstance(until, bool) or not isinstance(until, int | float) or not 0 < until <= 1:
        raise OptionError(f"until is {until!r}; expected a recall above 0, at most 1")
    if max_per_source:
        raise OptionError(
            "until and max_per_source are given; expected only one, because the recall under a cap cannot be estimated"
        )
    if not (policy.cold_start or policy.uniform):
        raise OptionError(
            f"until is given, but {type(policy).__name__} draws nothing at random, so the recall cannot be estimated; "
            "expected a policy with a cold start, such as UCB or Surrogate, or Random"
        )
