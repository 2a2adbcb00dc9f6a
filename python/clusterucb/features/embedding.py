"""Mean token embedding and lengths: features that need no pass of the model; or those of a sentence-embedding model.

The mean is over content tokens alone. Template tokens are the same in every sample, and in a short
one they would make up most of the mean.

Prompt and answer are blocks of their own: which task a sample is, and what an answer looks like, are different things,
and the longer of the two would drown the other. A sentence-embedding model reads them apart in any case: it takes few
tokens, and a long prompt would leave no room for the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import OptionError
from clusterucb.features.base import PASSES, Feature, FeatureBatch, Fitted
from clusterucb.features.sentence import SentenceModel

if TYPE_CHECKING:
    from clusterucb.samples.encode import Encoded


@dataclass
class Embedding(Feature):
    """Mean input embedding of a sample's content tokens, and the logarithms of its lengths.

    Blocks: ``prompt`` and ``answer``, each f32[m, hidden], or without ``parts`` one block ``embedding`` of the whole
    sample (with a model of its own f32[m, 2 * width], both parts side by side); ``length`` f32[m, 2], log of tokens
    and of label tokens.

    Attributes:
        model: folder of a sentence-embedding model; None: the input embeddings of the base model.
        parts: tell the prompt from the answer (the tokens that are no labels from those that are).
    """

    model: str | None = None
    parts: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.parts, bool):
            raise OptionError(f"embedding: parts is {self.parts!r}; expected true or false")
        if self.model is None:
            return
        if not isinstance(self.model, str):
            raise OptionError(f"embedding: model is {self.model!r}; expected the path of a folder, or None")
        self.fit_samples = 1  # for the number of passes alone
        self.forward_passes = 1.0  # until `fit` knows better
        self._sentences  # noqa: B018  (what is wrong with the folder is told at once)

    def fit(self, batch: FeatureBatch) -> Fitted | None:
        """Return how much of a pass of the base model one of the sentence-embedding model is."""
        return {PASSES: np.array([self._sentences.passes(batch.model)])}

    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return both blocks."""
        lengths = [[len(sample), sample.n_labels] for sample in batch.encoded]
        length = np.log(np.array(lengths, np.float32))
        if self.model is not None:
            prompt, answer = self._prompts_and_answers(batch)
        elif self.parts:
            prompt = _mean_tokens(batch, lambda sample: sample.content & ~sample.labels)
            answer = _mean_tokens(batch, lambda sample: sample.content & sample.labels)
        else:
            return {"embedding": _mean_tokens(batch, lambda sample: sample.content), "length": length}
        if self.parts:
            return {"prompt": prompt, "answer": answer, "length": length}
        return {"embedding": np.concatenate([prompt, answer], axis=1), "length": length}

    def compared(self, blocks: Iterable[str]) -> tuple[str, ...]:
        """Return all blocks but the lengths."""
        return tuple(block for block in blocks if block != "length")

    def contents(self) -> dict[str, str]:
        """Return the fingerprint of the sentence-embedding model."""
        return {} if self.model is None else {"model": self._sentences.fingerprint}

    @cached_property
    def _sentences(self) -> SentenceModel:
        assert self.model is not None
        return SentenceModel(self.model)

    def _prompts_and_answers(self, batch: FeatureBatch) -> list[NDArray[np.float32]]:
        texts = zip(*((sample.prompt, sample.answer) for sample in batch.samples), strict=True)
        return [self._sentences.vectors(some, batch.device) for some in texts]


def _mean_tokens(batch: FeatureBatch, part: Callable[[Encoded], NDArray[np.bool_]]) -> NDArray[np.float32]:
    weight = batch.model.get_input_embeddings().weight.detach()
    table = weight.float().cpu().numpy()
    embedding = np.zeros((len(batch.encoded), table.shape[1]), np.float32)
    for row, sample in enumerate(batch.encoded):
        tokens = sample.tokens[part(sample)]
        if len(tokens):
            embedding[row] = table[tokens].mean(axis=0, dtype=np.float64)
    return embedding
