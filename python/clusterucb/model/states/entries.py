"""Hold a parameter's entries, each computed when it is asked for.

Decisions:
    - A state of 8 bits, or one that lies in many files, is larger in memory than on the disk. So an entry is computed
      when the moments are loaded, one parameter at a time, and dropped afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clusterucb.errors import ModelError

ADAM = frozenset({"exp_avg", "exp_avg_sq", "step"})


class Entries(Mapping[str, Any]):
    """Entries that functions compute; nothing is kept.

    Args:
        readers: a function without arguments for each entry. A function may raise `ModelError` if the file is damaged.
    """

    def __init__(self, **readers: Callable[[], Any]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Any:
        """Compute an entry."""
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._readers)

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._readers)


def damaged(path: Path, fault: str) -> ModelError:
    """Return the error for a file that holds something impossible."""
    return ModelError(f"{path} is damaged: {fault}; save it again")
