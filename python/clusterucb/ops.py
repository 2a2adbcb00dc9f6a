"""The one door to the compiled kernels.

There is no other path behind this door: a missing or wrong extension is an error with its remedy,
because numbers of a substitute would be slower by orders of magnitude, or other numbers.

Arrays are numpy's, torch's or of anything that speaks DLPack; nothing is copied. Their dtype, shape,
layout and device are checked once, by the extension, before anything is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clusterucb import reference
from clusterucb.errors import ClusterUCBError, OptionError
from clusterucb.preconditioner import PRECONDITIONERS, Preconditioner
from clusterucb.projection import Sketch

if TYPE_CHECKING:
    import torch

    Array = NDArray[Any] | torch.Tensor


_CUDA = (2, 13)  # DLPack's device types: CUDA's memory, and what it manages


def accumulate(
    gradient: Array,
    offset: int,
    *,
    preconditioner: Preconditioner,
    norm2: Array,
    moments: tuple[Array, Array] | None = None,
    directions: Array | None = None,
    products: Array | None = None,
    sketch: Sketch | None = None,
    sketched: Array | None = None,
    threads: int | None = None,
) -> None:
    """Precondition one segment of the gradients; add its squared norms, inner products and sketches.

    One pass over memory: the update directions are never stored. All arrays are contiguous and on one
    device. Sums are in fp32 within blocks of at most 512 elements and in double precision over blocks; a
    sketch's are in fp32. A sample's numbers depend neither on who shares its batch nor on ``threads``.

    Args:
        gradient: f32, bf16 or f16 [B, n], gradients of B samples by the parameters [offset, offset + n) of
            the flat space.
        offset: where the segment begins; a multiple of 8 where there is a sketch.
        preconditioner: what turns a gradient into an update direction (`clusterucb.reference`).
        norm2: f64[B]; the squared norm of the segment's update directions is added.
        moments: (m, v), each f32[P]; None for ``sgd``.
        directions: f32[S, P]; or None for no inner products.
        products: f64[B, S]; the inner products with the directions are added.
        sketch: the projection; or None for none.
        sketched: f32[B, d]; the sketches are added, without the sketch's scale (`finish_sketches`).
        threads: at most as many; by default those that torch may use, or all of the process.

    Raises:
        OptionError: an array has a wrong dtype, shape, layout or device, or belongs to something that is None.
        ClusterUCBError: the compiled extension is missing or gives wrong results.
    """
    for name, one, other in (("directions", directions, products), ("sketch", sketch, sketched)):
        if (one is None) != (other is None):
            of = "products" if name == "directions" else "sketched"
            missing, given = (name, of) if one is None else (of, name)
            raise OptionError(f"{missing} is None but {given} is given; expected both or neither")
    if preconditioner.kind != "sgd" and moments is None:
        raise OptionError(f"moments are None; expected (m, v) for preconditioner {preconditioner.kind}")
    m, v = moments if moments is not None else (None, None)
    arrays = [_plain(array) for array in (gradient, m, v, directions, norm2, products, sketched)]
    if _on_cuda(gradient):
        from clusterucb import cuda

        cuda.accumulate(arrays, offset, preconditioner, sketch)
    else:
        call(_core(), arrays, offset, preconditioner, sketch, threads or default_threads())


def finish(norm2: Array, products: Array) -> NDArray[np.float64]:
    """Return the scores ⟨Γ, V_s⟩ / ‖Γ‖ of accumulated samples.

    Args:
        norm2: f64[B], squared norms.
        products: f64[B, S], inner products.

    Returns:
        f64[B, S]; NaN where a norm is zero or not finite.
    """
    return np.asarray(_on_cpu(products)) * _reciprocal_norms(norm2)[:, None]


def finish_sketches(norm2: Array, sketched: Array, sketch: Sketch) -> NDArray[np.float32]:
    """Return the sketches f32[B, d] of accumulated samples' unit updates Γ / ‖Γ‖.

    Their inner products estimate cosines. A row is NaN where the norm is zero or not finite.

    Args:
        norm2: f64[B], squared norms of the updates themselves.
        sketched: f32[B, d], as `accumulate` leaves them.
        sketch: what they were sketched by.
    """
    scale = _reciprocal_norms(norm2) * sketch.scale
    return (np.asarray(_on_cpu(sketched)) * scale[:, None]).astype(np.float32)


def sketch_products(sketches: Array, targets: Array) -> NDArray[np.float64]:
    """Return the inner products f64[N, S] of stored sketches with target sketches.

    A row's numbers do not depend on the other rows.

    Args:
        sketches: f32, bf16 or f16 [N, d], on one device with
        targets: f32[S, d].
    """
    sgd, n_rows, n_targets = Preconditioner("sgd"), len(sketches), len(targets)
    norm2, products = zeros_beside(sketches, n_rows), zeros_beside(sketches, n_rows, n_targets)
    accumulate(sketches, 0, preconditioner=sgd, norm2=norm2, directions=targets, products=products)
    return np.asarray(_on_cpu(products))


def zeros_beside(array: Array, *shape: int) -> Any:
    """Return zeros f64[shape], a tensor on an array's device where it is a tensor."""
    if isinstance(array, np.ndarray):
        return np.zeros(shape)
    import torch

    return torch.zeros(shape, dtype=torch.float64, device=array.device)


