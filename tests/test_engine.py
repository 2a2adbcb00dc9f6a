"""The bandit loop against brute force and against an independent implementation of the paper's algorithm."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.arms import stream
from clusterucb.clusterers import Clusterer, KMeans
from clusterucb.engine import Batch, Selection, search
from clusterucb.errors import ClusterUCBWarning, OptionError, PluginError
from clusterucb.ledger import Ledger
from clusterucb.policies import UCB, UCB1, IndexPolicy, Policy, Random, ThresholdHard, ThresholdNormal

POLICIES = [UCB(), UCB1(), ThresholdHard(), ThresholdNormal(), Random()]


@dataclass
class Case:
    """A pool of recorded scores f64[N, S] and everything else that `search` takes."""

    scores: np.ndarray
    labels: np.ndarray
    policy: Policy
    budget: int
    n_select: int
    cold_start: float
    batch_size: int
    seed: int
    aggregate: str = "max"

    def run(self, journal: Any = None, score: Any = None, **changes: Any) -> Selection:
        options = {
            "clusterer": self.labels,
            "policy": self.policy,
            "budget": self.budget,
            "n_select": self.n_select,
            "cold_start": self.cold_start,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "aggregate": self.aggregate,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClusterUCBWarning)
            return search(
                np.zeros((len(self.scores), 1)),
                score or self.scores.__getitem__,
                **{**options, **changes},
                journal=journal,
            )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Pools full of ties, failures, negative scores, noise, gaps in the labels and singleton arms."""
    n_rows = draw(st.integers(1, 40))
    n_subtasks = draw(st.integers(1, 3))
    value = st.sampled_from([-1.0, -0.25, 0.0, 0.25, 0.5, 1.0, math.nan, math.inf]) | st.floats(-1, 1)
    row = st.lists(value, min_size=n_subtasks, max_size=n_subtasks)
    budget = draw(st.integers(1, n_rows + 5))
    return Case(
        scores=np.array(draw(st.lists(row, min_size=n_rows, max_size=n_rows))),
        labels=np.array(draw(st.lists(st.integers(-1, 9), min_size=n_rows, max_size=n_rows))),
        policy=draw(st.sampled_from(POLICIES)),
        budget=budget,
        n_select=draw(st.integers(1, min(budget, n_rows))),
        cold_start=draw(st.sampled_from([0, 0.05, 0.29, 0.5, 1])),
        batch_size=draw(st.integers(1, 7)),
        seed=draw(st.integers(0, 3)),
        aggregate=draw(st.sampled_from(["max", "mean"])),
    )


def identical(one: Selection, other: Selection) -> None:
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


@given(cases())
def test_result_is_the_brute_force_best_of_exactly_the_budget(case: Case) -> None:
    submitted: list[int] = []

    def score(rows: np.ndarray) -> np.ndarray:
        submitted.extend(rows)
        return case.scores[rows]

    found = case.run(score=score)
    n_rows = len(case.scores)

    assert len(submitted) == len(set(submitted)) == found.n_scored == min(case.budget, n_rows)
    assert found.stopped == ("exhausted" if case.budget > n_rows else "budget")
    assert found.drawn_rows.tolist() == submitted

    good = np.isfinite(case.scores).all(axis=1)
    rewards = case.scores.max(axis=1) if case.aggregate == "max" else case.scores.mean(axis=1)
    rewards[~good] = np.nan
    np.testing.assert_array_equal(found.drawn_scores, rewards[submitted])
    expected_scores = np.where(good[submitted][:, None], case.scores[submitted], np.nan)
    np.testing.assert_array_equal(found.subtask_scores, expected_scores)

    best = sorted((row for row in submitted if good[row]), key=lambda row: (-rewards[row], row))
    assert found.rows.tolist() == best[: case.n_select]
    np.testing.assert_array_equal(found.scores, rewards[found.rows])

    assert set(found.labels) == set(range(found.labels.max() + 1))
    np.testing.assert_array_equal(
        found.draws, np.bincount(found.labels[submitted], minlength=found.labels.max() + 1)
    )


@given(cases())
def test_same_seed_same_result(case: Case) -> None:
    identical(case.run(), case.run())


