"""Random encoded samples."""

from __future__ import annotations

import numpy as np

from clusterucb.samples.encoded import Encoded
from helpers.models import VOCABULARY


def encoded(seed, lengths):
    rng = np.random.default_rng(seed)
    samples = []
    for length in lengths:
        labels = rng.random(length) < 0.5
        labels[0], labels[-1] = False, True
        samples.append(Encoded(rng.integers(0, VOCABULARY, length), labels, ~labels))
    return samples
