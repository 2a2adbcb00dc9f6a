"""Every option as a type checker and an editor see it: written by tests/helpers/typed_options.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_Path = str | PathLike[str]


class ReadOptions(TypedDict, total=False):
    """The options of `clusterucb.options.gradients.ReadSettings`."""

    format: (
        Literal["messages", "conversations", "prompt-completion", "alpaca", "chosen", "calls", "pair", "text"]
        | None
    )
    columns: Mapping[str, str] | None
    roles: Mapping[str, str] | None
    learn: Literal["all", "last"] | None
    ids: Literal["content", "column", "file"] | None
    drop_unsupported: bool
    strict: bool


class GradientOptions(ReadOptions, total=False):
    """The options of `clusterucb.options.gradients.GradientSettings`."""

    tokenizer: _Path | PreTrainedTokenizerBase | None
    chat_template: _Path | None
    special_tokens: str | Sequence[str] | None
    preconditioner: Literal["adam_less", "adam", "second_moment", "sgd"]
    adapter: _Path | None
    optimizer: _Path | torch.optim.Optimizer | None
    checkpoint: Sequence[_Path] | None
    checkpoint_weights: str | Sequence[float] | None
    parameters: str | Sequence[str] | None
    lora_only: bool
    lora_rank: int
    lora_alpha: float
    lora_targets: str | Sequence[str] | None
    warmup_steps: int
    warmup_lr: float
    sketch_dim: int
    max_length: int
    batch_tokens: int | None
    device: str
    workers: str | int | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    quantize: Literal["4bit", "8bit"] | None
    autocast: Literal["bfloat16", "float16"] | None
    checkpointing: bool
    compile: bool
    revision: str | None
    trust_remote_code: bool
    seed: int
    no_lock: bool


class SketchOptions(GradientOptions, total=False):
    """The options of `clusterucb.options.gradients.SketchSettings`."""

    store_dtype: Literal["float16", "int8"]


class ScoreOptions(TypedDict, total=False):
    """The options of `clusterucb.options.search.ScoreSettings`."""

    scorer: Literal["auto", "exact", "sketch"]
    store: _Path | None
    target_format: (
        Literal[
            "auto",
            "messages",
            "conversations",
            "prompt-completion",
            "alpaca",
            "chosen",
            "calls",
            "pair",
            "text",
        ]
        | None
    )
    target_columns: Mapping[str, str] | None


class DrawOptions(ScoreOptions, total=False):
    """The options of `clusterucb.options.search.DrawSettings`."""

    select: str | int
    cold_start: float | None
    batch_size: int
    rule: Literal["round-robin", "paper", "mean", "standardized"]
    max_per_source: int | None
    subtask_weights: Mapping[str, float] | None


class ScoringOptions(GradientOptions, ScoreOptions):
    """The options of `clusterucb.options.search.ScoringSettings`."""


class CompareOptions(GradientOptions, DrawOptions):
    """The options of `clusterucb.options.search.CompareSettings`."""


class OutputOptions(TypedDict, total=False):
    """The options of `clusterucb.options.search.OutputSettings`."""

    annotate: bool
    export: str | Sequence[str] | None
    every: str | None
    scores_parquet: bool


class SearchOptions(DrawOptions, total=False):
    """The options of `clusterucb.options.search.SearchSettings`."""

    budget: str | int
    until: str | None
    prior: _Path | Sequence[_Path] | None
    hold_out: str | None


class SelectOptions(GradientOptions, SearchOptions, OutputOptions):
    """The options of `clusterucb.options.search.SelectSettings`."""


class TrialOptions(TypedDict, total=False):
    """The options of `clusterucb.options.trial.TrialSettings`."""

    arms: str | Sequence[str] | None
    seeds: int
    epochs: int
    learning_rate: float
    no_lock: bool
