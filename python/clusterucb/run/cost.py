"""Record the cost of a run: the passes and the seconds of each phase."""

from __future__ import annotations

from typing import Annotated

import msgspec

# Values that a manifest may have: others are damage.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Amount = Annotated[float, msgspec.Meta(ge=0)]

FORWARD = 0.43  # cost of a forward pass in LoRA gradients, measured on a 135M-parameter model


class PhaseCost(msgspec.Struct):
    """The cost of one phase of a run.

    Attributes:
        gradients: the number of per-sample gradients (a forward and a backward pass of one sample).
        forward_passes: the number of forward passes of one sample without a gradient.
        tokens: the number of tokens in these passes.
        seconds: the wall-clock time over all sessions of the run.
        reused: whether the phase's results came from an earlier run, so that the phase cost nothing.
    """

    gradients: Count = 0
    forward_passes: Amount = 0
    tokens: Count = 0
    seconds: Amount = 0.0
    reused: bool = False


class Cost(msgspec.Struct):
    """The cost of a run, with every pass counted.

    Attributes:
        pool_samples: N, the number of pool samples.
        phases: the cost of each phase, by name.
        unit: the unit of ``total``.
        total: the cost of all passes, where 1 is one gradient of every pool sample. A forward pass counts as `FORWARD`
            gradients.
    """

    pool_samples: Count = 0
    phases: dict[str, PhaseCost] = {}
    unit: str = "one gradient of every pool sample"
    total: Amount = 0.0

    def share(self, phase: PhaseCost) -> float:
        """Return the cost of a phase, where 1 is one gradient of every pool sample."""
        return (phase.gradients + FORWARD * phase.forward_passes) / max(self.pool_samples, 1)

    @property
    def gradients(self) -> int:
        """The number of gradients over all phases."""
        return sum(phase.gradients for phase in self.phases.values())

    @property
    def forward_passes(self) -> float:
        """The number of forward passes over all phases."""
        return sum(phase.forward_passes for phase in self.phases.values())

    @property
    def seconds(self) -> float:
        """The seconds over all phases."""
        return sum(phase.seconds for phase in self.phases.values())