def default_threads() -> int:
    """Return the number of threads that torch may use where it is imported, else those of this process.

    A kernel runs while torch waits for it, so both together never use more.
    """
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch else len(os.sched_getaffinity(0))


def simd() -> str:
    """Name the kernels in use: ``avx512``, ``avx2`` or ``generic`` (set CLUSTERUCB_SIMD to force one)."""
    return str(_core().simd())


def _plain(array: Any) -> Any:
    """Return a tensor without its graph, which cannot cross the border; anything else as it is."""
    return array.detach() if getattr(array, "requires_grad", False) else array


def _on_cuda(array: Any) -> bool:
    if hasattr(array, "is_cuda"):  # a tensor, also one on a device that DLPack does not know
        return bool(array.is_cuda)
    return hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] in _CUDA


def _on_cpu(array: Array) -> Any:
    return array if isinstance(array, np.ndarray) else _plain(array).cpu()


def _reciprocal_norms(norm2: Array) -> NDArray[np.float64]:
    squares = np.asarray(_on_cpu(norm2), np.float64)
    good = np.isfinite(squares) & (squares > 0)
    return np.where(good, 1 / np.sqrt(np.where(good, squares, 1)), np.nan)


@cache
def _core() -> ModuleType:
    """Return the extension, after it has reproduced a known result."""
    try:
        from clusterucb import _core as core
    except ImportError as error:
        raise ClusterUCBError(
            f"the compiled extension cannot be loaded ({error}); install clusterucb again with a C++ compiler at "
            "hand (pip install --force-reinstall --no-deps clusterucb, or make setup in its sources)"
        ) from error
    try:
        core.simd()
    except ValueError as error:
        raise OptionError(str(error)) from error
    self_test(lambda *arguments: call(core, *arguments, 1), core.simd())
    return core


def self_test(call: Callable[..., None], name: str) -> None:
    """Compare kernels with the specification: exactly for integers, closely for the Adam formulas.

    Args:
        call: takes [gradient, m, v, directions, norm2, products, sketched], offset, preconditioner and sketch.
        name: of the kernels, for the message.

    Raises:
        ClusterUCBError: they differ.
    """
    rows, size, offset = 3, 1043, 8  # more than a block and a ragged end
    numbers = np.arange(rows * size, dtype=np.float32).reshape(rows, size) % 7 - 3
    directions = (np.arange(2 * (size + 16), dtype=np.float32).reshape(2, -1) * 5 % 11) - 5
    m, v = directions[0] * np.float32(0.01), directions[1] ** 2 + 1
    length = np.linalg.norm(directions)
    for kind in PRECONDITIONERS:
        chosen = Preconditioner(kind, step=3)
        sketch = Sketch(256, nonzeros=2, seed=7)
        got, expected = (
            (np.zeros(rows), np.zeros((rows, 2)), np.zeros((rows, 256), np.float32)) for _ in range(2)
        )
        call([numbers, m, v, directions, *got], offset, chosen, sketch)
        reference.accumulate(
            numbers,
            offset,
            preconditioner=chosen,
            moments=(m, v),
            directions=directions,
            norm2=expected[0],
            products=expected[1],
            sketch=sketch,
            sketched=expected[2],
        )
        scale = np.sqrt(expected[0])
        worst = max(
            np.abs(got[0] / expected[0] - 1).max(),
            (np.abs(got[1] - expected[1]) / scale[:, None]).max() / length,
            (np.abs(got[2] - expected[2]) / scale[:, None]).max(),
        )
        tolerance = 0 if kind == "sgd" else 1e-6
        if not worst <= tolerance:
            raise ClusterUCBError(
                f"the compiled extension ({name}) fails its self-test for {kind}: relative error {worst:.3g}, "
                f"expected at most {tolerance:.3g}. Build it anew on this machine; CLUSTERUCB_SIMD=generic avoids "
                "vector kernels"
            )


@lru_cache(maxsize=16)
def sketch_argument(sketch: Sketch | None) -> tuple[int, int, list[int]] | None:
    """Return what the extensions take for a sketch."""
    return (sketch.dimension, sketch.blocks, sketch.keys()) if sketch else None


def call(
    module: Any,
    arrays: list[Any],
    offset: int,
    preconditioner: Preconditioner,
    sketch: Sketch | None,
    *last: object,
) -> None:
    """Call an extension with [gradient, m, v, directions, norm2, products, sketched] and its last arguments."""
    gradient, m, v, directions, norm2, products, sketched = arrays
    kind = PRECONDITIONERS.index(preconditioner.kind)
    outputs = norm2, products, sketched
    key = sketch_argument(sketch)
    try:
        module.accumulate(
            gradient, offset, kind, preconditioner.constants(), m, v, directions, key, *outputs, *last
        )
    except (ValueError, BufferError) as error:
        raise OptionError(str(error)) from error
