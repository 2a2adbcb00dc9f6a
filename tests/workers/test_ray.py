"""The tests of `on_ray.py`, in a process of their own.

Ray's threads stay in a process that has used it, and other tests fork theirs: a fork in the wrong moment hangs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).with_name("on_ray.py")


def test_workers_on_ray() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
