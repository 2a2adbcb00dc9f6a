"""Every code block of the README runs as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny import rows, write_model, write_rows

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with what the README's commands name."""
    folder = tmp_path_factory.mktemp("readme")
    write_model(folder / "path" / "to" / "model")
    write_rows(folder / "pool.jsonl", rows(60))
    write_rows(folder / "dev.jsonl", rows(6, seed=4))
    write_rows(folder / "other.jsonl", rows(6, seed=5))
    (folder / "hub" / "data").mkdir(parents=True)
    for split, seed in (("train", 5), ("test", 6)):
        write_rows(folder / "hub" / "data" / f"{split}-00000-of-00001.jsonl", rows(6, seed=seed))
    return folder


def environment():
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_commands_and_programs_run_in_order(folder):
    ran = 0
    for language, block in BLOCKS:
        if language in ("bash", "python"):
            command = ["bash", "-e", "-c", block] if language == "bash" else [sys.executable, "-c", block]
            done = subprocess.run(
                command, cwd=folder, env=environment(), capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block}\n{done.stderr}"
            ran += 1
    assert ran >= 5
    for name in "abcdefgh":
        assert (folder / "runs" / name / "selected.jsonl").read_bytes()


def test_a_repeated_job_writes_the_same_bytes_but_where_the_readme_says(folder):
    for name in ("first", "second"):
        command = (
            "clusterucb select pool.jsonl --target dev.jsonl --model path/to/model --warmup-steps 2 --annotate "
            f"--scores-parquet --export trl,llamafactory,axolotl --out repeated/{name}"
        )
        subprocess.run(command.split(), cwd=folder, env=environment(), capture_output=True, check=True)
    first, second = (
        {
            str(path.relative_to(folder / "repeated" / name)): path.read_bytes()
            for path in (folder / "repeated" / name).rglob("*")
            if path.is_file()
        }
        for name in ("first", "second")
    )
    assert first.keys() ^ second.keys() <= {"features-cached.json"}
    different = {name for name in first.keys() & second.keys() if first[name] != second[name]}
    paths = {
        "config.yaml",
        "export-trl/sft.py",
        "export-llamafactory/sft.yaml",
        "export-axolotl/axolotl.yaml",
    }
    assert different == {"manifest.json", *paths}
    for name in paths:
        assert first[name].replace(b"repeated/first", b"repeated/second") == second[name]


def test_rows_have_the_shape_that_is_shown(tmp_path):
    from clusterucb.samples.pool import read_pool

    (block,) = [block for language, block in BLOCKS if language == "json"]
    (tmp_path / "pool.jsonl").write_text(block)
    pool = read_pool([tmp_path / "pool.jsonl"])
    assert len(pool.samples) == len([json.loads(line) for line in block.splitlines()]) == 2


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = [
        line.split("#")[0].split()[1]
        for language, block in BLOCKS
        if not language
        for line in block.splitlines()
    ]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M)
