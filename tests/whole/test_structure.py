"""The check of the structure finds what is planted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import structure

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    leave_out = shutil.ignore_patterns("__pycache__", "*.so", "data")
    shutil.copytree(ROOT / "python", root / "python", ignore=leave_out)
    shutil.copytree(ROOT / "tests", root / "tests", ignore=leave_out)
    return root


def planted(root: Path, name: str, more: str) -> list[str]:
    """Return the faults with more lines at the end of a file, or in a new one, which is then put back."""
    path = root / name
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text((before or "") + more)
    found = structure.faults(root)
    if before is None:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    else:
        path.write_text(before)
    return found


def test_the_project_has_no_fault() -> None:
    assert structure.faults(ROOT) == []


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("engine/loop.py", "from clusterucb.policies import UCB", "engine/ imports policies"),
        (
            "engine/loop.py",
            "from clusterucb.atomic import whole_file",
            "engine/ imports atomic; expected only",
        ),
        ("samples/chat.py", "import clusterucb.kernels.ops", "samples/ imports kernels.ops"),
        ("run/ledger.py", "def f():\n    from clusterucb.jobs import select", "run/ imports jobs.select"),
        ("features/base.py", "import clusterucb as cu", "imports the facade"),
        ("run/ledger.py", "from . import folder", "a relative import"),
        ("wording.py", "from clusterucb.errors import OptionError", "a circle of imports: "),
        ("cellar/__init__.py", "", "cellar/ is no room"),
        ("jobs/plan.py", "def f():\n" + "    print()\n" * 61, "f has 62 lines"),
        ("jobs/plan.py", f"def f({', '.join('abcdefghijk')}): ...", "f has 11 parameters"),
        ("jobs/plan.py", "\n" * 400, "jobs/plan.py has 4"),
    ],
)
def test_a_planted_fault_is_found(copy: Path, name: str, more: str, message: str) -> None:
    found = planted(copy, f"python/clusterucb/{name}", f"\n{more}\n")
    assert any(message in fault for fault in found), found


def test_a_test_that_imports_a_test_is_found(copy: Path) -> None:
    found = planted(copy, "tests/run/test_run.py", "\nfrom test_ledger import batch_of\n")
    assert any("imports the test test_ledger" in fault for fault in found), found
