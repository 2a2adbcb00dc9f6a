"""The CUDA kernels compile for every architecture, within their registers; the module imports without a driver."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
ARCHITECTURE_OF_MODULE = 90
# An SM has 65536 registers. These budgets are what the launch bounds allow, and keep so many warps on it at once:
# sparse_sketch 12 (8 with fp32 gradients, whose loads are twice as wide), inner_products 16.
BUDGETS = {"sparse_sketch": 168, "inner_products": 128, "dense_sketch": 128, "add_up": 64}
BUDGET_OF_FP32_SKETCHES = 255

pytestmark = pytest.mark.skipif(
    NVCC is None, reason="no nvcc on the PATH or in /usr/local/cuda: CUDA is not built"
)


@cache
def offered() -> set[int]:
    listed = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return {int(number) for number in re.findall(r"compute_(\d+)\b", listed)}


def compile_for(architecture: int, folder: Path) -> str:
    """Compile the kernels into kernels.cubin, keep accumulate.ptx, and return what ptxas says."""
    done = subprocess.run(
        [
            NVCC,
            "-std=c++17",
            "-O3",
            "-fmad=false",
            f"-I{ROOT / 'csrc/include'}",
            f"-arch=sm_{architecture}",
            "-Xptxas=-v",
            "-cubin",
            "--keep",
            f"--keep-dir={folder}",
            ROOT / "csrc/cuda/accumulate.cu",
            "-o",
            folder / "kernels.cubin",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


@pytest.fixture
def compiled(architecture: int, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path, str]:
    """Return the PTX and the machine code of the kernels for an architecture, and what ptxas says."""
    if architecture not in offered():
        pytest.skip(f"this nvcc does not compile for sm_{architecture}")
    if architecture == ARCHITECTURE_OF_MODULE:  # compiled already
        folder = request.getfixturevalue("module_folder")
        cubin = folder / f"accumulate.sm_{architecture}.cubin"
        return folder / "accumulate.ptx", cubin, (folder / "said").read_text()
    said = compile_for(architecture, tmp_path)
    return tmp_path / "accumulate.ptx", tmp_path / "kernels.cubin", said


@pytest.fixture(scope="session")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where _cuda lies, built by CMake for one architecture, once for all processes of the tests.

    Its PTX and machine code lie there too, and in ``said`` what the compilers say.
    """
    shared = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else None
    folder = (shared or tmp_path_factory.mktemp("cuda")) / "cuda-module"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not any(folder.glob("_cuda*.so")):
            build(folder)
    return folder


