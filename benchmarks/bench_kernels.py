"""Time the compiled kernels against a floor that they cannot beat and the code that they replace, side by side.

    python benchmarks/bench_kernels.py [--json FILE] [--only TEXT] [--rounds 15] [--projector]

Each row is the median ratio of our time to the other's time; in every round both run one after the other. Before a case
is timed, the bench checks its results against double precision. The contenders:

    read            a vectorised C++ sum over the same gradients, m and v (benchmarks/read.cpp): the floor
    eager           torch operations: the Adam formula, norms, and a CountSketch by index_add
    sgemm+read      torch's matrix product of updates that are already computed, plus a read of g, m and v
    BasicProjector  TRAK's projector for the CPU (--projector, with traker installed; at p = .46M it takes a minute)

p is the number of trainable parameters, B the number of samples, t of threads, S of directions; the sketch has d = 8192
dimensions.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch

from clusterucb.kernels import ops, reference
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch

SIZES = {".46M": 460_800, "4.2M": 4_194_304, "16.8M": 16_777_216}
DIRECTIONS = 57
ADAM = Preconditioner("adam_less", step=30)
Run = Callable[[], object]


class Reader:
    """Compiles read.cpp, the floor: it reads arrays once."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self._folder.name) / "read.so"
        source = Path(__file__).with_name("read.cpp")
        flags = ["-O3", "-shared", "-fPIC", "-pthread"]
        if platform.machine() in ("x86_64", "AMD64"):
            flags.append("-mavx2")
        subprocess.run(["c++", *flags, source, "-o", library], check=True)
        self._read = ctypes.CDLL(str(library)).read_all
        self._read.restype = ctypes.c_float

    def __call__(self, arrays: list[torch.Tensor], threads: int) -> Run:
        flat = [array.view(torch.float32) if array.dtype != torch.float32 else array for array in arrays]
        pointers = (ctypes.c_void_p * len(flat))(*(array.data_ptr() for array in flat))
        sizes = (ctypes.c_int64 * len(flat))(*(array.numel() for array in flat))
        return lambda: self._read(pointers, sizes, len(flat), threads)


class Batch:
    """Gradients, moments and directions of one size, like those of a LoRA after a warm-up."""

    def __init__(self, size: int, samples: int, dtype: torch.dtype, directions: int = 0) -> None:
        generator = torch.Generator().manual_seed(size + samples)

        def normal(*shape: int) -> torch.Tensor:
            return torch.empty(shape).normal_(generator=generator)

        self.gradient = (normal(samples, size) * 1e-3).to(dtype)
        self.m, self.v = normal(size) * 1e-4, normal(size).square() * 1e-7
        self.directions = normal(directions, size) if directions else None
        self.norm2 = torch.zeros(samples, dtype=torch.float64)

    @property
    def read(self) -> list[torch.Tensor]:
        return [self.gradient, self.m, self.v]

    def update(self, row: int) -> np.ndarray:
        """Return a sample's update in double precision."""
        g, m, v = (array.double().numpy() for array in (self.gradient[row], self.m, self.v))
        return reference.precondition(g, m, v, ADAM)

    def check_norm(self) -> None:
        for row in {0, len(self.gradient) - 1}:
            expected = np.linalg.norm(self.update(row))
            assert abs(self.norm2[row].sqrt().item() / expected - 1) < 1e-6, "the norm is wrong"


def fused(batch: Batch, sketch: Sketch | None, threads: int) -> Run:
    """Check the fused pass once and return it.

    The pass computes norms, inner products if the batch has directions, and sketches if ``sketch`` is given.

    Raises:
        AssertionError: if a norm, a product or a sketch differs from double precision.
    """
    sketched = torch.zeros(len(batch.gradient), sketch.dimension) if sketch else None
    products = None
    if batch.directions is not None:
        products = torch.zeros(len(batch.gradient), len(batch.directions), dtype=torch.float64)

    def run() -> None:
        ops.accumulate(
            batch.gradient,
            0,
            preconditioner=ADAM,
            norm2=batch.norm2,
            moments=(batch.m, batch.v),
            directions=batch.directions,
            products=products,
            sketch=sketch,
            sketched=sketched,
            threads=threads,
        )

    batch.norm2.zero_()
    run()
    batch.check_norm()
    update = batch.update(0)
    length = np.linalg.norm(update)
    if sketch:
        expected = reference.project(update[None], 0, sketch)[0]
        error = np.linalg.norm(sketched[0].numpy() - expected) / length
        assert error < 1e-6, f"the sketch is wrong: {error:.2g}"
    for s in (0, DIRECTIONS - 1) if products is not None else ():
        direction = batch.directions[s].double().numpy()
        error = abs(products[0, s].item() - update @ direction) / length / np.linalg.norm(direction)
        assert error < 1e-6, f"a product is wrong: {error:.2g}"
    return run


