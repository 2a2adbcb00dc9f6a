"""The plain options of a selection, declared once for the command line and for Python.

Strategies are not here: Python passes objects, and only the command line knows names.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter, Token

from clusterucb.engine.aggregate import NAMES
from clusterucb.engine.choice import SELECT_BY
from clusterucb.errors import OptionError, check_choice
from clusterucb.filenames import EXPORTS
from clusterucb.kernels.preconditioner import PRECONDITIONERS
from clusterucb.kernels.projection import Sketch, check_dimension
from clusterucb.model.checkpoint_files import optimizer_file
from clusterucb.options.amounts import Seconds, Tokens, parse_budget, parse_count, parse_until, resolve_count
from clusterucb.samples.shapes import FIELDS, SHAPES, Layout
from clusterucb.wording import did_you_mean, in_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_COUNTS = ("budget", "select")
_LISTS = ("export", "lora_targets", "parameters", "checkpoint_weights")  # comma-separated
# Settings of the search that may change when a run is taken up again.
_FREE = (*_COUNTS, "select_by", "max_per_source", "until")
_FRESH_LORA = ("lora_rank", "lora_alpha", "lora_targets", "warmup_steps", "warmup_lr")


def _whole(_: type, tokens: Sequence[Token]) -> int:
    """Convert text to an integer; cyclopts' own conversion rounds 1.5 to 2."""
    if not re.fullmatch(r"[+-]?[0-9]+", text := tokens[0].value):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _columns(_: type, tokens: Sequence[Token]) -> dict[str, str]:
    """Convert ``prompt=question,completion=answer`` to a dictionary."""
    pairs = [pair.partition("=") for pair in tokens[0].value.split(",")]
    if not all(name.strip() and equals and column.strip() for name, equals, column in pairs):
        raise ValueError(f"{tokens[0].value!r} is not of the form prompt=question,completion=answer")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _weights(_: type, tokens: Sequence[Token]) -> dict[str, float]:
    """Convert ``food=2,words=0.5`` to a dictionary."""
    expected = f"{tokens[0].value!r} is not of the form food=2,words=0.5"
    try:
        pairs = [pair.rpartition("=") for pair in tokens[0].value.split(",")]
        weights = {name.strip(): float(weight) for name, _, weight in pairs}
    except ValueError as error:
        raise ValueError(expected) from error
    if "" in weights or len(weights) < len(pairs):
        raise ValueError(expected)
    return weights


Whole = Annotated[int, Parameter(converter=_whole)]
Paths = Annotated[tuple[Path, ...], Parameter(json_list=False)]
Columns = Annotated[dict[str, str], Parameter(converter=_columns, accepts_keys=False, n_tokens=1)]
Weights = Annotated[dict[str, float], Parameter(converter=_weights, accepts_keys=False, n_tokens=1)]
_ROWS = Parameter(group=Group("Rows", sort_key=1.5))
DTYPES = ("auto", "float32", "bfloat16", "float16")
AUTOCASTS = ("bfloat16", "float16")
SCORERS = ("auto", "exact", "sketch")


def _offered(choices: Iterable[str]) -> Parameter:
    """Return what makes a shell offer choices; `_Checked` refuses others, from the command line and from Python."""
    return Parameter(completer=lambda _: list(choices))


Aggregate = Annotated[str, _offered(NAMES)]
Autocast = Annotated[str | None, _offered(AUTOCASTS)]
Dtype = Annotated[str, _offered(DTYPES)]
Format = Annotated[str | None, _offered(SHAPES), _ROWS]
Preconditioner = Annotated[str, _offered(PRECONDITIONERS)]
Scorer = Annotated[str, _offered(SCORERS)]
SelectBy = Annotated[str, _offered(SELECT_BY)]
Tools = Annotated[str | None, _offered(EXPORTS)]


