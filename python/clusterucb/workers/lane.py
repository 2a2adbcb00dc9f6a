"""Where passes are computed.

The driver forms the passes, whoever computes them, and reads their results in the order in which they began. So the
results do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from clusterucb.samples.encoded import Encoded

Result_co = TypeVar("Result_co", covariant=True)


class NoMemory(Exception):
    """A pass needs more memory than there is."""


class Deadly(Exception):
    """Every worker that computed a pass died. The message says how."""


class Pending(Protocol[Result_co]):
    """A pass that has begun."""

    def result(self) -> Result_co:
        """Return the pass's result once it is there.

        Raises:
            NoMemory: the pass needs more memory than there is.
            Deadly: workers died of the pass, again and again.
        """

    def cancel(self) -> None:
        """Drop the result."""


class Lane(Protocol[Result_co]):
    """Where passes are computed.

    Attributes:
        ahead: how many passes may have begun before the result of the first is read.
    """

    ahead: int

    def begin(self, samples: Sequence[Encoded]) -> Pending[Result_co]:
        """Begin a pass over B samples."""
