"""Arrays of any type, shape, layout and alignment for the compiled kernels, compared with their specification."""

from __future__ import annotations

from typing import Any

import numpy as np

from clusterucb.errors import OptionError
from clusterucb.kernels import ops, reference
from clusterucb.kernels.extension import core
from clusterucb.kernels.preconditioner import PRECONDITIONERS, Preconditioner
from clusterucb.kernels.projection import SKETCHES, Sketch
from whole.adversary.harnesses.choices import Choices
from whole.adversary.harnesses.judged import check, outcome

_DTYPES = (
    "float32",
    "float16",
    "float64",
    "int64",
    "uint8",
    "bool",
    "complex64",
    "U3",
    "object",
    ">f4",
    "V4",
)
_SIZES = (0, 1, 3, 7, 8, 9, 64, 511, 513, 1043)
_VALUES = (0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, float("inf"), float("nan"), 65504.0, -0.0)
_LARGEST = 1 << 16  # elements of an array that is filled


class _Capsules:
    """An array with DLPack's methods, which may claim another device."""

    def __init__(self, array: Any, device: tuple[Any, Any], broken: bool) -> None:
        self._array, self._device, self._broken = array, device, broken

    def __dlpack_device__(self) -> Any:
        """Return the device."""
        return self._device

    def __dlpack__(self, **options: Any) -> Any:
        """Return the array's capsule, or something else."""
        return 5 if self._broken else self._array.__dlpack__()


def _numbers(choices: Choices, shape: tuple[int, ...], dtype: str) -> Any:
    pattern = [choices.one_of(_VALUES) for _ in range(1 + choices.below(7))]
    with np.errstate(all="ignore"):
        return np.resize(np.array(pattern), shape).astype(dtype)


def _odd(choices: Choices, array: Any) -> Any:
    """Return an array that differs from a good one in one way; None for a way that numpy refuses."""
    try:
        return _other(choices, array)
    except (ValueError, TypeError, MemoryError):
        return None


def _other(choices: Choices, array: Any) -> Any:
    kind = choices.below(12)
    if kind == 0:
        return array[..., ::2]
    if kind == 1:
        return np.asfortranarray(array)
    if kind == 2:
        return np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    if kind == 3:
        array = array.copy()
        array.flags.writeable = False
        return array
    if kind == 4:
        return np.broadcast_to(np.zeros((), array.dtype), (1, 1 << (20 + choices.below(32))))
    if kind == 5:
        return array.reshape(-1)
    if kind == 6:
        return array[None]
    if kind == 7:
        return array.astype(choices.one_of(_DTYPES))
    if kind == 8:
        return choices.one_of((None, 5, "x", [1.0], b"", object()))
    if kind == 9:
        return array[:0]
    if kind == 10:
        device = (choices.one_of((1, 2, 3, 13, 10, -1, "x")), choices.one_of((0, 7, -1, None)))
        return _Capsules(array, device, choices.flag())
    return np.concatenate([array, array], axis=-1)


def _accumulate(choices: Choices) -> None:
    n_samples, size, n_directions = (choices.one_of(_SIZES[:6]), choices.one_of(_SIZES), choices.below(4))
    offset = choices.one_of((0, 8, 16, 64, 1, -8, 2**40, 2**63 - 8))
    total = size + (offset if 0 <= offset < 100 else 0) + choices.below(9)
    kind = choices.one_of(PRECONDITIONERS)
    preconditioner = Preconditioner(kind, step=1 + choices.below(9))
    sketch = None
    if choices.flag():
        kinds = choices.one_of(SKETCHES)
        sketch = Sketch(choices.one_of((256, 512, 2048)), choices.one_of((1, 2, 4)), choices.below(9), kinds)
    arrays: dict[str, Any] = {"gradient": _numbers(choices, (n_samples, size), choices.one_of(_DTYPES[:2]))}
    arrays["m"] = _numbers(choices, (total,), "float32")
    arrays["v"] = np.abs(_numbers(choices, (total,), "float32"))
    directions = _numbers(choices, (n_directions, total), "float32") if choices.flag() else None
    arrays |= {"directions": directions, "norm2": np.zeros(n_samples)}
    arrays["products"] = None if directions is None else np.zeros((n_samples, n_directions))
    arrays["sketched"] = None if sketch is None else np.zeros((n_samples, sketch.dimension), np.float32)
    good = True
    for _ in range(choices.below(3)):
        name = choices.one_of(list(arrays))
        if isinstance(arrays[name], np.ndarray):
            arrays[name], good = _odd(choices, arrays[name]), False
    threads = choices.one_of((1, 2, 0, -1, 1000))
    moments = None if kind == "sgd" else (arrays["m"], arrays["v"])
    given = {key: arrays[key] for key in ("norm2", "directions", "products", "sketched")}
    ops.accumulate(
        arrays["gradient"], offset, preconditioner=preconditioner, moments=moments, sketch=sketch,
        threads=threads, **given,
    )  # fmt: skip
    if good and offset < 2**62:  # the coordinates of the specification are signed
        _compare(arrays, offset, preconditioner, moments, sketch)


