"""Check and time the CUDA kernels on this machine's GPU in under eight minutes, without a network.

    make gpu-check PYTHON=python3         or         python benchmarks/gpu_check.py [--only TEXT] [--no-timings]

PYTHON needs numpy, a torch with CUDA, and pybind11. The PATH needs nvcc, cmake and, for two of the checks,
compute-sanitizer. The package itself need not be installed. The checks:

    golden          the sketches match the committed golden sketches bit for bit
    specification   every kind, dtype and sketch against double precision; integers bit for bit
    elements        the relative error of single elements is at most 3e-7
    batch           a sample gives the same bits alone and in a batch; over 2^31 elements if memory allows
    streams         two concurrent streams give the same bits
    graph           a captured graph replays with the same bits
    memcheck, racecheck   compute-sanitizer on a small run
    timings         the median over rounds with a cold L2 cache, compared with torch's eager operations and with a
                    floor: the bytes that a case must read, divided by the bandwidth of a copy on the device (which
                    counts bytes read and bytes written)

The script writes its results to benchmarks/results/DEVICE.json, or to $OUT/DEVICE.json if OUT is set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests")]

from clusterucb.kernels import reference  # noqa: E402
from clusterucb.kernels.preconditioner import PRECONDITIONERS, Preconditioner  # noqa: E402
from clusterucb.kernels.projection import Sketch  # noqa: E402
from helpers import golden  # noqa: E402  (it lies in tests/)

try:
    import torch
except ImportError:
    sys.exit(
        "gpu_check: there is no torch; run it by a Python that has torch with CUDA (make gpu-check PYTHON=...)"
    )

SIZES = {".46M": 460_800, "4.2M": 4_194_304, "16.8M": 16_777_216, "134M": 134_217_728}
MODES = {"norm": None, "s=1": Sketch(8192, 1), "s=2": Sketch(8192, 2), "exact S=57": None}
ADAM = Preconditioner("adam_less", step=30)
SGD = Preconditioner("sgd")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TIMINGS_END = 400  # seconds after the start; later cases are listed as left out


def refuse_without() -> None:
    """Exit with a message if the GPU or a tool is missing.

    Raises:
        SystemExit: if torch finds no GPU, or nvcc, cmake or pybind11 is missing.
    """
    if not torch.cuda.is_available():
        sys.exit(
            f"gpu_check: no GPU that torch {torch.__version__} can use; it has to run on a machine with an NVIDIA "
            "GPU, a driver and a torch that was built with CUDA"
        )
    for tool in ("nvcc", "cmake"):
        if not shutil.which(tool):
            sys.exit(f"gpu_check: {tool} is not on the PATH")
    if subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True).returncode:
        sys.exit(f"gpu_check: {sys.executable} has no pybind11; install it, or put its wheel on PYTHONPATH")


def build(folder: Path) -> None:
    """Build the extension `_cuda` for this machine's GPU.

    Raises:
        SystemExit: if the build fails.
    """
    major, minor = torch.cuda.get_device_capability()
    cmakedir = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CLUSTERUCB_CUDA": "ON",
        "CMAKE_CUDA_ARCHITECTURES": f"{major}{minor}",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": cmakedir,
    }
    configure = ["cmake", f"-S{ROOT}", f"-B{folder}", *(f"-D{key}={value}" for key, value in options.items())]
    for command in (configure, ["cmake", "--build", folder, "--target", "_cuda", "--parallel"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"gpu_check: the build failed\n{(done.stdout + done.stderr)[-4000:]}")


class Kernels:
    """Calls the extension with the arguments that clusterucb passes."""

    def __init__(self, folder: Path, device: str = "cuda:0") -> None:
        sys.path.insert(0, str(folder))
        import _cuda

        self.module: Any = _cuda
        self.device = device

    def prepare(
        self,
        gradient: torch.Tensor,
        offset: int = 0,
        preconditioner: Preconditioner = SGD,
        moments: tuple[torch.Tensor, torch.Tensor] | None = None,
        directions: torch.Tensor | None = None,
        sketch: Sketch | None = None,
    ) -> tuple[Callable[[], None], list[torch.Tensor]]:
        """Return a function that accumulates one segment on the current stream, and [norm2, products, sketched]."""
        samples, size = gradient.shape
        count = 0 if directions is None else len(directions)
        out = [
            torch.zeros(samples, dtype=torch.float64, device=self.device),
            torch.zeros(samples, count, dtype=torch.float64, device=self.device),
            torch.zeros(samples, sketch.dimension if sketch else 0, device=self.device),
        ]
        argument = (sketch.dimension, sketch.blocks, sketch.keys()) if sketch else None
        needed = self.module.workspace_bytes(samples, size, offset, count, argument)
        workspace = torch.empty(needed, dtype=torch.uint8, device=self.device)
        m, v = moments if moments else (None, None)
        kind, constants = PRECONDITIONERS.index(preconditioner.kind), preconditioner.constants()
        norm2, products, sketched = out[0], out[1] if count else None, out[2] if sketch else None

        def run() -> None:
            stream = torch.cuda.current_stream().cuda_stream
            self.module.accumulate(
                *(gradient, offset, kind, constants, m, v, directions, argument),
                *(norm2, products, sketched, workspace, stream),
            )

        return run, out

    def __call__(self, *arguments: Any, **options: Any) -> list[torch.Tensor]:
        run, out = self.prepare(*arguments, **options)
        run()
        return out


def draw(device: str, *shape: int, seed: int = 0, whole: bool = False) -> torch.Tensor:
    """Return whole numbers or fractions that every dtype represents exactly."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    numbers = torch.randint(-8, 9, shape, generator=generator).float()
    return (numbers if whole else numbers / 8 + numbers.flip(0) / 64).to(device)


