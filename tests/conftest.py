from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from helpers import warm

# The same examples on every machine, and no deadline: a slow machine is not a failure.
settings.register_profile("clusterucb", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("clusterucb")

# Before any test imports or runs anything: no test may use, or fill, the user's cache. Features are not kept
# either, or what a test counts would depend on the tests before it; tests of the cache switch it on.
_cache = tempfile.TemporaryDirectory(prefix="clusterucb-tests-")
os.environ["CLUSTERUCB_CACHE"] = _cache.name
os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
# Every core runs a test of its own already; more threads than cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with ``clusterucb``, and ``code`` for Python code, which start in milliseconds."""
    with warm.started(tmp_path_factory.mktemp("programs")) as folder:
        yield folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests take longest: at the end, one of them would leave the other cores idle."""
    items.sort(key=lambda item: item.path.name not in ("test_cuda_build.py", "test_simd.py"))


def pytest_collection_finish() -> None:
    """Spare the garbage collector the million objects of the imported libraries, which a job's gc.collect() walks."""
    gc.collect()
    gc.freeze()
