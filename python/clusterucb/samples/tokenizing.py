"""Turn what goes wrong in a tokenizer at work into one clear line.

A tokenizer comes with a model. Its files may be read without an error and fail at the first text, in transformers or in
the Rust library below it, whose failures are no `Exception` of Python.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clusterucb.errors import ClusterUCBError, ModelError, is_panic
from clusterucb.wording import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HUGE = 1e300
_GROWTH = 100  # letters that a normalizer may make of one
_LARGEST = 1 << 26  # token ids; tables by token id have so many entries


@contextmanager
def tokenizing() -> Iterator[None]:
    """Turn an error of a tokenizer in the block into a `ModelError`.

    Raises:
        ModelError: the tokenizer cannot encode a text.
    """
    try:
        yield
    except (ClusterUCBError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelError(
            f"the tokenizer cannot encode a text ({type(error).__name__}: {one_line(error):.200}); expected the files "
            "that its save_pretrained wrote: download them again"
        ) from error


def check_growth(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer's normalizer does not replace short texts by long ones.

    Each replacement multiplies the length of a text, so that a few of them fill any memory, inside a library that
    cannot be ended.

    Raises:
        ModelError: a letter may become more than `_GROWTH` letters.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    growth = 1 if normalizer is None else _growth(json.loads(normalizer.__getstate__()))
    if growth > _GROWTH:
        raise ModelError(
            f"the tokenizer's normalizer may turn a letter into {growth:.3g} letters; expected at most {_GROWTH}: "
            "correct normalizer in tokenizer.json, or download it again"
        )


def _growth(normalizer: dict[str, Any]) -> float:
    """Return the largest number of letters that a normalizer of ``tokenizer.json`` makes of one."""
    inner = normalizer.get("normalizers") or ()
    added = normalizer.get("content") or normalizer.get("prepend") or ""
    return min(math.prod(map(_growth, inner)) * max(len(added), 1), _HUGE)


def check_ids(ids: Collection[int]) -> None:
    """Check that the ids of added tokens are numbers of a vocabulary.

    Raises:
        ModelError: an id is negative, or beyond every vocabulary.
    """
    for number in ids:
        if not 0 <= number < _LARGEST:
            raise ModelError(
                f"the tokenizer has an added token with the id {number}; expected ids from 0 to {_LARGEST - 1}: "
                "correct added_tokens in tokenizer.json, or download it again"
            )