def _fields(kind: type[_Checked]) -> list[str]:
    """Return the options of a kind of settings."""
    return [field.name for field in dataclasses.fields(kind)]


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """What settings check their fields with."""

    def _check(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise OptionError(f"{option_name(name)} is {getattr(self, name)!r}; expected {expected}")

    def _check_whole(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._check(name, isinstance(value, int) and value >= 1, "a whole number from 1")

    def _check_choice(self, name: str, choices: Sequence[str]) -> None:
        check_choice(option_name(name), getattr(self, name), choices)


@dataclass(frozen=True, kw_only=True)
class ReadSettings(_Checked):
    """Options that decide how rows are read, of the pool and of the target.

    Attributes:
        format: Shape of every row: messages, conversations, prompt-completion, alpaca, chosen or text; by default each
            row's keys say.
        columns: Columns that stand for others, as prompt=question,completion=answer; also for id, source and subtask.
        drop_unsupported: Leave out images, tool calls and thoughts, instead of the rows that hold them.
        strict: Stop at the first line that cannot be used.
    """

    format: Format = None
    columns: Annotated[Columns | None, _ROWS] = None
    drop_unsupported: Annotated[bool, _ROWS] = False
    strict: Annotated[bool, _ROWS] = False

    def __post_init__(self) -> None:
        if self.format is not None:
            self._check_choice("format", tuple(SHAPES))
        for name, column in (self.columns or {}).items():
            if name not in FIELDS or not isinstance(column, str):
                raise OptionError(
                    f"--columns has {name}={column}; expected the name of a column for one of {', '.join(FIELDS)}."
                    f"{did_you_mean(name, FIELDS)}"
                )

    @property
    def layout(self) -> Layout:
        """How rows are read."""
        return Layout(self.format, self.columns or {}, self.drop_unsupported)


@dataclass(frozen=True, kw_only=True)
class GradientSettings(ReadSettings):
    """Options that decide about a pool sample's gradient and its sketch.

    Attributes:
        preconditioner: What turns a gradient into an update: adam_less (as LESS and ClusterUCB), adam (the
            optimiser's true next step), second_moment (the gradient, scaled by the optimiser's second
            moment), or sgd (the gradient itself).
        adapter: Folder of a trained PEFT LoRA adapter; without it a fresh LoRA is warmed up.
        optimizer: Optimiser state of the adapter's training (by default optimizer.pt or optimizer.bin in its folder),
            or of the model's with --parameters.
        checkpoint: Folder of an adapter with its optimiser state, once for each of several of one training; a sample's
            score is the weighted sum of its scores at all of them, and costs a gradient at each.
        checkpoint_weights: Weight of each --checkpoint, comma-separated, such as the learning rates there (LESS); by
            default all the same.
        parameters: Linear layers whose own weights are differentiated in place of a LoRA: their names, comma-separated,
            with * for any characters, such as model.layers.*.mlp.down_proj.
        lora_rank: Rank of a fresh LoRA.
        lora_alpha: Scale of a fresh LoRA: its update counts alpha / rank.
        lora_targets: Linear layers of a fresh LoRA, comma-separated, or all-linear; by default PEFT's choice.
        warmup_steps: AdamW steps of 4 random pool samples that a fresh LoRA is warmed up for.
        warmup_lr: Learning rate of the warm-up.
        sketch_dim: Dimension of gradient sketches, a power of two from 256.
        max_length: Longest sample in tokens; of a longer one, the end of the prompt and the answer are kept.
        batch_tokens: Padded tokens of a pass of the model; by default 1024 on a CPU, and elsewhere as many as fit.
        device: Where the model runs: auto, cpu, cuda, cuda:1, ...
        dtype: Of the base model: auto (float32 on a CPU, else the checkpoint's own), float32, bfloat16, float16.
        autocast: Compute layers in bfloat16 or float16, whatever the dtype of the weights; sums stay in float32.
        checkpointing: Keep the inputs of the model's layers alone, and run each layer again in the backward pass: less
            memory, a third more time.
        compile: Compile parts of the model (torch.compile): passes take less time, after minutes of start.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Let code that comes with the model run.
        seed: Same seed, same result.
    """

    preconditioner: Preconditioner = "adam_less"
    adapter: Path | None = None
    optimizer: Path | None = None
    checkpoint: Paths | None = None
    checkpoint_weights: str | None = None
    parameters: str | None = None
    lora_rank: Whole = 8
    lora_alpha: float = 16.0
    lora_targets: str | None = None
    warmup_steps: Whole = 30
    warmup_lr: float = 2e-4
    sketch_dim: Whole = 8192
    max_length: Whole = 1024
    batch_tokens: Whole | None = None
    device: str = "auto"
    dtype: Dtype = "auto"
    autocast: Autocast = None
    checkpointing: bool = False
    compile: bool = False
    revision: str | None = None
    trust_remote_code: bool = False
    seed: Whole = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_whole("lora_rank", "warmup_steps")
        if self.batch_tokens is not None:
            self._check_whole("batch_tokens")
        for name in ("lora_alpha", "warmup_lr"):
            value = getattr(self, name)
            self._check(name, math.isfinite(value) and value > 0, "a number above 0")
        self._check("seed", 0 <= self.seed < 2**63, "a whole number from 0, below 2^63")
        self._check("max_length", self.max_length >= 2, "at least 2 tokens")
        self._check_choice("preconditioner", PRECONDITIONERS)
        self._check_choice("dtype", DTYPES)
        check_dimension("--sketch-dim", self.sketch_dim)
        if self.autocast is not None:
            self._check_choice("autocast", AUTOCASTS)
        self._check_checkpoints()

    def _check_checkpoints(self) -> None:
        """Check that what is differentiated is said once, with the optimiser states that belong to it."""
        ways = [name for name in ("adapter", "checkpoint", "parameters") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise OptionError(
                f"{' and '.join(map(option_name, ways))} are given; expected one: it says what is differentiated"
            )
        if self.optimizer is not None and ways not in (["adapter"], ["parameters"]):
            raise OptionError(
                "--optimizer is given without --adapter or --parameters; it is the state that belongs to one of them. "
                "That of a --checkpoint stands in its folder"
            )
        if self.checkpoint is not None and not self.checkpoint:
            raise OptionError(
                "--checkpoint is given without a folder; expected that of an adapter, at least one"
            )
        kept = getattr(self, "store", None) is not None  # which has the optimiser's state
        lacking = self.parameters is not None and self.preconditioner != "sgd" and self.optimizer is None
        if lacking and not kept:
            raise OptionError(
                f"--preconditioner is {self.preconditioner}, which needs the optimiser's state, and --parameters has "
                "none; expected --optimizer with that of the model's training, or --preconditioner sgd"
            )
        if self.checkpoint_weights is not None and self.checkpoint is None:
            raise OptionError("--checkpoint-weights is given without --checkpoint; expected both")
        if len(self.weights) != len(self.checkpoint or [""]) or not all(
            math.isfinite(weight) and weight > 0 for weight in self.weights
        ):
            raise OptionError(
                f"--checkpoint-weights is {self.checkpoint_weights!r} for {len(self.checkpoint or ())} checkpoints; "
                "expected a number above 0 for each, comma-separated"
            )

    @property
    def weights(self) -> list[float]:
        """The weight of each checkpoint, one of them at least; they add up to one."""
        if self.checkpoint_weights is None:
            count = len(self.checkpoint or [""])
            return [1 / count] * count
        try:
            given = [float(weight) for weight in self.checkpoint_weights.split(",")]
            return [weight / sum(given) for weight in given]
        except (ValueError, ZeroDivisionError):
            return [math.nan]

    @property
    def warms_up(self) -> bool:
        """Whether a fresh LoRA is warmed up, since no checkpoint is given."""
        return not self.given_checkpoints

    @property
    def given_checkpoints(self) -> list[tuple[Path | None, Path | None]]:
        """Folder of the adapter and file of the optimiser state of each checkpoint; None where there is none."""
        if self.parameters is not None:
            adapters: list[Path | None] = [None]
        else:
            adapters = [*(self.checkpoint or ()), *([self.adapter] if self.adapter else [])]
        if self.preconditioner == "sgd":
            return [(adapter, None) for adapter in adapters]
        return [(adapter, self.optimizer or (adapter and optimizer_file(adapter))) for adapter in adapters]

    @property
    def patterns(self) -> list[str]:
        """The names in ``parameters``."""
        return [name.strip() for name in (self.parameters or "").split(",")]

    @property
    def target_layers(self) -> list[str] | None:
        """The names in ``lora_targets``; None for PEFT's choice."""
        return None if self.lora_targets is None else [name.strip() for name in self.lora_targets.split(",")]

    @property
    def sketch(self) -> Sketch:
        """The projection of gradient sketches; raw gradients are heavy-tailed and get more nonzeros."""
        return Sketch(self.sketch_dim, 4 if self.preconditioner == "sgd" else 2, self.seed)

    def deciding(self, *, sketches: bool) -> dict[str, Any]:
        """Return the options that decide about numbers, by option name; those without effect are None.

        So are those that name files, whose fingerprints are compared instead. How rows are read is no option here: the
        fingerprint of the pool says it.

        Args:
            sketches: whether gradients are sketched.
        """
        free = {*_FREE, *_fields(ReadSettings), *_fields(OutputSettings)}
        unused = {
            "adapter",
            "optimizer",
            "checkpoint",
            "store",
            "prior",
            *(() if self.warms_up else _FRESH_LORA),
        }
        if not sketches:
            unused.add("sketch_dim")
        return {
            option_name(name): None if name in unused else getattr(self, name)
            for name in _fields(type(self))
            if name not in free
        }


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(_Checked):
    """Options that decide what scores a sample.

    Attributes:
        scorer: What scores a sample: exact (its gradient), sketch (its sketch, an estimate), or auto (sketch where
            every sample is scored and a store has them, which costs no gradient; else exact).
        store: Folder that clusterucb sketch wrote for this pool and model: its adapter and sketches are used. Within a
            budget, they tell which samples are worth an exact score.
    """

    scorer: Scorer = "auto"
    store: Path | None = None

    def __post_init__(self) -> None:
        self._check_choice("scorer", SCORERS)

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

    select: str = "5%"
    cold_start: float | None = None
    batch_size: Whole = 8
    aggregate: Aggregate = "max"
    select_by: SelectBy = "top"
    max_per_source: Whole | None = None
    subtask_weights: Weights | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in (self.subtask_weights or {}).items():
            good = isinstance(name, str) and isinstance(weight, int | float) and not isinstance(weight, bool)
            if not good or not 0 < weight < math.inf:
                raise OptionError(f"--subtask-weights has {name}={weight}; expected a number above 0")
        parse_count("--select", self.select)
        self._check_whole("batch_size")
        if self.cold_start is not None:
            self._check("cold_start", 0 <= self.cold_start <= 1, "a share between 0 and 1")
        self._check_choice("aggregate", NAMES)
        self._check_choice("select_by", SELECT_BY)
        if self.max_per_source is not None:
            self._check_whole("max_per_source")


@dataclass(frozen=True, kw_only=True)
class _Budget:
    budget: str = "20%"


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

    until: str | None = None
    prior: Paths | None = None

    def __post_init__(self) -> None:
        parse_budget("--budget", self.budget)
        self._check("prior", self.prior != (), "the folder of an earlier selection or of a gradient store")
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
class OutputSettings(_Checked):
    """Options that decide in which forms the selection is written, and about no number.

    Attributes:
        annotate: Add a field clusterucb (id, score, rank, subtasks, cluster, draw) to each line of selected.jsonl; it
            is for this call, and the next one without it writes plain lines.
        export: Tools to write the selection for, comma-separated: llamafactory, trl, axolotl.
        scores_parquet: Write scores.parquet beside scores.jsonl.
    """

    annotate: bool = False
    export: Tools = None
    scores_parquet: bool = False

    def __post_init__(self) -> None:
        for tool in self.tools:
            hint = did_you_mean(tool, EXPORTS)
            self._check("export", tool in EXPORTS, f"some of {', '.join(EXPORTS)}, comma-separated.{hint}")

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


def option_name(field: str) -> str:
    """Return what the command line calls a field."""
    return "--" + field.replace("_", "-")


AnySettings = TypeVar("AnySettings", bound=GradientSettings)
Function = TypeVar("Function", bound=Callable[..., Any])


def settings_from(options: Mapping[str, Any], kind: type[AnySettings]) -> AnySettings:
    """Return settings of a kind from keyword arguments.

    Raises:
        OptionError: there is no such option, or a value cannot be used.
    """
    known = _fields(kind)
    for name in options:
        if name not in known:
            raise OptionError(
                f"there is no option {name!r}; options: {', '.join(known)}.{did_you_mean(name, known)}"
            )
    typed: dict[str, Any] = {name: _typed(kind, name, value) for name, value in options.items()}
    return kind(**typed)


def spelt_out(kind: type[GradientSettings]) -> Callable[[Function], Function]:
    """Return a decorator that gives a function with ``**options`` the signature with every field of a kind."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        named = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        options = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
            )
            for field in dataclasses.fields(kind)
        ]
        function.__signature__ = signature.replace(parameters=[*named, *options])  # type: ignore[attr-defined]
        return function

    return decorate


def _typed(kind: type, name: str, value: object) -> object:
    """Return the value of a keyword argument as the type of a field of ``kind``."""
    if name in _COUNTS:
        return str(value)  # counts may be given as numbers
    if name in _LISTS and isinstance(value, list | tuple):
        return ",".join(map(str, value)) or None
    hint = get_type_hints(kind)[name]
    if isinstance(value, str | PathLike) and Path in get_args(hint):
        return Path(value)
    if name == "prior" and isinstance(value, str | PathLike):
        return (Path(value),)
    if name in ("checkpoint", "prior") and isinstance(value, list | tuple):
        return tuple(Path(one) if isinstance(one, str | PathLike) else one for one in value)
    if hasattr(value, "dtype") and not getattr(value, "shape", True):
        value = value.item()  # type: ignore[attr-defined]  # a number of numpy
    expected = tuple(get_origin(one) or one for one in get_args(hint) or (hint,))
    if float in expected:
        expected = (*expected, int)
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        raise OptionError(f"{name} is {value!r}; expected {in_words(hint)}")
    return value
