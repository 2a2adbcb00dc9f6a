"""The compute core in numpy: the specification that the compiled kernels are tested against.

For a sample's gradient g and the checkpoint's Adam moments m and v after t steps, with
m' = beta1 m + (1 - beta1) g and v' = beta2 v + (1 - beta2) g²:

    adam_less       m' / sqrt(v' + eps)                      what LESS and ClusterUCB ran: eps inside the
                                                             root, no bias correction
    adam            (m' / (1 - beta1^(t+1))) / (sqrt(v' / (1 - beta2^(t+1))) + eps)      the optimiser's
                                                             true next direction, without weight decay
    second_moment   g / (sqrt(v / (1 - beta2^t)) + eps)
    sgd             g

They are different features of a sample: scores of two of them cannot be compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.preconditioner import Constants, Preconditioner


def precondition(
    gradient: NDArray[Any],
    m: NDArray[Any] | None,
    v: NDArray[Any] | None,
    preconditioner: Preconditioner,
) -> NDArray[Any]:
    """Return the update direction of every element, in the precision of ``gradient``.

    Args:
        gradient: [B, n], or any shape that ``m`` and ``v`` broadcast to.
        m, v: [n], the moments; None for ``sgd``.
        preconditioner: the formula and its settings.
    """
    if preconditioner.kind == "sgd":
        return gradient
    assert m is not None
    assert v is not None
    c = Constants._make(gradient.dtype.type(value) for value in preconditioner.constants())
    if preconditioner.kind == "second_moment":
        update: NDArray[Any] = gradient / (np.sqrt(v * c.denominator) + c.eps)
        return update
    first = c.beta1 * m + c.one_minus_beta1 * gradient
    second = c.beta2 * v + c.one_minus_beta2 * gradient * gradient
    if preconditioner.kind == "adam_less":
        update = first / np.sqrt(second + c.eps)
    else:
        update = first * c.numerator / (np.sqrt(second * c.denominator) + c.eps)
    return update


def accumulate(
    gradient: NDArray[np.float32],
    offset: int,
    *,
    preconditioner: Preconditioner,
    moments: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    directions: NDArray[np.float32],
    norm2: NDArray[np.float64],
    products: NDArray[np.float64],
) -> None:
    """Add one segment's share of the squared norms and inner products; see `clusterucb.ops.accumulate`."""
    segment = slice(offset, offset + gradient.shape[1])
    m, v = (moments[0][segment], moments[1][segment]) if moments else (None, None)
    update = precondition(gradient, m, v, preconditioner).astype(np.float64)
    norm2 += np.einsum("bn,bn->b", update, update)
    products += update @ directions[:, segment].astype(np.float64).T