def test_seed_decides_what_is_drawn() -> None:
    case = Case(np.zeros((200, 1)), np.zeros(200, int), UCB(), 20, 5, 0.05, 1, seed=0)
    assert set(case.run().drawn_rows) != set(case.run(seed=1).drawn_rows)


# The paper's algorithm, written down a second time -----------------------------------------------------


def paper(case: Case, beta: float) -> list[int]:
    """Modified UCB as published, one draw at a time, for labels without noise or gaps."""
    n_arms = case.labels.max() + 1
    priority = stream(case.seed, "priority").random(len(case.labels))
    order = stream(case.seed, "cold start").permutation(n_arms)
    left = [
        sorted(np.flatnonzero(case.labels == arm), key=lambda row: priority[row]) for arm in range(n_arms)
    ]
    share = Fraction(str(case.cold_start))
    owed = [max(math.floor(share * len(rows)), 1) for rows in left]
    seen: list[list[float]] = [[] for _ in range(n_arms)]
    drawn: list[int] = []

    def draw(arm: int) -> None:
        row = left[arm].pop(0)
        drawn.append(row)
        reward = case.scores[row, 0]
        if not math.isnan(reward):
            seen[arm].append(reward)

    for position in range(max(owed)):
        for arm in order:
            if position < owed[arm] and len(drawn) < case.budget:
                draw(arm)
    while len(drawn) < min(case.budget, len(case.labels)):
        arms = [arm for arm in range(n_arms) if left[arm]]
        tail = [np.mean(seen[arm]) + beta * np.std(seen[arm]) if seen[arm] else -math.inf for arm in arms]
        draw(arms[int(np.argmax(tail))])
    return drawn


@given(
    seed=st.integers(0, 10**6),
    n_arms=st.integers(1, 12),
    n_more=st.integers(0, 80),
    spent=st.floats(0, 1.1),
    cold_start=st.sampled_from([0, 0.05, 0.1, 0.29, 0.5]),
    beta=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    failing=st.sampled_from([0, 0.3]),
    shift=st.sampled_from([-0.5, 0, 0.5]),
)
def test_single_draws_are_the_papers_algorithm(
    seed: int,
    n_arms: int,
    n_more: int,
    spent: float,
    cold_start: float,
    beta: float,
    failing: float,
    shift: float,
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.arange(n_arms), rng.integers(n_arms, size=n_more)]))
    scores = rng.normal(loc=rng.normal(scale=0.1, size=n_arms)[labels] + shift, scale=0.1)
    scores[rng.random(len(scores)) < failing] = np.nan
    budget = max(int(spent * len(labels)), 1)
    case = Case(scores[:, None], labels, UCB(beta=beta), budget, 1, cold_start, 1, seed)
    assert case.run().drawn_rows.tolist() == paper(case, beta)


# Arms ----------------------------------------------------------------------------------------------------


def test_exhausted_arm_does_not_outrank_live_arms_of_negative_scores() -> None:
    labels = np.array([0] * 2 + [1] * 5 + [2] * 5)  # arm 0 is the best, and soon empty
    scores = np.where(labels == 0, -0.1, np.where(labels == 1, -0.5, -0.9))[:, None]
    found = Case(scores, labels, UCB(), 7, 7, 0, 1, seed=0).run()
    assert found.draws.tolist() == [2, 4, 1]


def test_equal_rewards_are_drawn_arm_by_arm_and_selected_by_row() -> None:
    labels = np.repeat([0, 1, 2], 4)
    found = Case(np.zeros((12, 1)), labels, UCB(), 8, 3, 0, 1, seed=0).run()
    assert found.draws.tolist() == [4, 3, 1]  # one of each, then the lowest arm until it is empty
    assert found.rows.tolist() == sorted(found.drawn_rows)[:3]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("clusterer", [None, [0], [-1], [7]], ids=repr)
def test_pool_of_one(policy: Policy, clusterer: Any) -> None:
    found = search([[1.0]], lambda rows: [0.5], clusterer=clusterer, policy=policy, budget=1, n_select=1)
    assert (found.rows.tolist(), found.scores.tolist(), found.draws.tolist()) == ([0], [0.5], [1])
    assert found.stopped == "budget"