def check_case(
    kernels: Kernels, kind: str, dtype: torch.dtype, samples: int, size: int, sketch: Any, count: int
) -> None:
    """Check one segment against double precision, and for sgd on whole numbers bit for bit."""
    exact, offset, total = kind == "sgd", 16, size + 24
    gradient = draw(kernels.device, samples, size, whole=exact)
    m = draw(kernels.device, total, seed=1)
    v = draw(kernels.device, total, seed=2).square() + 0.1
    directions = draw(kernels.device, count, total, seed=3, whole=True) if count else None
    chosen = Preconditioner(kind, step=2)
    what = {"preconditioner": chosen, "directions": directions, "sketch": sketch}
    got = kernels(gradient.to(dtype), offset, moments=None if exact else (m, v), **what)
    here = slice(offset, offset + size)
    g, first, second = (array.double().cpu().numpy() for array in (gradient, m[here], v[here]))
    update = reference.precondition(g, first, second, chosen)
    scale = np.linalg.norm(reference.precondition(np.abs(g), np.abs(first), second, chosen), axis=1)
    tolerance = 0 if exact else 1e-6
    assert (np.abs(got[0].cpu().numpy() - np.square(update).sum(axis=1)) <= tolerance * scale**2).all(), (
        "norm"
    )
    if directions is not None:
        part = directions[:, here].double().cpu().numpy()
        limit = tolerance * np.outer(scale, np.linalg.norm(part, axis=1))
        assert (np.abs(got[1].cpu().numpy() - update @ part.T) <= limit).all(), "products"
    if sketch:
        error = np.linalg.norm(got[2].cpu().numpy() - reference.project(update, offset, sketch), axis=1)
        assert (error <= tolerance * scale * (1 if sketch.blocks else sketch.dimension**0.5)).all(), "sketch"


def check_specification(kernels: Kernels, sizes: tuple[int, ...] = (70, 1029, 100_003)) -> str:
    sketches = (None, Sketch(256, 1), Sketch(8192, 2), Sketch(2048, 4), Sketch(100, kind="rademacher"))
    cases = 0
    for kind, dtype, sketch, size in product(PRECONDITIONERS, DTYPES, sketches, sizes):
        if sketch and not sketch.blocks and size > 10_000:
            continue  # the reference of a dense sketch builds a matrix [n, d]
        for samples, count in ((1, 0), (9, 13)) if size > 10_000 else ((1, 3), (8, 0), (11, 57)):
            try:
                check_case(kernels, kind, dtype, samples, size, sketch, count)
            except AssertionError as error:
                raise AssertionError(
                    f"{error}: {kind} {dtype} {sketch} n={size} B={samples} S={count}"
                ) from error
            cases += 1
    return f"{cases} cases"


