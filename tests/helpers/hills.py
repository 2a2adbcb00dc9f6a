"""Small pools whose scores follow the features, and searches in them."""

from __future__ import annotations

from typing import Any

import numpy as np

import clusterucb as cu
from clusterucb.engine import Selection
from helpers.searching import search


def hills(seed: int, n_rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    place = rng.normal(size=(n_rows, 2)).astype(np.float32)
    centres = rng.normal(size=(2, 2))
    return place, np.stack([-((place - centre) ** 2).sum(axis=1) for centre in centres], axis=1)


def searched(seed: int = 0, policy: cu.Policy | None = None, **options: Any) -> tuple[Selection, np.ndarray]:
    place, scores = hills(seed)
    options = {
        "clusterer": cu.KMeans(n_clusters=8),
        "budget": 100,
        "n_select": 15,
        "batch_size": 4,
        **options,
    }
    return search(place, lambda rows: scores[rows], policy=policy or cu.UCB(), **options), scores