def test_without_a_clusterer_there_is_one_arm() -> None:
    found = Case(np.zeros((9, 1)), np.zeros(9, int), UCB(), 4, 1, 0.05, 1, seed=0).run(clusterer=None)
    assert found.labels.tolist() == [0] * 9
    assert found.draws.tolist() == [4]


@given(st.lists(st.sampled_from([-1, -1, 0, 3, 4, 9]), min_size=1, max_size=60), st.integers(0, 3))
def test_noise_becomes_arms_of_about_the_median_size_and_clusters_stay(labels: list[int], seed: int) -> None:
    given_labels = np.array(labels)
    found = Case(np.zeros((len(labels), 1)), given_labels, UCB(), 1, 1, 0, 1, seed).run().labels
    clustered = given_labels >= 0
    assert not set(found[clustered]) & set(found[~clustered])
    kept = sorted(set(given_labels[clustered]))
    assert [kept[label] for label in found[clustered]] == given_labels[clustered].tolist()
    noise = np.bincount(found[~clustered])[len(kept) :]
    if len(noise):
        sizes = np.bincount(found[clustered])
        median = np.median(sizes) if len(sizes) else math.sqrt(noise.sum())
        assert len(noise) == max(round(noise.sum() / median), 1)
        assert noise.max() - noise.min() <= 1


def test_small_budget_draws_once_from_random_arms_and_says_so() -> None:
    labels = np.repeat(np.arange(20), 3)
    drawn = []
    for seed in range(8):
        with pytest.warns(ClusterUCBWarning, match=r"budget of 7 draws .*20 arms.*fewer clusters") as caught:
            found = search(
                np.zeros((60, 1)),
                lambda rows: np.zeros(len(rows)),
                clusterer=labels,
                policy=UCB(),
                budget=7,
                n_select=1,
                seed=seed,
            )
        assert caught[0].filename == __file__
        assert found.draws.max() == 1
        assert found.draws.sum() == 7
        drawn.append(tuple(found.draws))
    assert len(set(drawn)) > 1


def test_cold_start_takes_its_share_of_every_arm_before_the_policy_is_asked() -> None:
    sizes = [1, 19, 20, 39, 40, 100]
    labels = np.repeat(np.arange(6), sizes)
    journal = Memory()
    case = Case(np.random.default_rng(0).normal(size=(219, 1)), labels, UCB(), 80, 1, 0.29, 1, seed=0)
    case.run(journal)
    cold = [batch for kind, batch in journal.operations if kind == "begin" and batch.phase == "cold"]
    assert np.bincount(np.concatenate([batch.arms for batch in cold])).tolist() == [1, 5, 5, 11, 11, 29]
    assert case.run(score=lambda rows: -case.scores[rows]).drawn_rows[:62].tolist() == [
        row for batch in cold for row in batch.rows
    ]  # whatever the rewards


# Batches -------------------------------------------------------------------------------------------------


def test_batch_is_drawn_from_the_best_arm_and_overflows_to_the_next() -> None:
    labels = np.repeat([0, 1, 2], [3, 4, 20])
    scores = np.choose(labels, [0.2, 0.3, 0.1])[:, None].astype(float)
    found = Case(scores, labels, UCB(), 3 + 8, 1, 0, 8, seed=0).run()
    after_cold_start = found.labels[found.drawn_rows[3:]].tolist()
    assert after_cold_start == [1, 1, 1, 0, 0, 2, 2, 2]


@given(cases())
def test_policy_is_told_each_usable_reward_once_and_asked_for_batches(case: Case) -> None:
    asked: list[int] = []
    told: dict[int, tuple[float, list[float]]] = {}

    class Spy(Random):
        def ask(self, n, available, rng):
            asked.append(n)
            return super().ask(n, available, rng)

        def tell(self, rows, rewards, scores):
            assert np.isfinite(rewards).all()
            assert np.isfinite(scores).all()
            for row, reward, each in zip(rows.tolist(), rewards, scores, strict=True):
                assert row not in told
                told[row] = (reward, each.tolist())

    found = case.run(policy=Spy())
    usable = ~np.isnan(found.drawn_scores)
    assert list(told) == found.drawn_rows[usable].tolist()
    assert [reward for reward, _ in told.values()] == found.drawn_scores[usable].tolist()
    assert [each for _, each in told.values()] == found.subtask_scores[usable].tolist()
    full, rest = divmod(found.n_scored, case.batch_size)
    assert asked == [case.batch_size] * full + [rest] * (rest > 0)


