"""What hostile inputs share: objects whose unpickling leaves a trace, control characters, and the command lines."""

from __future__ import annotations

import builtins
import importlib
import os
import pickle
import runpy
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CANARY = "canary"  # a file of the working folder, which is there if code ran
SMALL = ["--warmup-steps", "2", "--batch-size", "4", "--budget", "50%", "--select", "3"]
CONTROLS = {
    "CSI": "\x1b[2J\x1b[31m",
    "OSC": "\x1b]0;title\x07\x1b]8;;http://x\x1b\\",
    "DCS": "\x1bP$qm\x1b\\",
    "C1": "\x9b31m\x90x\x9c\x85",
    "bidi": "\u202e\u202d\u200f\u061c",
    "isolates": "\u2066\u2067\u2069",
    "line breaks": "\r\nerror: \v\f\r",
    "backspaces": "\b\b\b\x7f",
    "separators": "\u2028\u2029\ufeff",
    "tags": "\U000e0041\U000e007f",
    "nul": "\0",
}
EVERY = "".join(CONTROLS.values())


@dataclass(frozen=True)
class Hostile:
    """A hostile input.

    Attributes:
        name: what it is.
        make: writes it into an empty folder, and returns the command that reads it. The working folder holds ``model``,
            ``pool.jsonl``, ``dev.jsonl``, ``run`` and ``store``.
    """

    name: str
    make: Callable[[Path], list[str]]


class Evil:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call

    def fire(self) -> None:
        """Call the function, as unpickling would."""
        function, arguments = self._call
        function(*arguments)


def evils() -> dict[str, Evil]:
    """Return objects that leave `CANARY` behind when they are unpickled, each in another way."""
    canary = str(Path(CANARY).absolute())
    code = f"open({canary!r}, 'w').close()"
    return {
        "os.system": Evil(os.system, f"touch {canary}"),
        "exec": Evil(builtins.exec, code),
        "eval": Evil(builtins.eval, code),
        "open": Evil(builtins.open, canary, "w"),
        "Popen": Evil(subprocess.Popen, ["touch", canary]),
        "Path.touch": Evil(Path.touch, Path(canary)),
        "import": Evil(importlib.import_module, "canary_module"),
        "runpy": Evil(runpy.run_path, "canary_module.py"),
        "inner pickle": Evil(pickle.loads, pickle.dumps(Evil(builtins.exec, code))),
    }


def select(
    pool: object = "pool.jsonl", *more: object, target: object = "dev.jsonl", model: object = "model"
) -> list[str]:
    """Return a command that selects from a pool; the same folder is its ``--out``, for every command."""
    job = ["select", pool, "--target", target, "--model", model, "--out", "out"]
    return [str(part) for part in (*job, *SMALL, *more)]


def doctor(pool: object, *more: object, model: object = "model") -> list[str]:
    """Return a command that looks at the rows of a pool."""
    return [
        str(part) for part in ("doctor", "--pool", pool, "--target", "dev.jsonl", "--model", model, *more)
    ]
