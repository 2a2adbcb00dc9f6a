"""Tokens on the disk are what was encoded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import InputError
from clusterucb.samples import tokens
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.tokens import TokenFile

encoded = st.lists(
    st.tuples(st.integers(0, 2**29 - 1), st.booleans(), st.booleans()), min_size=1, max_size=8
).map(
    lambda made: Encoded(
        np.array([token for token, _, _ in made]),
        np.array([label for _, label, _ in made]),
        np.array([content for _, _, content in made]),
    )
)


@given(samples=st.lists(encoded, max_size=12), start=st.integers(-3, 12), stop=st.integers(-3, 12))
def test_what_is_kept_comes_back(samples: list[Encoded], start: int, stop: int) -> None:
    file = TokenFile()
    for sample in samples:
        file.add(sample)
    kept = file.close()
    assert len(kept) == len(samples)
    assert kept.lengths.tolist() == [len(sample) for sample in samples]
    assert kept.n_labels.tolist() == [sample.n_labels for sample in samples]
    assert kept.largest_token == max((int(sample.tokens.max()) for sample in samples), default=0)
    kept.forget()
    for one, expected in ((kept, samples), (kept[start:stop], samples[start:stop])):
        assert len(one) == len(expected)
        for got, sample in zip(one, expected, strict=True):
            assert got.tokens.dtype == np.int64
            for name in ("tokens", "labels", "content"):
                assert np.array_equal(getattr(got, name), getattr(sample, name))
    if samples:
        assert kept[-1].tokens.tolist() == samples[-1].tokens.tolist()


def test_tokens_are_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_WRITE", 10)
    file, sizes = TokenFile(), [3, 9, 1, 30, 2]
    for size in sizes:
        file.add(Encoded(np.arange(size), np.ones(size, bool), np.zeros(size, bool)))
    assert [sample.tokens.tolist() for sample in file.close()] == [list(range(size)) for size in sizes]


def test_no_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(
        InputError, match=r"cannot store the pool's tokens in .*: No space left on device; free space"
    ):
        TokenFile()
