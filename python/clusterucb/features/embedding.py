"""Mean token embedding and lengths: features that need no pass of the model.

The mean is over content tokens alone. Template tokens are the same in every sample, and in a short
one they would make up most of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.base import Feature, FeatureBatch


@dataclass
class Embedding(Feature):
    """Mean input embedding of a sample's content tokens, and the logarithms of its lengths.

    Blocks: ``embedding`` f32[m, hidden]; ``length`` f32[m, 2], log of tokens and of label tokens.
    """

    similar_by: ClassVar[tuple[str, ...]] = ("embedding",)

    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return both blocks."""
        weight = batch.model.get_input_embeddings().weight.detach()
        table = weight.float().cpu().numpy()
        embedding = np.zeros((len(batch.encoded), table.shape[1]), np.float32)
        for row, sample in enumerate(batch.encoded):
            tokens = sample.tokens[sample.content]
            if len(tokens):
                embedding[row] = table[tokens].mean(axis=0, dtype=np.float64)
        lengths = [[len(sample), sample.n_labels] for sample in batch.encoded]
        return {"embedding": embedding, "length": np.log(np.array(lengths, np.float32))}
