"""Read moments of few bits: those of bitsandbytes and of torchao.

Sources of the layouts:
    - bitsandbytes (``optim/optimizer.py``, ``Optimizer2State``; versions 0.35 to 0.50). ``state1`` and ``state2`` are
      Adam's first and second moment, as f32, or as u8 codes. The code ``c`` of block ``b`` means
      ``qmap[c] * absmax[b]``. The code books ``qmap1`` and ``qmap2`` (f32[256]) and the scales ``absmax1`` and
      ``absmax2`` (one for 256 elements, before version 0.44 for 2048) lie in the file. Older versions could scale a
      whole tensor by ``max1`` and ``max2``. From version 0.46, the entries lie in a dict
      ``__bnb_optimizer_quant_state__``, which hides them from FSDP. Paged states differ in their memory alone.
    - torchao (``optim/subclass_8bit.py``, ``subclass_4bit.py``, ``subclass_fp8.py``; version 0.18). A moment is a
      subclass of a tensor with ``codes`` (u8 of the parameter's shape; two 4-bit codes in a byte, the first in the high
      bits; or float8), ``scale`` (one for each block) and, unless float8, ``qmap`` (f32[256] or f32[16]). Parameters of
      fewer than 4096 elements have plain moments.

Decisions:
    - Neither library is needed: a code book is a table, and it lies in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clusterucb.model.states.entries import Entries, damaged

HIDDEN = "__bnb_optimizer_quant_state__"  # bitsandbytes' dict of entries
_BLOCKS = (256, 2048)  # elements that share a scale in bitsandbytes, now and before


class PackedTensor(torch.Tensor):
    """A tensor that takes the place of torchao's when a file is loaded; it has attributes and no operations."""

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        """Refuse every operation: the numbers are in the attributes."""
        return NotImplemented


def revealed(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a parameter's entries with those that bitsandbytes hides from FSDP."""
    hidden = entries.get(HIDDEN)
    if not isinstance(hidden, dict):
        return entries
    return {name: value for name, value in entries.items() if name != HIDDEN} | hidden


def of_bitsandbytes(path: Path, key: object, entries: Mapping[str, Any]) -> Entries:
    """Return Adam's entries for those of bitsandbytes.

    Args:
        path: the file, for errors.
        key: the parameter's name or position, for errors.
        entries: ``step``, ``state1`` and ``state2``, and code books and scales if the states are codes.
    """
    return Entries(
        exp_avg=partial(_state, path, key, entries, 1),
        exp_avg_sq=partial(_state, path, key, entries, 2),
        step=lambda: entries.get("step"),
    )


def _state(path: Path, key: object, entries: Mapping[str, Any], number: int) -> torch.Tensor:
    """Return a state of bitsandbytes as f32 of the parameter's shape.

    Raises:
        ModelError: codes, code book and scales do not fit together.
    """
    codes, book = entries[f"state{number}"], entries.get(f"qmap{number}")
    if not isinstance(codes, torch.Tensor):
        raise damaged(path, f"state{number} of parameter {key} is a {type(codes).__name__}, not a tensor")
    codes = codes.as_subclass(torch.Tensor)
    if codes.is_floating_point():
        return codes
    scales = entries.get(f"absmax{number}")
    blocks = scales.numel() if isinstance(scales, torch.Tensor) else 0
    size = next((size for size in _BLOCKS if -(-codes.numel() // size) == blocks), 0)
    if scales is None and isinstance(whole := entries.get(f"max{number}"), torch.Tensor):
        scales, blocks, size = whole, 1, max(codes.numel(), 1)
    if size and isinstance(scales, torch.Tensor) and book is not None and _is_book(book, codes, 256):
        return _decoded(codes, book, scales.flatten()[:blocks], size)
    raise damaged(
        path,
        f"state{number} of parameter {key} has {codes.numel()} codes of {codes.dtype}, a code book of "
        f"{_extent(book)} numbers and {blocks} scales; expected torch.uint8, 256 numbers, and a scale for 256 or "
        "2048 codes",
    )


def _is_book(book: object, codes: torch.Tensor, length: int) -> bool:
    return (
        codes.dtype == torch.uint8
        and isinstance(book, torch.Tensor)
        and book.is_floating_point()
        and tuple(book.shape) == (length,)
    )


def _extent(value: object) -> object:
    return value.numel() if isinstance(value, torch.Tensor) else "no"


def _decoded(codes: torch.Tensor, book: torch.Tensor, scales: torch.Tensor, size: int) -> torch.Tensor:
    """Return f32 of the shape of ``codes``: each code's number, times the scale of its block of ``size`` codes."""
    values = book.float()[codes.flatten().int()]
    values *= scales.float().repeat_interleave(size)[: values.numel()]
    return values.reshape(codes.shape)


def is_packed(value: object) -> bool:
    """Return whether an entry is a low-bit tensor of torchao's, loaded with or without torchao."""
    return (
        isinstance(value, torch.Tensor)
        and type(value) is not torch.Tensor
        and {"codes", "scale"} <= vars(value).keys()
    )


def of_torchao(path: Path, key: object, entries: Mapping[str, Any]) -> Entries:
    """Return Adam's entries for those of torchao's low-bit Adam, of which some may be plain tensors."""

    def moment(name: str) -> Any:
        value = entries[name]
        return _unpacked(path, key, name, value) if is_packed(value) else value

    return Entries(
        exp_avg=partial(moment, "exp_avg"),
        exp_avg_sq=partial(moment, "exp_avg_sq"),
        step=lambda: entries.get("step"),
    )


def _unpacked(path: Path, key: object, name: str, value: torch.Tensor) -> torch.Tensor:
    """Return a low-bit tensor of torchao's as f32 of the parameter's shape.

    Raises:
        ModelError: codes, code book and scales do not fit together.
    """
    codes, scales, book = (vars(value).get(part) for part in ("codes", "scale", "qmap"))
    shape = tuple(value.shape)
    if isinstance(codes, torch.Tensor) and isinstance(scales, torch.Tensor):
        count = scales.numel()
        if codes.dtype == torch.uint8 and 2 * codes.numel() == value.numel() and _is_book(book, codes, 16):
            codes = torch.stack([codes >> 4, codes & 15], dim=-1)
        fits = codes.numel() == value.numel() and count > 0 and codes.numel() % count == 0
        if fits and codes.dtype == torch.float8_e4m3fn:
            return (codes.float().view(count, -1) * scales.float().view(-1, 1)).reshape(shape)
        if fits and book is not None and (_is_book(book, codes, 256) or _is_book(book, codes, 16)):
            return _decoded(codes, book, scales, codes.numel() // count).reshape(shape)
    raise damaged(
        path,
        f"{name} of parameter {key} has {_extent(codes)} codes, {_extent(scales)} scales and a code book of "
        f"{_extent(book)} numbers for a tensor of shape {shape}; expected torchao's layout of 8 or 4 bits or float8",
    )
