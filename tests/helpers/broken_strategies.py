"""Clusterers and features that make one mistake each, and the tests of the suites that have to fail for it."""

from __future__ import annotations

import random

import numpy as np

from clusterucb.clusterers import Clusterer
from clusterucb.features import Embedding, Feature, Gradient, Hidden

# Clusterers ------------------------------------------------------------------------------------------------


class Good(Clusterer):
    """Halves the pool by the number of tokens."""

    def fit_predict(self, pool, rng):
        tokens = pool.columns["tokens"]
        return (tokens > np.median(tokens)).astype(np.int64)


class LeavesOut(Good):
    def fit_predict(self, pool, rng):
        labels = super().fit_predict(pool, rng)
        return labels[labels >= 0][: max(len(labels) - 1, 1)]


class OneHot(Good):
    def fit_predict(self, pool, rng):
        return np.eye(2, dtype=np.int64)[super().fit_predict(pool, rng)]


class FloatLabels(Good):
    def fit_predict(self, pool, rng):
        return super().fit_predict(pool, rng).astype(np.float64)


class BoolLabels(Good):
    def fit_predict(self, pool, rng):
        return super().fit_predict(pool, rng).astype(bool)


class MinusTwo(Good):
    def fit_predict(self, pool, rng):
        return np.where(pool.columns["tokens"] > 80, -2, 0)


class Gaps(Good):
    def fit_predict(self, pool, rng):
        return 2 * super().fit_predict(pool, rng)


class FromOne(Good):
    def fit_predict(self, pool, rng):
        return 1 + super().fit_predict(pool, rng)


