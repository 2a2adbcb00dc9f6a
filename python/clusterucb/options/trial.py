"""Define the options of a trial."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from clusterucb.options.kinds import LIST, Checked, Whole, offered
from clusterucb.wording import did_you_mean

ARMS = ("all", "rds", "exhaustive")


@dataclass(frozen=True, kw_only=True)
class TrialSettings(Checked):
    """Options of a trial.

    Attributes:
        arms: Further arms beside the selections, random samples and no training, comma-separated: all (samples of the
            whole pool, each at most once), rds (the samples most similar to the target), exhaustive (what the run's
            rule selects if every sample is scored).
        seeds: Number of trainings of each arm at each learning rate.
        epochs: How often a training goes through the selection. All arms take the same number of steps.
        learning_rate: Largest learning rate of a training. Every arm is also trained with a quarter of it.
        no_lock: Do not lock the folder of the trial. Use it only if no other process uses the folder.
    """

    arms: Annotated[str | None, offered(ARMS)] = field(default=None, metadata=LIST)
    seeds: Whole = 3
    epochs: Whole = 2
    learning_rate: float = 2e-4
    no_lock: bool = False

    def __post_init__(self) -> None:
        self.check_whole("seeds", "epochs")
        self.check(
            "learning_rate", math.isfinite(self.learning_rate) and self.learning_rate > 0, "a number above 0"
        )
        for name in self.others:
            hint = did_you_mean(name, ARMS)
            self.check("arms", name in ARMS, f"some of {', '.join(ARMS)}, comma-separated.{hint}")

    @property
    def others(self) -> list[str]:
        """The names in ``arms``, each once."""
        return list(dict.fromkeys(name.strip() for name in (self.arms or "").split(",") if name.strip()))

    @property
    def rates(self) -> tuple[float, float]:
        """The learning rates."""
        return self.learning_rate, self.learning_rate / 4
