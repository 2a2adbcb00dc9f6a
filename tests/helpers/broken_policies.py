"""Policies that make one mistake each, and the tests of the suite that have to fail for it."""

from __future__ import annotations

import random

import numpy as np

from clusterucb.policies import UCB, IndexPolicy, Policy

SEARCH = "search spends exactly the budget"
NOTHING = "ask returns an empty array when no row is wanted"
EMPTY = "ask returns an empty array when nothing is available"
REPLAYED = "replayed tells give the same answers"
ONE_ROW = "pool may have one row"
RESUMED = "resumed search is the uninterrupted one"


class Draws(Policy):
    """A good policy: rows at random."""

    def ask(self, n, available, rng):
        return rng.permutation(np.flatnonzero(available))[:n]


class Unavailable(Draws):
    def ask(self, n, available, rng):
        rows = super().ask(n, available, rng)
        return np.r_[rows[:-1], 0] if len(rows) > 1 else rows


class Outside(Draws):
    def ask(self, n, available, rng):
        rows = super().ask(n, available, rng)
        return np.r_[rows[:-1], -1] if len(rows) > 1 else rows


class Repeats(Draws):
    def ask(self, n, available, rng):
        rows = super().ask(n, available, rng)
        return np.r_[rows[:-1], rows[:1]] if len(rows) > 1 else rows


class TooFew(Draws):
    def ask(self, n, available, rng):
        return super().ask(1, available, rng)


class TooMany(Draws):
    def ask(self, n, available, rng):
        return super().ask(n + 1, available, rng)


class AtLeastOne(Draws):
    """Takes a wish for nothing for a wish for one."""

    def ask(self, n, available, rng):
        return super().ask(max(n, 1), available, rng)


class Column(Draws):
    def ask(self, n, available, rng):
        return super().ask(n, available, rng)[:, None]


class Floats(Draws):
    def ask(self, n, available, rng):
        return super().ask(n, available, rng).astype(float)


class EmptyList(Draws):
    def ask(self, n, available, rng):
        return super().ask(n, available, rng) if available.any() else []


class NothingToChoose(Draws):
    def ask(self, n, available, rng):
        rows = np.flatnonzero(available)
        first = rows[0]
        return np.r_[first, rng.permutation(rows[1:])][:n]


class RememberedRewards(Draws):
    """Needs a reward before it can answer."""

    cold_start = True

    def start(self, pool):
        self._best = None

    def tell(self, rows, rewards, scores):
        self._best = max(rewards.max(), -np.inf if self._best is None else self._best)

    def ask(self, n, available, rng):
        self._best + 1
        return super().ask(n, available, rng)


class Turns(Policy):
    """Counts its turns in ask."""

    def start(self, pool):
        self._turn = 0

    def ask(self, n, available, rng):
        self._turn += 1
        return np.roll(np.flatnonzero(available), self._turn)[:n]


class ChangesStatistics(IndexPolicy):
    """Reaches around the read-only statistics that it is given."""

    def index(self, arms, rng):
        self._arms.mean[:] = arms.mean.max(initial=0, where=arms.count > 0) - arms.mean
        return arms.mean


class KnowsWhatItAsked(Policy):
    """Learns only from rows that it remembers having asked for."""

    def start(self, pool):
        self._asked = np.zeros(0, np.int64)
        self._learnt = 0.0

    def ask(self, n, available, rng):
        rows = np.flatnonzero(available)
        self._asked = (rows if self._learnt == 0 else rows[::-1])[:n]
        return self._asked.copy()

    def tell(self, rows, rewards, scores):
        self._learnt += np.isin(rows, self._asked).sum()


class NeverForgets(UCB):
    def start(self, pool):
        known = getattr(self, "_arms", None)
        super().start(pool)
        if known is not None and len(known.size) == len(self._arms.size):
            self._arms = known


class KeepsRewards(UCB):
    """Its list of rewards outlives a search."""

    def start(self, pool):
        super().start(pool)
        self._seen = getattr(self, "_seen", 0)

    def tell(self, rows, rewards, scores):
        super().tell(rows, rewards, scores)
        self._seen += len(rows)

    def index(self, arms, rng):
        return -arms.mean if self._seen > 25 else arms.mean


class GlobalNumpy(Draws):
    def ask(self, n, available, rng):
        return np.random.permutation(np.flatnonzero(available))[:n]  # noqa: NPY002


class GlobalRandom(Draws):
    def ask(self, n, available, rng):
        rows = np.flatnonzero(available).tolist()
        random.shuffle(rows)
        return np.array(rows[:n], np.int64)


class SeedsNumpy(Draws):
    def ask(self, n, available, rng):
        np.random.seed(0)  # noqa: NPY002
        return super().ask(n, available, rng)


class OwnGenerator(Draws):
    def start(self, pool):
        self._rng = np.random.default_rng(0)

    def ask(self, n, available, rng):
        return super().ask(n, available, self._rng)


class NotUniform(Draws):
    uniform = True

    def ask(self, n, available, rng):
        return np.flatnonzero(available)[:n]


class ChangesAvailable(Draws):
    def ask(self, n, available, rng):
        rows = super().ask(n, available, rng)
        available[rows] = False
        return rows


class CentresRewards(Draws):
    def tell(self, rows, rewards, scores):
        rewards -= rewards.mean()


class SortsRows(Draws):
    def tell(self, rows, rewards, scores):
        rows.sort()


class ClipsScores(Draws):
    def tell(self, rows, rewards, scores):
        np.clip(scores, 0, 0.1, out=scores)


class ChangesPool(Draws):
    def start(self, pool):
        pool.priority.flags.writeable = True
        pool.priority.sort()