def build(folder: Path) -> None:
    binaries = Path(sys.executable).parent
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "CUDACXX": str(NVCC)}
    environment["CUDAFLAGS"] = f"-Xptxas=-v --keep --keep-dir={folder}"
    configure = [
        "cmake",
        f"-S{ROOT}",
        f"-B{folder}",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCLUSTERUCB_CUDA=ON",
        f"-DCMAKE_CUDA_ARCHITECTURES={ARCHITECTURE_OF_MODULE}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11}",
    ]
    for command in (configure, ["cmake", "--build", folder, "--target", "_cuda"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (folder / "said").write_text(done.stdout + done.stderr)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spills_or_atomics(compiled):
    ptx, cubin, said = compiled
    assert "warning" not in said
    reported = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill "
        r"loads.*?Used (\d+) registers",
        said,
        re.DOTALL,
    )
    # 4 kinds, 3 dtypes, 1 or 8 samples, two kernels; the dense sketch; two sums.
    assert len(reported) == len(re.findall("Compiling entry function", said)) == 4 * 3 * 2 * 2 + 1 + 2
    for name, *memory, registers in reported:
        kernel = next(kernel for kernel in BUDGETS if kernel in name)
        fp32_sketch = kernel == "sparse_sketch" and "fLi8E" in name
        assert [int(size) for size in memory] == [0, 0, 0], name
        assert int(registers) <= (BUDGET_OF_FP32_SKETCHES if fp32_sketch else BUDGETS[kernel]), name
    text = ptx.read_text()
    assert "sparse_sketch" in text
    assert not re.search(r"^\s*(?:@!?%p\d+\s+)?(?:atom|red)\.", text, re.MULTILINE)
    disassembler = shutil.which("cuobjdump") or shutil.which(
        "cuobjdump", path=str(Path(NVCC).resolve().parent)
    )
    if disassembler:  # the machine code too, which the assembler makes of PTX one to one as far as atomics go
        sass = subprocess.run(
            [disassembler, "-sass", cubin], capture_output=True, text=True, check=True
        ).stdout
        assert "FFMA" in sass
        assert not re.search(r"\b(?:RED|ATOM|ATOMG|ATOMS)\b", sass)


# Arrays that say they are on a GPU, although there is none.
_PRELUDE = """
import ctypes
import numpy as np
import _cuda


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("type", ctypes.c_int32), ("id", ctypes.c_int32), ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
    ]


class Pretended:
    def __init__(self, array):
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        code = {"u": 1, "f": 2}[array.dtype.kind]
        self.tensor = DLTensor(256, 2, 0, array.ndim, code, 8 * array.itemsize, 1, self.shape, None, 0)

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, stream=None):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


def accumulate(gradient, norm2, workspace):
    constants = (1.0, 0.0, 0.0, 0.0)
    _cuda.accumulate(gradient, 0, 3, constants, None, None, None, None, norm2, None, None, workspace, 0)


gradient, norm2 = np.zeros((2, 8), np.float32), np.zeros(2)
needed = _cuda.workspace_bytes(2, 8, 0, 0, None)
"""


def run(module_folder: Path, code: str) -> str:
    """Run Python with _cuda at hand and every GPU hidden; return the last line it prints or raises."""
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + code],
        env={**os.environ, "PYTHONPATH": str(module_folder), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def test_the_module_imports_without_a_driver_and_says_what_is_missing(module_folder):
    said = run(module_folder, "_cuda.device_count()")
    assert re.match(
        r"RuntimeError: CUDA cannot be used: .+ \(error \d+\)\. "
        r"(No NVIDIA driver was found|The NVIDIA driver is for CUDA \d+\.\d+); "
        r"this extension was built with CUDA \d+\.\d+ and needs a driver for \d+\.0 or newer",
        said,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "gradient, norm2, norm2",
            "ValueError: gradient is on cpu; expected it on a CUDA device, such as cuda:0",
        ),
        ("Pretended(gradient), norm2, norm2", "ValueError: norm2 is on cpu; expected it on cuda:0"),
        (
            "Pretended(gradient), Pretended(norm2), np.zeros(needed, np.uint8)",
            "ValueError: workspace is on cpu; expected it on cuda:0",
        ),
        (
            "Pretended(gradient), Pretended(norm2), Pretended(np.zeros(needed // 4, np.float32))",
            "ValueError: workspace is float32 of shape (4,), contiguous; expected contiguous uint8 of shape [bytes]",
        ),
        (
            "Pretended(gradient), Pretended(norm2), Pretended(np.zeros(needed - 1, np.uint8))",
            "ValueError: workspace has 15 bytes; expected at least 16 (workspace_bytes), aligned to 16 bytes",
        ),
        (
            "Pretended(gradient), Pretended(norm2), Pretended(np.zeros(needed, np.uint8))",
            "RuntimeError: CUDA cannot be used: ",
        ),
    ],
    ids=["gradient", "norm2", "workspace's device", "workspace's dtype", "workspace's size", "nothing wrong"],
)
def test_arrays_are_checked_before_anything_is_launched(module_folder, call, message):
    assert run(module_folder, f"accumulate({call})").startswith(message)


def test_sizes_below_zero_are_refused(module_folder):
    said = run(module_folder, "_cuda.workspace_bytes(-1, 8, 0, 0, None)")
    assert said == "ValueError: a size is below 0; expected at least 0"