def test_failures_cost_budget_and_too_many_are_reported() -> None:
    scores = np.full((10, 1), np.nan)
    scores[3] = 0.5
    with pytest.warns(ClusterUCBWarning, match=r"only 1 of 10 draws could be scored.* 4 rows") as caught:
        found = search(
            np.zeros((10, 1)),
            scores.__getitem__,
            clusterer=None,
            policy=UCB(),
            budget=10,
            n_select=4,
        )
    assert caught[0].filename == __file__
    assert found.rows.tolist() == [3]
    assert found.n_scored == 10
    assert np.isnan(found.drawn_scores).sum() == 9


def test_negative_zero_is_zero() -> None:
    found = Case(np.array([[-0.0]]), np.array([0]), UCB(), 1, 1, 0, 1, seed=0).run()
    assert math.copysign(1, found.scores[0]) == 1


# What strategies see -------------------------------------------------------------------------------------


def test_strategies_see_named_features_and_columns_in_order_and_cannot_change_them() -> None:
    class Look(Clusterer):
        def fit_predict(self, pool, rng):
            self.pool = pool
            return np.arange(len(pool)) // 2

    class Hear(Random):
        def start(self, pool):
            self.pool = pool

    features = {"z": np.arange(12.0).reshape(6, 2), "a": np.ones((6, 1))}
    columns = {"source": list("aabbcc"), "tokens": np.arange(6)}
    clusterer, policy = Look(), Hear()
    search(
        features,
        lambda rows: rows * 1.0,
        clusterer=clusterer,
        policy=policy,
        budget=5,
        n_select=3,
        columns=columns,
    )
    assert clusterer.pool.labels.tolist() == [0] * 6
    assert policy.pool.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for pool in (clusterer.pool, policy.pool):
        assert list(pool.features) == ["z", "a"]
        assert list(pool.columns) == ["source", "tokens"]
        assert (pool.budget, pool.n_select) == (5, 3)
        np.testing.assert_array_equal(pool.features["z"], features["z"])
        with pytest.raises(ValueError, match="read-only"):
            pool.features["z"][0] = 1
    features["z"][0] = 7  # the caller's arrays stay the caller's
    columns["tokens"][0] = 7
    assert policy.pool.features["z"][0, 0] == 0
    assert policy.pool.columns["tokens"][0] == 0


def test_blocks_weigh_the_same_whatever_their_units() -> None:
    seen = []

    class Look(Clusterer):
        def fit_predict(self, pool, rng):
            seen.append(pool.matrix())
            return np.zeros(len(pool), int)

    block = np.random.default_rng(0).normal(size=(50, 3))
    features = {"small": block * 1e-3 + 5, "large": block * 1e3 - 7, "constant": np.ones((50, 2))}
    search(features, lambda rows: rows * 1.0, clusterer=Look(), policy=Random(), budget=1, n_select=1)
    (matrix,) = seen
    assert matrix.shape == (50, 8)
    np.testing.assert_allclose(matrix[:, :3], matrix[:, 3:6], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(matrix[:, :3], axis=1).mean(), 1, rtol=1e-5)
    assert not matrix[:, 6:].any()


# Resuming ------------------------------------------------------------------------------------------------


class Memory:
    """A journal in memory that may begin with the first operations of another."""

    def __init__(self, operations: list[tuple[str, Batch]] = ()) -> None:
        self.operations = list(operations)
        self._before = list(operations)

    def recorded(self):
        finished = {batch.number: batch for kind, batch in self._before if kind == "finish"}
        return [finished.get(batch.number, batch) for kind, batch in self._before if kind == "begin"]

    def begin(self, batch):
        assert batch.scores is None
        self.operations.append(("begin", batch))

    def finish(self, batch):
        assert batch.scores is not None
        self.operations.append(("finish", batch))


