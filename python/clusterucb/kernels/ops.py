"""The one door to the compiled kernels.

There is no other path behind this door: a missing or wrong extension is an error with its remedy,
because numbers of a substitute would be slower by orders of magnitude, or other numbers.

Arrays are numpy's, torch's or of anything that speaks DLPack; nothing is copied. Their dtype, shape,
layout and device are checked once, by the extension, before anything is written.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import OptionError
from clusterucb.kernels import extension
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch

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
        preconditioner: what turns a gradient into an update direction (`clusterucb.kernels.reference`).
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
        from clusterucb.kernels import cuda

        cuda.accumulate(arrays, offset, preconditioner, sketch)
    else:
        extension.call(extension.core(), arrays, offset, preconditioner, sketch, threads or default_threads())


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
    return str(extension.core().simd())


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
