"""The list of a store's samples: read back as it was written, refused if it does not fit, and searched exactly."""

from __future__ import annotations

import numpy as np
import pytest

from clusterucb.run.store_samples import ShardSamples, places


def hashes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32), np.uint8)


def test_samples_are_read_back_as_they_were_written():
    written = ShardSamples(hashes(3), np.array([5, 0, 7]), ["a", "", "é: 日本"])
    read = ShardSamples.of(written.arrays())
    np.testing.assert_array_equal(read.contents, written.contents)
    np.testing.assert_array_equal(read.tokens, written.tokens)
    assert read.ids == written.ids
    assert len(read) == 3


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ends", [2, 1, 3]),
        ("ends", [1, 2, 9]),
        ("ends", [-1, 2, 3]),
        ("ends", [1, 3]),
        ("tokens", [1, 2]),
        ("tokens", [1, -2, 3]),
        ("tokens", [1, 2**40, 3]),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(name, values):
    arrays = ShardSamples(hashes(3), np.array([5, 6, 7]), ["a", "b", "c"]).arrays()
    with pytest.raises(ValueError, match=r"it has 3 contents|its ids or lengths are none"):
        ShardSamples.of({**arrays, name: np.array(values, np.int64)})


def test_a_hash_is_found_by_all_of_its_bytes():
    known = hashes(50)
    known[7] = known[3]
    known[7, 31] ^= 1  # differs in the last byte alone
    known[8] = 0
    known[9] = 0
    known[9, 0] = 1  # zeros at the end
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(places(known, known[order]), order)
    assert (places(known, hashes(5, seed=2)) == -1).all()
    assert places(known[:0], known[:2]).tolist() == [-1, -1]
    assert len(places(known, known[:0])) == 0
