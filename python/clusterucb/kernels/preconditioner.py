"""Name the preconditioners, which turn a gradient into an update direction, and hold their settings.

The formulas are in `clusterucb.kernels.reference`. The names have a module of their own, without numpy, because the
command line offers them before it imports anything heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from clusterucb.errors import OptionError, check_choice

_SMALLEST_EPS = 1e-37
PRECONDITIONERS = ("adam_less", "adam", "second_moment", "sgd")


class Constants(NamedTuple):
    """The factors of a preconditioner's formula, computed once in double precision.

    In the Adam formulas, numerator and denominator are divided by the root of the factor of g² under the root. This
    saves a multiplication for each element (`clusterucb.kernels.reference`).
    """

    first: float  # factor of g in the numerator
    from_m: float  # factor of m in the numerator
    from_v: float  # factor of v under the root
    eps: float  # the formula's eps, scaled to match


@dataclass(frozen=True)
class Preconditioner:
    """A formula that turns a gradient into an update direction, with the optimiser's settings.

    Attributes:
        kind: one of `PRECONDITIONERS`.
        beta1, beta2, eps: the optimiser's settings.
        step: t, the number of optimiser steps taken.

    Raises:
        OptionError: the kind is unknown, or a setting is out of range.
    """

    kind: str = "sgd"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    step: int = 0

    def __post_init__(self) -> None:
        check_choice("preconditioner", self.kind, PRECONDITIONERS)
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise OptionError(f"{name} is {beta}; expected at least 0 and below 1")
        if not self.eps >= _SMALLEST_EPS:
            raise OptionError(
                f"eps is {self.eps}; expected at least {_SMALLEST_EPS}, since gradients are preconditioned in fp32"
            )
        if self.step < (self.kind == "second_moment"):
            raise OptionError(
                f"step is {self.step}; expected at least {int(self.kind == 'second_moment')}: {self.kind} needs "
                "the moments of an optimiser that has taken that many steps"
            )

    def constants(self) -> Constants:
        """Return the factors that the formula uses."""
        if self.kind == "second_moment":
            return Constants(1, 0, 1 / (1 - self.beta2**self.step), self.eps)
        first, second = 1 - self.beta1, 1 - self.beta2
        if self.kind == "adam":
            first /= 1 - self.beta1 ** (self.step + 1)
            second /= 1 - self.beta2 ** (self.step + 1)
        root = second**0.5
        return Constants(
            first / root,
            first * self.beta1 / (1 - self.beta1) / root,
            self.beta2 / (1 - self.beta2),
            self.eps / (root if self.kind == "adam" else second),
        )
