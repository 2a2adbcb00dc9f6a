"""Run `clusterucb.kernels.ops.accumulate` on a CUDA device.

The extension ``_cuda`` launches its kernels on the caller's stream. The workspace for their partial sums comes
from torch's allocator, so the extension neither waits nor allocates memory.

An installation without ``_cuda`` (its sources were built without CUDA) computes norms and exact inner products
with torch's operations, and warns once. The numbers are the same up to rounding. Such an installation refuses to
sketch, because torch has no operation that gives the same matrix at an acceptable cost.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from clusterucb.errors import ClusterUCBError, OptionError, warn
from clusterucb.kernels import extension, reference
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch
from clusterucb.wording import one_line

_CHUNK = (
    1 << 18
)  # elements that torch's operations take at a time, so that their temporary tensors stay small
_REMEDY = (
    "build clusterucb where nvcc is found, with CLUSTERUCB_CUDA=ON (pip install --no-binary clusterucb ...)"
)


def accumulate(arrays: list[Any], offset: int, preconditioner: Preconditioner, sketch: Sketch | None) -> None:
    """Do the work of `clusterucb.kernels.ops.accumulate` on a CUDA device.

    Args:
        arrays: [gradient, m, v, directions, norm2, products, sketched].
        offset: where the segment begins in the flat space.
        preconditioner: turns a gradient into an update direction.
        sketch: the projection; None computes no sketches.

    Raises:
        OptionError: an array has a wrong dtype, shape, layout or device, or there is a sketch but no ``_cuda``.
        ClusterUCBError: the kernels cannot run on this device, or give wrong results.
    """
    tensors: list[Any] = list(map(_tensor, arrays))
    device: torch.device = tensors[0].device
    module = _kernels()
    if module:
        _checked(module, device)
        _launch(module, tensors, offset, preconditioner, sketch)
    elif sketch:
        raise OptionError(f"this installation cannot sketch on {device}: {_REMEDY}, or use --device cpu")
    else:
        with_torch(tensors, offset, preconditioner)


def _tensor(array: Any) -> Tensor | None:
    """Return an array as a tensor, without copying it.

    Raises:
        OptionError: it does not give its memory to torch.
    """
    if array is None or isinstance(array, Tensor):
        return array
    try:
        return from_dlpack(array)
    except Exception as error:  # the array's own code runs, and torch's asserts what it was built for
        raise OptionError(
            f"an array of type {type(array).__name__} cannot be used on a CUDA device ({one_line(error):.200}); "
            "expected a tensor of torch, or an array with __dlpack__"
        ) from error


def with_torch(tensors: list[Any], offset: int, preconditioner: Preconditioner) -> None:
    """Accumulate norms and inner products with torch's operations, on any device.

    Raises:
        OptionError: an array has a wrong shape or device.
    """
    gradient, m, v, directions, norm2, products, _ = tensors
    _check_shapes(tensors, offset)
    for begin in range(0, gradient.shape[1], _CHUNK):
        end = min(begin + _CHUNK, gradient.shape[1])
        here = slice(offset + begin, offset + end)
        first, second = (None, None) if m is None else (m[here], v[here])
        update = reference.precondition(gradient[:, begin:end].float(), first, second, preconditioner)
        norm2 += update.square().sum(dim=1, dtype=torch.float64)
        if directions is not None:
            products += (update @ directions[:, here].T).double()


def _check_shapes(tensors: list[Any], offset: int) -> None:
    """Check shapes and devices as the extension does, since torch would broadcast or cut the arrays.

    Raises:
        OptionError: an array has a wrong shape or device, or the segment is not within the flat space.
    """
    gradient, m, v, directions, norm2, products, _ = tensors
    if gradient.dim() != 2:
        raise OptionError(f"gradient is of shape {tuple(gradient.shape)}; expected [B, n]")
    samples, size = gradient.shape
    total = next(
        (array.shape[-1] for array in (directions, m) if array is not None and array.dim()), offset + size
    )
    n_directions = 0 if directions is None else len(directions)
    expected = {
        "moments m": (m, (total,)),
        "moments v": (v, (total,)),
        "directions": (directions, (n_directions, total)),
        "norm2": (norm2, (samples,)),
        "products": (products, (samples, n_directions)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and (tuple(array.shape) != shape or array.device != gradient.device):
            raise OptionError(
                f"{name} is of shape {tuple(array.shape)} on {array.device}; expected {shape} on {gradient.device}"
            )
    if not 0 <= offset <= total - size:
        raise OptionError(f"the segment [{offset}, {offset + size}) is not within the flat space of {total}")


@cache
def _kernels() -> ModuleType | None:
    """Return the extension ``_cuda``, or warn once and return None if it was not built."""
    try:
        module = import_module("clusterucb.kernels._cuda")
    except ModuleNotFoundError:
        warn(
            "this installation has no CUDA kernels: scores are computed with torch's operations, which read memory "
            f"several times. To get the kernels, {_REMEDY}"
        )
        return None
    except ImportError as error:
        raise ClusterUCBError(f"the CUDA extension cannot be loaded ({error}): {_REMEDY}") from error
    return module


@cache
def _checked(module: Any, device: torch.device) -> None:
    """Run the self-test once on each device."""

    def call(arrays: list[Any], offset: int, preconditioner: Preconditioner, sketch: Sketch | None) -> None:
        tensors = [torch.from_numpy(array).to(device) for array in arrays]
        _launch(module, tensors, offset, preconditioner, sketch)
        for array, tensor in zip(arrays[4:], tensors[4:], strict=True):
            array[...] = tensor.cpu().numpy()

    extension.self_test(call, f"_cuda on {torch.cuda.get_device_name(device)}")


def _launch(
    module: Any, tensors: list[Any], offset: int, preconditioner: Preconditioner, sketch: Sketch | None
) -> None:
    gradient, *_, directions, _, _, _ = tensors
    samples, size = gradient.shape if gradient.dim() == 2 else (0, 0)
    n_directions = 0 if directions is None else len(directions)
    needed = module.workspace_bytes(samples, size, offset, n_directions, extension.sketch_argument(sketch))
    workspace = torch.empty(needed, dtype=torch.uint8, device=gradient.device)
    stream = torch.cuda.current_stream(gradient.device).cuda_stream
    extension.call(module, tensors, offset, preconditioner, sketch, workspace, stream)
