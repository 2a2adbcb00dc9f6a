"""Define the options for scoring, for the search and for the written files.

Strategies are not options here: Python passes objects, and only the command line knows strategies by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from clusterucb.engine.aggregate import ROUND_ROBIN, RULES
from clusterucb.errors import OptionError
from clusterucb.filenames import EXPORTS
from clusterucb.options.amounts import (
    Amount,
    Seconds,
    Tokens,
    parse_budget,
    parse_count,
    parse_until,
    samples_of,
)
from clusterucb.options.gradients import GradientSettings
from clusterucb.options.kinds import (
    AUTO,
    FILE,
    FREE,
    LIST,
    ROWS,
    SCORERS,
    Checked,
    Columns,
    Paths,
    Rule,
    Scorer,
    TargetFormat,
    Tools,
    Weights,
    Whole,
    check_columns,
)
from clusterucb.samples.shapes import SHAPES, Layout
from clusterucb.wording import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clusterucb.engine.rules import Rules


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(Checked):
    """Options that decide how a sample is scored.

    Attributes:
        scorer: How a sample is scored: exact (by its gradient), sketch (estimated from its sketch), or auto (by sketch
            if every sample is scored and a store has the sketches, which costs no gradient; else exact).
        store: Folder that clusterucb sketch wrote for this pool, or a part of it, and this model. Its adapter and
            sketches are used. In a selection with a budget, the sketches rank candidates for exact scoring.
        target_format: Shape of the target's rows, if it is another than that of the pool's; auto lets the keys decide.
        target_columns: Columns of the target's rows, if they are others than those of the pool's.
    """

    scorer: Scorer = "auto"
    store: Path | None = field(default=None, metadata=FILE)
    target_format: TargetFormat = field(default=None, metadata=FREE)
    target_columns: Annotated[Columns | None, ROWS] = field(default=None, metadata=FREE)

    def __post_init__(self) -> None:
        self.check_choice("scorer", SCORERS)
        if self.target_format is not None:
            self.check_choice("target_format", (AUTO, *SHAPES))
        check_columns("target_columns", self.target_columns)

    @property
    def by_sketch(self) -> bool:
        """Whether scores are read from sketches."""
        return self.scorer == "sketch" or (self.scorer == "auto" and self.store is not None)

    @property
    def free_scores(self) -> bool:
        """Whether scores cost no gradient, but for samples that the store does not hold."""
        return self.by_sketch and self.store is not None


@dataclass(frozen=True, kw_only=True)
class DrawSettings(ScoreSettings):
    """Options that decide how samples are drawn, scored and selected, whatever the budget.

    Attributes:
        select: Samples to select, at most the budget: a percentage of the pool, or a number.
        cold_start: Share of every cluster to draw first, at least one sample of each. By default, a quarter of the
            budget's share of the pool.
        batch_size: Draws between two decisions of the policy. 1 is the paper's loop; larger batches are faster.
        rule: Which samples are selected for several subtasks: round-robin (each subtask's best in turn), paper (the
            largest scores), mean (the largest mean scores) or standardized (the largest z-scores).
        max_per_source: Largest number of samples to select from one source.
        subtask_weights: Weights of subtasks, as in food=2,words=0.5; the others have weight 1. With round-robin, a
            weight is a share of the turns; with other rules, scores are multiplied by it.
    """

    select: str = field(default="5%", metadata=FREE)
    cold_start: float | None = None
    batch_size: Whole = 8
    rule: Rule = ROUND_ROBIN
    max_per_source: Whole | None = field(default=None, metadata=FREE)
    subtask_weights: Weights | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in (self.subtask_weights or {}).items():
            good = isinstance(name, str) and isinstance(weight, int | float) and not isinstance(weight, bool)
            if not good or not 0 < weight < math.inf:
                raise OptionError(f"--subtask-weights has {name}={weight}; expected a number above 0")
        self._wanted  # noqa: B018  (parses the text, which may be refused)
        self.check_whole("batch_size")
        if self.cold_start is not None:
            self.check("cold_start", 0 <= self.cold_start <= 1, "a share between 0 and 1")
        self.check_choice("rule", RULES)
        if self.max_per_source is not None:
            self.check_whole("max_per_source")

    @cached_property
    def _wanted(self) -> Fraction | int:
        return parse_count("--select", self.select)

    def n_select(self, n_samples: int) -> int:
        """Return the number of samples to select from a pool of ``n_samples``."""
        return samples_of(self._wanted, n_samples)

    def rules(self, weights: NDArray[np.float64] | None) -> Rules:
        """Return the rules by which samples are selected.

        Args:
            weights: f64[S], the weight of each subtask, or None.
        """
        from clusterucb.engine.rules import Rules

        return Rules(
            rule=self.rule,
            max_per_source=self.max_per_source,
            weights=weights,
        )

    def check_covered(self, option: str, budget: Amount) -> None:
        """Check that a budget covers the number to select, if both are known without the size of the pool.

        Args:
            option: the option that names the budget, for the message.
            budget: the budget, as `parse_budget` returned it.

        Raises:
            OptionError: more samples are to be selected than scored.
        """
        if isinstance(budget, int) and isinstance(self._wanted, int) and self._wanted > budget:
            raise OptionError(
                f"--select is {self._wanted}; expected at most the budget, {option} {budget}: only scored samples can "
                "be selected"
            )


@dataclass(frozen=True, kw_only=True)
class _Budget:
    budget: str = field(default="20%", metadata=FREE)


@dataclass(frozen=True, kw_only=True)
class SearchSettings(DrawSettings, _Budget):
    """Options that decide which samples are drawn, scored and selected.

    Attributes:
        budget: Largest number of pool samples to score: a percentage of the pool such as 20%, or a number. Or a limit
            on their tokens (30Mtok), or on the time to draw and score them (2h, 1h 30min).
        until: Stop when the estimated recall, the found share of the best samples, reaches a value, such as recall=0.9.
            The budget is then an upper limit.
        prior: Folder of an earlier selection (for another target or checkpoint, or on a part of the pool), or of a
            gradient store of another checkpoint. Repeat the option for several. The policy learns how well these scores
            or sketches predict the new scores.
        hold_out: Share of each subtask's target samples to hold out, such as 50%. They have no part in the selection,
            so that they can judge it.
    """

    until: str | None = field(default=None, metadata=FREE)
    prior: Paths | None = field(default=None, metadata=FILE)
    hold_out: str | None = None

    def __post_init__(self) -> None:
        self.held_out  # noqa: B018  (parses the text, which may be refused)
        self._amount  # noqa: B018  (parses the text, which may be refused)
        self.check("prior", self.prior != (), "the folder of an earlier selection or of a gradient store")
        super().__post_init__()
        if not self.free_scores:
            self.check_covered("--budget", self._amount)
        if self.recall is None:
            return
        if self.free_scores:
            raise OptionError(
                "--until is given with --store and --scorer sketch, which scores all samples without gradients; "
                "expected --scorer exact, or no --until"
            )
        if self.max_per_source is not None:
            raise OptionError(
                "--until and --max-per-source are given; expected only one, because the recall under a cap cannot be "
                "estimated"
            )

    @property
    def by_sketch(self) -> bool:
        """Whether scores are read from sketches. If not, sketches only rank candidates for exact scoring."""
        return self.scorer == "sketch"

    @cached_property
    def recall(self) -> float | None:
        """The recall at which the search stops, as a share of one; None if only the budget ends the search."""
        return None if self.until is None else parse_until("--until", self.until)

    @cached_property
    def held_out(self) -> Fraction | None:
        """The share of each subtask's target samples that is held out, or None."""
        if self.hold_out is None:
            return None
        share = parse_count("--hold-out", self.hold_out)
        self.check(
            "hold_out", isinstance(share, Fraction) and share < 1, "a percentage below 100%, such as 50%"
        )
        return Fraction(share)

    @cached_property
    def _amount(self) -> Amount:
        return parse_budget("--budget", self.budget)

    @property
    def limit(self) -> Tokens | Seconds | None:
        """The budget if it is a number of tokens or a time; None if it is a number of samples or if scores are free."""
        return self._amount if isinstance(self._amount, Tokens | Seconds) and not self.free_scores else None


