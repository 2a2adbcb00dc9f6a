"""Load, check and call the compiled extensions.

A missing or wrong extension is an error that says how to repair it. There is no substitute: it would be slower by
orders of magnitude, or give different numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from clusterucb.errors import ClusterUCBError, OptionError
from clusterucb.kernels import reference
from clusterucb.kernels.preconditioner import PRECONDITIONERS, Preconditioner
from clusterucb.kernels.projection import Sketch


@cache
def core() -> ModuleType:
    """Return the extension for the CPU, after it has passed the self-test.

    Raises:
        ClusterUCBError: the extension is missing, or fails the self-test.
        OptionError: CLUSTERUCB_SIMD asks for kernels that do not exist or that this CPU cannot run.
    """
    try:
        module = import_module("clusterucb.kernels._core")
    except ImportError as error:
        raise ClusterUCBError(
            f"the compiled extension cannot be loaded ({error}); reinstall clusterucb on a machine with a C++ "
            "compiler (pip install --force-reinstall --no-deps clusterucb, or make setup in its sources)"
        ) from error
    try:
        module.simd()
    except ValueError as error:
        raise OptionError(str(error)) from error
    self_test(lambda *arguments: call(module, *arguments, 1), module.simd())
    return module


def self_test(call: Callable[..., None], name: str) -> None:
    """Compare kernels with the specification: exactly for ``sgd`` on integers, closely for the other formulas.

    Args:
        call: runs the kernels; takes [gradient, m, v, directions, norm2, products, sketched], offset,
            preconditioner and sketch.
        name: the kernels' name, for the message.

    Raises:
        ClusterUCBError: the results differ.
    """
    rows, size, offset = 3, 1043, 8  # the size is more than one block and leaves a ragged end
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
                f"expected at most {tolerance:.3g}. Rebuild it on this machine, or set CLUSTERUCB_SIMD=generic to "
                "avoid vector kernels"
            )


@lru_cache(maxsize=16)
def sketch_argument(sketch: Sketch | None) -> tuple[int, int, list[int]] | None:
    """Return a sketch as the extensions take it: dimension, number of blocks and keys; None for no sketch."""
    return (sketch.dimension, sketch.blocks, sketch.keys()) if sketch else None


def call(
    module: Any,
    arrays: list[Any],
    offset: int,
    preconditioner: Preconditioner,
    sketch: Sketch | None,
    *last: object,
) -> None:
    """Call an extension's ``accumulate``.

    Args:
        module: the extension.
        arrays: [gradient, m, v, directions, norm2, products, sketched].
        offset: where the segment begins in the flat space.
        preconditioner: turns a gradient into an update direction.
        sketch: the projection; None computes no sketches.
        *last: the arguments that only this extension takes: threads for the CPU, workspace and stream for CUDA.

    Raises:
        OptionError: an array has a wrong dtype, shape, layout or device.
    """
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
