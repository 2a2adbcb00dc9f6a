"""Writes tests/data/golden-sketches.json: sketches of a fixed integer gradient, by the specification.

Every path (numpy, C++, CUDA, CUDA's code on a CPU) must reproduce them bit for bit, today and in every
later version that keeps `clusterucb.kernels.projection.VERSION`. Run from the root: python tests/golden.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from clusterucb.kernels import reference
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import VERSION, Sketch

FILE = Path(__file__).parents[1] / "data" / "golden-sketches.json"
SAMPLES, SIZE = 3, 5003  # a ragged end
OFFSETS = (0, 2**33 + 8)  # coordinates whose high word is 0 and 1
SKETCHES = [
    *(
        Sketch(dimension, nonzeros, seed)
        for dimension in (256, 1024, 8192)
        for nonzeros in (1, 2, 4)
        for seed in (0, 1, 2**62 + 3)
    ),
    Sketch(100, seed=5, kind="rademacher"),
    Sketch(512, seed=6, kind="rademacher"),
]


def gradient() -> np.ndarray:
    """Return whole numbers f32[SAMPLES, SIZE]; every sum of them is exact in fp32."""
    return (np.arange(SAMPLES * SIZE, dtype=np.float32).reshape(SAMPLES, SIZE) * 7 % 31) - 15


def name(sketch: Sketch, offset: int) -> str:
    """Return what a golden sketch is kept under."""
    return (
        f"v{VERSION} {sketch.kind} seed={sketch.seed} d={sketch.dimension} s={sketch.blocks} offset={offset}"
    )


def digest(sketched: np.ndarray) -> str:
    """Return the SHA-256 of sketches, zeros without their sign."""
    return hashlib.sha256((sketched + 0.0).astype("<f4").tobytes()).hexdigest()


def sketches(accumulate) -> dict[str, str]:
    """Return the digests of the golden gradient's sketches as ``accumulate`` computes them."""
    found = {}
    for sketch in SKETCHES:
        for offset in OFFSETS:
            sketched = np.zeros((SAMPLES, sketch.dimension), np.float32)
            accumulate(
                gradient(),
                offset,
                preconditioner=Preconditioner("sgd"),
                norm2=np.zeros(SAMPLES),
                sketch=sketch,
                sketched=sketched,
            )
            found[name(sketch, offset)] = digest(sketched)
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(sketches(reference.accumulate), indent=1) + "\n")
