"""Hold a parameter's entries, each computed when it is asked for.

Decisions:
    - A state of 8 bits, or one that lies in many files, is larger in memory than on the disk. So an entry is computed
      when the moments are loaded, one parameter at a time, and dropped afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from clusterucb.errors import ModelError

ADAM = frozenset({"exp_avg", "exp_avg_sq", "step"})
WEIGHTS = "weights"  # the parameter itself, in files that hold it beside the moments


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


def unusable(value: object) -> str:
    """Return what a tensor is whose numbers cannot be read as they are; empty for another value.

    Tensors of other classes (parts of several processes, packed ones) are judged by whoever reads them.
    """
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return ""
    assert isinstance(value, torch.Tensor)
    if value.is_nested or value.layout != torch.strided:
        return f"a {'nested' if value.is_nested else value.layout} tensor of {value.dtype}"
    if value.is_quantized or value.is_complex():
        return f"a tensor of {value.dtype}"
    return "a tensor without data (of the device meta)" if value.is_meta else ""


def check_tensors(path: Path, key: object, entries: Mapping[str, Any]) -> None:
    """Check that the numbers of all tensors of a parameter can be read.

    Args:
        path: the file, for errors.
        key: the parameter's name or position.
        entries: its entries; a packed tensor's parts are checked, too.

    Raises:
        ModelError: a tensor has no data, or numbers of another kind.
    """
    for name, value in entries.items():
        parts = vars(value) if isinstance(value, torch.Tensor) else {}
        for one in (value, *parts.values()):
            if what := unusable(one):
                raise damaged(
                    path, f"{name} of parameter {key} is {what}; expected a dense tensor of numbers"
                )


def damaged(path: Path, fault: str) -> ModelError:
    """Return the error for a file that holds something impossible."""
    return ModelError(f"{path} is damaged: {fault}; save it again")
