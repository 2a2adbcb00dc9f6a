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

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import OptionError, did_you_mean

PRECONDITIONERS = ("adam_less", "adam", "second_moment", "sgd")


class Constants(NamedTuple):
    """The factors of a preconditioner, computed in double precision once."""

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    eps: float
    numerator: float  # of adam: 1 / (1 - beta1^(t+1))
    denominator: float  # under the root: 1 / (1 - beta2^(t+1)) for adam, 1 / (1 - beta2^t) for second_moment


@dataclass(frozen=True)
class Preconditioner:
    """What turns a gradient into an update.

    Attributes:
        kind: one of `PRECONDITIONERS`.
        beta1, beta2, eps: the optimiser's settings.
        step: optimiser steps taken, t.

    Raises:
        OptionError: a value cannot be used.
    """

    kind: str = "sgd"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    step: int = 0

    def __post_init__(self) -> None:
        if self.kind not in PRECONDITIONERS:
            hint = did_you_mean(self.kind, PRECONDITIONERS)
            raise OptionError(
                f"preconditioner is {self.kind!r}; expected one of {', '.join(PRECONDITIONERS)}.{hint}"
            )
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise OptionError(f"{name} is {beta}; expected at least 0 and below 1")
        if not self.eps > 0:
            raise OptionError(f"eps is {self.eps}; expected a number above 0")
        if self.step < (self.kind == "second_moment"):
            raise OptionError(
                f"step is {self.step}; expected at least {int(self.kind == 'second_moment')}: {self.kind} needs "
                "the moments of an optimiser that has taken that many steps"
            )

    def constants(self) -> Constants:
        """Return the factors that the formulas use."""
        t = self.step if self.kind == "second_moment" else self.step + 1
        return Constants(
            self.beta1,
            1 - self.beta1,
            self.beta2,
            1 - self.beta2,
            self.eps,
            1 / (1 - self.beta1 ** (self.step + 1)),
            1 / (1 - self.beta2**t),
        )


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