@given(cases(), st.data())
def test_search_cut_anywhere_resumes_to_the_same_result_and_journal(case: Case, data: st.DataObject) -> None:
    whole = Memory()
    expected = case.run(whole)
    cut = data.draw(st.integers(0, len(whole.operations)), label="cut")
    resumed = Memory(whole.operations[:cut])
    submitted: list[int] = []

    def score(rows: np.ndarray) -> np.ndarray:
        submitted.extend(rows)
        return case.scores[rows]

    identical(case.run(resumed, score), expected)
    kept = [batch for kind, batch in whole.operations[:cut] if kind == "finish"]
    assert len(submitted) == expected.n_scored - sum(len(batch.rows) for batch in kept)
    assert len(resumed.operations) == len(whole.operations)
    for (kind, one), (_, other) in zip(resumed.operations, whole.operations, strict=True):
        assert (one.number, one.phase) == (other.number, other.phase)
        for name in ("rows", "arms", "probability") + (("scores",) if kind == "finish" else ()):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@given(cases())
def test_every_draw_is_recorded_before_it_is_scored(case: Case) -> None:
    journal = Memory()

    def score(rows: np.ndarray) -> np.ndarray:
        kind, batch = journal.operations[-1]
        assert kind == "begin"
        assert batch.rows is rows
        return case.scores[rows]

    found = case.run(journal, score)
    kinds = [kind for kind, _ in journal.operations]
    assert kinds == ["begin", "finish"] * (len(kinds) // 2)
    begun = [batch for kind, batch in journal.operations if kind == "begin"]
    assert [batch.number for batch in begun] == list(range(len(begun)))
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in begun]), found.drawn_rows)


@given(cases())
def test_inclusion_probability_is_recorded_wherever_chance_decides(case: Case) -> None:
    journal = Memory()
    case.run(journal)
    sizes = np.bincount(case.run().labels)
    left = len(case.scores)
    for kind, batch in journal.operations:
        if kind == "finish":
            continue
        if batch.phase == "cold":
            share = Fraction(str(case.cold_start))
            owed = [max(math.floor(share * int(size)), 1) / size for size in sizes[batch.arms]]
            np.testing.assert_array_equal(batch.probability, owed)
        elif batch.phase == "random":
            np.testing.assert_allclose(batch.probability, len(batch.rows) / left)
        else:
            assert np.isnan(batch.probability).all()
        left -= len(batch.rows)
    phases = [batch.phase for _, batch in journal.operations]
    assert phases == sorted(phases, key=["cold", "random", "policy"].index)


@given(cases(), st.data())
def test_larger_budget_goes_on_where_the_smaller_one_stopped(case: Case, data: st.DataObject) -> None:
    journal = Memory()
    smaller = case.run(journal)
    budget = case.budget + data.draw(st.integers(1, 20))
    larger = case.run(Memory(journal.operations), budget=budget)
    np.testing.assert_array_equal(larger.drawn_rows[: smaller.n_scored], smaller.drawn_rows)
    assert larger.n_scored == min(budget, len(case.scores))


@given(cases(), st.data())
def test_single_draws_with_a_raised_budget_equal_a_search_that_had_it_from_the_start(
    case: Case, data: st.DataObject
) -> None:
    case = replace(case, batch_size=1, policy=UCB())
    journal = Memory()
    case.run(journal)
    budget = case.budget + data.draw(st.integers(1, 20))
    identical(case.run(Memory(journal.operations), budget=budget), case.run(budget=budget))


def test_smaller_budget_than_recorded_is_refused() -> None:
    case = Case(np.zeros((50, 1)), np.zeros(50, int), UCB(), 20, 1, 0.5, 1, seed=0)
    journal = Memory()
    case.run(journal)
    with pytest.raises(OptionError, match=r"holds at least 20 draws.*budget, 19.*same budget or a larger"):
        case.run(Memory(journal.operations), budget=19)


