"""Gradient stores: in small shards, compared by the contents of their samples, and the gradients that they take."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

import clusterucb as cu
from clusterucb.gradients import per_sample as gradients
from clusterucb.run import store_shards

TRIED = 4  # gradients (two samples, twice) that show that a model can be used, whenever one is loaded


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> Iterator[None]:
    """Shards have 16 rows in the modules that import this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_shards, "SHARD", 16)
        yield


def by_content(store: cu.GradientStore) -> dict[str, NDArray[np.float32]]:
    """Return the sketch of each sample, by the hash of its content."""
    return dict(zip(store.content_hashes, store.rows(range(len(store))).astype(np.float32), strict=True))


def count_gradients(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the size of every batch that takes gradients."""
    sizes: list[int] = []
    backward = gradients.PerSampleGradients.backward

    def counted(self, batch, *rest):
        sizes.append(len(batch.lengths))
        return backward(self, batch, *rest)

    monkeypatch.setattr(gradients.PerSampleGradients, "backward", counted)
    return sizes
