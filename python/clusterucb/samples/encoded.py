"""A sample as tokens, with the labels that are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One sample as T tokens.

    Attributes:
        tokens: i64[T], the token ids.
        labels: bool[T]. True where the token is predicted from the tokens before it; never true for the first token.
        content: bool[T]. True where the token belongs to a message's content, in any role; false for the template's
            tokens.
    """

    tokens: NDArray[np.int64]
    labels: NDArray[np.bool_]
    content: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_labels(self) -> int:
        """Number of tokens that are predicted."""
        return int(self.labels.sum())


def surrounded(before: Sequence[int], encoded: Encoded, after: Sequence[int]) -> Encoded:
    """Return a sample with unlabelled tokens added before it and labelled tokens added after it."""
    sizes = len(before), len(after)
    return Encoded(
        np.concatenate((np.array(before, np.int64), encoded.tokens, np.array(after, np.int64))),
        np.pad(encoded.labels, sizes, constant_values=(False, True)),
        np.pad(encoded.content, sizes),
    )


def truncated(encoded: Encoded, max_length: int, bos: int | None) -> tuple[Encoded, slice]:
    """Cut a sample to ``max_length`` tokens, and keep as much of the answers as possible.

    The tokens after the last label are cut first, then those at the start except a BOS token. If the labels span more
    than the window, at most a quarter of ``max_length`` is kept of the tokens before them, and the end of the labels
    is cut.

    Returns:
        The sample, and where its tokens, but for a BOS token, stood before.
    """
    if len(encoded) <= max_length:
        return encoded, slice(0, len(encoded))
    labelled = np.flatnonzero(encoded.labels)
    first, stop = int(labelled[0]), int(labelled[-1]) + 1
    kept = int(encoded.tokens[0] == bos)
    window = max_length - kept
    least = 1 - kept  # the first label needs a token before it
    if stop <= max_length:
        start = kept
    elif stop - first + least <= window:
        start = stop - window
    else:
        start = first - min(first - kept, max(max_length // 4, least))
    at = np.concatenate((np.arange(kept), np.arange(start, start + window)))
    cut = Encoded(encoded.tokens[at], encoded.labels[at], encoded.content[at])
    return cut, slice(start, start + window)