def check_golden(kernels: Kernels) -> str:
    def accumulate(
        gradient: Any, offset: int, *, preconditioner: Any, norm2: Any, sketch: Any, sketched: Any
    ) -> None:
        del preconditioner, norm2
        got = kernels(torch.from_numpy(gradient).to(kernels.device), offset, sketch=sketch)
        sketched += got[2].cpu().numpy()

    found, expected = golden.sketches(accumulate), json.loads(golden.FILE.read_text())
    wrong = [name for name in expected if found[name] != expected[name]]
    assert not wrong, f"other bits than the specification's: {wrong}"
    return f"{len(expected)} sketches"


def check_elements(kernels: Kernels) -> str:
    """Return the largest relative error of a single element, read through products with unit vectors."""
    rng, worst = np.random.default_rng(4), {}
    for kind, exponent in product(PRECONDITIONERS, range(-12, 3)):
        chosen = Preconditioner(kind, eps=1e-8, step=20)
        g, m = (np.abs(rng.normal(size=(4000, 8)) * 10.0**exponent).astype(np.float32) for _ in range(2))
        v = (10.0 ** (2 * exponent) * rng.uniform(0.01, 1, 8)).astype(np.float32)
        device = [torch.from_numpy(array).to(kernels.device) for array in (g, m[0].copy(), v)]
        unit = torch.eye(8, device=kernels.device)
        got = kernels(device[0], 0, chosen, (device[1], device[2]), unit)[1].cpu().numpy()
        wide = (array.astype(np.float64) for array in (g, m[0], v))
        error = np.abs(got / reference.precondition(*wide, chosen) - 1).max()
        worst[kind] = max(worst.get(kind, 0.0), float(error))
    said = ", ".join(f"{kind} {error:.3g}" for kind, error in worst.items())
    assert max(worst.values()) <= 3e-7, said
    return said


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def check_batch(kernels: Kernels, size: int = SIZES["134M"], samples: int = 17) -> str:
    """Compare samples in a batch with the same samples alone; B n exceeds 2^31 if memory allows."""
    free = torch.cuda.mem_get_info()[0]
    while size * samples * 3 > free:  # bytes: the gradient, the moments and one copied row
        size //= 2
    gradient = torch.randn(samples, size, dtype=torch.bfloat16, device=kernels.device)
    m = torch.randn(size, device=kernels.device)
    what: dict[str, Any] = {"preconditioner": ADAM, "moments": (m, m.square())}
    for sketch in (None, Sketch(8192, 2)):
        whole = kernels(gradient, sketch=sketch, **what)
        for row in (0, samples - 1):
            alone = kernels(gradient[row : row + 1].clone(), sketch=sketch, **what)
            assert same([array[row : row + 1] for array in whole], alone), f"row {row}, {sketch}"
    return f"B n = {samples * size:,}"


def two_cases(kernels: Kernels) -> list[tuple[Callable[[], None], list[torch.Tensor]]]:
    cases = []
    for size, sketch in ((1_048_576, Sketch(8192, 1)), (1_000_003, Sketch(8192, 2))):
        gradient, m = torch.randn(9, size, device=kernels.device), torch.randn(size, device=kernels.device)
        directions = torch.randn(13, size, device=kernels.device)
        cases.append(kernels.prepare(gradient, 0, ADAM, (m, m.square()), directions, sketch))
    return cases


def check_streams(kernels: Kernels, rounds: int = 20) -> str:
    cases = two_cases(kernels)
    expected = []
    for run, out in cases:
        run()
        expected.append([array.clone() for array in out])
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    for _ in range(rounds):
        for stream, (run, out) in zip(streams, cases, strict=True):
            with torch.cuda.stream(stream):
                for array in out:
                    array.zero_()
                run()
        torch.cuda.synchronize()
        assert all(same(out, before) for (_, out), before in zip(cases, expected, strict=True)), "other bits"
    return f"{rounds} rounds"


def check_graph(kernels: Kernels) -> str:
    for run, out in two_cases(kernels):
        run()
        expected = [array.clone() for array in out]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        for _ in range(3):
            for array in out:
                array.zero_()
            graph.replay()
            torch.cuda.synchronize()
            assert same(out, expected), "a replay gives other bits"
    return "3 replays each"


