"""The compiled kernels compute what the specification says, on every path and for every shape."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.errors import ClusterUCBError, OptionError
from clusterucb.kernels import extension, ops, reference
from clusterucb.kernels.preconditioner import PRECONDITIONERS, Preconditioner
from clusterucb.kernels.projection import Sketch

ROOT = Path(__file__).parents[2]


def arrays(n_samples, size, n_directions, before, after, seed, integers):
    """Return gradient, offset, (m, v) and directions of a segment within a larger space."""
    rng = np.random.default_rng(seed)
    total = before + size + after

    def draw(*shape):
        return (rng.integers(-8, 9, shape) if integers else rng.normal(size=shape)).astype(np.float32)

    moments = draw(total) * np.float32(0.1), draw(total) ** 2 * np.float32(0.01)
    return draw(n_samples, size), before, moments, draw(n_directions, total)


def run(function, gradient, offset, moments, directions, preconditioner):
    norm2, products = np.zeros(len(gradient)), np.zeros((len(gradient), len(directions)))
    function(
        gradient,
        offset,
        preconditioner=preconditioner,
        moments=moments,
        directions=directions,
        norm2=norm2,
        products=products,
    )
    return norm2, products


shapes = st.tuples(
    st.integers(1, 5),  # samples
    st.one_of(st.integers(1, 40), st.sampled_from([1023, 1024, 1025, 2048, 3001])),  # elements
    st.integers(0, 4),  # directions
    st.integers(0, 9),  # elements before the segment
    st.integers(0, 9),  # and after it
    st.integers(0, 2**31),
)


@given(shapes)
def test_integers_with_sgd_agree_bit_for_bit(shape):
    segment = arrays(*shape, integers=True)
    got, expected = (
        run(one, *segment, Preconditioner("sgd")) for one in (ops.accumulate, reference.accumulate)
    )
    assert np.array_equal(got[0], expected[0])
    assert np.array_equal(got[1], expected[1])


@given(shapes, st.sampled_from(PRECONDITIONERS), st.integers(1, 1000))
def test_every_preconditioner_agrees_with_double_precision(shape, kind, step):
    gradient, offset, moments, directions = arrays(*shape, integers=False)
    chosen = Preconditioner(kind, beta1=0.8, beta2=0.99, eps=1e-6, step=step)
    norm2, products = run(ops.accumulate, gradient, offset, moments, directions, chosen)
    segment = slice(offset, offset + gradient.shape[1])
    m, v = (moment[segment].astype(np.float64) for moment in moments)
    update = reference.precondition(gradient.astype(np.float64), m, v, chosen)
    # In m' two terms may cancel, so errors are relative to the terms.
    terms = reference.precondition(np.abs(gradient.astype(np.float64)), np.abs(m), v, chosen)
    part = directions[:, segment].astype(np.float64)
    scale = np.linalg.norm(terms, axis=1)
    assert (np.abs(norm2 - np.square(update).sum(axis=1)) <= 1e-6 * scale**2).all()
    assert (np.abs(products - update @ part.T) <= 1e-6 * np.outer(scale, np.linalg.norm(part, axis=1))).all()


def test_each_formula_in_double_precision():
    g, m, v = np.array([0.3, -2.0]), np.array([0.1, 0.2]), np.array([0.04, 0.5])
    b1, b2, eps, t = 0.9, 0.99, 1e-3, 7
    first, second = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    expected = {
        "adam_less": first / np.sqrt(second + eps),
        "adam": (first / (1 - b1**8)) / (np.sqrt(second / (1 - b2**8)) + eps),
        "second_moment": g / (np.sqrt(v / (1 - b2**7)) + eps),
        "sgd": g,
    }
    for kind in PRECONDITIONERS:
        got = reference.precondition(g, m, v, Preconditioner(kind, b1, b2, eps, t))
        assert np.allclose(got, expected[kind], rtol=1e-13)


def test_adam_is_the_step_that_torch_takes():
    rng = np.random.default_rng(0)
    weight = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=1.0, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.0)
    for _ in range(4):
        weight.grad = torch.from_numpy(rng.normal(size=50))
        optimizer.step()
    state = optimizer.state[weight]
    m, v = state["exp_avg"].numpy().copy(), state["exp_avg_sq"].numpy().copy()
    gradient, before = rng.normal(size=50), weight.detach().clone()
    weight.grad = torch.from_numpy(gradient)
    optimizer.step()
    step = (before - weight.detach()).numpy()
    assert np.allclose(
        reference.precondition(gradient, m, v, Preconditioner("adam", 0.8, 0.95, 1e-4, 4)), step
    )


@pytest.mark.parametrize("kind", ["adam_less", "adam"])
@pytest.mark.parametrize("eps", [1e-37, 1e-8, 1e3])
def test_ragged_ends_and_untrained_parameters_are_finite(kind, eps):
    gradient, zeros = np.full((2, 9), 1e-3, np.float32), np.zeros(9, np.float32)
    norm2, _ = run(
        ops.accumulate, gradient, 0, (zeros, zeros), zeros[None], Preconditioner(kind, eps=eps, step=1)
    )
    assert np.isfinite(norm2).all()


@pytest.mark.parametrize("kind", PRECONDITIONERS)
def test_every_element_is_within_the_error_that_is_promised(kind):
    rng = np.random.default_rng(4)
    chosen = Preconditioner(kind, eps=1e-8, step=20)
    worst = 0.0
    for exponent in range(-12, 3):  # of the second moment's root
        g, m = (rng.normal(size=(4000, 8)) * 10.0**exponent for _ in range(2))
        g, m = g.astype(np.float32), np.abs(m[0]).astype(np.float32)
        g = np.abs(g)  # of one sign with m: no cancellation, so that errors can be relative
        v = (10.0 ** (2 * exponent) * rng.uniform(0.01, 1, 8)).astype(np.float32)
        products = run(ops.accumulate, g, 0, (m, v), np.eye(8, dtype=np.float32), chosen)[1]
        expected = reference.precondition(
            g.astype(np.float64), m.astype(np.float64), v.astype(np.float64), chosen
        )
        worst = max(worst, np.abs(products / expected - 1).max())
    assert worst <= 3e-7


def test_the_preconditioners_are_different_features():
    segment = arrays(4, 500, 1, 0, 0, seed=3, integers=False)
    cosines = [
        (lambda norm2, products: products[:, 0] / np.sqrt(norm2))(
            *run(ops.accumulate, *segment, Preconditioner(kind, step=2))
        )
        for kind in PRECONDITIONERS
    ]
    for at, one in enumerate(cosines):
        for other in cosines[at + 1 :]:
            assert np.abs(one - other).max() > 1e-4


@given(st.integers(1, 1000), st.integers(0, 2**31))
def test_segments_add_up_to_the_whole(cut, seed):
    gradient, _, moments, directions = arrays(3, 1001, 2, 0, 0, seed, integers=True)
    chosen = Preconditioner("sgd")
    whole = run(ops.accumulate, gradient, 0, moments, directions, chosen)
    norm2, products = np.zeros(3), np.zeros((3, 2))
    for begin, end in ((cut, 1001), (0, cut)):
        part = run(
            ops.accumulate, np.ascontiguousarray(gradient[:, begin:end]), begin, moments, directions, chosen
        )
        norm2 += part[0]
        products += part[1]
    assert np.array_equal(norm2, whole[0])
    assert np.array_equal(products, whole[1])


def test_what_lies_beside_a_segment_is_never_read():
    gradient, offset, moments, directions = arrays(2, 1029, 2, 3, 5, seed=1, integers=False)
    outside = np.ones(directions.shape[1], bool)
    outside[offset : offset + 1029] = False
    for array in (directions, *moments):
        array[..., outside] = np.nan
    for kind in PRECONDITIONERS:
        norm2, products = run(
            ops.accumulate, gradient, offset, moments, directions, Preconditioner(kind, step=1)
        )
        assert np.isfinite(norm2).all()
        assert np.isfinite(products).all()


def test_tensors_and_arrays_give_the_same():
    gradient, *rest = arrays(2, 100, 2, 0, 0, seed=1, integers=False)
    chosen = Preconditioner("adam", step=1)
    for one, other in zip(
        run(ops.accumulate, gradient, *rest, chosen),
        run(ops.accumulate, torch.from_numpy(gradient), *rest, chosen),
        strict=True,
    ):
        assert np.array_equal(one, other)


class Elsewhere:
    """An array with DLPack's methods, which claims a device."""

    def __init__(self, device):
        self.array, self.device = np.zeros(2), device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        return 5 if self.device[0] == 2 else self.array.__dlpack__()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient": np.zeros((2, 8))}, "gradient is float64"),
        ({"gradient": np.zeros(8, np.float32)}, "gradient is float32 of shape"),
        ({"gradient": np.zeros((2, 16), np.float32)[:, ::2]}, "not contiguous"),
        ({"directions": np.zeros((3, 9))}, "directions is float64"),
        ({"directions": np.zeros(9, np.float32)}, "directions is float32 of shape"),
        ({"offset": 2}, r"the segment \[2, 10\) is not within"),
        ({"offset": -1}, "offset is -1; expected at least 0"),
        ({"offset": 2**63 - 8}, r"the segment of 8 elements from 9\d+ on ends beyond 2\^63"),
        ({"norm2": Elsewhere(("x", 0))}, "norm2 has a __dlpack_device__ that does not return two numbers"),
        ({"norm2": Elsewhere((10, 0))}, "norm2 is on a device of DLPack's type 10; expected it on cpu"),
        ({"norm2": np.zeros(3)}, r"norm2 .* expected contiguous float64 of shape \[B=2\]"),
        ({"norm2": np.zeros(2, np.float32)}, "norm2 is float32"),
        ({"products": np.zeros((3, 2))}, r"products .* shape \[B=2, S=3\]"),
        ({"moments": None}, "moments are None"),
        ({"moments": (np.zeros(8, np.float32), np.zeros(9, np.float32))}, r"moments m .* \[P=9\]"),
        ({"moments": (np.zeros(9, np.float32), np.zeros(9))}, "moments v is float64"),
    ],
)
def test_wrong_arrays_are_refused_and_nothing_is_written(change, message):
    arguments = {
        "gradient": np.ones((2, 8), np.float32),
        "offset": 1,
        "preconditioner": Preconditioner("adam"),
        "moments": (np.zeros(9, np.float32), np.zeros(9, np.float32)),
        "directions": np.ones((3, 9), np.float32),
        "norm2": np.zeros(2),
        "products": np.zeros((2, 3)),
        **change,
    }
    with pytest.raises(OptionError, match=message):
        ops.accumulate(arguments.pop("gradient"), arguments.pop("offset"), **arguments)
    assert not getattr(arguments["norm2"], "array", arguments["norm2"]).any()


