"""A search that stopped anywhere goes on to the same result, and what it records is enough for that."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.engine import RowScores
from clusterucb.errors import OptionError
from clusterucb.policies import UCB, Random
from clusterucb.run.ledger import Ledger
from helpers.recorded import Case, Memory, cases, identical


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
    case = replace(case, batch_size=1, policy=UCB(), first=())  # a larger budget has more of the first rows
    journal = Memory()
    case.run(journal)
    budget = case.budget + data.draw(st.integers(1, 20))
    identical(case.run(Memory(journal.operations), budget=budget), case.run(budget=budget))


def test_another_cold_start_than_recorded_is_refused() -> None:
    case = Case(np.zeros((50, 1)), np.arange(50) % 2, UCB(), 20, 1, 0.2, 1, seed=0)
    journal = Memory()
    case.run(journal)
    with pytest.raises(
        OptionError, match=r"cold start had 10 draws, this one has 20; expected the cold_start of"
    ):
        replace(case, cold_start=0.4).run(Memory(journal.operations))


def test_smaller_budget_than_recorded_is_refused() -> None:
    case = Case(np.zeros((50, 1)), np.zeros(50, int), UCB(), 20, 1, 0.5, 1, seed=0)
    journal = Memory()
    case.run(journal)
    with pytest.raises(OptionError, match=r"holds at least 20 draws.*budget, 19.*same or a larger budget"):
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


def test_randomness_of_a_batch_depends_on_the_seed_and_its_number_alone() -> None:
    heard: list[float] = []

    class Listen(Random):
        def ask(self, n, available, rng):
            heard.append(rng.random())
            return np.flatnonzero(available)[:n]

    case = Case(np.zeros((40, 1)), np.zeros(40, int), Listen(), 12, 1, 0, 3, seed=5)
    journal = Memory()
    case.run(journal)
    assert heard == [np.random.default_rng([5, number]).random() for number in range(4)]
    case.run(Memory(journal.operations[:4]))  # two batches are on record
    assert heard[4:] == heard[2:4]


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

    def score(rows: np.ndarray) -> RowScores:
        return RowScores(case.scores[rows], {row: f"row {row} failed" for row in rows.tolist()})

    def dying(rows: np.ndarray) -> RowScores:
        nonlocal calls
        calls += 1
        if calls > patience:
            raise Kill
        return score(rows)

    def ledger() -> Ledger:
        return Ledger(path, subtasks=subtasks, tokens=tokens)

    expected = case.run()
    with ledger() as first:
        try:
            found = case.run(first, dying)
        except Kill:
            with ledger() as second:  # the first connection is still open, as after a kill
                found = case.run(second, score)
    identical(found, expected)
    with ledger() as again:
        identical(case.run(again, dying), expected)  # all from the record: nothing is scored again
        assert again.totals() == (expected.n_scored, int(tokens[expected.drawn_rows].sum()))
        failed = expected.drawn_rows[np.isnan(expected.drawn_scores)].tolist()
        assert again.failures() == [(row, f"row {row} failed") for row in failed]
