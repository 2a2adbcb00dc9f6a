"""The compiled extensions: how they are loaded, checked and called.

An extension that is missing or wrong is an error with its remedy. There is no substitute: it would be slower by orders
of magnitude, or give other numbers.
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
    """Return the extension for the CPU, after it has reproduced a known result."""
    try:
        module = import_module("clusterucb.kernels._core")
    except ImportError as error:
        raise ClusterUCBError(
            f"the compiled extension cannot be loaded ({error}); install clusterucb again with a C++ compiler at "
            "hand (pip install --force-reinstall --no-deps clusterucb, or make setup in its sources)"
        ) from error
    try:
        module.simd()
    except ValueError as error:
        raise OptionError(str(error)) from error
    self_test(lambda *arguments: call(module, *arguments, 1), module.simd())
    return module


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
