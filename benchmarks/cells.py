"""Keep what long benches have measured in files that are committed, so that later benches add to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Losses = dict[str, list[float]]


class Cells:
    """Finished cells by name: a file with a line of JSON for each of them.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_bytes().splitlines() if path.exists() else []
        self._found = {content["cell"]: content for content in map(json.loads, lines)}

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = self._found[name]
        return content

    def keep(self, name: str, **content: Any) -> None:
        """Keep a cell."""
        self._found[name] = {"cell": name, **content}
        with self._path.open("ab") as file:
            file.write(json.dumps(self._found[name]).encode() + b"\n")


def rounded(losses: Losses) -> Losses:
    """Return losses by subtask, rounded to four decimals."""
    return {name: [round(loss, 4) for loss in values] for name, values in losses.items()}
