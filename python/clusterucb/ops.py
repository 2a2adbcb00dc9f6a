"""The one door to the compiled kernels.

Shapes and dtypes are checked here, once, in the user's words. There is no other path behind this
door: a missing or wrong extension is an error with its remedy, because numbers of a substitute would
be slower by orders of magnitude, or other numbers.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clusterucb import reference
from clusterucb.errors import ClusterUCBError, OptionError
from clusterucb.preconditioner import PRECONDITIONERS, Preconditioner

if TYPE_CHECKING:
    import torch


def accumulate(
    gradient: NDArray[np.float32] | torch.Tensor,
    offset: int,
    *,
    preconditioner: Preconditioner,
    moments: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    directions: NDArray[np.float32],
    norm2: NDArray[np.float64],
    products: NDArray[np.float64],
) -> None:
    """Precondition one segment of the gradients, and add its squared norms and inner products.

    One pass over memory: the update directions are never stored. All arrays are contiguous; sums are in
    fp32 within blocks of 1024 elements and in double precision over blocks.

    Args:
        gradient: f32[B, n], gradients of B samples by the parameters [offset, offset + n) of the flat space;
            an array or a tensor on the CPU.
        offset: where the segment begins.
        preconditioner: what turns a gradient into an update direction (`clusterucb.reference`).
        moments: (m, v), each f32[P]; None for ``sgd``.
        directions: f32[S, P].
        norm2: f64[B]; the squared norm of the segment's update directions is added.
        products: f64[B, S]; their inner products with the directions are added.

    Raises:
        OptionError: an array has a wrong dtype, shape or layout.
        ClusterUCBError: the compiled extension is missing or gives wrong results.
    """
    core = _core()
    given = np.asarray(gradient)
    size = directions.shape[1] if directions.ndim == 2 else 0
    n_samples, n_directions = given.shape[0] if given.ndim else 0, directions.shape[0]
    m, v = moments if moments is not None else (None, None)
    _check("gradient", given, np.float32, ("B", "n"), (n_samples, given.shape[-1] if given.ndim else 0))
    _check("directions", directions, np.float32, ("S", "P"), (n_directions, size))
    _check("norm2", norm2, np.float64, ("B",), (n_samples,))
    _check("products", products, np.float64, ("B", "S"), (n_samples, n_directions))
    if not 0 <= offset <= size - given.shape[1]:
        raise OptionError(
            f"the segment [{offset}, {offset + given.shape[1]}) is not within the directions; expected 0 to {size}"
        )
    if preconditioner.kind != "sgd":
        if m is None or v is None:
            raise OptionError(f"moments are None; expected (m, v) for preconditioner {preconditioner.kind}")
        _check("moments m", m, np.float32, ("P",), (size,))
        _check("moments v", v, np.float32, ("P",), (size,))
    _call(core, given, offset, preconditioner, m, v, directions, norm2, products)


def simd() -> str:
    """Name the kernels in use: ``avx2`` or ``generic`` (set CLUSTERUCB_SIMD to force one)."""
    return str(_core().simd())


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
    _self_test(core)
    return core


def _self_test(core: ModuleType) -> None:
    """Compare the kernels with the specification: exactly for integers, closely for the Adam formulas."""
    rows, size, offset = 3, 1043, 5  # a whole block and a ragged end, off alignment
    numbers = np.arange(rows * size, dtype=np.float32).reshape(rows, size) % 7 - 3
    directions = (np.arange(2 * (size + 16), dtype=np.float32).reshape(2, -1) * 5 % 11) - 5
    m, v = directions[0] * np.float32(0.01), directions[1] ** 2 + 1
    length = np.linalg.norm(directions)
    for kind in PRECONDITIONERS:
        chosen = Preconditioner(kind, step=3)
        got, expected = ((np.zeros(rows), np.zeros((rows, 2))) for _ in range(2))
        _call(core, numbers, offset, chosen, m, v, directions, *got)
        reference.accumulate(
            numbers,
            offset,
            preconditioner=chosen,
            moments=(m, v),
            directions=directions,
            norm2=expected[0],
            products=expected[1],
        )
        scale = np.sqrt(expected[0])
        worst = max(
            np.abs(got[0] / expected[0] - 1).max(),
            (np.abs(got[1] - expected[1]) / scale[:, None]).max() / length,
        )
        tolerance = 0 if kind == "sgd" else 1e-6
        if not worst <= tolerance:
            raise ClusterUCBError(
                f"the compiled extension ({core.simd()}) fails its self-test for {kind}: relative error {worst:.3g}, "
                f"expected at most {tolerance:.3g}. Build it anew on this machine; CLUSTERUCB_SIMD=generic avoids "
                "vector kernels"
            )


def _call(
    core: ModuleType,
    gradient: NDArray[np.float32],
    offset: int,
    preconditioner: Preconditioner,
    m: NDArray[np.float32] | None,
    v: NDArray[np.float32] | None,
    directions: NDArray[np.float32],
    norm2: NDArray[np.float64],
    products: NDArray[np.float64],
) -> None:
    kind = PRECONDITIONERS.index(preconditioner.kind)
    core.accumulate(gradient, offset, kind, preconditioner.constants(), m, v, directions, norm2, products)


def _check(
    name: str, array: NDArray[np.generic], dtype: type, axes: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        layout = "contiguous" if array.flags.c_contiguous else "not contiguous"
        sizes = ", ".join(f"{axis}={size}" for axis, size in zip(axes, shape, strict=True))
        raise OptionError(
            f"{name} is {array.dtype} of shape {array.shape}, {layout}; expected contiguous "
            f"{np.dtype(dtype).name} of shape [{sizes}]"
        )
