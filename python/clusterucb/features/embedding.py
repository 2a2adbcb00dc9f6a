"""Describe a sample by mean token embeddings and lengths, without a model pass, or by a sentence-embedding model.

Decisions:
    - The mean is over content tokens only. Template tokens are the same in every sample, and would make up most of
      the mean of a short one.
    - Prompt and answer have separate blocks: the task of a sample and the look of its answer are different things,
      and the longer text would drown the shorter one. A sentence-embedding model always reads the two separately: it
      takes few tokens, and a long prompt would leave no room for the answer.
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
    from clusterucb.samples.encoded import Encoded


@dataclass
class Embedding(Feature):
    """Mean input embedding of a sample's content tokens, and the logarithms of its lengths.

    Blocks: ``prompt`` and ``answer``, each f32[m, hidden]. If ``parts`` is false, there is one block ``embedding`` of
    the whole sample instead (with a sentence-embedding model f32[m, 2 * width]: prompt and answer side by side). And
    ``length`` f32[m, 2]: the logarithms of the numbers of tokens and of label tokens.

    Attributes:
        model: the folder of a sentence-embedding model. None uses the input embeddings of the base model.
        parts: whether prompt (tokens that are not labels) and answer (label tokens) have separate blocks.
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
        self.fit_samples = 1  # `fit` only computes the number of passes, but it is not called for 0 samples
        self.forward_passes = 1.0  # until `fit` has compared the two models
        self._sentences  # noqa: B018  (opens the folder now, to report what is wrong with it at once)

    def fit(self, batch: FeatureBatch) -> Fitted | None:
        """Return the cost of a pass of the sentence-embedding model in passes of the base model, f64[1]."""
        return {PASSES: np.array([self._sentences.passes(batch.model)])}

    def compute(self, batch: FeatureBatch) -> Mapping[str, NDArray[np.float32]]:
        """Return the blocks ``prompt`` and ``answer``, or ``embedding``, and the block ``length``."""
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
        """Return the names of all blocks except ``length``."""
        return tuple(block for block in blocks if block != "length")

    def contents(self) -> dict[str, str]:
        """Return the fingerprint of the sentence-embedding model, if there is one."""
        return {} if self.model is None else {"model": self._sentences.fingerprint}

    @cached_property
    def _sentences(self) -> SentenceModel:
        assert self.model is not None
        return SentenceModel(self.model)

    def _prompts_and_answers(self, batch: FeatureBatch) -> list[NDArray[np.float32]]:
        texts = zip(*((sample.prompt, sample.answer) for sample in batch.samples), strict=True)
        return [self._sentences.vectors(of_part, batch.device) for of_part in texts]


def _mean_tokens(batch: FeatureBatch, part: Callable[[Encoded], NDArray[np.bool_]]) -> NDArray[np.float32]:
    """Return the mean input embedding f32[m, hidden] of the tokens that ``part`` picks; zeros if it picks none."""
    weight = batch.model.get_input_embeddings().weight.detach()
    table = weight.float().cpu().numpy()
    embedding = np.zeros((len(batch.encoded), table.shape[1]), np.float32)
    for row, sample in enumerate(batch.encoded):
        tokens = sample.tokens[part(sample)]
        if len(tokens):
            embedding[row] = table[tokens].mean(axis=0, dtype=np.float64)
    return embedding
