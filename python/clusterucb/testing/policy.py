"""Test the contract of policies.

Decisions:
    - A test judges one property and tolerates violations of the others. For example, a test that draws a pool to its
      end ignores rows that were drawn before. So one mistake fails one test, not all of them.
    - Rewards that are told one by one must teach a policy the same as rewards told at once, although the contract does
      not say so. The mistake ``sums[arms] += rewards``, which counts an arm only once however often it occurs, is too
      common to leave untested.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.policy import Policy
from clusterucb.errors import PluginError
from clusterucb.testing._checks import (
    require,
    require_description,
    require_no_global_randomness,
    same_bits,
    seeded,
)
from clusterucb.testing._play import (
    answers,
    ask,
    begin,
    budgets,
    drain,
    flat,
    left,
    require_some,
    require_whole_numbers,
    searched,
    tell,
    tell_half,
    usable,
)
from clusterucb.testing._pools import (
    ONE_ARM,
    ONE_ROW,
    SINGLETONS,
    UNEVEN,
    Memory,
    contents,
    first_of_arms,
    pool_of,
    scores_of,
)


class PolicySuite:
    """Tests for a policy; the subclass has a fixture ``policy`` that returns the policy."""

    kind: ClassVar[str] = "policy"

    # The answer to an ask ---------------------------------------------------------------------------------

    def test_ask_returns_as_many_rows_as_are_wanted(self, policy: Policy) -> None:
        """`ask` returns as many rows as it is asked for, or all available rows if there are fewer."""
        for n, available, rows in answers(policy):
            wanted = min(n, np.count_nonzero(available))
            require(
                np.shape(rows) == (wanted,),
                f"shape {np.shape(rows)} from ask({n}) with {np.count_nonzero(available)} rows available",
                f"({wanted},), min(n, available.sum()) rows in one dimension",
                "If an arm has too few available rows, continue with the next arm",
            )

    def test_ask_returns_whole_numbers(self, policy: Policy) -> None:
        """`ask` returns the numbers of rows, which are integers."""
        for n, _, rows in answers(policy):
            require_whole_numbers(rows, f"ask({n})")

    def test_ask_returns_only_available_rows(self, policy: Policy) -> None:
        """`ask` returns only available rows, so that no row is drawn twice in a search."""
        for n, available, rows in answers(policy):
            numbers = flat(rows)
            wrong = numbers[
                (numbers < 0) | (numbers >= len(available)) | ~available[numbers % len(available)]
            ]
            require(
                not len(wrong),
                f"row {wrong[:1]} from ask({n}), which is not available",
                "only rows where `available` is true",
                "Choose among np.flatnonzero(available)",
            )

    def test_ask_returns_no_row_twice(self, policy: Policy) -> None:
        """The rows of one answer are distinct."""
        for n, _, rows in answers(policy):
            numbers = flat(rows)
            require(
                len(np.unique(numbers)) == len(numbers),
                f"{numbers} from ask({n}), which repeats a row",
                "distinct rows",
                "Draw without replacement: rng.choice(rows, n, replace=False)",
            )

    def test_ask_returns_an_empty_array_when_nothing_is_available(self, policy: Policy) -> None:
        """The end of a pool is not an error."""
        pool, scores = begin(policy, UNEVEN)
        everything = np.arange(len(pool))
        tell(policy, everything, scores)
        rows = ask(policy, 1, np.zeros(len(pool), np.bool_))
        require(
            np.shape(rows) == (0,),
            f"shape {np.shape(rows)} from ask(1) with nothing available",
            "shape (0,)",
            "Return np.zeros(0, np.int64)",
        )
        require_whole_numbers(rows, "ask(1) with nothing available")

    def test_ask_returns_an_empty_array_when_no_row_is_wanted(self, policy: Policy) -> None:
        """A policy that divides an ask among others may ask one of them for nothing."""
        pool, scores = begin(policy, UNEVEN)
        everything = np.arange(len(pool))
        tell(policy, everything[::2], scores)
        rows = ask(policy, 0, everything % 2 == 1)
        require(
            np.shape(rows) == (0,),
            f"shape {np.shape(rows)} from ask(0)",
            "shape (0,), min(n, available.sum()) rows",
            "Return np.zeros(0, np.int64)",
        )

    def test_ask_works_before_anything_is_told(self, policy: Policy) -> None:
        """No reward is known at first, nor after a cold start in which every draw failed."""
        pool, _ = begin(policy, UNEVEN)
        available = np.ones(len(pool), np.bool_)
        require_some(ask(policy, 3, available), available, "before the first tell")
        available[::2] = False
        require_some(ask(policy, 3, available), available, "after draws that all failed")

    # State and randomness ---------------------------------------------------------------------------------

    def test_ask_twice_gives_the_same_rows(self, policy: Policy) -> None:
        """`ask` does not change the policy."""
        pool, scores = begin(policy, UNEVEN)
        available = tell_half(policy, pool, scores)
        first = ask(policy, 4, available)
        for _ in range(2):
            again = ask(policy, 4, available)
            require(
                same_bits([first], [again]),
                f"{again}, but {first} from the same ask before",
                "the same rows from the same rng: `ask` must not change state",
                "Change state only in `tell`, and draw only from the argument `rng`",
            )
            ask(policy, 1, available, seed=8)

    def test_replayed_tells_give_the_same_answers(self, policy: Policy) -> None:
        """A resumed run tells the policy the recorded rewards, but does not repeat the earlier asks."""
        unused = copy.deepcopy(policy)
        pool, scores = begin(policy, UNEVEN)
        batches = [first_of_arms(UNEVEN)]
        tell(policy, batches[0], scores)
        available = left(pool, batches[0])
        for _ in range(5):
            rows = ask(policy, 3, available)
            resumed = copy.deepcopy(unused)
            begin(resumed, UNEVEN)
            for earlier in batches:
                tell(resumed, earlier, scores)
            replayed = ask(resumed, 3, available)
            require(
                same_bits([rows], [replayed]),
                f"{replayed} after a replay of {len(batches)} tells, but {rows} before",
                "the same rows: a run resumes from `start` and the recorded tells alone",
                "Keep no state from `ask`; the arguments of `tell` have all that it needs",
            )
            drawn = usable(rows, available)
            batches.append(drawn)
            tell(policy, drawn, scores)
            available[drawn] = False

    def test_start_forgets_everything(self, policy: Policy) -> None:
        """One policy object serves several searches, one after another."""

        def answer() -> NDArray[np.int64]:
            pool, scores = begin(policy, UNEVEN)
            return ask(policy, 4, tell_half(policy, pool, scores))

        first = answer()
        for labels in (ONE_ARM, UNEVEN):
            _, scores = begin(policy, labels)
            tell(policy, np.arange(6), 9 - scores)
        again = answer()
        require(
            same_bits([first], [again]),
            f"{again} after another search, but {first} before it",
            "`start` to forget everything",
            "In `start`, set every attribute that `tell` changes",
        )

    def test_randomness_comes_from_rng_alone(self, policy: Policy) -> None:
        """A policy does not use np.random or random, and has no generator of its own."""

        def answer() -> list[NDArray[np.int64]]:
            pool = pool_of(UNEVEN, policy.columns)
            half = np.arange(0, len(pool), 2)
            fresh = copy.deepcopy(policy)
            fresh.start(pool)
            tell(fresh, half, scores_of(UNEVEN))
            return [fresh.ask(n, left(pool, half), np.random.default_rng(7)) for n in (1, 4)]

        require_no_global_randomness(answer, "the argument `rng` of `ask`")

    def test_uniform_policy_draws_every_row_equally_often(self, policy: Policy) -> None:
        """The ledger records an inclusion probability for a policy that declares itself uniform."""
        if not policy.uniform:
            return
        pool, _ = begin(policy, ONE_ARM)
        available = np.ones(len(pool), np.bool_)
        drawn = [usable(ask(policy, 2, available, seed=seed), available) for seed in range(400)]
        counts = np.bincount(np.concatenate(drawn), minlength=len(pool))
        require(
            (np.abs(counts - 100) < 45).all(),  # five standard deviations
            f"rows drawn {counts} times",
            "about 100 draws of each row, for a policy with uniform = True",
            "Draw uniformly from all available rows, or leave `uniform` False",
        )

    # Arguments stay as they are -----------------------------------------------------------------------------

    def test_ask_leaves_available_as_it_is(self, policy: Policy) -> None:
        """Only the engine updates `available`."""
        pool, scores = begin(policy, UNEVEN)
        available = tell_half(policy, pool, scores)
        given = available.copy()
        with seeded(0):
            policy.ask(4, given, np.random.default_rng(7))
        require(
            np.array_equal(given, available),
            f"a change of `available` in rows {np.flatnonzero(given != available)}",
            "the argument as it was",
            "Work on available.copy()",
        )

    def test_tell_leaves_its_arguments_as_they_are(self, policy: Policy) -> None:
        """The engine records the same rows, rewards and scores after the tell."""
        _, scores = begin(policy, UNEVEN)
        rows = np.array([9, 4, 6, 1])
        arguments = {"rows": rows, "rewards": scores[rows].max(axis=1), "scores": scores[rows]}
        given = {name: array.copy() for name, array in arguments.items()}
        with seeded(0):
            policy.tell(**given)
        for name, array in given.items():
            require(
                np.array_equal(array, arguments[name]),
                f"a change of `{name}` in tell",
                "the argument as it was",
                f"Work on {name}.copy(), or make a new array",
            )

    def test_pool_is_left_as_it_is(self, policy: Policy) -> None:
        """All strategies of a run share one pool."""
        pool = pool_of(UNEVEN, policy.columns)
        before = contents(pool)
        with seeded(0):
            policy.start(pool)
        ask(policy, 4, tell_half(policy, pool, scores_of(UNEVEN)))
        after = contents(pool)
        changed = sorted(name for name in before | after if before.get(name) != after.get(name))
        require(
            not changed, f"a change of the pool: {', '.join(changed)}", "the pool as it was", "Work on copies"
        )

    # Pools and rewards of every shape -----------------------------------------------------------------------

    def test_pool_may_have_one_arm(self, policy: Policy) -> None:
        """Without a clusterer, all rows belong to one arm."""
        drain(policy, ONE_ARM, scores_of(ONE_ARM), "a pool of one arm")

    def test_every_arm_may_have_one_row(self, policy: Policy) -> None:
        """After one draw, such an arm has no spread of rewards and no rows left."""
        drain(policy, SINGLETONS, scores_of(SINGLETONS), "a pool whose arms have one row each", n_cold=4)

    def test_pool_may_have_one_row(self, policy: Policy) -> None:
        """One row is the smallest pool."""
        drain(policy, ONE_ROW, scores_of(ONE_ROW), "a pool of one row", n_cold=0)

    def test_rows_that_fail_are_never_told(self, policy: Policy) -> None:
        """A row that fails is no longer available, but its reward is never told."""
        fails = np.arange(len(UNEVEN)) % 3 == 0
        drain(policy, UNEVEN, scores_of(UNEVEN), "a pool where every third row fails", fails=fails)

    def test_rewards_may_be_negative(self, policy: Policy) -> None:
        """Most samples have a negative influence."""
        drain(policy, UNEVEN, scores_of(UNEVEN) - 10, "a pool of negative rewards")

    def test_rewards_may_be_equal(self, policy: Policy) -> None:
        """Arms then have no spread of rewards, and no arm is better than another."""
        for reward in (0.0, 0.3, -0.3):
            scores = np.full((len(UNEVEN), 2), reward)
            drain(policy, UNEVEN, scores, f"a pool where every reward is {reward}")

    def test_tells_of_any_size_teach_the_same(self, policy: Policy) -> None:
        """Rewards teach a policy the same whether it is told one at a time or all at once."""
        labels = np.repeat([0, 1, 2], 10)
        rows = np.array([10, 0, 20, 11, 1, 21, 12, 2, 22, 13, 3, 23])
        of_arms = [[0.1, 0.11, 0.12, 0.9], [0.9, 0.91, 0.92, 0.1], [0.2, 0.25, 0.2, 0.3]]
        scores = np.zeros((len(labels), 1))
        scores[rows, 0] = np.ravel(of_arms, order="F")
        chosen = {}
        for size in (1, 5, len(rows)):
            fresh = copy.deepcopy(policy)
            pool, _ = begin(fresh, labels)
            for at in range(0, len(rows), size):
                tell(fresh, rows[at : at + size], scores)
            chosen[size] = ask(fresh, 3, left(pool, rows))
            require(
                same_bits([chosen[size]], [chosen[1]]),
                f"{chosen[size]} after tells of {size} rows, but {chosen[1]} after tells of one row",
                "the same rows, whatever the batch size",
                "An arm can occur several times in a tell: np.add.at(sums, arms, rewards), not sums[arms] += rewards",
            )

    # A whole search ----------------------------------------------------------------------------------------

    def test_hyper_parameters_are_kept(self, policy: Policy) -> None:
        """A run's manifest records the hyper-parameters."""

        def use() -> None:
            pool, scores = begin(policy, UNEVEN)
            ask(policy, 4, tell_half(policy, pool, scores))

        require_description(policy, use)

    def test_search_spends_exactly_the_budget(self, policy: Policy) -> None:
        """The engine accepts every answer until the budget is spent."""
        for budget in budgets(policy):
            for batch_size in (1, 4):
                try:
                    selection = searched(policy, budget, batch_size=batch_size)
                except PluginError as error:
                    raise AssertionError(f"got {error}; expected a search of {budget} draws") from error
                require(
                    selection.n_scored == len(np.unique(selection.drawn_rows)) == budget,
                    f"{selection.n_scored} draws",
                    f"{budget}, the budget",
                    "In `ask`, return as many rows as the engine asks for",
                )

    def test_resumed_search_is_the_uninterrupted_one(self, policy: Policy) -> None:
        """A search ends with the same draws, wherever it was interrupted and resumed."""
        budget = budgets(policy)[0]
        journal = Memory()
        try:
            whole = searched(policy, budget, journal=journal)
        except PluginError:  # the test before reports it
            return
        for cut in sorted({1, 3, 6, len(journal.operations) // 2, len(journal.operations) - 1}):
            kept = Memory(journal.operations[:cut])
            resumed = searched(policy, budget, journal=kept)
            require(
                same_bits([resumed.drawn_rows], [whole.drawn_rows]),
                f"draws {resumed.drawn_rows} after an interruption, but {whole.drawn_rows} without one",
                "the same draws",
                "Make the answers depend only on `start`, the tells, `n`, `available` and `rng`",
            )
