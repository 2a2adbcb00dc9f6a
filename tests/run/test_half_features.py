"""The features of a large pool on the disk: half precision where it loses nothing, mapped, resumed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import InputError
from clusterucb.run.feature_shards import Shards
from clusterucb.run.half_features import mapped, precision, stored
from clusterucb.run.kept_files import KeptFiles, load_arrays

N, SIZE = 23, 5


def block_of(kind: str, n_rows: int = N) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n_rows, 3))
    factor, offset = {
        "embedding": (0.05, 0.0),
        "logarithm": (1.0, 5.0),
        "year": (3.0, 2020.0),  # half precision has whole years alone
        "bytes": (1e6, 0.0),
        "equal": (0.0, 0.1),
        "far": (0.01, 500.0),
    }[kind]
    return (factor * rows + offset).astype(np.float32)


def test_blocks_are_in_half_precision_where_that_loses_nothing():
    chosen = {
        kind: precision(block_of(kind))
        for kind in ("embedding", "logarithm", "year", "bytes", "equal", "far")
    }
    half = {"embedding", "logarithm"}
    assert chosen == {kind: np.float16 if kind in half else np.float32 for kind in chosen}


def test_what_half_precision_does_not_have_becomes_its_largest_number():
    block = np.array([[1e6, -1e6, 0.1]], np.float32)
    assert stored(block, np.float16).tolist() == [[65504, -65504, np.float16(0.1)]]
    assert stored(block, np.float32) is block


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 4), st.integers(0, 1000))
def test_mapped_shards_are_the_shards_side_by_side(sizes, width, seed):
    rng = np.random.default_rng(seed)
    shards = [
        {
            "a": rng.normal(size=(size, width)).astype(np.float16),
            "b": rng.normal(size=(size, 2)).astype(np.float32),
        }
        for size in sizes
    ]
    found = mapped(iter(shards), sum(sizes))
    for name, block in found.items():
        expected = np.concatenate([shard[name] for shard in shards])
        assert block.dtype == expected.dtype
        np.testing.assert_array_equal(block, expected)
        assert not block.flags.writeable


def test_no_room_for_the_mapped_files_is_said(monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(InputError, match=r"cannot store the pool's features in .*No space left.*set TMPDIR"):
        mapped([{"a": np.zeros((1, 1), np.float32)}], 1)


def compute(rows: range, _) -> dict[str, np.ndarray]:
    here = slice(rows.start, rows.stop)
    return {"small": block_of("embedding")[here], "large": block_of("bytes")[here]}


def shards(folder, *, halves: bool = True) -> Shards:
    return Shards(KeptFiles(folder, None), "", N, SIZE, fits=False, halves=halves)


def test_shards_of_a_large_pool_are_resumed_in_the_same_precision(tmp_path):
    def stop_at(number):
        def computing(rows, learnt):
            if rows.start == number * SIZE:
                raise KeyboardInterrupt
            # a later shard alone would be stored in single precision
            scale = 1.0 if rows.start == 0 else 1e6
            return {name: scale * block for name, block in compute(rows, learnt).items()}

        return computing

    with pytest.raises(KeyboardInterrupt):
        shards(tmp_path).fill(dict, stop_at(2))
    shards(tmp_path).fill(dict, stop_at(99))
    found = shards(tmp_path).blocks()
    assert {name: block.dtype for name, block in found.items()} == {"small": np.float16, "large": np.float32}
    np.testing.assert_array_equal(found["small"][:SIZE], block_of("embedding")[:SIZE].astype(np.float16))
    assert np.isfinite(found["small"]).all()
    assert load_arrays(tmp_path / "features-00004.safetensors")["small"].dtype == np.float16


def test_shards_of_other_pools_stay_as_they_are(tmp_path):
    kept = shards(tmp_path, halves=False)
    kept.fill(dict, compute)
    for name, block in kept.blocks().items():
        assert block.dtype == np.float32
        np.testing.assert_array_equal(block, compute(range(N), {})[name])
