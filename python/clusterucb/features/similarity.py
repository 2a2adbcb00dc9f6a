"""Compute how similar each pool sample is to the target, by its features. `rds` draws by it, without gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clusterucb.engine.large import is_large, slices
from clusterucb.errors import OptionError

if TYPE_CHECKING:
    from clusterucb.engine.policy import Policy
    from clusterucb.features.base import Feature

Blocks = Mapping[str, NDArray[np.floating]]


def check_comparable(policy: Policy, features: Feature, strategy: str = "") -> None:
    """Refuse a policy that draws by similarity to the target when the features take gradients.

    Args:
        policy: the policy.
        features: the feature in which similarity would be computed.
        strategy: the name of the strategy, with which the message begins; "" for the name of the policy.

    Raises:
        OptionError: the policy uses ``similarity``, and the features take gradients.
    """
    if "similarity" in policy.columns and features.gradients:
        name = f"strategy {strategy}" if strategy else f"policy {type(policy).__name__.lower()}"
        raise OptionError(
            f"{name} compares gradients with the target, but it is meant to work without gradients; expected other "
            "features, such as hidden or embedding"
        )


def similarity(pool: Blocks, targets: Sequence[Blocks]) -> NDArray[np.float64]:
    """Return each row's largest cosine, over subtasks, with the mean of a subtask's unit rows, f64[N].

    First, every block is centred on the pool's mean and scaled to the pool's mean norm, as in `PoolView.matrix`: what
    all samples have in common does not tell which of them are alike.

    Args:
        pool: named blocks f32[N, k].
        targets: for each subtask, the same blocks f32[n, k] of its n samples.
    """
    centre, norm = {}, {}
    for name, block in pool.items():
        centre[name], norm[name] = _centre_and_norm(block)

    def unit(blocks: Blocks) -> NDArray[np.float64]:
        joined = np.concatenate(
            [(blocks[name] - centre[name]) / (norm[name] or 1.0) for name in pool], axis=1
        )
        length = np.linalg.norm(joined, axis=1, keepdims=True)
        rows: NDArray[np.float64] = np.divide(joined, length, out=np.zeros_like(joined), where=length > 0)
        return rows

    means = np.stack([unit(blocks).mean(axis=0) for blocks in targets])
    length = np.linalg.norm(means, axis=1, keepdims=True)
    directions = np.divide(means, length, out=np.zeros_like(means), where=length > 0)
    n_rows = len(next(iter(pool.values())))
    cosines = np.empty(n_rows)
    for here in slices(n_rows) if is_large(n_rows) else [slice(None)]:
        cosines[here] = (unit({name: block[here] for name, block in pool.items()}) @ directions.T).max(axis=1)
    return cosines


def _centre_and_norm(block: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Return the mean row of a block [N, k], f64[k], and the rows' mean distance from it."""
    if not is_large(len(block)):
        centre = block.mean(axis=0, dtype=np.float64)
        return centre, np.linalg.norm(block - centre, axis=1).mean()
    centre = sum(block[here].sum(axis=0, dtype=np.float64) for here in slices(len(block))) / len(block)
    norms = (np.linalg.norm(block[here] - centre, axis=1).sum() for here in slices(len(block)))
    return centre, sum(norms) / len(block)
