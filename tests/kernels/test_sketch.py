"""Sketches: the matrix that is specified, on every path; and the statistics that its theory promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import OptionError
from clusterucb.kernels import ops, reference
from clusterucb.kernels.preconditioner import PRECONDITIONERS, Preconditioner
from clusterucb.kernels.projection import Sketch
from helpers.golden import FILE, sketches

ROOT = Path(__file__).parents[2]
SGD = Preconditioner("sgd")

sketch_options = st.one_of(
    st.builds(
        Sketch, st.sampled_from([256, 512, 2048]), st.sampled_from([1, 2, 4]), st.integers(0, 2**63 - 1)
    ),
    st.builds(Sketch, st.integers(1, 130), seed=st.integers(0, 2**63 - 1), kind=st.just("rademacher")),
)


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def run(function, gradient, offset, sketch, preconditioner=SGD, moments=None, **options):
    norm2, sketched = np.zeros(len(gradient)), np.zeros((len(gradient), sketch.dimension), np.float32)
    function(
        gradient,
        offset,
        preconditioner=preconditioner,
        moments=moments,
        norm2=norm2,
        sketch=sketch,
        sketched=sketched,
        **options,
    )
    return norm2, sketched


@given(
    st.integers(1, 11),
    st.one_of(st.integers(1, 70), st.sampled_from([511, 512, 513, 2050, 3001])),
    st.integers(0, 2**36).map(lambda k: 8 * k),
    sketch_options,
)
def test_integers_with_sgd_agree_bit_for_bit(n_samples, size, offset, sketch):
    gradient = integers(size, n_samples, size)
    got, expected = (run(one, gradient, offset, sketch) for one in (ops.accumulate, reference.accumulate))
    assert np.array_equal(got[0], expected[0])
    assert np.array_equal(got[1], expected[1])


def test_golden_sketches_are_reproduced():
    golden = json.loads(FILE.read_text())
    assert sketches(reference.accumulate) == golden
    assert sketches(ops.accumulate) == golden


@given(st.sampled_from(PRECONDITIONERS), sketch_options, st.integers(0, 2**31))
def test_every_preconditioner_agrees_with_double_precision(kind, sketch, seed):
    rng = np.random.default_rng(seed)
    gradient = rng.normal(size=(3, 1500)).astype(np.float32)
    moments = (
        rng.normal(size=1508).astype(np.float32),
        rng.uniform(0.1, 1, 1508).astype(np.float32),
    )
    chosen = Preconditioner(kind, step=2)
    norm2, sketched = run(ops.accumulate, gradient, 8, sketch, chosen, moments)
    m, v = (moment[8:].astype(np.float64) for moment in moments)
    update = reference.precondition(gradient.astype(np.float64), m, v, chosen)
    expected = reference.project(update, 8, sketch)
    size = np.sqrt(np.square(update).sum(axis=1))
    assert np.allclose(np.sqrt(norm2), size, rtol=1e-6)
    per_bucket = size if sketch.blocks else size * np.sqrt(sketch.dimension)
    assert (np.linalg.norm(sketched - expected, axis=1) <= 1e-6 * per_bucket).all()


@pytest.mark.parametrize("sketch", [Sketch(256, 1), Sketch(256, 4), Sketch(33, kind="rademacher")])
@given(st.integers(1, 99).map(lambda k: 8 * k), st.integers(0, 2**31))
def test_segments_add_up_to_the_whole(sketch, cut, seed):
    gradient = integers(seed, 2, 1001)
    whole = run(ops.accumulate, gradient, 16, sketch)
    norm2, sketched = np.zeros(2), np.zeros_like(whole[1])
    for begin, end in ((cut, 1001), (0, cut)):
        part = np.ascontiguousarray(gradient[:, begin:end])
        ops.accumulate(part, 16 + begin, preconditioner=SGD, norm2=norm2, sketch=sketch, sketched=sketched)
    assert np.array_equal(norm2, whole[0])
    assert np.array_equal(sketched, whole[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_widened_exactly(dtype):
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    halves = halves[halves.isfinite()][3:]  # every number, subnormal ones too, with a ragged end
    sketch = Sketch(256, 1)
    one = run(ops.accumulate, halves[None], 0, sketch)
    other = run(ops.accumulate, halves[None].float(), 0, sketch)
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1], equal_nan=True)
    for bad in (float("inf"), float("nan")):
        norm2, _ = run(ops.accumulate, torch.full((1, 9), bad).to(dtype), 0, sketch)
        assert not np.isfinite(norm2).any()


@pytest.mark.parametrize("kind", PRECONDITIONERS)
@pytest.mark.parametrize("sketch", [Sketch(256, 2), Sketch(40, kind="rademacher")])
def test_neither_threads_nor_the_batch_decide_about_a_bit(kind, sketch):
    rng = np.random.default_rng(3)
    size = 400_007  # three slices
    gradient = rng.normal(size=(5, size)).astype(np.float32)
    moments = tuple(rng.uniform(0.1, 1, size).astype(np.float32) for _ in range(2))
    directions = rng.normal(size=(4, size)).astype(np.float32)
    results = []
    for threads, rows in ((1, slice(5)), (2, slice(5)), (7, slice(5)), (2, slice(3, 4))):
        products = np.zeros((len(gradient[rows]), 4))
        got = run(
            ops.accumulate,
            gradient[rows],
            0,
            sketch,
            Preconditioner(kind, step=1),
            moments,
            directions=directions,
            products=products,
            threads=threads,
        )
        results.append((*got, products))
    for others in results[1:3]:
        assert all(np.array_equal(one, other) for one, other in zip(results[0], others, strict=True))
    assert all(np.array_equal(one[3:4], alone) for one, alone in zip(results[0], results[3], strict=True))


def test_what_lies_behind_a_segment_is_never_read():
    gradient = np.full((2, 21), np.nan, np.float32)
    flat = np.concatenate([integers(0, 21), np.full(21, np.nan, np.float32)])
    whole = run(ops.accumulate, flat[None, :21], 0, Sketch(256, 1))
    assert np.isfinite(whole[1]).all()
    gradient[0] = flat[:21]
    assert np.array_equal(run(ops.accumulate, gradient, 0, Sketch(256, 1))[1][:1], whole[1])


def test_estimates_are_unbiased_with_the_variance_of_the_theory():
    rng = np.random.default_rng(0)
    size, seeds = 2048, 1500
    spread = rng.normal(size=(2, size))
    columns = np.where(np.arange(size) % 64 == 5, 10.0, 0.1) * rng.normal(size=(2, size))
    blocks = np.where(np.arange(size) // 128 == 3, 10.0, 0.1) * rng.normal(size=(2, size))
    for x, y in (spread, columns, blocks):
        for nonzeros in (1, 2, 4):
            estimates = []
            for seed in range(seeds):
                sketched = reference.project(np.stack([x, y]), 0, Sketch(256, nonzeros, seed))
                estimates.append(sketched[0] @ sketched[1] / nonzeros)
            expected = _variance(x, y, 256, nonzeros)
            error = np.mean(estimates) - x @ y
            assert abs(error) < 4 * np.sqrt(expected / seeds)
            assert np.var(estimates) == pytest.approx(expected, rel=0.2)


def _variance(x, y, dimension, nonzeros):
    """Return Var ⟨Rx, Ry⟩ = (1/s) Σ_{i≠k} P_ik (x_i² y_k² + x_i y_i x_k y_k), P: sharing a bucket in a block."""
    width = dimension // nonzeros
    row, at = np.divmod(np.arange(len(x)), width)
    lane = (at & 7) ^ (row & 7)
    apart = row[:, None] != row[None]
    if nonzeros == 1:
        same_lane = (lane[:, None] == lane[None]).astype(float)
    else:  # lanes are keyed for every eight rows
        same_group = (row >> 3)[:, None] == (row >> 3)[None]
        same_lane = np.where(same_group, lane[:, None] == lane[None], 1 / 8)
    probability = apart * same_lane * 8 / width
    energy = x[:, None] ** 2 * y[None] ** 2 + np.outer(x * y, x * y)
    return (probability * energy).sum() / nonzeros


def test_a_dense_sketch_has_the_variance_of_the_theory():
    x, y = np.random.default_rng(1).normal(size=(2, 300))
    estimates = []
    for seed in range(2000):
        one, other = reference.project(np.stack([x, y]), 0, Sketch(64, seed=seed, kind="rademacher"))
        estimates.append(one @ other / 64)
    expected = ((x @ x) * (y @ y) + (x @ y) ** 2 - 2 * (x**2 * y**2).sum()) / 64
    assert abs(np.mean(estimates) - x @ y) < 4 * np.sqrt(expected / 2000)
    assert np.var(estimates) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("nonzeros", [1, 2, 4])
def test_a_row_is_spread_over_all_buckets_with_balanced_signs(nonzeros):
    width = 1024 // nonzeros
    buckets, signs = reference.sparse_columns(Sketch(1024, nonzeros, 11), np.arange(64 * width))
    for block in range(nonzeros):
        rows = np.sort(buckets[block].reshape(64, width), axis=1)
        assert (rows == block * width + np.arange(width)).all()
    for plus in ((signs == 1).mean(axis=1), (signs.reshape(nonzeros, -1, 8) == 1).mean(axis=1).ravel()):
        assert (abs(plus - 0.5) < 4 * 0.5 / np.sqrt(64 * width / 8)).all()


@pytest.mark.parametrize("kind", ["sjlt", "rademacher"])
def test_neighbouring_seeds_and_blocks_have_nothing_in_common(kind):
    x = np.random.default_rng(2).normal(size=(1, 8192))
    sketched = [
        reference.project(x, 0, Sketch(1024, 1, seed, kind))[0] for seed in (0, 1, 2, 3, 2**32, 2**62)
    ]
    sketched += np.split(reference.project(x, 0, Sketch(4096, 4, 9))[0], 4)
    cosines = np.corrcoef(np.stack(sketched))[np.triu_indices(10, 1)]
    assert abs(cosines).max() < 4.5 / np.sqrt(1024)
    # Nor are the sketches of one seed shifted or turned copies of another's.
    spectra = np.fft.rfft(np.stack(sketched))
    circular = np.fft.irfft(spectra[:, None] * spectra[None].conj())[np.triu_indices(10, 1)]
    norms = np.linalg.norm(sketched, axis=1)
    assert abs(circular / np.outer(norms, norms)[np.triu_indices(10, 1)][:, None]).max() < 6 / np.sqrt(1024)


def test_finishing_normalises():
    norm2, products = np.array([4.0, 0.0, np.inf, 1.0]), np.array([[2.0, -4.0], [0, 0], [1, 1], [0.5, 3]])
    scores = ops.finish(norm2, products)
    assert np.array_equal(scores, [[1, -2], [np.nan] * 2, [np.nan] * 2, [0.5, 3]], equal_nan=True)
    assert np.array_equal(ops.finish(torch.tensor(norm2), torch.tensor(products)), scores, equal_nan=True)


@pytest.mark.parametrize("sketch", [Sketch(2048, 2), Sketch(2048, 4), Sketch(2048, kind="rademacher")])
def test_finished_sketches_estimate_cosines(sketch):
    gradient = np.random.default_rng(5).normal(size=(2, 20_000)).astype(np.float32)
    gradient[1] += gradient[0]
    norm2, sketched = run(ops.accumulate, gradient, 0, sketch)
    one, other = ops.finish_sketches(norm2, sketched, sketch)
    assert one @ other == pytest.approx(np.sqrt(0.5), abs=5 / np.sqrt(2048))
    assert one @ one == pytest.approx(1, abs=5 / np.sqrt(2048))
    assert np.isnan(ops.finish_sketches(np.zeros(2), sketched, sketch)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": 5000}, "dimension is 5000; expected a power of two, such as 4096 or 8192"),
        ({"dimension": 128}, "expected a power of two of at least 256"),
        ({"dimension": 2**23}, "dimension is 8388608; expected at most 4194304"),
        ({"dimension": 2**60}, "expected at most 4194304"),
        ({"nonzeros": 3}, "nonzeros is 3; expected one of 1, 2, 4"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "below 2\\^63"),
        ({"kind": "gauss"}, "expected one of sjlt, rademacher"),
        ({"dimension": 0, "kind": "rademacher"}, "expected at least 1"),
    ],
)
def test_wrong_sketches_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Sketch(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": 4}, "offset is 4; expected a multiple of 8, as a sparse sketch requires"),
        ({"sketched": np.zeros((2, 512), np.float32)}, r"shape \(2, 512\).*\[B=2, d=256\]"),
        ({"sketched": np.zeros((2, 256))}, "sketched is float64"),
        ({"sketched": None}, "sketched is None but sketch is given"),
        ({"sketch": None}, "sketch is None but sketched is given"),
        ({"products": np.zeros((2, 1))}, "directions is None but products is given"),
        ({"gradient": [[1.0]]}, "gradient is <class 'list'>; expected a numpy array"),
        ({"gradient": torch.zeros(2, 8, device="meta")}, "meta|DLPack"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {
        "gradient": np.ones((2, 8), np.float32),
        "offset": 8,
        "preconditioner": SGD,
        "norm2": np.zeros(2),
        "sketch": Sketch(256, 1),
        "sketched": np.zeros((2, 256), np.float32),
        **change,
    }
    with pytest.raises(OptionError, match=message):
        ops.accumulate(arguments.pop("gradient"), arguments.pop("offset"), **arguments)


class _Foreign:
    """An array of some other library: DLPack and nothing else."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_arrays_of_any_library_with_dlpack_are_taken():
    gradient = torch.arange(16, dtype=torch.bfloat16).reshape(2, 8)
    norm2 = torch.zeros(2, dtype=torch.float64)
    ops.accumulate(_Foreign(gradient), 0, preconditioner=SGD, norm2=_Foreign(norm2))
    assert norm2.tolist() == gradient.double().square().sum(dim=1).tolist()
    with pytest.raises(OptionError, match=r"gradient is bfloat16 of shape \(8, 2\), not contiguous"):
        ops.accumulate(_Foreign(gradient.T), 0, preconditioner=SGD, norm2=norm2)


def test_arrays_that_cannot_be_written_are_refused():
    norm2 = np.zeros(2)
    norm2.flags.writeable = False
    with pytest.raises(OptionError, match="norm2 is read-only"):
        ops.accumulate(np.ones((2, 8), np.float32), 0, preconditioner=SGD, norm2=norm2)


def test_tensors_with_a_graph_and_read_only_arrays_are_taken_as_input():
    gradient = torch.ones(2, 8, requires_grad=True) * 2
    directions = np.ones((1, 8), np.float32)
    directions.flags.writeable = False
    norm2, products = torch.zeros(2, dtype=torch.float64), np.zeros((2, 1))
    ops.accumulate(gradient, 0, preconditioner=SGD, norm2=norm2, directions=directions, products=products)
    assert norm2.tolist() == [32, 32]
    assert products.tolist() == [[16], [16]]
