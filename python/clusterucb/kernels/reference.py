"""Specify the compute core in numpy; the compiled kernels are tested against this module.

Let g be a sample's gradient, and m and v the checkpoint's Adam moments after t steps. With
m' = beta1 m + (1 - beta1) g and v' = beta2 v + (1 - beta2) g², the preconditioners are:

    adam_less       m' / sqrt(v' + eps)                      as LESS and ClusterUCB ran it: eps inside the root,
                                                             no bias correction
    adam            (m' / (1 - beta1^(t+1))) / (sqrt(v' / (1 - beta2^(t+1))) + eps)      the optimiser's true next
                                                             direction, without weight decay
    second_moment   g / (sqrt(v / (1 - beta2^t)) + eps)
    sgd             g

Each describes a sample differently: scores of two preconditioners cannot be compared. The code divides numerator and
denominator of the Adam formulas by the root of the factor of g² (`Constants`).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch

Array: TypeAlias = Any  # numpy's or torch's: code that uses operators alone serves both


def precondition(gradient: Array, m: Array | None, v: Array | None, preconditioner: Preconditioner) -> Array:
    """Return the update direction, element by element, in the precision of ``gradient``.

    Args:
        gradient: [B, n], or any shape that ``m`` and ``v`` broadcast to; an array of numpy or a tensor of torch.
        m, v: [n], the moments; None for ``sgd``.
        preconditioner: the formula and its settings.

    Returns:
        An array of the shape of ``gradient``.
    """
    c = preconditioner.constants()
    if m is None or v is None or preconditioner.kind == "sgd":
        return gradient
    if preconditioner.kind == "second_moment":
        return gradient / ((c.from_v * v) ** 0.5 + c.eps)
    first, second = c.first * gradient + c.from_m * m, gradient * gradient + c.from_v * v
    if preconditioner.kind == "adam_less":
        return first / (second + c.eps) ** 0.5
    return first / (second**0.5 + c.eps)


def keyed_hash(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Return 32 random bits for every counter u64[...] and a key of two 32-bit words.

    The hash mixes in two rounds and adds a word of the key before each. The multipliers are those of Wellons' hash
    functions lowbias32 and triple32. All multiplications have 32 bits, because AVX2 and GPUs have those.
    """
    low, high = counter.astype(np.uint32), (counter >> np.uint64(32)).astype(np.uint32)
    x = low ^ np.uint32(key[0])
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(multiplier)
    x = (x ^ (x >> np.uint32(16))) + (high * np.uint32(0x9E3779B9) + np.uint32(key[1]))
    for shift, multiplier in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(multiplier)
    mixed: NDArray[np.uint32] = x ^ (x >> np.uint32(14))
    return mixed


def sparse_columns(
    sketch: Sketch, coordinates: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Return the positions and signs of a sparse matrix's nonzeros, without their scale.

    A block has width w = d / s. Coordinate i stands in row r = i // w, at position j = i % w of that row. An octet of
    coordinates goes to an octet of buckets: j // 8 goes to (j // 8) ^ h(r). Within the octet, lane j % 8 goes to
    (j % 8) ^ l(r).

    Args:
        sketch: a projection of kind ``sjlt``.
        coordinates: i64[n], coordinates of the flat parameter space.

    Returns:
        i64[s, n], the bucket of each coordinate in each block, and i8[s, n], its sign, 1 or -1.
    """
    width = sketch.dimension // sketch.blocks
    row, at = coordinates // width, coordinates % width
    buckets, signs = [], []
    keys = iter(sketch.keys())
    for block in range(sketch.blocks):
        sign_key, row_key, lane_key = ((next(keys), next(keys)) for _ in range(3))
        shift = keyed_hash(row.astype(np.uint64), row_key).astype(np.int64) & (width // 8 - 1)
        lane_shift = row & 7
        if sketch.blocks > 1:
            lane_shift = lane_shift ^ (
                keyed_hash((row >> 3).astype(np.uint64), lane_key).astype(np.int64) & 7
            )
        octet, lane = (at >> 3) ^ shift, (at & 7) ^ lane_shift
        buckets.append(block * width + octet * 8 + lane)
        octet_signs = keyed_hash((coordinates >> 3).astype(np.uint64), sign_key)
        signs.append(1 - 2 * ((octet_signs >> (coordinates & 7).astype(np.uint32)) & 1).astype(np.int8))
    return np.stack(buckets), np.stack(signs)


def dense_columns(sketch: Sketch, coordinates: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return the signs i8[n, d] of a ``rademacher`` sketch for coordinates i64[n].

    Bit b % 32 of the hash of i * ceil(d / 32) + b // 32 is the sign of coordinate i in bucket b.
    """
    words = -(-sketch.dimension // 32)
    counter = np.add.outer((coordinates * words).astype(np.uint64), np.arange(words, dtype=np.uint64))
    first, second, *_ = sketch.keys()
    hashed = keyed_hash(counter, (first, second))
    bits = (hashed[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    return 1 - 2 * bits.reshape(len(coordinates), 32 * words)[:, : sketch.dimension].astype(np.int8)


def project(update: NDArray[np.float64], offset: int, sketch: Sketch) -> NDArray[np.float64]:
    """Return the sketches f64[B, d] of the updates f64[B, n] for coordinates from ``offset`` on, without the scale."""
    coordinates = np.arange(offset, offset + update.shape[1])
    if not sketch.blocks:
        return update @ dense_columns(sketch, coordinates).astype(np.float64)
    sketched = np.zeros((len(update), sketch.dimension))
    for buckets, signs in zip(*sparse_columns(sketch, coordinates), strict=True):
        np.add.at(sketched.T, buckets, (update * signs).T)
    return sketched


def accumulate(
    gradient: NDArray[Any],
    offset: int,
    *,
    preconditioner: Preconditioner,
    norm2: NDArray[np.float64],
    moments: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    directions: NDArray[np.float32] | None = None,
    products: NDArray[np.float64] | None = None,
    sketch: Sketch | None = None,
    sketched: NDArray[np.float32] | None = None,
) -> None:
    """Add one segment's part of norms, inner products and sketches, as `clusterucb.kernels.ops.accumulate` does."""
    segment = slice(offset, offset + gradient.shape[1])
    m, v = (moments[0][segment], moments[1][segment]) if moments else (None, None)
    update = precondition(gradient.astype(np.float32), m, v, preconditioner).astype(np.float64)
    norm2 += np.einsum("bn,bn->b", update, update)
    if directions is not None and products is not None:
        products += update @ directions[:, segment].astype(np.float64).T
    if sketch is not None and sketched is not None:
        sketched += project(update, offset, sketch)