@dataclass(frozen=True, kw_only=True)
class ScoringSettings(GradientSettings, ScoreSettings):
    """Options of scoring: those for gradients, and those for the scores computed from them."""

    def __post_init__(self) -> None:
        ScoreSettings.__post_init__(self)
        GradientSettings.__post_init__(self)

    @property
    def target_layout(self) -> Layout:
        """The layout by which samples are read from the target's rows, and from those of judges."""
        shape = self.target_format or self.format
        columns = self.columns if self.target_columns is None else self.target_columns
        return replace(self.layout, shape=None if shape == AUTO else shape, columns=columns or {})

    @property
    def _has_stored_state(self) -> bool:
        """Whether a gradient store provides the optimiser's state."""
        return self.store is not None

    def deciding(self, *, sketches: bool) -> dict[str, Any]:
        """Return the options that affect the computed numbers, by option name; options without effect are None."""
        return {
            **super().deciding(sketches=sketches),
            "--scorer": "sketch" if self.by_sketch else None,
        }


@dataclass(frozen=True, kw_only=True)
class CompareSettings(ScoringSettings, DrawSettings):
    """Options of a comparison: those for scoring, and those for drawing samples."""

    def __post_init__(self) -> None:
        DrawSettings.__post_init__(self)
        GradientSettings.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class Settings(ScoringSettings, SearchSettings):
    """Options of a selection: those for scoring and those for the search."""

    def __post_init__(self) -> None:
        SearchSettings.__post_init__(self)
        GradientSettings.__post_init__(self)

    def draws(self, n_samples: int, tokens: float, per_token: float | None = None) -> int:
        """Return the number of draws in the budget, or the expected number under a limit on tokens or time.

        A budget that is a number of samples may be larger than N.

        Args:
            n_samples: N.
            tokens: the mean number of tokens in a sample.
            per_token: the seconds to draw and score a token, or None if unknown; a time is then no limit.
        """
        if self.free_scores:
            return n_samples
        limit, each = self._amount, tokens
        if isinstance(limit, int | Fraction):
            return samples_of(limit, n_samples)
        if isinstance(limit, Seconds):
            if per_token is None:
                return n_samples
            each *= per_token
        return min(max(int(limit.most / each), 1), n_samples)

    def counts(self, lengths: NDArray[np.int64], per_token: float | None = None) -> tuple[int, int]:
        """Return the number of draws in the budget and the number of samples to select. Free scores have no limit.

        Args:
            lengths: i64[N], the number of tokens in each sample.
            per_token: the seconds to draw and score a token, or None if unknown; a time is then no limit.

        Raises:
            OptionError: more samples are to be selected than scored.
        """
        n_samples = len(lengths)
        about = "" if self.limit is None else "about "
        budget = self.draws(n_samples, float(lengths.mean()), per_token)
        n_select = self.n_select(n_samples)
        if n_select > min(budget, n_samples):
            raise OptionError(
                f"--select {self.select} is {n_select} of {n_samples} samples; expected at most the budget, "
                f"--budget {self.budget}, which is {about}{min(budget, n_samples)}. Only scored samples can be selected"
            )
        return budget, n_select


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Checked):
    """Options for the files in which a selection is written. They affect no computed number.

    Attributes:
        annotate: Add a field clusterucb (id, score, rank, subtasks, cluster, draw) to each line of selected.jsonl. A
            later call without this option writes plain lines again.
        export: Training tools to write the selection for, comma-separated: llamafactory, trl, axolotl.
        every: With --export trl, also write reselect.py, which trains with TRL and selects anew on the way: every so
            many optimiser steps, every epoch, or auto.
        scores_parquet: Write scores.parquet in addition to scores.jsonl.
    """

    annotate: bool = field(default=False, metadata=FREE)
    export: Tools = field(default=None, metadata={**FREE, **LIST})
    every: str | None = field(default=None, metadata=FREE)
    scores_parquet: bool = field(default=False, metadata=FREE)

    def __post_init__(self) -> None:
        for tool in self.tools:
            hint = did_you_mean(tool, EXPORTS)
            self.check("export", tool in EXPORTS, f"some of {', '.join(EXPORTS)}, comma-separated.{hint}")
        if self.every is not None:
            known = self.every in ("epoch", "auto") or (str(self.every).isdecimal() and int(self.every) > 0)
            self.check("every", known, "a number of optimiser steps, epoch or auto")
            if "trl" not in self.tools:
                raise OptionError(f"--every is {self.every} without --export trl; expected both")

    @property
    def tools(self) -> list[str]:
        """The names of the tools in ``export``."""
        return [] if self.export is None else [name.strip() for name in self.export.split(",")]


@dataclass(frozen=True, kw_only=True)
class SelectSettings(OutputSettings, Settings):
    """Options of `clusterucb.select`: those for the selection and those for the files that it writes."""

    def __post_init__(self) -> None:
        OutputSettings.__post_init__(self)
        Settings.__post_init__(self)
