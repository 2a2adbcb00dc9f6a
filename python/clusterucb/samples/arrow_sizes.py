"""Cut Arrow batches into pieces whose rows take little memory as objects of Python.

An Arrow array may hold a value once and name it in a billion rows (a dictionary, a view, a run), and a null or a
boolean takes no byte. So the size of an array says nothing about the size of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from clusterucb.samples import bounds
from clusterucb.samples.message import Unreadable

_POINTER = 8  # bytes of a value in a list of Python


def pieces(batch: Any) -> Iterator[Any]:
    """Yield a batch in pieces, each at most as large as the longest line. A larger row becomes `Unreadable`."""
    if sum(map(_written_out, batch.columns)) <= bounds.LONGEST_LINE:
        yield batch
    elif batch.num_rows == 1:
        yield Unreadable(f"too long: the row has more than {bounds.LONGEST_LINE >> 20} MiB")
    else:
        half = batch.num_rows // 2
        yield from pieces(batch.slice(0, half))
        yield from pieces(batch.slice(half))


def _written_out(array: Any) -> int:
    """Return about how many bytes the values of an array take one by one; never far less, but it may be more.

    It is exact for each value of an array of one row.
    """
    import pyarrow as pa

    if _as_it_is(array.type):
        return int(array.nbytes)
    of = pa.types
    if isinstance(array, pa.ExtensionArray):
        return _written_out(array.storage)
    if of.is_dictionary(array.type):
        return _repeated(array.dictionary, array.indices.drop_null().to_numpy(zero_copy_only=False))
    if of.is_run_end_encoded(array.type):
        runs = array.values.slice(array.find_physical_offset(), array.find_physical_length())
        return len(array) * _written_out(runs)
    if of.is_union(array.type) and array.type.mode == "dense":
        return _dense_union(array)
    if _is_view(array.type):
        return _views(array)
    own = len(array) * _POINTER
    if of.is_fixed_size_list(array.type):
        return own + _written_out(array.flatten())
    if of.is_list(array.type) or of.is_large_list(array.type) or of.is_map(array.type):
        begin, end = (array.offsets[at].as_py() for at in (0, len(array)))
        inner = (array.keys, array.items) if of.is_map(array.type) else (array.values,)
        return own + sum(_written_out(one.slice(begin, end - begin)) for one in inner)
    if array.type.num_fields:
        return own + sum(_written_out(array.field(at)) for at in range(array.type.num_fields))
    return own + int(array.nbytes)


@lru_cache(1024)
def _as_it_is(type_: Any) -> bool:
    """Return whether the bytes of arrays of a type grow with their rows, and with the values in these."""
    import pyarrow as pa

    of = pa.types
    if isinstance(type_, pa.BaseExtensionType):
        return _as_it_is(type_.storage_type)
    lists = (of.is_list, of.is_large_list, of.is_map, of.is_struct)
    if any(is_it(type_) for is_it in lists) and type_.num_fields:
        return all(_as_it_is(type_.field(at).type) for at in range(type_.num_fields))
    texts = (of.is_string, of.is_large_string, of.is_binary, of.is_large_binary)
    return any(is_it(type_) for is_it in texts) or (of.is_primitive(type_) and type_.bit_width >= 32)


def _repeated(values: Any, indices: np.ndarray[Any, Any]) -> int:
    """Return how many bytes the values at some places take, where a place may be named many times."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(indices):
        return 0
    places, counts = np.unique(indices, return_counts=True)
    own = len(indices) * _POINTER
    if _is_view(values.type) and not values.type.num_fields:  # which cannot be taken
        return int(_lengths_of_views(values)[places] @ counts) + own
    try:
        named = values.take(pa.array(places))
    except pa.ArrowNotImplementedError:
        return len(indices) * _written_out(values) + own
    if named.type in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        lengths = pc.binary_length(named).fill_null(0).to_numpy(zero_copy_only=False)
        return int(lengths.astype(np.int64) @ counts) + own
    return int(counts.max()) * _written_out(named) + own


def _dense_union(array: Any) -> int:
    kinds, places = np.asarray(array.type_codes), np.asarray(array.offsets)
    codes = array.type.type_codes
    return sum(_repeated(array.field(at), places[kinds == code]) for at, code in enumerate(codes))


def _views(array: Any) -> int:
    """Return how many bytes the values of an array of views take: texts, or lists whose values may overlap."""
    if not array.type.num_fields:
        return int(_lengths_of_views(array).sum()) + len(array) * _POINTER
    valid = np.asarray(array.is_valid())
    begins = np.asarray(array.offsets)[: len(array)][valid].astype(np.int64)
    sizes = np.asarray(array.sizes)[: len(array)][valid].astype(np.int64)
    if not sizes.any():
        return len(array) * _POINTER
    begins, sizes = begins[sizes > 0], sizes[sizes > 0]
    first, end = int(begins.min()), int((begins + sizes).max())
    apart = bool((begins[1:] >= begins[:-1] + sizes[:-1]).all())
    one = _written_out(array.values.slice(first, end - first)) + (end - first) * _POINTER
    return (1 if apart else len(begins)) * one + len(array) * _POINTER


def _is_view(type_: Any) -> bool:
    return "view" in f"{type_}".partition("<")[0]


def _lengths_of_views(array: Any) -> np.ndarray[Any, Any]:
    """Return the length of each text, i64[n]. A view begins with the length of its text; a null's may be anything."""
    heads = np.frombuffer(array.buffers()[1], np.int32).reshape(-1, 4)[array.offset :][: len(array), 0]
    return np.where(np.asarray(array.is_valid()), heads, 0).astype(np.int64)
