"""Call the compiled kernels; no other module does.

There is no second implementation behind this door. A missing or wrong extension is an error that says how to repair
it, because a substitute would be slower by orders of magnitude, or give different numbers.

Arrays may come from numpy, torch or any library that speaks DLPack; nothing is copied. The extension checks their
dtype, shape, layout and device once, before it writes anything.
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


_CUDA = (2, 13)  # DLPack's device types for CUDA memory and CUDA managed memory


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

    The kernels read memory once and never store the update directions. All arrays are contiguous and on one device.
    Norms and inner products are summed in fp32 within blocks of at most 512 elements, and in double precision over
    blocks; sketches are summed in fp32. A sample's numbers depend neither on the other samples of its batch nor on
    ``threads``.

    Args:
        gradient: f32, bf16 or f16 [B, n], the gradients of B samples with respect to the parameters
            [offset, offset + n) of the flat space.
        offset: where the segment begins; a multiple of 8 if there is a sketch.
        preconditioner: turns a gradient into an update direction (`clusterucb.kernels.reference`).
        norm2: f64[B]; the squared norms of the segment's update directions are added to it.
        moments: (m, v), each f32[P]; None for ``sgd``.
        directions: f32[S, P]; None computes no inner products.
        products: f64[B, S]; the inner products with the directions are added to it.
        sketch: the projection; None computes no sketches.
        sketched: f32[B, d]; the sketches are added to it, without the sketch's scale (`finish_sketches`).
        threads: the largest number of threads; by default as many as torch may use, or one for each CPU of this
            process.

    Raises:
        OptionError: an array has a wrong dtype, shape, layout or device; one of ``directions`` and ``products``, or
            of ``sketch`` and ``sketched``, is None while the other is given; or the moments are missing.
        ClusterUCBError: the compiled extension is missing or gives wrong results.
    """
    for name, given, output in (("directions", directions, products), ("sketch", sketch, sketched)):
        if (given is None) != (output is None):
            output_name = "products" if name == "directions" else "sketched"
            missing, present = (name, output_name) if given is None else (output_name, name)
            raise OptionError(f"{missing} is None but {present} is given; expected both or neither")
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
        norm2: f64[B], the squared norms.
        products: f64[B, S], the inner products.

    Returns:
        f64[B, S]; NaN where a norm is zero or not finite.
    """
    return np.asarray(_on_cpu(products)) * _reciprocal_norms(norm2)[:, None]


def finish_sketches(norm2: Array, sketched: Array, sketch: Sketch) -> NDArray[np.float32]:
    """Return the sketches f32[B, d] of accumulated samples' unit updates Γ / ‖Γ‖.

    Inner products of these sketches estimate cosines. A row is NaN where the norm is zero or not finite.

    Args:
        norm2: f64[B], the squared norms of the updates, not of their sketches.
        sketched: f32[B, d], the sketches as `accumulate` leaves them.
        sketch: the projection that made the sketches.
    """
    scale = _reciprocal_norms(norm2) * sketch.scale
    return (np.asarray(_on_cpu(sketched)) * scale[:, None]).astype(np.float32)


def sketch_products(sketches: Array, targets: Array) -> NDArray[np.float64]:
    """Return the inner products f64[N, S] of stored sketches with target sketches.

    A row's numbers do not depend on the other rows.

    Args:
        sketches: f32, bf16 or f16 [N, d], the stored sketches.
        targets: f32[S, d], the target sketches, on the same device.
    """
    sgd, n_rows, n_targets = Preconditioner("sgd"), len(sketches), len(targets)
    norm2, products = zeros_beside(sketches, n_rows), zeros_beside(sketches, n_rows, n_targets)
    accumulate(sketches, 0, preconditioner=sgd, norm2=norm2, directions=targets, products=products)
    return np.asarray(_on_cpu(products))


def zeros_beside(array: Array, *shape: int) -> Any:
    """Return zeros f64[shape]: a numpy array beside a numpy array, a tensor on the same device beside a tensor."""
    if isinstance(array, np.ndarray):
        return np.zeros(shape)
    import torch

    return torch.zeros(shape, dtype=torch.float64, device=array.device)


def default_threads() -> int:
    """Return the number of threads that torch may use, or the number of this process's CPUs if torch is not imported.

    A kernel runs while torch waits for it, so both together never use more threads than that.
    """
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch else len(os.sched_getaffinity(0))


def simd() -> str:
    """Return the name of the kernels in use: ``avx512``, ``avx2`` or ``generic`` (CLUSTERUCB_SIMD forces one)."""
    return str(extension.core().simd())


def _plain(array: Any) -> Any:
    """Return a tensor without its graph, since DLPack refuses tensors that require a gradient; leave others as is."""
    return array.detach() if getattr(array, "requires_grad", False) else array


def _on_cuda(array: Any) -> bool:
    if hasattr(array, "is_cuda"):  # a tensor, perhaps on a device that DLPack does not know
        return bool(array.is_cuda)
    return hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] in _CUDA


def _on_cpu(array: Array) -> Any:
    return array if isinstance(array, np.ndarray) else _plain(array).cpu()


def _reciprocal_norms(norm2: Array) -> NDArray[np.float64]:
    squares = np.asarray(_on_cpu(norm2), np.float64)
    good = np.isfinite(squares) & (squares > 0)
    return np.where(good, 1 / np.sqrt(np.where(good, squares, 1)), np.nan)
