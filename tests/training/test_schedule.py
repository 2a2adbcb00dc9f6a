"""When a training selects, and what it visits, are pure functions of the step."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.training.schedule import Schedule, order


@given(warmup=st.integers(1, 50), every=st.integers(1, 50), n_steps=st.integers(1, 200))
def test_periods_follow_each_other(warmup: int, every: int, n_steps: int) -> None:
    schedule = Schedule(warmup, every)
    periods = [schedule.period(step) for step in range(n_steps)]
    starts = [0, *range(warmup, n_steps, every)]
    for step, period in enumerate(periods):
        assert period.start == max(start for start in starts if start <= step)
        assert period.number == starts.index(period.start)


@given(
    n=st.integers(1, 30), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), seed=st.integers(0, 99)
)
def test_the_order_does_not_depend_on_the_batches(n: int, sizes: list[int], seed: int) -> None:
    rows = np.arange(100, 100 + n)
    ends = np.cumsum(sizes)
    parts = [order(rows, int(end - size), size, (seed, 1)) for size, end in zip(sizes, ends, strict=True)]
    whole = order(rows, 0, int(ends[-1]), (seed, 1))
    assert np.concatenate(parts).tolist() == whole.tolist()
    for start in range(0, len(whole) - n + 1, n):
        assert sorted(whole[start : start + n]) == rows.tolist()
