"""A held-out part of a target depends on the samples alone, and both parts have every subtask."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import OptionError
from clusterucb.samples.hold_out import hold_out
from clusterucb.samples.pool import read_target

Counts = dict[str, int]


def rows_of(counts: Counts) -> list[dict[str, str]]:
    return [
        {"prompt": f"{subtask} {number}?", "completion": "yes", "subtask": subtask}
        for subtask, count in counts.items()
        for number in range(count)
    ]


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(2, 12), min_size=1),
    st.fractions(Fraction(1, 100), 1),
    st.randoms(use_true_random=False),
)
def test_the_parts_are_disjoint_and_whole_in_any_order_of_rows(
    counts: Counts, share: Fraction, order: random.Random
) -> None:
    rows = rows_of(counts)
    choosing, judging = hold_out(read_target(rows), share)
    ids = [{sample.id for sample in part.samples} for part in (choosing, judging)]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == len(rows)
    for subtask, count in counts.items():
        n_judges = sum(sample.subtask == subtask for sample in judging.samples)
        assert 1 <= n_judges < count
        assert n_judges in (1, count - 1) or abs(n_judges - share * count) <= Fraction(1, 2)
    order.shuffle(rows)
    again = hold_out(read_target(rows), share)
    assert [{sample.id for sample in part.samples} for part in again] == ids
    assert [part.fingerprint for part in again] == [choosing.fingerprint, judging.fingerprint]
    assert len({choosing.fingerprint, judging.fingerprint, read_target(rows).fingerprint}) == 3


def test_a_subtask_of_one_sample_is_refused() -> None:
    with pytest.raises(OptionError, match=r"subtask 'b' has 1 target sample; expected at least 2"):
        hold_out(read_target(rows_of({"a": 4, "b": 1})), Fraction(1, 2))