def _compare(
    arrays: dict[str, Any], offset: int, preconditioner: Preconditioner, moments: Any, sketch: Sketch | None
) -> None:
    """Check the results of good arrays against the specification, where its numbers are moderate."""
    got = {name: arrays[name] for name in ("norm2", "products", "sketched")}
    expected = {name: None if array is None else np.zeros_like(array) for name, array in got.items()}
    with np.errstate(all="ignore"):
        reference.accumulate(
            arrays["gradient"], offset, preconditioner=preconditioner, moments=moments,
            directions=arrays["directions"], sketch=sketch, **expected,
        )  # fmt: skip
        scale = np.sqrt(expected["norm2"])
        for name, array in got.items():
            if array is None:
                continue
            moderate = (scale < 1e15) & (scale > 1e-15) | (scale == 0)
            by = scale if name != "norm2" else expected["norm2"]
            by = by.reshape(-1, *[1] * (array.ndim - 1))
            directions = arrays["directions"]
            if name == "products":
                length = np.linalg.norm(directions.astype(np.float64), axis=1)
                moderate = moderate & np.isfinite(length).all() & (length < 1e15).all()
                by = by * length
            wrong = np.abs(array.astype(np.float64) - expected[name]) > 1e-4 * by
            check(
                not wrong[moderate].any(), f"{name} differs: {array[moderate]} for {expected[name][moderate]}"
            )


def _raw(choices: Choices) -> None:
    """Call the extension itself with odd arguments of every kind."""
    arrays = [_numbers(choices, (2, 64), "float32"), *(_numbers(choices, (64,), "float32") for _ in range(2))]
    arrays += [_numbers(choices, (1, 64), "float32"), np.zeros(2), np.zeros((2, 1))]
    sketched = np.zeros((2, 256), np.float32)
    offset: Any = choices.one_of((0, 8, -8, 2**62, 2**63 - 1, 2**64, 1.5, None))
    kind: Any = choices.one_of((0, 1, 2, 3, 4, -1, 2**31, "x"))
    constants: Any = choices.one_of(
        ((1.0, 0.0, 1.0, 1e-8), (1.0,), (), [float("nan")] * 4, (1e300,) * 4, None)
    )
    keys = [choices.below(1 << 17) for _ in range(choices.one_of((6, 12, 24, 0, 5)))]
    sketch: Any = (choices.one_of((256, 64, 0, -1, 128, 2**40, 2**63 - 1, 100)), choices.below(6), keys)
    if choices.flag():
        sketch = choices.one_of((None, 5, (), (256, 2, [-1] * 12)))
    threads: Any = choices.one_of((1, 2, 0, -5, 2**31 - 1, None))
    if choices.flag():
        at = choices.below(len(arrays))
        arrays[at] = _odd(choices, arrays[at])
    gradient, m, v, directions, norm2, products = arrays
    try:
        core().accumulate(
            gradient, offset, kind, constants, m, v, directions, sketch, norm2, products, sketched, threads
        )
    except (ValueError, TypeError, BufferError) as error:
        raise OptionError(str(error) or type(error).__name__) from error


def _products(choices: Choices) -> None:
    rows, dimension, targets = choices.one_of(_SIZES[:6]), choices.one_of(_SIZES), choices.below(4)
    sketches = _numbers(choices, (rows, dimension), choices.one_of(_DTYPES[:2]))
    directions = _numbers(choices, (targets, dimension), "float32")
    if choices.flag():
        directions = _odd(choices, directions)
    if not hasattr(directions, "__len__"):
        return
    got = ops.sketch_products(sketches, directions)
    check(got.dtype == np.float64, "products of another type")


def case(data: bytes) -> str:
    """Call the kernels with arrays that follow from bytes."""
    choices = Choices(data)
    use = (_accumulate, _accumulate, _raw, _products)[choices.below(4)]
    return outcome(lambda: use(choices))