def check_sanitizer(tool: str, folder: Path) -> str:
    sanitizer = shutil.which("compute-sanitizer")
    if not sanitizer:
        return "not run: compute-sanitizer is not on the PATH"
    # Give every tensor its own allocation, so that the tool detects accesses past its end.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [
        sanitizer,
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        sys.executable,
        __file__,
        "--small",
        str(folder),
    ]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
    except subprocess.TimeoutExpired:
        return "not finished within 120 s"
    said = (done.stdout + done.stderr)[-3000:]
    assert done.returncode == 0, said
    assert "small run done" in said, said
    return next((line.strip("= ") for line in said.splitlines() if "SUMMARY" in line), "no summary")


# -- Timings -------------------------------------------------------------------------------------------------


class Clock:
    """Times work on the GPU with a cold L2 cache in every round."""

    def __init__(self) -> None:
        self._flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")

    def __call__(self, run: Callable[[], object], rounds: int) -> float:
        """Return the median milliseconds of ``rounds`` runs."""
        run()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
        for begin, end in events:
            self._flush.zero_()  # also gives the timed work time to be queued before it starts
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return float(np.median([begin.elapsed_time(end) for begin, end in events]))


def copy_bandwidth(clock: Clock) -> float:
    """Return the bytes per second that a copy on the device reads and writes together."""
    one = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(one)
    return 2 * one.numel() / (clock(lambda: other.copy_(one), 20) * 1e-3)


def eager(batch: dict[str, Any], mode: str, sketch: Sketch | None) -> Callable[[], object]:
    """Return the same pass in plain torch operations."""
    gradient, (m, v), directions = batch["gradient"], batch["moments"], batch["directions"]
    c = ADAM.constants()
    size = gradient.shape[1]
    if sketch:
        buckets = torch.randint(sketch.dimension, (size,), device="cuda")
        signs = torch.randint(2, (size,), device="cuda").float() * 2 - 1
        sketched = torch.zeros(len(gradient), sketch.dimension, device="cuda")

    def run() -> object:
        g = gradient.float()
        update = (c.first * g + c.from_m * m) / (g * g + (c.from_v * v + c.eps)).sqrt()
        if sketch:
            sketched.index_add_(1, buckets, update * signs)
        products = update @ directions.T if mode.startswith("exact") else None
        return update.square().sum(dim=1), products

    return run


def check_batch_of(batch: dict[str, Any], sketch: Sketch | None, out: list[torch.Tensor]) -> None:
    """Check the first and the last sample of a batch before it is timed, piece by piece in double precision."""
    gradient, (m, v), directions = batch["gradient"], batch["moments"], batch["directions"]
    samples, size = gradient.shape
    c = ADAM.constants()
    for row in {0, samples - 1}:
        norm2 = 0.0
        products = torch.zeros(
            0 if directions is None else len(directions), dtype=torch.float64, device="cuda"
        )
        for begin in range(0, size, 2**22):
            here = slice(begin, begin + 2**22)
            g = gradient[row, here].double()
            update = (c.first * g + c.from_m * m[here].double()) / (
                g * g + (c.from_v * v[here].double() + c.eps)
            ).sqrt()
            norm2 += update.square().sum().item()
            if directions is not None:
                products += torch.stack([update @ direction[here].double() for direction in directions])
            if sketch and size <= 2**22:
                expected = reference.project(update[None].cpu().numpy(), 0, sketch)[0]
                error = np.linalg.norm(out[2][row].cpu().numpy() - expected)
                assert error <= 1e-6 * norm2**0.5, f"the sketch is wrong: {error}"
        assert abs(out[0][row].item() / norm2 - 1) < 2e-6, "the norm is wrong"
        if directions is not None:
            limit = 1e-6 * norm2**0.5 * size**0.5 * 1.1
            assert (out[1][row] - products).abs().max().item() <= limit, "a product is wrong"