class TwoArms(UCB):
    """Compares the best arm with the second."""

    def index(self, arms, rng):
        np.sort(arms.mean)[-2]
        return arms.mean


class SampleDeviation(UCB):
    """Divides by the rows of the largest arm less one."""

    def index(self, arms, rng):
        return arms.mean + arms.std * (1 + 1 / (int(arms.size.max()) - 1))


class MoreThanOneRow(Draws):
    def start(self, pool):
        pool.priority[1]


class OwnAccount(Policy):
    """Takes what it was told for what is drawn."""

    def start(self, pool):
        self._left = np.ones(len(pool), bool)

    def tell(self, rows, rewards, scores):
        self._left[rows] = False

    def ask(self, n, available, rng):
        if (self._left & available).sum() == self._left.sum():
            return np.flatnonzero(available)[:n]
        return np.flatnonzero(self._left)[: min(n, available.sum())]


class ZeroForExhausted(Policy):
    """Marks arms without rows by 0, which is the largest index where rewards are negative."""

    cold_start = True

    def start(self, pool):
        self._labels = pool.labels
        self._value = np.ones(pool.n_arms)

    def tell(self, rows, rewards, scores):
        np.maximum.at(self._value, self._labels[rows], rewards + 1) if (rewards > -5).any() else (
            self._value.__setitem__(self._labels[rows], rewards)
        )

    def ask(self, n, available, rng):
        left = np.bincount(self._labels[available], minlength=len(self._value))
        value = np.where(left > 0, self._value, 0)
        rows = []
        for arm in np.argsort(-value, kind="stable"):
            if value[arm] == 0:
                break
            rows.append(np.flatnonzero(available & (self._labels == arm)))
        if value.max(initial=0) == 0 and (self._value < -5).any():
            return np.zeros(0, np.int64)
        return np.concatenate([*rows, np.zeros(0, np.int64)])[:n]


class Standardizes(IndexPolicy):
    """Divides by the deviation of what it has seen."""

    def index(self, arms, rng):
        seen = arms.mean[arms.count > 0]
        with np.errstate(invalid="ignore"):
            return (arms.mean - seen.mean()) / seen.std() if len(seen) > 1 else arms.mean


class CountsArmsOnce(UCB):
    """``sums[arms] += rewards`` counts an arm once in a tell."""

    def start(self, pool):
        super().start(pool)
        self._sum, self._n = np.zeros(pool.n_arms), np.zeros(pool.n_arms)

    def tell(self, rows, rewards, scores):
        super().tell(rows, rewards, scores)
        self._sum[self._labels[rows]] += rewards
        self._n[self._labels[rows]] += 1

    def index(self, arms, rng):
        return np.where(self._n > 0, self._sum / np.maximum(self._n, 1), np.nan)


class OneReward(UCB):
    """Expects a single reward in a tell."""

    def tell(self, rows, rewards, scores):
        super().tell(rows[:1], rewards[:1], scores[:1])


class Forgetful(Draws):
    def __init__(self, power=2) -> None:
        self._power = power


class Learns(Draws):
    """Learns a hyper-parameter."""

    def __init__(self, power=2) -> None:
        self.power = power

    def tell(self, rows, rewards, scores):
        self.power = self.power + 1


class FewArms(Draws):
    """Gives up in the middle of a search."""

    def ask(self, n, available, rng):
        return super().ask(n if available.sum() != 14 else 1, available, rng)


POLICIES = [
    (Unavailable, "ask returns only available rows", SEARCH),
    (Outside, "ask returns only available rows", SEARCH),
    (Repeats, "ask returns no row twice", SEARCH),
    (TooFew, "ask returns as many rows as are wanted", NOTHING, SEARCH),
    (TooMany, "ask returns as many rows as are wanted", NOTHING, SEARCH),
    (AtLeastOne, NOTHING),
    (Column, "ask returns as many rows as are wanted", EMPTY, NOTHING, SEARCH),
    (Floats, "ask returns whole numbers", EMPTY, SEARCH),
    (EmptyList, EMPTY),
    (NothingToChoose, EMPTY),
    (RememberedRewards, "ask works before anything is told", ONE_ROW),
    (Turns, "ask twice gives the same rows", REPLAYED, RESUMED),
    (ChangesStatistics, "ask twice gives the same rows", REPLAYED, RESUMED),
    (KnowsWhatItAsked, REPLAYED, RESUMED),
    (NeverForgets, "start forgets everything"),
    (KeepsRewards, "start forgets everything"),
    (GlobalNumpy, "randomness comes from rng alone", RESUMED),
    (GlobalRandom, "randomness comes from rng alone", RESUMED),
    (SeedsNumpy, "randomness comes from rng alone"),
    (OwnGenerator, "ask twice gives the same rows", REPLAYED, RESUMED),
    (NotUniform, "uniform policy draws every row equally often"),
    (ChangesAvailable, "ask leaves available as it is"),
    (CentresRewards, "tell leaves its arguments as they are"),
    (SortsRows, "tell leaves its arguments as they are"),
    (ClipsScores, "tell leaves its arguments as they are"),
    (ChangesPool, "pool is left as it is"),
    (TwoArms, "pool may have one arm", ONE_ROW),
    (SampleDeviation, "every arm may have one row", ONE_ROW),
    (MoreThanOneRow, ONE_ROW),
    (OwnAccount, "rows that fail are never told", SEARCH),
    (ZeroForExhausted, "rewards may be negative"),
    (Standardizes, "rewards may be equal"),
    (CountsArmsOnce, "tells of any size teach the same"),
    (OneReward, "tells of any size teach the same"),
    (Forgetful, "hyper parameters are kept"),
    (Learns, "hyper parameters are kept"),
    (FewArms, SEARCH),
]