def test_journal_of_another_search_is_refused() -> None:
    case = Case(np.zeros((50, 1)), np.arange(50) % 5, UCB(), 20, 1, 0.2, 1, seed=0)
    journal = Memory()
    case.run(journal)
    smaller_pool = replace(case, scores=case.scores[:9], labels=case.labels[:9], budget=9)
    twice = [("begin", batch) for _, batch in journal.operations[:2]]
    for other, operations in [
        (smaller_pool, journal.operations[:2]),
        (replace(case, labels=case.labels[::-1].copy()), journal.operations),
        (case, twice),
    ]:
        with pytest.raises(OptionError, match=r"batch \d+ of the journal does not fit|holds at least"):
            other.run(Memory(operations))


class Kill(BaseException):
    pass


@given(case=cases(), patience=st.integers(1, 30))
def test_ledger_resumes_a_search_that_died_while_scoring(
    case: Case, patience: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "ledger.sqlite"
    subtasks = [f"s{number}" for number in range(case.scores.shape[1])]
    tokens = np.arange(len(case.scores))
    calls = 0

    def dying(rows: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > patience:
            raise Kill
        return case.scores[rows]

    def ledger() -> Ledger:
        return Ledger(path, subtasks=subtasks, tokens=tokens, failure=lambda row: f"row {row}")

    expected = case.run()
    with ledger() as first:
        try:
            found = case.run(first, dying)
        except Kill:
            with ledger() as second:  # the first connection is still open, as after a kill
                found = case.run(second)
    identical(found, expected)
    with ledger() as again:
        identical(case.run(again, dying), expected)  # all from the record: nothing is scored again
        assert again.totals() == (expected.n_scored, int(tokens[expected.drawn_rows].sum()))
        failed = expected.drawn_rows[np.isnan(expected.drawn_scores)]
        assert again.failures() == [(row, f"row {row}") for row in failed]


# Errors --------------------------------------------------------------------------------------------------

USABLE = {"clusterer": None, "policy": UCB(), "budget": 3, "n_select": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget is 0; expected a whole number of rows, at least 1"),
        ({"budget": -5}, "budget is -5; expected"),
        ({"budget": 0.2}, "budget is 0.2; expected a whole number"),
        ({"budget": True}, "budget is True; expected"),
        ({"budget": "20%"}, "budget is '20%'; expected"),
        ({"n_select": 0}, "n_select is 0; expected"),
        ({"n_select": 4}, "n_select is 4; expected at most the budget, 3 of 5 rows"),
        ({"n_select": 6, "budget": 9}, "n_select is 6; expected at most the budget, 5 of 5 rows"),
        ({"batch_size": 0}, "batch_size is 0; expected"),
        ({"cold_start": -0.1}, "cold_start is -0.1; expected a share of each arm between 0 and 1"),
        ({"cold_start": 5}, "cold_start is 5; expected"),
        ({"cold_start": math.nan}, "cold_start is nan; expected"),
        ({"seed": -1}, "seed is -1; expected a whole number of at least 0"),
        ({"seed": 0.5}, "seed is 0.5; expected"),
        ({"seed": True}, "seed is True; expected"),
        ({"aggregate": "men"}, "aggregate is 'men'; expected one of max, mean. Did you mean 'mean'?"),
        ({"policy": "ucb"}, "policy is 'ucb'; expected a Policy object such as clusterucb.UCB()"),
        ({"policy": UCB}, "expected a Policy object"),
        ({"clusterer": KMeans}, "expected a Clusterer object, None, or an integer label for each of the 5"),
        ({"clusterer": "kmeans"}, "('kmeans'); expected a Clusterer object"),
        ({"clusterer": [0, 1]}, "got int64 of shape (2,)"),
        ({"clusterer": [0.0] * 5}, "got float64 of shape (5,)"),
        ({"clusterer": [0, 1, 2, 3, -2]}, "got label -2; expected 0 or more, or -1 for noise"),
        ({"columns": {"tokens": [1, 2]}}, "column 'tokens' has shape (2,); expected [5]"),
    ],
    ids=repr,
)
def test_unusable_option_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        search(np.zeros((5, 2)), lambda rows: rows * 1.0, **{**USABLE, **changes})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, "features have no rows; expected one or more blocks of N >= 1 rows each"),
        (np.zeros((0, 3)), "features have {'features': 0} rows"),
        ({"a": np.zeros((5, 1)), "b": np.zeros((4, 1))}, "features have {'a': 5, 'b': 4} rows"),
        (np.zeros(5), "feature block 'features' has shape (5,); expected [N, k]"),
        ([[0.0], [math.nan], [math.inf]], "holds NaN or infinity in 2 rows (first: row 1)"),
    ],
    ids=str,
)
def test_unusable_features_are_refused(features: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        search(features, lambda rows: rows * 1.0, **USABLE)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda rows: 0.5, "score returned shape (); expected [3] or [3, S]"),
        (lambda rows: np.zeros(len(rows) + 1), "score returned shape (4,); expected [3] or [3, S]"),
        (lambda rows: np.zeros((len(rows), 0)), "score returned shape (3, 0)"),
        (lambda rows: np.zeros((len(rows), 2, 2)), "score returned shape (3, 2, 2)"),
    ],
)
def test_scores_of_a_wrong_shape_are_refused(score: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        search(np.zeros((5, 2)), score, **{**USABLE, "policy": Random(), "batch_size": 3})
    assert message in str(caught.value)


def test_number_of_subtasks_must_not_change() -> None:
    widths = iter([2, 3])
    with pytest.raises(OptionError, match=r"shape \(1, 3\); expected \[1\] or \[1, 2\]"):
        search(np.zeros((5, 2)), lambda rows: np.zeros((len(rows), next(widths))), **USABLE)


def returning(rows: Any) -> Policy:
    class Misbehaving(Policy):
        def ask(self, n, available, rng):
            return np.asarray(rows)

    return Misbehaving()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 0], "Misbehaving.ask returned a row twice; expected 2 distinct available rows"),
        ([0], "Misbehaving.ask returned int64 of shape (1,); expected 2 distinct"),
        ([0, 1, 2], "returned int64 of shape (3,)"),
        ([[0, 1]], "returned int64 of shape (1, 2)"),
        ([0.0, 1.0], "returned float64 of shape (2,)"),
        ([0.0, math.nan], "returned float64 of shape (2,)"),
        ([0, 5], "returned rows outside 0..4"),
        ([-1, 0], "returned rows outside 0..4"),
        (None, "returned object of shape ()"),
    ],
    ids=repr,
)
def test_policy_that_breaks_its_contract_is_named(rows: Any, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        search(
            np.zeros((5, 2)), lambda rows: rows * 1.0, **{**USABLE, "policy": returning(rows)}, batch_size=2
        )
    assert message in str(caught.value)


def test_policy_that_draws_a_row_again_is_named() -> None:
    with pytest.raises(
        PluginError, match=r"Misbehaving.ask returned row 1, already drawn; expected 1 distinct"
    ):
        search(np.zeros((5, 2)), lambda rows: rows * 1.0, **{**USABLE, "policy": returning([1])})


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (lambda arms: np.zeros(2), r"Odd.index returned shape \(2,\); expected \(3,\), a value for each arm"),
        (lambda arms: arms.mean * np.nan, "Odd.index returned NaN for arm 0, which was observed"),
    ],
)
def test_index_that_breaks_its_contract_is_named(index: Any, message: str) -> None:
    class Odd(IndexPolicy):
        def index(self, arms, rng):
            return index(arms)

    case = Case(np.zeros((9, 1)), np.repeat([0, 1, 2], 3), Odd(), 5, 1, 0, 1, seed=0)
    with pytest.raises(PluginError, match=message):
        case.run()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"Odd.fit_predict: got int64 of shape \(2,\)"),
        ([0, 0, 0, 0, -3], "Odd.fit_predict: got label -3"),
    ],
)
def test_clusterer_that_breaks_its_contract_is_named(labels: list[int], message: str) -> None:
    class Odd(Clusterer):
        def fit_predict(self, pool, rng):
            return labels

    with pytest.raises(PluginError, match=message):
        search(np.zeros((5, 2)), lambda rows: rows * 1.0, **{**USABLE, "clusterer": Odd()})
