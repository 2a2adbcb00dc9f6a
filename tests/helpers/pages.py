"""The code blocks of a page, and a folder where they run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

from helpers.tiny import rows, write_model, write_rows

# A fence of backticks, wherever it begins in the line; a directive, such as ```{options}, is a block too.
_FENCE = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block: its language, and its text without the fence's indentation."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return [
        Block(language.strip(), textwrap.dedent(text))
        for _, _, language, text in _FENCE.findall(page.read_text())
    ]


def furnish(folder: Path) -> Path:
    """Write what the pages' commands name into a folder: a model, a pool, targets, and a folder from a hub."""
    write_model(folder / "path" / "to" / "model")
    write_rows(folder / "pool.jsonl", rows(60))
    write_rows(folder / "more.jsonl", rows(8, seed=11))
    write_rows(folder / "dev.jsonl", rows(6, seed=4))
    write_rows(folder / "judges.jsonl", rows(12, seed=7))
    write_rows(folder / "other.jsonl", rows(6, seed=5))
    (folder / "hub" / "data").mkdir(parents=True)
    for split, seed in (("train", 5), ("test", 6)):
        write_rows(folder / "hub" / "data" / f"{split}-00000-of-00001.jsonl", rows(6, seed=seed))
    return folder


def environment(**changes: str) -> dict[str, str]:
    """Return an environment where the commands of this Python's folder are found."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **changes}


def run(block: Block, folder: Path, warm: Path | None = None, **changes: str) -> None:
    """Run the commands or the program of a block; a block that names a file in its first line is written there.

    With a folder of `helpers.warm`, clusterucb and programs start there.
    """
    named = re.match(r"# ([\w/.-]+\.\w+)\n", block.text)
    if named:
        (folder / named[1]).parent.mkdir(exist_ok=True)
        (folder / named[1]).write_text(block.text)
        return
    command = ["bash", "-e", "-c", block.text]
    if block.language == "python":
        command = [warm / "code", block.text] if warm else [sys.executable, "-c", block.text]
    there = environment(**changes)
    if warm:
        there["PATH"] = f"{warm}{os.pathsep}{there['PATH']}"
    done = subprocess.run(command, cwd=folder, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
