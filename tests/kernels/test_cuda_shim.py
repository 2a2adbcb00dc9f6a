"""The CUDA kernels and their launcher, unmodified, run on a CPU (tests/simt): they compute what is specified."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterucb.kernels import reference
from clusterucb.kernels.preconditioner import PRECONDITIONERS, Preconditioner
from clusterucb.kernels.projection import Sketch
from helpers.golden import FILE, sketches

ROOT = Path(__file__).parents[2]
DTYPES = ("f32", "bf16", "f16")
SGD = Preconditioner("sgd")
FLAGS = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing"]
SANITIZED = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def build(library: Path, *flags: str) -> None:
    sources = [f"-I{ROOT / 'tests/simt'}", f"-I{ROOT / 'csrc/include'}", ROOT / "tests/simt/shim.cpp"]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    subprocess.run(["c++", *FLAGS, *flags, *warnings, *sources, "-o", library], check=True)


_folder = TemporaryDirectory()


@cache
def library_path() -> str:
    """Return the file that CLUSTERUCB_SIMT_LIBRARY names; else build it, once in every process of the tests."""
    if given := os.environ.get("CLUSTERUCB_SIMT_LIBRARY"):
        return given
    path = Path(_folder.name) / "shim.so"
    build(path)
    return str(path)


@cache
def shim() -> ctypes.CDLL:
    library = ctypes.CDLL(library_path())
    size, pointer, number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
    library.simt_workspace_bytes.argtypes = [size] * 5 + [number]
    library.simt_workspace_bytes.restype = size
    library.simt_accumulate.argtypes = (
        [pointer, number, pointer, pointer, pointer]  # gradient, dtype, m, v, directions
        + [size] * 5  # B, n, offset, S, stride
        + [number, pointer, size, number, pointer]  # kind, constants, d, s, keys
        + [pointer] * 3  # norm2, products, sketched
        + [ctypes.c_char_p, ctypes.c_size_t]  # a message
    )
    return library


def narrow(gradient: np.ndarray, dtype: str) -> np.ndarray:
    """Return numbers as a dtype that has them exactly; bf16 as its bits."""
    if dtype == "bf16":
        return (gradient.view(np.uint32) >> 16).astype(np.uint16)
    return gradient.astype(np.float16 if dtype == "f16" else np.float32)


def beside_nan(array: np.ndarray, margin: int) -> tuple[np.ndarray, int]:
    """Return a copy with ``margin`` NaN before and behind each row, and the address of its first number."""
    nan = 0x7FC0 if array.dtype == np.uint16 else np.nan
    whole = np.full((*array.shape[:-1], array.shape[-1] + 2 * margin), nan, array.dtype)
    whole[..., margin : margin + array.shape[-1]] = array
    return whole, whole.ctypes.data + margin * whole.itemsize


def run(
    gradient,
    offset=0,
    *,
    preconditioner=SGD,
    moments=None,
    directions=None,
    sketch=None,
    dtype="f32",
    margin=0,
    descending=False,
    into=None,
):
    """Return norm2, products and sketched as the CUDA code adds them to zeros; all arrays begin at the segment.

    ``margin`` NaN lie on both sides of what may be read, which also decides how addresses are aligned.
    """
    samples, size = gradient.shape
    directions = np.zeros((0, size), np.float32) if directions is None else directions
    norm2, products, sketched = into or (
        np.zeros(samples),
        np.zeros((samples, len(directions))),
        np.zeros((samples, sketch.dimension if sketch else 0), np.float32),
    )
    narrowed = narrow(gradient, dtype)
    flat, flat_at = beside_nan(narrowed.reshape(1, -1), margin)
    kept = [beside_nan(moment, margin) for moment in moments or ()]
    m_at, v_at = (at for _, at in kept) if kept else (None, None)
    rows, rows_at = beside_nan(directions, margin)
    keys = np.array(sketch.keys() if sketch else [], np.uint32)
    constants = np.array(preconditioner.constants(), np.float32)
    message = ctypes.create_string_buffer(500)
    shim().simt_descending(descending)
    failed = shim().simt_accumulate(
        flat_at,
        DTYPES.index(dtype),
        m_at,
        v_at,
        rows_at if len(directions) else None,
        samples,
        size,
        offset,
        len(directions),
        rows.shape[-1],
        PRECONDITIONERS.index(preconditioner.kind),
        constants.ctypes.data,
        sketch.dimension if sketch else 0,
        sketch.blocks if sketch else 0,
        keys.ctypes.data,
        norm2.ctypes.data,
        products.ctypes.data,
        sketched.ctypes.data,
        message,
        len(message),
    )
    if failed:
        raise RuntimeError(message.value.decode())
    del flat
    return norm2, products, sketched


def expected(gradient, offset, *, preconditioner=SGD, moments=None, directions=None, sketch=None):
    """Return the same by the specification in double precision."""
    m, v = (moment.astype(np.float64) for moment in moments) if moments else (None, None)
    update = reference.precondition(gradient.astype(np.float64), m, v, preconditioner)
    products = np.zeros((len(update), 0)) if directions is None else update @ directions.astype(np.float64).T
    sketched = reference.project(update, offset, sketch) if sketch else np.zeros((len(update), 0))
    return np.square(update).sum(axis=1), products, sketched


def integers(rng, *shape):
    return rng.integers(-8, 9, shape).astype(np.float32)


def normal(rng, *shape):
    """Return numbers that bf16 and f16 have exactly."""
    return (rng.integers(-128, 129, shape) / 64).astype(np.float32)


def positive(rng, *shape):
    return rng.uniform(0.1, 1, shape).astype(np.float32)


sizes = st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 1023, 1024, 1025, 2050, 3001]))
offsets = st.one_of(st.integers(0, 300), st.integers(2**33 // 8, 2**36)).map(lambda k: 8 * k)
sketch_options = st.one_of(
    st.none(),
    st.builds(
        Sketch,
        st.sampled_from([256, 512, 1024, 2048]),
        st.sampled_from([1, 2, 4]),
        st.integers(0, 2**63 - 1),
    ),
    st.builds(Sketch, st.integers(1, 130), seed=st.integers(0, 2**63 - 1), kind=st.just("rademacher")),
)
layouts = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES),
        "margin": st.sampled_from([0, 1, 4, 8]),
        "descending": st.booleans(),
    }
)


@given(st.integers(1, 11), sizes, offsets, st.integers(0, 20), sketch_options, layouts, st.integers(0, 2**31))
def test_integers_with_sgd_agree_bit_for_bit(n_samples, size, offset, n_directions, sketch, layout, seed):
    rng = np.random.default_rng(seed)
    gradient, directions = integers(rng, n_samples, size), integers(rng, n_directions, size)
    got = run(gradient, offset, directions=directions, sketch=sketch, **layout)
    for one, other in zip(got, expected(gradient, offset, directions=directions, sketch=sketch), strict=True):
        assert np.array_equal(one, other)


@given(
    st.sampled_from(PRECONDITIONERS),
    st.integers(1, 9),
    sizes,
    st.integers(0, 9),
    sketch_options,
    layouts,
    st.integers(0, 2**31),
)
def test_every_preconditioner_agrees_with_double_precision(
    kind, n_samples, size, n_directions, sketch, layout, seed
):
    rng = np.random.default_rng(seed)
    what = {
        "preconditioner": Preconditioner(kind, step=2),
        "moments": (normal(rng, size), positive(rng, size)),
        "directions": normal(rng, n_directions, size),
        "sketch": sketch,
    }
    gradient = normal(rng, n_samples, size)
    check_close(gradient, what, run(gradient, 8, **what, **layout))


def check_close(gradient, what, got):
    """Check results against double precision: within 1e-6 of the norms."""
    norm2, products, sketched = expected(gradient, 8, **what)
    m, v = (moment.astype(np.float64) for moment in what["moments"])
    # In m' two terms may cancel, so errors are relative to the terms.
    terms = reference.precondition(np.abs(gradient.astype(np.float64)), np.abs(m), v, what["preconditioner"])
    scale = np.linalg.norm(terms, axis=1)
    assert (np.abs(got[0] - norm2) <= 1e-6 * scale**2).all()
    lengths = np.linalg.norm(what["directions"], axis=1)
    assert (np.abs(got[1] - products) <= 1e-6 * np.outer(scale, lengths)).all()
    if sketch := what["sketch"]:
        per_bucket = scale * np.sqrt(1 if sketch.blocks else sketch.dimension)
        assert (np.linalg.norm(got[2] - sketched, axis=1) <= 1e-6 * per_bucket).all()


def accumulate(gradient, offset, *, preconditioner, norm2, sketch, sketched):
    products = np.zeros((len(gradient), 0))
    run(gradient, offset, preconditioner=preconditioner, sketch=sketch, into=(norm2, products, sketched))


def test_golden_sketches_are_reproduced():
    assert sketches(accumulate) == json.loads(FILE.read_text())


@pytest.mark.parametrize("sketch", [None, Sketch(256, 1), Sketch(256, 4), Sketch(33, kind="rademacher")])
@pytest.mark.parametrize("n_samples", [1, 9])
def test_many_slices_agree_with_double_precision(sketch, n_samples):
    rng = np.random.default_rng(7)
    size = 20_003
    what = {
        "preconditioner": Preconditioner("adam_less", step=2),
        "moments": (normal(rng, size), positive(rng, size)),
        "directions": normal(rng, 11, size),
        "sketch": sketch,
    }
    gradient = normal(rng, n_samples, size)
    check_close(gradient, what, run(gradient, 8, **what))
    what["directions"] = normal(rng, 0, size)  # the norm comes out of the sketch's kernel
    check_close(gradient, what, run(gradient, 8, **what))


def test_seventy_directions_are_more_than_a_block_takes():
    rng = np.random.default_rng(2)
    gradient, directions = integers(rng, 9, 3000), integers(rng, 70, 3000)
    got = run(gradient, directions=directions)
    assert np.array_equal(got[1], expected(gradient, 0, directions=directions)[1])


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("sketch", [None, Sketch(256, 2), Sketch(40, kind="rademacher")])
def test_half_precision_gradients_are_widened_exactly(dtype, sketch):
    bits = np.arange(2**16, dtype=np.uint32)
    if dtype == "bf16":
        wide = (bits << 16).view(np.float32)
    else:
        wide = bits.astype(np.uint16).view(np.float16).astype(np.float32)
    wide = wide[np.isfinite(wide)][3:]  # every number, subnormal ones too, with a ragged end
    one, other = (run(wide[None], sketch=sketch, dtype=kind) for kind in (dtype, "f32"))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))
    for bad in (np.inf, np.nan):
        assert not np.isfinite(run(np.full((1, 9), bad, np.float32), sketch=sketch, dtype=dtype)[0]).any()


@pytest.mark.parametrize("kind", PRECONDITIONERS)
@pytest.mark.parametrize(
    "sketch", [None, Sketch(256, 1), Sketch(512, 2), Sketch(256, 4), Sketch(40, kind="rademacher")]
)
@pytest.mark.parametrize("n_directions", [0, 13])
def test_neither_the_batch_nor_the_order_of_threads_decides_about_a_bit(kind, sketch, n_directions):
    rng = np.random.default_rng(3)
    size = 5003
    gradient, directions = normal(rng, 10, size) / 3, normal(rng, n_directions, size)
    what = {
        "preconditioner": Preconditioner(kind, step=1),
        "moments": (normal(rng, size), positive(rng, size)),
        "directions": directions,
        "sketch": sketch,
    }
    whole = run(gradient, 16, **what)
    turned_round = run(gradient, 16, **what, descending=True)
    alone = run(gradient[9:], 16, **what)
    pair = run(gradient[8:], 16, **what)
    for one, other in zip(whole, turned_round, strict=True):
        assert np.array_equal(one, other)
    for one, single, two in zip(whole, alone, pair, strict=True):
        assert np.array_equal(one[9:], single)
        assert np.array_equal(one[8:], two)


@pytest.mark.parametrize("kind", PRECONDITIONERS)
@pytest.mark.parametrize("size", [1, 7, 8, 133, 1029])
def test_what_lies_beside_a_segment_is_never_read(kind, size):
    rng = np.random.default_rng(1)
    for sketch in (None, Sketch(256, 2), Sketch(40, kind="rademacher")):
        for n_samples, margin in ((1, 8), (1, 3), (9, 8)):
            got = run(
                normal(rng, n_samples, size),
                8,
                preconditioner=Preconditioner(kind, step=1),
                moments=(normal(rng, size), positive(rng, size)),
                directions=normal(rng, 3, size),
                sketch=sketch,
                margin=margin,
            )
            assert all(np.isfinite(array).all() for array in got)


def test_segments_add_up_to_the_whole():
    rng = np.random.default_rng(4)
    gradient, directions = integers(rng, 3, 3001), integers(rng, 5, 3001)
    for sketch in (Sketch(256, 1), Sketch(256, 4), Sketch(33, kind="rademacher")):
        whole = run(gradient, 16, directions=directions, sketch=sketch)
        into = tuple(np.zeros_like(array) for array in whole)
        for begin, end in ((1104, 3001), (0, 1104)):
            here = slice(begin, end)
            run(
                gradient[:, here].copy(),
                16 + begin,
                directions=directions[:, here].copy(),
                sketch=sketch,
                into=into,
            )
        assert all(np.array_equal(one, other) for one, other in zip(whole, into, strict=True))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_an_empty_segment_adds_nothing(shape):
    got = run(
        np.zeros(shape, np.float32), sketch=Sketch(256, 1), directions=np.zeros((2, shape[1]), np.float32)
    )
    assert not any(array.any() for array in got)
    assert shim().simt_workspace_bytes(*shape, 0, 2, 256, 1) == 0


@pytest.mark.parametrize("dimension", [256, 8192])
@pytest.mark.parametrize("nonzeros", [0, 1, 2, 4])
@pytest.mark.parametrize(("size", "most"), [(460_800, 0.52), (4_194_304, 0.26), (134_217_728, 0.05)])
def test_partial_sums_are_few_beside_bf16_gradients(size, most, nonzeros, dimension):
    needed = shim().simt_workspace_bytes(8, size, 0, 0, dimension, nonzeros)
    assert needed < most * 8 * size * 2


def test_a_failed_launch_says_what_was_launched():
    shim().simt_fail()
    with pytest.raises(RuntimeError) as failed:
        run(np.zeros((2, 8), np.float32), sketch=Sketch(256, 1))
    assert str(failed.value) == (
        "launching the CUDA kernel sparse_sketch with 1 blocks of 128 x 1 threads failed for B=2, n=8, S=0, d=256: "
        "invalid configuration argument"
    )


def test_the_shim_shows_a_missing_barrier():
    def turned_round(begin, barrier, descending):
        numbers = np.arange(begin, begin + 64, dtype=np.int32)
        shim().simt_descending(descending)
        shim().simt_turn_round(ctypes.c_void_p(numbers.ctypes.data), barrier, 0)
        return numbers.tolist()

    for order in (False, True):
        assert turned_round(100, True, order) == list(range(163, 99, -1))
        assert turned_round(200, False, order) != list(range(263, 199, -1))


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path[:0] = ['tests', 'tests/kernels']; from test_cuda_shim import *\n" + code,
        ],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_shim_ends_where_threads_never_come_to_a_barrier():
    done = python(
        "numbers = np.zeros(64, np.int32); shim().simt_turn_round(ctypes.c_void_p(numbers.ctypes.data), 1, 1)",
        CLUSTERUCB_SIMT_LIBRARY=library_path(),
    )
    assert done.returncode < 0
    assert "threads wait at a barrier that others never come to" in done.stderr


def run_selection() -> None:
    """Run every kernel on arrays without a byte to spare, in both orders; the results are checked too."""
    rng = np.random.default_rng(5)
    for sketch in (None, Sketch(256, 1), Sketch(256, 2), Sketch(1024, 4), Sketch(40, kind="rademacher")):
        for dtype in DTYPES:
            for kind, n_samples, size, n_directions in (
                ("adam_less", 1, 1025, 0),
                ("adam", 9, 133, 9),
                ("second_moment", 2, 2600, 57),
                ("sgd", 8, 70, 1),
                ("sgd", 1, 5000, 20),
            ):
                what = {
                    "preconditioner": Preconditioner(kind, step=1),
                    "moments": (normal(rng, size), positive(rng, size)),
                    "directions": normal(rng, n_directions, size),
                    "sketch": sketch,
                }
                gradient = normal(rng, n_samples, size)
                got = run(gradient, 8, **what, dtype=dtype, descending=bool(size % 2))
                check_close(gradient, what, got)


def test_sanitizers_find_nothing(tmp_path):
    runtimes = []
    for name in ("libasan.so", "libubsan.so"):
        found = subprocess.run(
            ["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(found).is_absolute():
            pytest.skip(f"the compiler {shutil.which('c++')} comes without {name}")
        runtimes.append(found)
    library = tmp_path / "sanitized.so"
    build(library, *SANITIZED)
    environment = {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "CLUSTERUCB_SIMT_LIBRARY": str(library),
    }
    done = python("run_selection(); print('done')", **environment)
    assert done.stdout == "done\n", done.stderr[-3000:]
    assert "runtime error" not in done.stderr
    assert "ERROR: AddressSanitizer" not in done.stderr
