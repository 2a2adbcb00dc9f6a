"""Hashed character n-grams (Weinberger et al. 2009) as a feature: of the text alone, without a model.

Decisions:
    - n-grams lie within a word and the space on either side of it, in lower case. No tokenizer is asked, so
      the rows of a pool are the same whatever the model.
    - Each n-gram counts by log(1 + its count), or the few most frequent of a language would be most of a long
      text's row. It is taken before n-grams are hashed, so that products of rows are still, in the mean and
      before rows are scaled, those of unhashed ones: half of the n-grams have a minus, and collisions
      cancel out.
    - There is no inverse document frequency: it would be one of the batch, and rows would depend on it.
      What all samples have in common is centred away by the engine.
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

    Blocks: ``prompt`` f32[m, dim], of all messages but the assistant's; ``answer`` f32[m, dim], of the
    assistant's. Rows have unit length; that of an empty text is zeros.

    Attributes:
        dim: columns of each block that n-grams are hashed to.
        n_min, n_max: length of the shortest and of the longest n-grams, in characters.
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
        """Return both blocks."""
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
        # here, not above: listing plugins is to stay fast
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
    """Name this package's feature."""
    return {"ngrams": NGrams}
