"""Passes hold every sample once, with the least padding, and go on with smaller ones when memory runs out."""

from __future__ import annotations

import gc
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import ModelError, OptionError
from clusterucb.gradients.passes import Here, PaddedBatch, Passes, micro_batches
from clusterucb.run.manifest import Limit
from clusterucb.samples.encoded import Encoded


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Spare gc.collect(), which follows every pass that fails here, what the tests before have imported."""
    gc.collect()
    gc.freeze()


LENGTHS = st.lists(st.integers(1, 300), max_size=60)


def cost(lengths, batches, overhead):
    return sum(len(batch) * max(lengths[at] for at in batch) + overhead for batch in batches)


@given(LENGTHS, st.integers(1, 2000), st.integers(0, 3000), st.none() | st.integers(1, 9))
def test_micro_batches_are_a_partition_within_the_limit(lengths, limit, overhead, most):
    batches = micro_batches(lengths, limit, overhead, most)
    assert sorted(at for batch in batches for at in batch.tolist()) == list(range(len(lengths)))
    sizes = [np.array(lengths)[batch] for batch in batches]
    for batch, size in zip(batches, sizes, strict=True):
        assert batch.dtype == np.int64
        assert len(size) == 1 or len(size) * size.max() <= limit
        assert len(size) <= (most or len(lengths))
    assert [length for size in sizes for length in size.tolist()] == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 40), st.integers(0, 20))
def test_no_other_batches_of_the_sorted_list_cost_less(lengths, limit, overhead):
    order = sorted(lengths, reverse=True)
    found = micro_batches(lengths, limit, overhead)
    for count in range(len(order)):
        for cuts in combinations(range(1, len(order)), count):
            edges = [0, *cuts, len(order)]
            batches = [range(start, end) for start, end in pairwise(edges)]
            if all(len(one) == 1 or len(one) * order[one[0]] <= limit for one in batches):
                assert cost(lengths, found, overhead) <= cost(order, batches, overhead)


@given(LENGTHS.flatmap(lambda given: st.tuples(st.just(given), st.permutations(given))))
def test_the_lengths_of_micro_batches_do_not_depend_on_their_order(lengths):
    one, other = ([[given[at] for at in batch] for batch in micro_batches(given, 500)] for given in lengths)
    assert one == other


def test_samples_of_one_length_keep_their_order():
    assert [batch.tolist() for batch in micro_batches([5, 7, 5, 5, 7], 20)] == [[1, 4], [0, 2, 3]]


def test_what_a_pass_costs_decides_whether_padding_is_worth_it():
    assert [batch.tolist() for batch in micro_batches([10, 4], 100, overhead=5)] == [[0], [1]]
    assert [batch.tolist() for batch in micro_batches([10, 4], 100, overhead=7)] == [[0, 1]]


def test_a_limit_below_one_token_is_refused():
    with pytest.raises(OptionError, match="batch_tokens is 0; expected at least 1"):
        micro_batches([1], 0)


def samples_of(lengths):
    return [Encoded(np.arange(1, n + 1), np.arange(n) > 1, np.ones(n, bool)) for n in lengths]


def test_a_batch_is_padded_on_the_right_and_predicts_its_labels_alone():
    batch = PaddedBatch.of(samples_of([3, 5]))
    assert batch.ids.tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]
    assert batch.predicting.tolist() == [1, 6, 7, 8]  # the positions before the labels
    assert batch.predicted.tolist() == [3, 3, 4, 5]
    assert batch.sample.tolist() == [0, 1, 1, 1]
    assert batch.counts.tolist() == [1, 3]
    assert batch.lengths == (3, 5)


@given(st.lists(st.integers(3, 9), min_size=1, max_size=5), st.data())
def test_a_sample_alone_is_a_batch_of_one(lengths, data):
    row = data.draw(st.integers(0, len(lengths) - 1))
    alone, expected = (
        PaddedBatch.of(samples_of(lengths)).alone(row),
        PaddedBatch.of(samples_of(lengths[row : row + 1])),
    )
    for one, other in zip(alone, expected, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


class Memory:
    """A device that passes of more than ``tokens`` do not fit into; notes those that did."""

    def __init__(self, tokens, error=torch.OutOfMemoryError):
        self.tokens = tokens
        self.error = error
        self.made = []

    def __call__(self, batch):
        if batch.ids.numel() > self.tokens:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        self.made.append(batch.lengths)
        return batch.ids.numel()


@given(
    st.lists(st.integers(3, 40), min_size=1, max_size=30),
    st.integers(40, 400),
    st.sampled_from([torch.OutOfMemoryError, RuntimeError, MemoryError]),
)
def test_memory_that_runs_out_loses_and_repeats_no_sample(lengths, tokens, error):
    memory, recorded = Memory(tokens, error), []
    passes = Passes(400, record=recorded.append)
    done = [at for rows, _ in passes.over("all", 0, samples_of(lengths), Here(memory)) for at in rows]
    assert sorted(done) == list(range(len(lengths)))
    limits = [limit.tokens for limit in recorded]
    assert limits == sorted(limits, reverse=True)
    assert not limits or limits[-1] * 2 + 1 > tokens / 2


@given(
    st.lists(st.lists(st.integers(3, 40), min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(40, 200),
    st.integers(40, 200),
    st.integers(0, 20),
)
def test_a_run_that_is_taken_up_again_makes_the_same_passes(calls, n_parts, first, later, shrinks_after):
    """Memory shrinks after a while; a second process, which has enough, makes the passes that the first one made."""
    limits, memory, n_made = [], Memory(first), 0
    passes = Passes(400, record=limits.append)
    for number, lengths in enumerate(calls):
        samples, call = samples_of(lengths), f"call {number}"
        made = []
        for part in range(n_parts):
            for rows, _ in passes.over(call, part, samples, Here(memory)):
                made.append(rows.tolist())
                if (n_made := n_made + 1) > shrinks_after:
                    memory.tokens = min(first, later)
        again, resumed = Here(Memory(10**9)), Passes(400, limits=limits)
        passed = [resumed.over(call, part, samples, again) for part in range(n_parts)]
        assert [rows.tolist() for part in passed for rows, _ in part] == made


def test_a_limit_is_recorded_before_it_takes_effect():
    memory, seen = Memory(50), []

    def record(limit):
        seen.append((limit, list(memory.made)))

    list(Passes(200, record=record).over("all", 0, samples_of([20] * 10), Here(memory)))
    assert seen == [
        (Limit("all", 0, 0, 100), []),
        (Limit("all", 0, 0, 50), []),
    ]
    assert memory.made == [(20, 20)] * 5


def test_a_sample_that_does_not_fit_alone_is_an_error_that_says_so():
    with pytest.raises(ModelError, match=r"too small for the gradient of one sample of 30 tokens; expected"):
        list(Passes(200).over("all", 0, samples_of([30, 5]), Here(Memory(20))))


def test_other_failures_are_no_lack_of_memory():
    def fail(batch):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(Passes(200).over("all", 0, samples_of([30]), Here(fail)))


def test_a_pass_begins_before_the_last_one_is_read():
    memory = Memory(100)
    for number, _ in enumerate(Passes(40).over("all", 0, samples_of([40, 40, 40]), Here(memory))):
        assert len(memory.made) == min(number + 2, 3)
