"""Which preconditioner turns a gradient into an update, and with which settings.

The formulas are in `clusterucb.reference`. The names stand apart from them, without numpy, because the
command line offers them before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
