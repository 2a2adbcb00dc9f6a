"""Describe samples by hashed character n-grams of their text (Weinberger et al. 2009), without a model.

Decisions:
    - An n-gram lies within a word and the spaces on either side of the word, in lower case. No tokenizer takes part,
      so a pool has the same rows with any model.
    - An n-gram weighs log(1 + its count); otherwise, the few most frequent n-grams of a language would dominate the
      row of a long text. The logarithm is taken before hashing. So, before rows are scaled, the product of two rows
      has the same expectation as without hashing: half of the n-grams have a negative sign, and collisions cancel out.
    - There is no inverse document frequency: it would come from the batch, and rows would depend on their batch. The
      engine centres the features, which removes what all samples have in common.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from clusterucb.errors import OptionError
from clusterucb.features import Feature, FeatureBatch
from clusterucb.hookspecs import hookimpl
from numpy.typing import NDArray

__all__ = ["NGrams"]


@dataclass
class NGrams(Feature):
    """Hashed character n-grams of a sample's prompt and of its answer.

    Blocks: ``prompt`` f32[m, dim] from all messages but the assistant's; ``answer`` f32[m, dim] from the assistant's
    messages. Rows have unit length; an empty text has a row of zeros.

    Attributes:
        dim: the number of columns of each block, to which n-grams are hashed.
        n_min, n_max: the lengths of the shortest and of the longest n-grams, in characters.
    """

    dim: int = 256
    n_min: int = 2
    n_max: int = 4

    def __post_init__(self) -> None:
        for name in ("dim", "n_min", "n_max"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                raise OptionError(f"ngrams: {name} is {value!r}; expected a whole number of at least 1")
        if self.n_min > self.n_max:
            raise OptionError(f"ngrams: n_min is {self.n_min}; expected at most n_max, which is {self.n_max}")

    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return the blocks ``prompt`` and ``answer``."""
        prompts, answers = (
            [
                "\n".join(text for role, text in sample.messages if (role == "assistant") is of_assistant)
                for sample in batch.samples
            ]
            for of_assistant in (False, True)
        )
        return {"prompt": self._hashed(prompts), "answer": self._hashed(answers)}

    def _hashed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a row of unit length for each text, f32[m, dim]."""
        # Imported here, so that listing plugins stays fast.
        from sklearn.feature_extraction import FeatureHasher  # type: ignore[import-untyped]
        from sklearn.feature_extraction.text import HashingVectorizer  # type: ignore[import-untyped]
        from sklearn.preprocessing import normalize  # type: ignore[import-untyped]

        ngrams = HashingVectorizer(analyzer="char_wb", ngram_range=(self.n_min, self.n_max)).build_analyzer()
        weights = (
            {ngram: math.log1p(count) for ngram, count in Counter(ngrams(text)).items()} for text in texts
        )
        hashed = FeatureHasher(self.dim).transform(weights)
        rows: NDArray[np.float32] = normalize(hashed).toarray().astype(np.float32)
        return rows


@hookimpl
def clusterucb_features() -> dict[str, type[Feature]]:
    """Return this package's feature by its name."""
    return {"ngrams": NGrams}