def test_an_array_that_claims_a_cuda_device_is_refused():
    arguments = {"preconditioner": Preconditioner("sgd"), "norm2": np.zeros(2)}
    with pytest.raises(OptionError, match="of type Elsewhere cannot be used on a CUDA device"):
        ops.accumulate(Elsewhere((2, 0)), 0, **arguments)


def test_the_specification_projects_nothing_to_nothing():
    for kind in ("sjlt", "rademacher"):
        assert not reference.project(np.zeros((2, 0)), 0, Sketch(256, kind=kind)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "adamw"}, "expected one of adam_less, adam, second_moment, sgd. Did you mean 'adam'"),
        ({"kind": "second_moment", "step": 0}, "expected at least 1"),
        ({"beta1": 1.0}, "beta1 is 1.0; expected at least 0 and below 1"),
        ({"beta2": -0.1}, "beta2 is -0.1"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"eps": 1e-60}, "expected at least 1e-37, since gradients are preconditioned in fp32"),
    ],
)
def test_wrong_preconditioners_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Preconditioner(**options)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_an_unknown_kernel_is_refused_by_name():
    done = python("from clusterucb.kernels import ops; ops.simd()", CLUSTERUCB_SIMD="sse9")
    assert re.search(r"CLUSTERUCB_SIMD is 'sse9'; expected one of (avx512, avx2, )?generic, or", done.stderr)