def eager(batch: Batch, dimension: int) -> Run:
    """Check the same pass in plain torch operations once and return it."""
    size = batch.gradient.shape[1]
    generator = torch.Generator().manual_seed(0)
    bucket = torch.randint(dimension, (size,), generator=generator)
    sign = torch.randint(2, (size,), generator=generator).float() * 2 - 1
    sketched = torch.zeros(len(batch.gradient), dimension)
    b1, b2, eps = ADAM.beta1, ADAM.beta2, ADAM.eps

    def run() -> torch.Tensor:
        g = batch.gradient.float()
        update = (b1 * batch.m + (1 - b1) * g) / (b2 * batch.v + (1 - b2) * g * g + eps).sqrt()
        sketched.index_add_(1, bucket, update * sign)
        return update.square().sum(dim=1)

    norms = run().double().sqrt()
    assert np.isclose(norms[0], np.linalg.norm(batch.update(0)), rtol=1e-4), "eager is wrong"
    return run


def sgemm(batch: Batch, read: Run) -> Run:
    """Return a pass that multiplies updates that are already computed by the directions, and reads g, m and v."""
    update = batch.gradient.float()

    def run() -> None:
        update @ batch.directions.T
        read()

    return run


def basic_projector(batch: Batch, dimension: int) -> Run:
    """Return TRAK's projection of the gradients."""
    from trak.projectors import BasicProjector, ProjectionType

    projector = BasicProjector(
        grad_dim=batch.gradient.shape[1],
        proj_dim=dimension,
        seed=0,
        proj_type=ProjectionType.rademacher,
        device="cpu",
        dtype=torch.float32,
        block_size=64,
    )
    return lambda: projector.project(batch.gradient.float(), model_id=0)


def ratios(ours: Run, theirs: dict[str, Run], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median ratio of our time to each other contender's, and that contender's median milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in ("ours", *theirs)}
    for _ in range(rounds + 1):  # the first is a warm-up
        for name, run in (("ours", ours), *theirs.items()):
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    mine = np.array(times["ours"][1:])
    return {
        name: (float(np.median(mine / np.array(times[name][1:]))), 1e3 * float(np.median(times[name][1:])))
        for name in theirs
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--only", default="", help="only cases whose name contains this text")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--projector", action="store_true", help="measure TRAK's BasicProjector as well")
    options = parser.parse_args()
    reader, rows = Reader(), []

    def measure(case: str, ours: Run, theirs: dict[str, Run], rounds: int) -> None:
        for name, (ratio, milliseconds) in ratios(ours, theirs, rounds).items():
            rows.append({"case": case, "ratio_to": name, "ratio": float(f"{ratio:.4g}")})
            print(f"{case:48} {ratio:8.3g} of {name} ({milliseconds:.3g} ms)", flush=True)

    for (label, size), samples, threads in product(SIZES.items(), (1, 8, 32), (1, 2)):
        rounds = options.rounds if size * samples <= 2**26 else max(options.rounds // 4, 3)
        torch.set_num_threads(threads)
        for dtype, kind in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            batch = None
            for nonzeros in (0, 1, 2, 4):
                case = f"fused adam_less {kind} s={nonzeros} p={label} B={samples} t={threads}"
                if nonzeros == 0:
                    case = f"fused adam_less {kind} norm p={label} B={samples} t={threads}"
                if options.only not in case:
                    continue
                batch = batch or Batch(size, samples, dtype)
                sketch = Sketch(8192, nonzeros) if nonzeros else None
                ours = fused(batch, sketch, threads)
                measure(case, ours, {"read": reader(batch.read, threads)}, rounds)
                if sketch and samples == 8 and size <= 2**23:
                    measure(case, ours, {"eager": eager(batch, 8192)}, min(rounds, 5))
                if options.projector and sketch and (label, samples, threads, kind) == (".46M", 8, 1, "fp32"):
                    measure(case, ours, {"BasicProjector": basic_projector(batch, 8192)}, 1)
        case = f"exact S={DIRECTIONS} fp32 p={label} B={samples} t={threads}"
        if options.only in case:
            batch = Batch(size, samples, torch.float32, DIRECTIONS)
            theirs = {"sgemm+read": sgemm(batch, reader(batch.read, threads))}
            measure(case, fused(batch, None, threads), theirs, rounds)
    if options.json:
        device = f"{platform.machine()} CPU, kernels {ops.simd()}, torch {torch.__version__}"
        options.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
