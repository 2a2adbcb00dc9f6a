"""Measure the peak memory of the tensors that a computation makes, to the byte, on any device.

A process's resident memory also holds what allocators keep and what was there before. This module counts requested
memory instead: every storage that an operation makes counts until it is freed. Counting takes Python time at every
operation, so only a few passes are measured, and the rest is extrapolated.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(compute: Callable[[], object]) -> int:
    """Run a computation, and return the most bytes that the tensors made by it hold at one time."""
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
        before = {
            id(_storage(leaf)) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if (
                isinstance(leaf, torch.Tensor)
                and id(storage := _storage(leaf)) not in before | self._known.keys()
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
