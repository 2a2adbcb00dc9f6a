"""Keep which samples a gradient store holds: a small file beside each shard of sketches.

    samples-*.safetensors   ``contents`` u8[m, 32], ``tokens`` i64[m], ``ids`` u8[k] and ``ends`` i64[m]

Decisions:
    - A sample is known by its content hash. Its gradient depends on its content, the model and the encoding alone, and
      the last two are the same for all of a store. The id is kept to show it: it is the one that the sample had when
      it was sketched.
    - The files lie beside the sketches, not among them: what a store covers is known without reading its sketches,
      which are a thousand times as large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

HASH = 32  # bytes of a content hash, a SHA-256
_MOST_TOKENS = 1 << 31  # tokens of a sample
SHAPES: Mapping[str, tuple[type[np.generic], tuple[int | None, ...]]] = {
    "contents": (np.uint8, (None, HASH)),
    "tokens": (np.int64, (None,)),
    "ids": (np.uint8, (None,)),
    "ends": (np.int64, (None,)),
}


@dataclass(frozen=True)
class ShardSamples:
    """The m samples of a shard, in the order of its rows.

    Attributes:
        contents: u8[m, 32], the content hashes.
        tokens: i64[m], the number of tokens of each sample.
        ids: the ids that the samples had when they were sketched.
    """

    contents: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.contents)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the shard's file."""
        names = [name.encode(errors="replace") for name in self.ids]
        return {
            "contents": np.ascontiguousarray(self.contents),
            "tokens": np.array(self.tokens, np.int64),
            "ids": np.frombuffer(b"".join(names), np.uint8),
            "ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        }

    def part(self, here: slice) -> ShardSamples:
        """Return some of the samples."""
        return ShardSamples(self.contents[here], self.tokens[here], self.ids[here])

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return the samples that a file's arrays hold.

        Raises:
            ValueError: the arrays do not fit together.
        """
        contents, tokens, ends = arrays["contents"], arrays["tokens"], arrays["ends"]
        text = arrays["ids"].tobytes()
        bounds = [0, *ends.tolist()]
        if not len(contents) == len(tokens) == len(ends) or not len(contents):
            raise ValueError(f"it has {len(contents)} contents, {len(tokens)} lengths and {len(ends)} ids")
        if (
            bounds != sorted(bounds)
            or bounds[-1] != len(text)
            or ((tokens < 0) | (tokens > _MOST_TOKENS)).any()
        ):
            raise ValueError("its ids or lengths are none")
        ids = [text[start:end].decode(errors="replace") for start, end in pairwise(bounds)]
        return cls(contents, tokens, ids)


def places(contents: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return where each wanted content hash stands among others, i64[n]; -1 where it does not.

    Args:
        contents: u8[m, 32], distinct content hashes.
        wanted: u8[n, 32], content hashes.
    """
    if not len(contents) or not len(wanted):
        return np.full(len(wanted), -1, np.int64)
    # The first eight bytes sort ten times as fast as all; whether the others are the same is seen afterwards.
    known, sought = (
        np.ascontiguousarray(one[:, :8]).view(">u8")[:, 0].astype(np.uint64) for one in (contents, wanted)
    )
    order = np.argsort(known, kind="stable")
    # Nobody has seen equal beginnings; the whole hashes tell them apart.
    if (known[order][1:] == known[order][:-1]).any():
        known, sought = (np.ascontiguousarray(one).view(f"S{HASH}")[:, 0] for one in (contents, wanted))
        order = np.argsort(known, kind="stable")
    at = order[np.minimum(np.searchsorted(known, sought, sorter=order), len(known) - 1)]
    same: NDArray[np.bool_] = (contents[at] == wanted).all(axis=1)
    return np.where(same, at, -1).astype(np.int64)
