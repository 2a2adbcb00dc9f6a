"""The torch operators and the path for CUDA devices without kernels."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from clusterucb.errors import ClusterUCBWarning, OptionError
from clusterucb.kernels import cuda, ops, torch_ops  # noqa: F401  (the import registers the operators)
from clusterucb.kernels.preconditioner import PRECONDITIONERS, Preconditioner
from clusterucb.kernels.projection import Sketch

SIZE, TOTAL = 800, 1000


def tensors(samples=3, directions=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.empty(shape).normal_(generator=generator)

    gradient, moments = normal(samples, SIZE), (normal(TOTAL), normal(TOTAL).square() + 0.1)
    return gradient, *moments, normal(directions, TOTAL)


def arguments(kind="adam", sketch="sjlt"):
    gradient, m, v, directions = tensors()
    return (
        *(gradient, 96, kind, 0.9, 0.999, 1e-8, 5, m, v, directions, sketch, 256, 2, 7),
        *(torch.zeros(3, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 256)),
    )


def direct(kind="adam", sketch="sjlt"):
    gradient, m, v, directions = tensors()
    norm2, products, sketched = arguments()[-3:]
    ops.accumulate(
        gradient,
        96,
        preconditioner=Preconditioner(kind, step=5),
        norm2=norm2,
        moments=(m, v),
        directions=directions,
        products=products,
        sketch=Sketch(256, 2, 7, sketch),
        sketched=sketched,
    )
    return norm2, products, sketched


@pytest.mark.parametrize("kind", PRECONDITIONERS)
@pytest.mark.parametrize("sketch", ["sjlt", "rademacher"])
def test_the_operator_computes_what_the_function_does(kind, sketch):
    given = arguments(kind, sketch)
    torch.ops.clusterucb.accumulate(*given)
    assert all(torch.equal(one, other) for one, other in zip(given[-3:], direct(kind, sketch), strict=True))


def test_torch_finds_the_operators_well_formed():
    torch.library.opcheck(torch.ops.clusterucb.accumulate.default, arguments())
    norm2, products, _ = direct()
    torch.library.opcheck(torch.ops.clusterucb.scores.default, (norm2, products))


def test_a_compiled_function_gives_the_same_bits():
    def score(*given):
        torch.ops.clusterucb.accumulate(*given)
        return torch.ops.clusterucb.scores(given[-3], given[-2]) * 2

    compiled = torch.compile(score, backend="aot_eager", fullgraph=True)
    given = arguments()
    assert torch.equal(compiled(*given), score(*arguments()))
    assert torch.equal(given[-1], direct()[-1])


def test_scores_are_those_of_the_finishing_step():
    norm2, products, _ = direct()
    norm2[1] = 0
    scores = torch.ops.clusterucb.scores(norm2, products).numpy()
    assert np.allclose(scores, ops.finish(norm2, products), rtol=1e-14, equal_nan=True)
    assert np.isnan(scores[1]).all()


def test_wrong_tensors_are_refused_through_the_operator():
    given = list(arguments())
    given[0] = given[0].double()
    with pytest.raises(OptionError, match="gradient is float64"):
        torch.ops.clusterucb.accumulate(*given)


def test_nothing_is_registered_before_it_is_used():
    program = (
        "import torch, clusterucb.kernels.ops; assert not hasattr(torch.ops.clusterucb, 'accumulate');"
        "import clusterucb.kernels.torch_ops; assert torch.ops.clusterucb.accumulate"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("kind", PRECONDITIONERS)
def test_torch_s_operations_give_the_kernels_numbers(kind, monkeypatch):
    monkeypatch.setattr(cuda, "_CHUNK", 300)  # several, and a ragged one
    gradient, m, v, directions = tensors()
    chosen = Preconditioner(kind, step=5)
    norm2, products = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    cuda.with_torch([gradient, m, v, directions, norm2, products, None], 96, chosen)
    expected = direct(kind)
    assert torch.allclose(norm2.sqrt(), expected[0].sqrt(), rtol=1e-6)
    scale = expected[0].sqrt()[:, None] * directions.norm(dim=1).double()
    assert ((products - expected[1]).abs() <= 1e-6 * scale).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": 97 + TOTAL - SIZE}, "is not within the flat space"),
        ({"offset": -1}, "is not within the flat space"),
        ({"norm2": torch.zeros(1)}, r"norm2 is of shape \(1,\) on cpu; expected \(3,\) on cpu"),
        ({"m": torch.zeros(1)}, "moments m is of shape"),
        ({"gradient": torch.zeros(SIZE)}, "gradient is of shape"),
    ],
)
def test_torch_s_operations_refuse_arrays_that_do_not_fit(change, message):
    gradient, m, v, directions = tensors()
    norm2, products = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    given = {
        "gradient": gradient,
        "m": m,
        "v": v,
        "directions": directions,
        "norm2": norm2,
        "products": products,
    }
    given |= {"sketched": None, **change}
    offset = given.pop("offset", 96)
    with pytest.raises(OptionError, match=message):
        cuda.with_torch(list(given.values()), offset, Preconditioner("adam"))


@pytest.fixture
def without_kernels(monkeypatch):
    """Make an installation whose sources were built without CUDA."""
    monkeypatch.setitem(sys.modules, "clusterucb.kernels._cuda", None)
    cuda._kernels.cache_clear()
    yield
    cuda._kernels.cache_clear()


def test_a_device_without_kernels_is_told_once_and_cannot_sketch(without_kernels):
    gradient, m, v, directions = tensors()
    given = [gradient, m, v, directions, *(torch.zeros(3, dtype=torch.float64) for _ in range(2)), None]
    given[5] = torch.zeros(3, 4, dtype=torch.float64)
    chosen = Preconditioner("adam", step=5)
    with pytest.warns(ClusterUCBWarning, match="no CUDA kernels.*CLUSTERUCB_CUDA=ON"):
        cuda.accumulate(given, 96, chosen, None)
    with warnings.catch_warnings(action="error"):
        cuda.accumulate(given, 96, chosen, None)
    assert torch.allclose(given[4], 2 * direct()[0], rtol=1e-6)
    with pytest.raises(OptionError, match="cannot sketch on cpu: build clusterucb where nvcc is found"):
        cuda.accumulate([*given[:6], torch.zeros(3, 256)], 96, chosen, Sketch(256))


def test_products_of_stored_sketches_do_not_depend_on_the_other_rows():
    generator = np.random.default_rng(0)
    sketches = generator.normal(size=(37, 512)).astype(np.float16)
    targets = generator.normal(size=(5, 512)).astype(np.float32)
    products = ops.sketch_products(sketches, targets)
    assert np.allclose(
        products, sketches.astype(np.float64) @ targets.T.astype(np.float64), rtol=1e-4, atol=1e-4
    )
    alone = np.concatenate([ops.sketch_products(sketches[row : row + 1], targets) for row in range(37)])
    assert np.array_equal(products, alone)
    tensors = torch.from_numpy(sketches), torch.from_numpy(targets)
    assert np.array_equal(ops.sketch_products(*tensors), products)