def timings(kernels: Kernels, started: float) -> Iterator[dict[str, Any]]:
    clock = Clock()
    bandwidth = copy_bandwidth(clock)
    yield {"case": "copy", "GB/s": round(bandwidth / 1e9)}
    for (label, size), dtype in product(SIZES.items(), (torch.bfloat16, torch.float32)):
        moments = directions = None
        for samples, (mode, sketch) in product((1, 8, 32), MODES.items()):
            name = f"{mode} {str(dtype).removeprefix('torch.')} p={label} B={samples}"
            exact = mode.startswith("exact")
            itemsize = dtype.itemsize
            read = size * (samples * itemsize + 8 + (4 * 57 if exact else 0))
            if time.monotonic() - started > TIMINGS_END:
                yield {"case": name, "left out": "time"}
                continue
            torch.cuda.empty_cache()
            needed = 2**30 + size * (samples * itemsize + (0 if moments else 16))
            if exact and directions is None:
                needed += size * 4 * 57
            if needed > torch.cuda.mem_get_info()[0]:
                yield {"case": name, "left out": "memory"}
                continue
            if moments is None:
                m = torch.randn(size, device="cuda") * 1e-4
                moments = (m, torch.randn(size, device="cuda").square_() * 1e-7)
            if exact and directions is None:
                directions = torch.randn(57, size, device="cuda")
            gradient = torch.randn(samples, size, dtype=dtype, device="cuda").mul_(1e-3)
            batch = {"gradient": gradient, "moments": moments, "directions": directions if exact else None}
            run, out = kernels.prepare(gradient, 0, ADAM, moments, batch["directions"], sketch)
            run()
            check_batch_of(batch, sketch, out)
            rounds = 30 if size * samples <= 2**28 else 7
            ours = clock(run, rounds)
            row = {
                "case": name,
                "ms": round(ours, 5),
                "share of copy": round(read / (ours * 1e-3) / bandwidth, 3),
            }
            if size * samples <= 2**27:
                row["of eager"] = round(ours / clock(eager(batch, mode, sketch), 5), 4)
            del gradient, batch, run, out
            yield row


# ------------------------------------------------------------------------------------------------------------


def attempt(name: str, check: Callable[[], str], results: dict[str, str]) -> None:
    begin = time.monotonic()
    try:
        results[name] = check()
    except Exception as error:  # run the remaining checks too
        results[name] = f"FAILED: {type(error).__name__}: {error}"
    print(f"{name:14} {results[name]} ({time.monotonic() - begin:.1f} s)", flush=True)
    torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="only checks whose name contains this text")
    parser.add_argument("--no-timings", action="store_true")
    parser.add_argument(
        "--small", type=Path, metavar="FOLDER", help="what compute-sanitizer runs, with FOLDER's _cuda"
    )
    options = parser.parse_args()
    started = time.monotonic()
    refuse_without()
    if options.small:
        check_specification(Kernels(options.small), sizes=(133,))
        torch.cuda.synchronize()
        print("small run done")
        return 0
    results: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(folder)
        print(f"built in {time.monotonic() - started:.0f} s for {torch.cuda.get_device_name()}", flush=True)
        kernels = Kernels(folder)
        checks: dict[str, Callable[[], str]] = {
            "golden": lambda: check_golden(kernels),
            "specification": lambda: check_specification(kernels),
            "elements": lambda: check_elements(kernels),
            "batch": lambda: check_batch(kernels),
            "streams": lambda: check_streams(kernels),
            "graph": lambda: check_graph(kernels),
            "memcheck": lambda: check_sanitizer("memcheck", folder),
            "racecheck": lambda: check_sanitizer("racecheck", folder),
        }
        for name, check in checks.items():
            if options.only in name:
                attempt(name, check, results)

        def timed() -> str:
            for row in timings(kernels, started):
                rows.append(row)
                print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            return f"{len(rows) - 1} cases"

        if not options.no_timings and options.only in "timings":
            attempt("timings", timed, results)
    write(results, rows, time.monotonic() - started)
    return int(any(result.startswith("FAILED") for result in results.values()))


def write(results: dict[str, str], rows: list[dict[str, Any]], seconds: float) -> None:
    device = torch.cuda.get_device_name()
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+)", nvcc)
    content = {
        "device": device,
        "torch": torch.__version__,
        "nvcc": release[1] if release else "unknown",
        "seconds": round(seconds),
        "checks": results,
        "timings of": f"{ADAM.kind}, d = 8192, milliseconds; see benchmarks/gpu_check.py",
        "timings": rows,
    }
    folder = Path(os.environ.get("OUT") or ROOT / "benchmarks/results")
    path = folder / (re.sub(r"[^A-Za-z0-9._-]+", "-", device) + ".json")
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    sys.exit(main())
