"""The exported script selects anew while TRL trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import clusterucb as cu
from helpers.selections import write_job


@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="TRL needs a newer transformers")
def test_the_exported_script_trains(tmp_path: Path) -> None:
    write_job(tmp_path)
    cu.select(
        tmp_path / "pool.jsonl",
        tmp_path / "dev.jsonl",
        model=tmp_path / "model",
        out=tmp_path / "run",
        budget="30%",
        select=16,
        warmup_steps=2,
        max_length=200,
        export="trl",
        every="3",
    )
    script = tmp_path / "run" / "export-trl" / "reselect.py"
    assert "    warmup=1," in script.read_text()  # of six steps
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert not ended.returncode, ended.stderr[-3000:]
    assert "'selection_round': '2'" in ended.stdout.replace("2.0", "2")
    assert (script.parent / "trained-anew" / "adapter_model.safetensors").exists()
