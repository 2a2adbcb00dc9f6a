"""Place every sample of a pool on a map: samples with similar features near each other.

Decisions:
    - The pool is divided into groups by k-means. The groups' centres are placed so that their distances on the map are
      as near as possible to those of their features (multidimensional scaling by majorisation, SMACOF; de Leeuw 1977).
      A sample lies around its group's centre, in the direction of the group's own two principal components.
    - The first two principal components of the whole pool would be simpler. They put most groups of a varied pool on
      top of each other, because the other components tell them apart.
    - Methods that place every sample for itself (t-SNE, UMAP) take longer than a selection from a large pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clusterucb.clusterers.kmeans import KMeans
from clusterucb.engine.components import said, squares
from clusterucb.engine.large import evenly, in_parts, product
from clusterucb.engine.poolview import PoolView

_GROUPS, _FEWEST = 64, 12  # the most groups, and the samples for each in a small pool
_FITTED = 1 << 15  # samples that the groups' centres come from
_ROUNDS = 300  # of majorisation
# Distances below this share of the median count alike, so that equal groups do not outweigh others.
_NEAREST = 0.2
# The radius of a group: this share of the way to the next one, and at least this share of the median of all.
_RADIUS, _LEAST = 0.48, 0.35
_OUTLIERS = 0.9  # the share of a group's samples within its radius
_NOTHING = 1e-3  # a smaller radius in the features, where two samples are about 1 apart, is rounding
_FURTHEST = 1.15  # where the others lie at most, in radii

Floats = NDArray[np.float64]


def places(blocks: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float32]:
    """Return each sample's place on the map, f32[N, 2], from feature blocks [N, k].

    Of features that are all alike, they are zeros.
    """
    n_samples = len(next(iter(blocks.values())))
    found = np.zeros((n_samples, 2), np.float32)
    reduced = [block[:, :-2] for block in said(list(blocks.values()))]
    if not reduced:
        return found
    groups = _groups(blocks, reduced)
    order = np.argsort(groups, kind="stable")
    members = [rows for rows in np.split(order, np.cumsum(np.bincount(groups))[:-1]) if len(rows)]

    def inside(rows: NDArray[np.int64]) -> Floats:  # one group at a time: a copy of all would be large
        return np.concatenate([block[rows] for block in reduced], axis=1, dtype=np.float64)

    means = np.stack([inside(rows).mean(axis=0) for rows in members])
    centres = _scaled(means)
    for rows, mean, centre, radius in zip(members, means, centres, _radii(centres), strict=True):
        found[rows] = centre + radius * _around(inside(rows) - mean)
    return found


def _groups(
    blocks: Mapping[str, NDArray[np.floating]], reduced: Sequence[NDArray[np.float32]]
) -> NDArray[np.int64]:
    """Return the group of each sample, i64[N]: the one with the nearest of the centres that some samples have."""
    n_samples = len(reduced[0])
    some = evenly(n_samples, _FITTED)
    n_groups = min(_GROUPS, max(n_samples // _FEWEST, 1))
    view = PoolView(
        {name: np.asarray(block[some], np.float32) for name, block in blocks.items()},
        np.zeros(len(some), np.int64),
        np.zeros(len(some)),
    )
    labels = KMeans(n_clusters=n_groups).fit_predict(view, np.random.default_rng(0))
    centres = [
        np.stack([block[some[labels == group]].mean(axis=0) for group in range(labels.max() + 1)])
        for block in reduced
    ]
    groups = np.empty(n_samples, np.int64)

    def one(here: slice) -> None:
        parts = zip(reduced, centres, strict=True)
        away = sum(squares(middle) - 2 * product(block[here], middle.T) for block, middle in parts)
        groups[here] = np.argmin(away, axis=1)

    in_parts(one, n_samples)
    return groups


def _distances(points: Floats) -> Floats:
    """Return the distances of points f64[n, k], f64[n, n]."""
    squares = np.einsum("ij,ij->i", points, points)
    found: Floats = np.sqrt(np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0))
    np.fill_diagonal(found, 0)
    return found


def _scaled(means: Floats) -> Floats:
    """Return places f64[n, 2] whose distances are near those of ``means`` f64[n, k]."""
    wanted, n = _distances(means), len(means)
    typical = float(np.median(wanted[wanted > 0])) if wanted.any() else 0.0
    if not typical:
        return np.zeros((n, 2))
    centred = means - means.mean(axis=0)
    place = np.zeros((n, 2))
    axes = _signed(np.linalg.svd(centred, full_matrices=False)[2][:2].T)
    place[:, : axes.shape[1]] = centred @ axes
    weights = 1 / np.maximum(wanted, _NEAREST * typical)
    np.fill_diagonal(weights, 0)
    inverse = np.linalg.inv(np.diag(weights.sum(axis=1)) - weights + 1 / n)
    for _ in range(_ROUNDS):
        pull = -weights * wanted / np.maximum(_distances(place), 1e-3 * typical)
        np.fill_diagonal(pull, -pull.sum(axis=1))
        place = inverse @ (pull @ place)
        place -= place.mean(axis=0)
    return place


def _signed(axes: Floats) -> Floats:
    """Return directions f64[k, m] with signs that do not depend on the solver: the largest component is positive."""
    largest = axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])]
    return axes * np.where(largest < 0, -1, 1)


def _radii(centres: Floats) -> Floats:
    """Return the radius of each group, f64[n]: about half of the way to the nearest other."""
    if len(centres) == 1:
        return np.ones(1)
    away = _distances(centres)
    np.fill_diagonal(away, np.inf)
    nearest = away.min(axis=1)
    found: Floats = _RADIUS * np.maximum(nearest, _LEAST * float(np.median(nearest)))
    return found if found.any() else np.ones(len(centres))


def _around(rows: Floats) -> Floats:
    """Return centred rows f64[m, k] along their first two principal components, most within 1 of zero, f64[m, 2]."""
    found = np.zeros((len(rows), 2))
    _, axes = np.linalg.eigh(rows.T @ rows)
    axes = _signed(axes[:, :-3:-1])
    found[:, : axes.shape[1]] = rows @ axes
    lengths = np.linalg.norm(found, axis=1)
    within = float(np.quantile(lengths, _OUTLIERS))
    if within < _NOTHING:
        return np.zeros_like(found)
    found *= (np.minimum(lengths / within, _FURTHEST) / np.maximum(lengths, 1e-12))[:, None]
    return found
