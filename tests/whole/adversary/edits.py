"""Edit the manifest of a run, a store, a comparison and a trial, field by field, and use the folder afterwards.

    python tests/whole/adversary/edits.py [EVERY [FIRST]]

A case is a folder, a field of its ``manifest.json``, another value for it, and a use of the folder. The manifest's own
checksum is corrected, so that the value itself is judged. The verdict: the command ends with exit code 0, or with 2 and
a message that names the folder; it is no bug, does not hang, shows no control character and takes no more than 1.5 GB
of memory. Runs the cases FIRST, FIRST + EVERY and so on (by default all), and prints the faults.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from clusterucb.machine import resident_memory
from clusterucb.run import manifest_file
from helpers.terminals import EVERYTHING, obeyed
from whole.adversary import damage, processes

_MEMORY = 1_500_000_000  # bytes beyond those of a command that does nothing
_REMOVED = object()
_VALUES: dict[str, Any] = {
    "removed": _REMOVED,
    "null": None,
    "a text": "x",
    "controls": EVERYTHING,
    "half a letter": "\\ud800",
    "an empty text": "",
    "zero": 0,
    "a negative number": -1,
    "a number beyond 64 bits": 10**30,
    "a large number": 2**62,
    "a fraction": 0.5,
    "a number that is none": 1e999,
    "true": True,
    "an empty list": [],
    "a list of everything": [None, 1, "x", [], {}],
    "an empty mapping": {},
    "a mapping": {EVERYTHING: EVERYTHING, "class": 5, "options": [], "name": {}},
    "a path": "../../elsewhere",
}


@dataclass(frozen=True)
class Edit:
    """A folder, the path of a field in its manifest, the name of a value, and the name of a use."""

    folder: str
    field: tuple[str, ...]
    value: str
    use: str

    def __str__(self) -> str:
        return f"{self.folder}: {'.'.join(self.field)} is {self.value}, then {self.use}"


def _fields(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every field, also of those that hold fields."""
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(inner, (*path, name))


def edits() -> Iterator[Edit]:
    """Yield every field with every value; the uses take turns."""
    for name, uses in damage.USES.items():
        if not Path(name).exists():
            continue
        manifest = json.loads((Path(name) / "manifest.json").read_bytes())
        turns = cycle(uses)
        for field in _fields(manifest):
            for value in _VALUES:
                yield Edit(name, field, value, next(turns))


def _apply(edit: Edit, path: Path) -> None:
    content = json.loads(path.read_bytes())
    holder = content
    for name in edit.field[:-1]:
        holder = holder[name]
    if edit.value == "removed":
        del holder[edit.field[-1]]
    else:
        holder[edit.field[-1]] = _VALUES[edit.value]
    if edit.field != ("checksum",):
        content.pop("checksum", None)
        read = json.loads(json.dumps(content))
        content["checksum"] = manifest_file._checksum(read)
    path.write_text(json.dumps(content, ensure_ascii=False).replace("Infinity", "1e999"))


def fault(edit: Edit) -> str:
    """Use a folder with an edited manifest, and return what is wrong with what happens; "" for nothing."""
    for place in ("work", "after"):
        shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(edit.folder, "work")
    _apply(edit, Path("work/manifest.json"))
    arguments = [part.format("work") for part in damage.USES[edit.folder][edit.use][0]]
    base = resident_memory()
    ended = processes.run(arguments)
    wrong = [
        "" if ended.clean else str(ended),
        f"the terminal obeys {obeyed(ended.shown)!r:.80}" if obeyed(ended.shown) else "",
        f"{(ended.peak - base) / 1e9:.1f} GB of memory" if ended.peak - base > _MEMORY else "",
        f"names nothing: {ended}" if ended.code == 2 and "work" not in ended.shown else "",
        "" if Path("elsewhere").read_bytes() == b"mine" else "a file elsewhere was changed",
    ]
    Path("elsewhere").write_bytes(b"mine")
    return "; ".join(filter(None, wrong))


def main(every: int = 1, first: int = 0) -> int:
    """Run the cases and print the faults. Returns their number."""
    with damage.world():
        return damage.report((str(edit), fault(edit)) for edit in list(edits())[first::every])


if __name__ == "__main__":
    os.environ["CLUSTERUCB_CACHE_LIMIT"] = "0"
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