class ByPosition(Good):
    def fit_predict(self, pool, rng):
        return (np.arange(len(pool)) >= len(pool) // 2).astype(np.int64)


class InTurns(Good):
    def fit_predict(self, pool, rng):
        return np.arange(len(pool)) % 3


class Remembers(Good):
    """Goes on from the centres of the last call."""

    _cut = 0.0

    def fit_predict(self, pool, rng):
        tokens = pool.columns["tokens"]
        self._cut = self._cut or float(np.median(tokens))
        return np.unique(tokens > self._cut, return_inverse=True)[1]


class GlobalCut(Good):
    def fit_predict(self, pool, rng):
        tokens = pool.columns["tokens"]
        cut = np.random.uniform(tokens.min(), tokens.max() + 1)  # noqa: NPY002
        return np.unique(tokens > cut, return_inverse=True)[1]


class SeedsGlobally(Good):
    def fit_predict(self, pool, rng):
        random.seed(0)
        return super().fit_predict(pool, rng)


class CentresInPlace(Good):
    def fit_predict(self, pool, rng):
        for block in pool.features.values():
            block.flags.writeable = True
            block -= block.mean(axis=0)
        return super().fit_predict(pool, rng)


class AddsColumn(Good):
    def fit_predict(self, pool, rng):
        pool.columns["half"] = super().fit_predict(pool, rng)
        return pool.columns["half"]


class HidesOption(Good):
    def __init__(self, k=2) -> None:
        self._k = k


class Neighbours(Good):
    """Looks at the nearest other row."""

    def fit_predict(self, pool, rng):
        np.sort(pool.columns["tokens"])[1]
        return super().fit_predict(pool, rng)


class FourCentres(Good):
    """Chooses four rows as centres."""

    def fit_predict(self, pool, rng):
        if len(pool) > 1:
            rng.choice(len(pool), 4, replace=False)
        return super().fit_predict(pool, rng)


class DividesByZero(Good):
    """Makes bins between the smallest and the largest number, which may be the same."""

    def fit_predict(self, pool, rng):
        tokens = pool.columns["tokens"].astype(float)
        if len(pool) <= 3:
            return np.zeros(len(pool), np.int64)
        with np.errstate(invalid="ignore"):
            share = (tokens - tokens.min()) / (tokens.max() - tokens.min())
            return np.where(np.isnan(share), np.iinfo(np.int64).min, share > 0.5).astype(np.int64)


CLUSTERERS = [
    (LeavesOut, "every row has a label"),
    (OneHot, "every row has a label"),
    (FloatLabels, "labels are whole numbers"),
    (BoolLabels, "labels are whole numbers"),
    (MinusTwo, "no label is below minus one"),
    (Gaps, "labels have no gaps"),
    (FromOne, "labels have no gaps"),
    (ByPosition, "order of rows does not matter"),
    (InTurns, "order of rows does not matter"),
    (Remembers, "same rng gives the same labels"),
    (GlobalCut, "randomness comes from rng alone"),
    (SeedsGlobally, "randomness comes from rng alone"),
    (CentresInPlace, "pool is left as it is"),
    (AddsColumn, "pool is left as it is"),
    (HidesOption, "hyper parameters are kept"),
    (Neighbours, "pool may have one row"),
    (FourCentres, "pool may have fewer rows than clusters are wanted"),
    (DividesByZero, "rows may be identical"),
]

# Features --------------------------------------------------------------------------------------------------


class Length(Feature):
    """A good feature: the number of tokens."""

    def compute(self, batch):
        return {"length": self.values(batch)}

    def values(self, batch):
        return np.array([[len(sample)] for sample in batch.encoded], np.float32)


class Nothing(Length):
    def compute(self, batch):
        return {}


class BareArray(Length):
    def compute(self, batch):
        return self.values(batch)


class OneDimension(Length):
    def values(self, batch):
        return super().values(batch)[:, 0]


class MeanOfBatch(Length):
    def values(self, batch):
        return super().values(batch).mean(axis=0, keepdims=True)


class NoColumns(Length):
    def values(self, batch):
        return np.zeros((len(batch.samples), 0), np.float32)


class Words(Length):
    def values(self, batch):
        return np.array([[sample.source] for sample in batch.samples])


class NotFinite(Length):
    def values(self, batch):
        with np.errstate(divide="ignore"):
            return np.log(np.array([[sample.content.sum()] for sample in batch.encoded], np.float32))


class UnitGradients(Gradient):
    """Divides by the norm of a gradient that may have failed."""

    def compute(self, batch):
        rows = batch.gradient_sketches
        with np.errstate(invalid="ignore"):
            return {"gradient": rows / np.linalg.norm(rows, axis=1, keepdims=True)}


class Centred(Length):
    def values(self, batch):
        return super().values(batch) - super().values(batch).mean(axis=0)


class PaddedPass(Length):
    """Multiplies a matrix as large as the batch: other sums in the last bit."""

    def values(self, batch):
        return super().values(batch) * np.float32(1 + 1e-7 * len(batch.samples))


class SourcesOfBatch(Length):
    def values(self, batch):
        sources = sorted({sample.source for sample in batch.samples})
        return np.array([[sample.source == one for one in sources] for sample in batch.samples], np.float32)


class NamedByBatch(Length):
    def compute(self, batch):
        return {f"length of {len(batch.samples)}": self.values(batch)}


class Counts(Length):
    """Numbers the calls."""

    _calls = 0

    def compute(self, batch):
        self._calls += 1
        return {"length": self.values(batch), f"call {self._calls > 3}": self.values(batch)}


class Drifts(Length):
    """Knows the longest of the samples so far."""

    _longest = 0

    def values(self, batch):
        if len(batch.samples) == 2 and batch.samples[0] != batch.samples[1]:
            self._longest = 5
        return super().values(batch) + self._longest


class Noise(Length):
    def values(self, batch):
        return super().values(batch) + np.random.random() * 0  # noqa: NPY002


class TorchNoise(Length):
    """Draws from torch's global generator, and puts nothing back."""

    def values(self, batch):
        import torch

        return super().values(batch) + torch.rand(1).numpy() * 0


class SortsTokens(Length):
    def values(self, batch):
        for sample in batch.encoded:
            sample.tokens.sort()
        return super().values(batch)


class SortsSamples(Length):
    def values(self, batch):
        found = super().values(batch)
        batch.encoded.sort(key=len)
        return found


class LeavesHook(Length):
    def values(self, batch):
        batch.model.model.layers[0].register_forward_hook(lambda *_: None)
        return super().values(batch)


class Trains(Length):
    def values(self, batch):
        batch.model.train()
        return super().values(batch)


class ChangesWeights(Length):
    def values(self, batch):
        batch.model.get_input_embeddings().weight.data.mul_(2)
        return super().values(batch)


class FreePass(Hidden):
    """A pass that is not declared, ended before the model returns."""

    def __post_init__(self) -> None:
        self.forward_passes = 0


class FreeGradient(Gradient):
    gradients = 0


class HidesDepth(Length):
    def __init__(self, depth=2) -> None:
        self._depth = depth


class SimilarByNothing(Embedding):
    similar_by = ("embeddings",)


class LongestWord(Length):
    """A good feature that learns from the pool: lengths as shares of the longest."""

    fit_samples = 100

    def fit(self, batch):
        return {"longest": np.array([max(len(sample) for sample in batch.encoded)])}

    def values(self, batch):
        return super().values(batch) / batch.fitted["longest"].astype(np.float32)


class FitsAList(LongestWord):
    def fit(self, batch):
        return [len(batch.samples)]

    def values(self, batch):
        return super(LongestWord, self).values(batch)


class FitsWords(FitsAList):
    def fit(self, batch):
        return {"source": [sample.source for sample in batch.samples]}


class FitsAnew(LongestWord):
    """Numbers what it has learnt."""

    _fits = 0

    def fit(self, batch):
        self._fits += 1
        return {**super().fit(batch), "number": self._fits}


class RemembersFit(LongestWord):
    """Keeps what it has learnt."""

    def fit(self, batch):
        self._longest = super().fit(batch)["longest"]

    def values(self, batch):
        return super(LongestWord, self).values(batch) / self._longest.astype(np.float32)


class FitsByAPass(LongestWord):
    forward_passes = 1

    def fit(self, batch):
        import torch

        with torch.inference_mode():
            batch.model(torch.tensor([[1, 2]]))
        return super().fit(batch)


FEATURES = [
    (FitsAList, "fit returns named arrays"),
    (FitsWords, "fit returns named arrays"),
    (FitsAnew, "fit gives the same for the same samples"),
    (RemembersFit, "what fit returned is all that is needed"),
    (FitsByAPass, "fit makes no pass"),
    (Nothing, "compute returns named blocks"),
    (BareArray, "compute returns named blocks"),
    (OneDimension, "every block has a row for each sample"),
    (MeanOfBatch, "every block has a row for each sample"),
    (NoColumns, "no block is empty"),
    (Words, "blocks are numbers"),
    (NotFinite, "blocks are finite"),
    (UnitGradients, "blocks are finite"),
    (Centred, "row does not depend on its batch"),
    (PaddedPass, "row does not depend on its batch"),
    (SourcesOfBatch, "blocks are the same in every batch"),
    (NamedByBatch, "blocks are the same in every batch"),
    (Counts, "blocks are the same in every batch"),
    (Drifts, "same samples give the same rows"),
    (Noise, "global randomness plays no part"),
    (TorchNoise, "global randomness plays no part"),
    (SortsTokens, "samples are left as they are"),
    (SortsSamples, "samples are left as they are"),
    (LeavesHook, "model is left as it was"),
    (Trains, "model is left as it was"),
    (ChangesWeights, "model is left as it was"),
    (FreePass, "forward passes are declared"),
    (FreeGradient, "gradients are declared"),
    (HidesDepth, "hyper parameters are kept"),
    (SimilarByNothing, "similar by names blocks"),
]
