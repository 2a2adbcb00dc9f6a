"""What must stay light: importing the package and listing strategies loads no model library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny import write_job

HEAVY = ("torch", "transformers", "peft", "scipy", "sklearn", "ray")


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


def test_a_selection_without_workers_does_not_load_ray(programs: Path, tmp_path: Path) -> None:
    folder = write_job(tmp_path)
    program = (
        "import sys; import clusterucb as cu; "
        "cu.select('pool.jsonl', 'dev.jsonl', model='model', warmup_steps=1, budget='3', out='run'); "
        "print('ray' in sys.modules)"
    )
    done = subprocess.run(
        [programs / "code", program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr
