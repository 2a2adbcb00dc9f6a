"""What must stay light: importing the package and listing strategies loads no model library."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "scipy", "sklearn")


@pytest.mark.parametrize(
    "statement",
    [
        "import clusterucb",
        "import clusterucb.engine.loop, clusterucb.policies, clusterucb.clusterers, clusterucb.features",
        "import clusterucb.samples.pool, clusterucb.run.ledger, clusterucb.run.folder, clusterucb.cli.main",
        "import clusterucb.plugins.registry; clusterucb.plugins.registry.load()",
        "import clusterucb as cu; cu.UCB, cu.KMeans",
    ],
)
def test_no_model_library_is_loaded(statement: str) -> None:
    program = f"import sys; {statement}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
