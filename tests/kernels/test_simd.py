"""The tests of the compute core with each other kind of CPU kernel: alone they test this machine's fastest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clusterucb.kernels import ops

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("simd", ["generic", "avx2", "avx512"])
def test_every_kind_of_kernel_passes_the_tests_of_the_compute_core(simd):
    environment = {**os.environ, "CLUSTERUCB_SIMD": simd}
    environment.pop("PYTEST_XDIST_WORKER", None)
    code = "from clusterucb.kernels import ops; print(ops.simd())"
    probe = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if probe.returncode:  # this machine cannot run them: it has to say so
        assert simd != "generic"
        assert "which this machine cannot run" in probe.stderr or "expected one of generic," in probe.stderr
        return
    assert probe.stdout == simd + "\n"
    if simd == ops.simd():  # they are tested with this kind already
        return
    files = [ROOT / "tests/kernels" / name for name in ("test_ops.py", "test_sketch.py", "test_torch_ops.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
