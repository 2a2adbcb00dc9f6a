"""Declare the arguments and options of the commands for cyclopts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import (
    Group,
    Parameter,
)
from rich.console import Console

from clusterucb.cli.plugins import OUTPUT, STRATEGIES, Pairs, key_values, print_json
from clusterucb.errors import OptionError
from clusterucb.options.gradients import GradientSettings, SketchSettings
from clusterucb.options.kinds import Whole
from clusterucb.options.search import OutputSettings, SearchSettings
from clusterucb.terminal import Terminal

if TYPE_CHECKING:
    from clusterucb.progress import Observer

OPTIONS = Group("Options", sort_key=2)
_GRADIENTS = Group("Model and gradients", sort_key=3)


def _installed(kind: str) -> Callable[[object], list[tuple[str, str]]]:
    """Return a completer: a function that lists the strategies of a kind for a shell."""

    def names(_: object) -> list[tuple[str, str]]:
        from clusterucb import plugins

        return [(strategy.name, strategy.summary) for strategy in plugins.load().of_kind(kind)]

    return names


Pool = Annotated[
    list[Path],
    Parameter(
        negative=(),
        json_list=False,  # [ab].jsonl is a pattern, not a JSON list
        name="POOL...",
        help="Files, folders or patterns of the pool, a conversation in each row: JSONL, JSON, CSV, TSV (also .gz, "
        ".zst), Parquet, Arrow, saved datasets.",
    ),
]
Target = Annotated[
    list[Path],
    Parameter(
        negative=(),
        json_list=False,
        consume_multiple=True,
        help="Files of the target samples. Each file is a subtask; a column `subtask` divides a file further.",
    ),
]
FILES = Parameter(negative=(), json_list=False, consume_multiple=True)
Model = Annotated[
    str, Parameter(help="Folder of a causal language model in Hugging Face format, or a hub id.")
]
Clusterers = Annotated[str, Parameter(group=STRATEGIES, completer=_installed("clusterer"))]
Policies = Annotated[str, Parameter(group=STRATEGIES, completer=_installed("policy"))]
Features = Annotated[str | None, Parameter(group=STRATEGIES, completer=_installed("feature"))]
SETTINGS = Parameter(name="*", negative=(), show_default=lambda value: None if value is False else value)
Search = Annotated[SearchSettings, Parameter(group=OPTIONS), SETTINGS]
Gradients = Annotated[GradientSettings, Parameter(group=_GRADIENTS), SETTINGS]
Sketched = Annotated[SketchSettings, Parameter(group=_GRADIENTS), SETTINGS]


@dataclass(frozen=True, kw_only=True)
class JobArguments:
    """The options that every job takes besides its settings.

    Attributes:
        config: YAML or JSON file with options of this command, such as a run's config.yaml; the command line
            overrides it.
        overwrite: Delete the earlier run in the folder and start again.
        quiet: Hide the progress and the summary.
        json: Print the summary as JSON, and the progress as a line of JSON for each event on standard error.
        debug: Show tracebacks and the libraries' warnings.
    """

    config: Path | None = None
    overwrite: bool = False
    quiet: bool = False
    json: bool = False
    debug: bool = False  # `run` acts on it, even if other arguments cannot be parsed

    @property
    def observer(self) -> Observer:
        """The observer that receives the job's progress."""
        from clusterucb.progress import Events, Screen, Silent

        return Silent() if self.quiet else Events() if self.json else Screen()

    def show(self, summary: object, show: Callable[[Console], None]) -> None:
        """Print a job's summary."""
        if self.json:
            print_json(summary)
        elif not self.quiet:
            show(Terminal())


Outputs = Annotated[OutputSettings, Parameter(group=OUTPUT), SETTINGS]
Jobs = Annotated[JobArguments, Parameter(name="*", group=OUTPUT, negative=(), show_default=False)]


@dataclass(frozen=True, kw_only=True)
class StrategyArguments:
    """The strategies of a selection, by name.

    Attributes:
        features: Features that describe the samples. Default: embedding, or gradient with a store and a policy that
            does not predict scores.
        feature_option: An option of the features, as key=value.
        feature_depth: Depth of the layer that the feature hidden reads, as a share of all layers; short for -f depth=.
        clusterer: Clusterer, which divides the pool into clusters.
        clusterer_option: An option of the clusterer, as key=value.
        policy: Policy, which chooses the samples to score.
        policy_option: An option of the policy, as key=value.
    """

    features: Features = None
    feature_option: Annotated[Pairs, Parameter(name=("--feature-option", "-f"))] = ()
    feature_depth: Annotated[float | None, Parameter(group=STRATEGIES)] = None
    clusterer: Clusterers = "kmeans"
    clusterer_option: Annotated[Pairs, Parameter(name=("--clusterer-option", "-c"))] = ()
    policy: Policies = "surrogate"
    policy_option: Annotated[Pairs, Parameter(name=("--policy-option", "-p"))] = ()

    def made(self, *, store: bool) -> dict[str, Any]:
        """Make the strategies of a selection with or without a gradient store.

        Raises:
            OptionError: a strategy or an option does not exist, or --feature-depth is given without --features.
        """
        from clusterucb import plugins
        from clusterucb.jobs.stages.strategies import default_features

        installed, features, options = plugins.load(), self.features, self.feature_option
        policy = installed.make("policy", self.policy, key_values("-p", self.policy_option))
        if self.feature_depth is not None:
            if not features:
                raise OptionError("--feature-depth is given without --features; expected --features hidden")
            options = (*options, f"depth={self.feature_depth}")
        if options and not features and (named := installed.named(default_features(policy, store=store))):
            features = named[0]
        return {
            "features": installed.make("feature", features, key_values("-f", options)) if features else None,
            "clusterer": installed.make("clusterer", self.clusterer, key_values("-c", self.clusterer_option)),
            "policy": policy,
        }


Chosen = Annotated[StrategyArguments, Parameter(name="*")]


@dataclass(frozen=True, kw_only=True)
class Replays:
    """The strategies, budgets and seeds that a comparison replays.

    Attributes:
        strategies: Strategies to compare, comma-separated: policy[@clusterer][@features][key=value,...] each.
        budgets: Budgets to compare at, comma-separated: percentages of the pool, or numbers of draws.
        seeds: Number of searches for each strategy and budget.
        scores: Run folder with scores of the whole pool for this target's subtasks (and perhaps others). The comparison
            uses these scores instead of scoring the pool again.
    """

    strategies: Annotated[str, Parameter(group=STRATEGIES)] = "random,rds@hidden,cluster-mean,ucb,surrogate"
    budgets: Annotated[str, Parameter(group=OPTIONS)] = "5%,10%,20%"
    seeds: Annotated[Whole, Parameter(group=OPTIONS)] = 5
    scores: Annotated[Path | None, Parameter(group=OPTIONS)] = None