class _Broken:
    """A stand-in for an extension that was built wrongly."""

    @staticmethod
    def simd():
        return "generic"

    @staticmethod
    def accumulate(*arguments):
        arguments[-3][:] += 1


def test_wrong_kernels_fail_the_self_test():
    with pytest.raises(ClusterUCBError, match=r"fails its self-test for adam_less: .*Rebuild it"):
        extension.self_test(lambda *arguments: extension.call(_Broken(), *arguments, 1), "generic")


def test_a_missing_extension_is_an_error_with_its_remedy():
    done = python(
        "import sys; sys.modules['clusterucb.kernels._core'] = None\nfrom clusterucb.kernels import ops; ops.simd()"
    )
    assert "the compiled extension cannot be loaded" in done.stderr
    assert "make setup" in done.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [("ON", "no CUDA compiler was found. Put nvcc on the PATH"), ("YES", "expected OFF, AUTO or ON")],
)
def test_cuda_that_is_not_there_is_refused_when_building(tmp_path, value, message):
    cmake = Path(sys.executable).with_name("cmake")
    done = subprocess.run(
        [cmake, "-S", ROOT, "-B", tmp_path, f"-DCLUSTERUCB_CUDA={value}"],
        env={**os.environ, "CUDACXX": str(tmp_path / "no-nvcc")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
