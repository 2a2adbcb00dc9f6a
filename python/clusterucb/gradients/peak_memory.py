"""How much memory tensors take at most while something is computed, to the byte, on any device.

A process's resident memory also holds what allocators keep and what was there before; this counts what is asked of
them: every storage that an operation makes, from then on until it is gone. It costs Python's time at every operation,
and so is for a few of them, from which the rest is worked out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(compute: Callable[[], object]) -> int:
    """Return the most bytes that tensors made by a computation hold at a time."""
    live = _Live()
    with live:
        compute()
    return live.peak


class _Live(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held = 0
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {id(_storage(one)) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if (
                isinstance(one, torch.Tensor)
                and id(storage := _storage(one)) not in before | self._known.keys()
            ):
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key)), size
        self._held += size
        self.peak = max(self.peak, self._held)

    def _forget(self, key: int) -> None:
        self._held -= self._known.pop(key)[1]


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
