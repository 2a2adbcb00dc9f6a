"""Options of scoring, of the search, and of what is written.

Strategies are not here: Python passes objects, and only the command line knows names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterucb.engine.aggregate import NAMES
from clusterucb.engine.choice import SELECT_BY
from clusterucb.errors import OptionError
from clusterucb.filenames import EXPORTS
from clusterucb.options.amounts import Seconds, Tokens, parse_budget, parse_count, parse_until, resolve_count
from clusterucb.options.gradients import GradientSettings
from clusterucb.options.kinds import (
    FILE,
    FREE,
    SCORERS,
    Aggregate,
    Checked,
    Paths,
    Scorer,
    SelectBy,
    Tools,
    Weights,
    Whole,
)
from clusterucb.wording import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(Checked):
    """Options that decide what scores a sample.

    Attributes:
        scorer: What scores a sample: exact (its gradient), sketch (its sketch, an estimate), or auto (sketch where
            every sample is scored and a store has them, which costs no gradient; else exact).
        store: Folder that clusterucb sketch wrote for this pool and model: its adapter and sketches are used. Within a
            budget, they tell which samples are worth an exact score.
    """

    scorer: Scorer = "auto"
    store: Path | None = field(default=None, metadata=FILE)

    def __post_init__(self) -> None:
        self.check_choice("scorer", SCORERS)

    @property
    def by_sketch(self) -> bool:
        """Whether sketches score."""
        return self.scorer == "sketch" or (self.scorer == "auto" and self.store is not None)

    @property
    def free_scores(self) -> bool:
        """Whether scores cost no gradient, because the store has them all."""
        return self.by_sketch and self.store is not None


@dataclass(frozen=True, kw_only=True)
class DrawSettings(ScoreSettings):
    """Options that decide how samples are drawn, scored and selected, whatever the budget.

    Attributes:
        select: Samples to select: a percentage of the pool, or a number; at most the budget.
        cold_start: Share of every cluster that is drawn first (at least one sample of each); by default a quarter of
            the budget's share of the pool.
        batch_size: Draws between two decisions of the policy; 1 is the paper's loop, more is faster.
        aggregate: How the scores of several subtasks become one: max (the paper's), mean, or standardized (the
            largest after each subtask's scores are brought to one scale, so that none decides alone).
        select_by: What is selected: top (the largest scores) or round-robin (each subtask's best in turn).
        max_per_source: Most samples to select of one source.
        subtask_weights: How much subtasks count beside the others, which count 1: food=2,words=0.5. Scores are
            multiplied by it before they become one; with round-robin, turns are shared out by it, too.
    """

    select: str = field(default="5%", metadata=FREE)
    cold_start: float | None = None
    batch_size: Whole = 8
    aggregate: Aggregate = "max"
    select_by: SelectBy = field(default="top", metadata=FREE)
    max_per_source: Whole | None = field(default=None, metadata=FREE)
    subtask_weights: Weights | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in (self.subtask_weights or {}).items():
            good = isinstance(name, str) and isinstance(weight, int | float) and not isinstance(weight, bool)
            if not good or not 0 < weight < math.inf:
                raise OptionError(f"--subtask-weights has {name}={weight}; expected a number above 0")
        parse_count("--select", self.select)
        self.check_whole("batch_size")
        if self.cold_start is not None:
            self.check("cold_start", 0 <= self.cold_start <= 1, "a share between 0 and 1")
        self.check_choice("aggregate", NAMES)
        self.check_choice("select_by", SELECT_BY)
        if self.max_per_source is not None:
            self.check_whole("max_per_source")


@dataclass(frozen=True, kw_only=True)
class _Budget:
    budget: str = field(default="20%", metadata=FREE)


@dataclass(frozen=True, kw_only=True)
class SearchSettings(DrawSettings, _Budget):
    """Options that decide what is drawn, scored and selected.

    Attributes:
        budget: Pool samples whose gradient may be computed: a percentage of the pool such as 20%, or a number; or how
            many of their tokens (30Mtok), or how long it may take to draw and score them (2h, 1h 30min).
        until: Stop as soon as so much of the best is estimated to be found, such as recall=0.9; the budget is then what
            may be spent at most.
        prior: Folder of an earlier selection, of another target or checkpoint, or of a part of the pool; or of a
            gradient store of another checkpoint; once for each of several. How far the new scores go with these scores
            or sketches is learnt.
    """

    until: str | None = field(default=None, metadata=FREE)
    prior: Paths | None = field(default=None, metadata=FILE)

    def __post_init__(self) -> None:
        parse_budget("--budget", self.budget)
        self.check("prior", self.prior != (), "the folder of an earlier selection or of a gradient store")
        super().__post_init__()
        if not self.free_scores:
            check_counts("--budget", self.budget, self.select)
        if self.until is None:
            return
        parse_until("--until", self.until)
        if self.free_scores:
            raise OptionError(
                "--until is given with a --store and --scorer sketch, whose scores are free: all samples are scored"
            )
        if self.max_per_source is not None:
            raise OptionError(
                "--until and --max-per-source are given; expected one: what is found under a cap is not estimated"
            )

    @property
    def by_sketch(self) -> bool:
        """Whether sketches score, and do not only tell what is worth a score."""
        return self.scorer == "sketch"

    @property
    def recall(self) -> float | None:
        """The recall that is enough, a share; None if the budget alone ends a selection."""
        return None if self.until is None else parse_until("--until", self.until)

    @property
    def end(self) -> str:
        """Until when samples are scored."""
        return self.budget if self.until is None else f"{self.budget} until {self.until}"


def check_counts(option: str, budget: str | int, select: str) -> None:
    """Refuse a budget below the number to select, as far as it is known before the size of the pool."""
    most, wanted = parse_budget(option, budget), parse_count("--select", select)
    if isinstance(most, int) and isinstance(wanted, int) and wanted > most:
        raise OptionError(
            f"--select is {wanted}; expected at most the budget, {option} {most}: only scored samples can be selected"
        )


@dataclass(frozen=True, kw_only=True)
class ScoringSettings(GradientSettings, ScoreSettings):
    """Options of scoring: those of the gradients and what is made of them."""

    def __post_init__(self) -> None:
        ScoreSettings.__post_init__(self)
        GradientSettings.__post_init__(self)

    @property
    def _has_stored_state(self) -> bool:
        """Whether a gradient store provides the optimiser's state."""
        return self.store is not None

    def deciding(self, *, sketches: bool) -> dict[str, Any]:
        """Return the options that decide about numbers, by option name; those without effect are None."""
        return {
            **super().deciding(sketches=sketches),
            "--scorer": "sketch" if self.by_sketch else None,
        }


@dataclass(frozen=True, kw_only=True)
class CompareSettings(ScoringSettings, DrawSettings):
    """Options of a comparison: those of scoring, and those of how samples are drawn."""

    def __post_init__(self) -> None:
        DrawSettings.__post_init__(self)
        GradientSettings.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class Settings(ScoringSettings, SearchSettings):
    """Options of a selection: those of scoring and those of the search."""

    def __post_init__(self) -> None:
        SearchSettings.__post_init__(self)
        GradientSettings.__post_init__(self)

    @property
    def limit(self) -> Tokens | Seconds | None:
        """The budget where it is no number of samples; None where it is, and where scores are free."""
        budget = parse_budget("--budget", self.budget)
        return budget if isinstance(budget, Tokens | Seconds) and not self.free_scores else None

    def draws(self, n_samples: int, tokens: float, per_token: float | None = None) -> int:
        """Return how many draws the budget is, or is expected to be; of a number, perhaps more than there are samples.

        Args:
            n_samples: N.
            tokens: of a sample, the mean.
            per_token: as of `counts`.
        """
        limit = self.limit
        if limit is None:
            return n_samples if self.free_scores else resolve_count("--budget", self.budget, n_samples)
        each = tokens
        if isinstance(limit, Seconds):
            if per_token is None:
                return n_samples
            each *= per_token
        return min(max(int(limit.most / each), 1), n_samples)

    def counts(self, lengths: NDArray[np.int64], per_token: float | None = None) -> tuple[int, int]:
        """Return budget and number to select of a pool; scores that are free have no limit.

        Args:
            lengths: i64[N], tokens of each sample.
            per_token: seconds that drawing and scoring a token takes; as long as it is unknown, a time is no limit.

        Raises:
            OptionError: more are to be selected than scored.
        """
        n_samples = len(lengths)
        about = "" if self.limit is None else "about "
        budget = self.draws(n_samples, float(lengths.mean()), per_token)
        n_select = resolve_count("--select", self.select, n_samples)
        if n_select > min(budget, n_samples):
            raise OptionError(
                f"--select {self.select} is {n_select} of {n_samples} samples; expected at most the budget, "
                f"--budget {self.budget}, which is {about}{min(budget, n_samples)}. Only scored samples can be selected"
            )
        return budget, n_select


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Checked):
    """Options that decide in which forms the selection is written, and about no number.

    Attributes:
        annotate: Add a field clusterucb (id, score, rank, subtasks, cluster, draw) to each line of selected.jsonl; it
            is for this call, and the next one without it writes plain lines.
        export: Tools to write the selection for, comma-separated: llamafactory, trl, axolotl.
        scores_parquet: Write scores.parquet beside scores.jsonl.
    """

    annotate: bool = field(default=False, metadata=FREE)
    export: Tools = field(default=None, metadata=FREE)
    scores_parquet: bool = field(default=False, metadata=FREE)

    def __post_init__(self) -> None:
        for tool in self.tools:
            hint = did_you_mean(tool, EXPORTS)
            self.check("export", tool in EXPORTS, f"some of {', '.join(EXPORTS)}, comma-separated.{hint}")

    @property
    def tools(self) -> list[str]:
        """The names in ``export``."""
        return [] if self.export is None else [name.strip() for name in self.export.split(",")]


@dataclass(frozen=True, kw_only=True)
class SelectSettings(OutputSettings, Settings):
    """Options of `clusterucb.select`: those of a selection and those of its output."""

    def __post_init__(self) -> None:
        OutputSettings.__post_init__(self)
        Settings.__post_init__(self)
