"""Define the options for reading rows and for computing gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from clusterucb.errors import OptionError
from clusterucb.kernels.preconditioner import PRECONDITIONERS
from clusterucb.kernels.projection import Sketch, check_dimension
from clusterucb.model.checkpoint_files import optimizer_file
from clusterucb.options.kinds import (
    AUTOCASTS,
    DTYPES,
    FILE,
    FLOAT16,
    FREE,
    LIST,
    QUANTIZED,
    ROWS,
    STORE_DTYPES,
    Autocast,
    Checked,
    Columns,
    Dtype,
    Format,
    Ids,
    Learn,
    Paths,
    Preconditioner,
    Quantize,
    Roles,
    StoreDtype,
    Whole,
    check_columns,
    option_name,
)
from clusterucb.options.workers import WorkersAsked
from clusterucb.samples.message import ROLES
from clusterucb.samples.shapes import IDS, LEARN, SHAPES, Layout

FRESH_LORA = ("lora_rank", "lora_alpha", "lora_targets", "warmup_steps", "warmup_lr")


@dataclass(frozen=True, kw_only=True)
class ReadSettings(Checked):
    """Options for reading the rows of the pool and the target.

    Attributes:
        format: Shape of every row: messages, conversations, prompt-completion, alpaca, chosen, calls, pair or text.
            By default, the keys of each row decide.
        columns: Columns to read instead of the usual ones, such as prompt=question,completion=answer; id, source and
            subtask can be replaced too.
        roles: Further names of roles, such as Advisor=assistant,Client=user.
        learn: Answers of a conversation that are learnt: all, or the last. By default, marks of the turns and the
            shape of the row decide.
        ids: What a sample's id is: column (the column id), file (the same after the name of the file), or content (a
            hash of the content). By default the column, and after the name of the file if several files share an id.
        drop_unsupported: Drop images, tools and thoughts from rows. By default, tools and thoughts are read, and rows
            with images are rejected.
        strict: Stop at the first line that cannot be used.
    """

    format: Format = field(default=None, metadata=FREE)
    columns: Annotated[Columns | None, ROWS] = field(default=None, metadata=FREE)
    roles: Annotated[Roles | None, ROWS] = field(default=None, metadata=FREE)
    learn: Learn = field(default=None, metadata=FREE)
    ids: Ids = field(default=None, metadata=FREE)
    drop_unsupported: Annotated[bool, ROWS] = field(default=False, metadata=FREE)
    strict: Annotated[bool, ROWS] = field(default=False, metadata=FREE)

    def __post_init__(self) -> None:
        if self.format is not None:
            self.check_choice("format", tuple(SHAPES))
        check_columns("columns", self.columns)
        for name, role in (self.roles or {}).items():
            if role not in ROLES:
                raise OptionError(
                    f"--roles has {name}={role}; expected one of {', '.join(ROLES)} after the ="
                )
        if self.learn is not None:
            self.check_choice("learn", LEARN)
        if self.ids is not None:
            self.check_choice("ids", IDS)

    @property
    def layout(self) -> Layout:
        """The layout by which samples are read from the pool's rows."""
        return Layout(
            self.format, self.columns or {}, self.drop_unsupported, self.learn, self.roles or {}, self.ids
        )

    @property
    def target_layout(self) -> Layout:
        """The layout by which samples are read from the target's rows, and from those of judges."""
        return self.layout


@dataclass(frozen=True, kw_only=True)
class GradientSettings(ReadSettings):
    """Options that affect a pool sample's gradient and its sketch.

    Attributes:
        tokenizer: Folder or hub id of the tokenizer. By default, the adapter's if its folder has one, else the model's.
        chat_template: File with the chat template, in Jinja. By default, the template of the adapter's folder, or of
            the tokenizer.
        special_tokens: Special tokens that are read as tokens where a text spells them, comma-separated, such as
            `<ctx>,</ctx>`. By default, they are read as text.
        preconditioner: How a gradient becomes an update: adam_less (as in LESS and ClusterUCB), adam (the optimiser's
            true next step), second_moment (the gradient, scaled by the optimiser's second moment), or sgd (the
            gradient itself).
        adapter: Folder of a trained PEFT LoRA adapter. Without it, a fresh LoRA is warmed up.
        optimizer: File with the optimiser state of the adapter's training, or DeepSpeed's folder (by default,
            optimizer.pt, optimizer.bin or DeepSpeed's folder in the adapter's folder). With --parameters, that of the
            model's training.
        checkpoint: Folder of an adapter with its optimiser state. Repeat the option for several checkpoints of one
            training: a sample's score is the weighted sum of its scores at all of them, and costs a gradient at each.
        checkpoint_weights: Weight of each --checkpoint, comma-separated, such as the learning rates there (as in LESS).
            By default, all weights are equal.
        parameters: Linear layers whose own weights are differentiated instead of a LoRA: layer names, comma-separated,
            with * for any characters, such as model.layers.*.mlp.down_proj.
        lora_only: Leave fully trained modules and tokens of an adapter out of the gradients (modules_to_save,
            trainable_token_indices): they are used as trained. By default, such an adapter is refused.
        lora_rank: Rank of a fresh LoRA.
        lora_alpha: Scale of a fresh LoRA: its update is multiplied by alpha / rank.
        lora_targets: Linear layers of a fresh LoRA, comma-separated, or all-linear: ends of their names, or whole names
            with * for any characters. By default, PEFT's choice, or else the attention and MLP projections.
        warmup_steps: AdamW steps that warm up a fresh LoRA, on 4 random pool samples each.
        warmup_lr: Learning rate of the warm-up.
        sketch_dim: Dimension of gradient sketches, a power of two of at least 256.
        max_length: Largest number of tokens in a sample. A longer sample keeps the end of its prompt, and its answer.
        batch_tokens: Padded tokens in one pass of the model. By default, 1024 on a CPU, elsewhere as many as fit into
            memory.
        device: Device of the model: auto, cpu, cuda, cuda:1, ...
        workers: Processes that compute gradients, each on a device of its own: a number, all, or the address of a Ray
            cluster such as ray://head:10001. By default, this process computes. Needs clusterucb[ray].
        dtype: Data type of the base model: auto (float32 on a CPU, else the checkpoint's own), float32, bfloat16 or
            float16.
        quantize: Quantise the base model's linear layers to 4bit (NF4) or 8bit, with bitsandbytes.
        autocast: Compute layers in bfloat16 or float16, for any data type of the weights. Sums stay in float32.
        checkpointing: Store only the inputs of the model's layers, and compute each layer again in the backward pass.
            This takes less memory and a third more time.
        compile: Compile parts of the model with torch.compile. Passes take less time, but the start takes minutes.
        revision: Branch, tag or commit of a model from the hub.
        trust_remote_code: Run code that comes with the model.
        seed: Seed of all random numbers: the same seed gives the same result.
        no_lock: Do not lock the folder of the run. Use it only if no other process uses the folder.
    """

    tokenizer: str | None = field(default=None, metadata=FREE)
    chat_template: Path | None = field(default=None, metadata=FREE)
    special_tokens: str | None = field(default=None, metadata={**FREE, **LIST})
    preconditioner: Preconditioner = "adam_less"
    adapter: Path | None = field(default=None, metadata=FILE)
    optimizer: Path | None = field(default=None, metadata=FILE)
    checkpoint: Paths | None = field(default=None, metadata=FILE)
    checkpoint_weights: str | None = field(default=None, metadata=LIST)
    parameters: str | None = field(default=None, metadata=LIST)
    lora_only: bool = False
    lora_rank: Whole = 8
    lora_alpha: float = 16.0
    lora_targets: str | None = field(default=None, metadata=LIST)
    warmup_steps: Whole = 30
    warmup_lr: float = 2e-4
    sketch_dim: Whole = 8192
    max_length: Whole = 1024
    batch_tokens: Whole | None = None
    device: str = "auto"
    workers: str | None = field(default=None, metadata=FREE)
    dtype: Dtype = "auto"
    quantize: Quantize = None
    autocast: Autocast = None
    checkpointing: bool = False
    compile: bool = False
    revision: str | None = None
    trust_remote_code: bool = False
    seed: Whole = 0
    no_lock: bool = field(default=False, metadata=FREE)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("lora_rank", "warmup_steps")
        if self.batch_tokens is not None:
            self.check_whole("batch_tokens")
        for name in ("lora_alpha", "warmup_lr"):
            value = getattr(self, name)
            self.check(name, math.isfinite(value) and value > 0, "a number above 0")
        self.check("seed", 0 <= self.seed < 2**63, "a whole number of at least 0 and below 2^63")
        self.check("max_length", self.max_length >= 2, "at least 2 tokens")
        self.check_choice("preconditioner", PRECONDITIONERS)
        self.check_choice("dtype", DTYPES)
        check_dimension("--sketch-dim", self.sketch_dim)
        if self.quantize is not None:
            self.check_choice("quantize", QUANTIZED)
        if self.autocast is not None:
            self.check_choice("autocast", AUTOCASTS)
        if self.workers is not None:
            WorkersAsked.of(self.workers)
        self._check_checkpoints()

    def _check_checkpoints(self) -> None:
        """Check that one option names the differentiated weights, and that the optimiser states match it.

        Raises:
            OptionError: two such options are given, an optimiser state is missing or has no such option, or the
                checkpoints' weights cannot be used.
        """
        ways = [name for name in ("adapter", "checkpoint", "parameters") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise OptionError(
                f"{' and '.join(map(option_name, ways))} are given; expected only one, because each names the weights "
                "to differentiate"
            )
        if self.optimizer is not None and ways not in (["adapter"], ["parameters"]):
            raise OptionError(
                "--optimizer is given without --adapter or --parameters; expected one of them. A --checkpoint has its "
                "optimiser state in its own folder"
            )
        if self.checkpoint is not None and not self.checkpoint:
            raise OptionError(
                "--checkpoint is given without a folder; expected at least one folder of an adapter"
            )
        lacking = self.parameters is not None and self.preconditioner != "sgd" and self.optimizer is None
        if lacking and not self._has_stored_state:
            raise OptionError(
                f"--preconditioner is {self.preconditioner}, which needs an optimiser state, and --parameters has "
                "none; expected --optimizer with the state of the model's training, or --preconditioner sgd"
            )
        if self.checkpoint_weights is not None and self.checkpoint is None:
            raise OptionError("--checkpoint-weights is given without --checkpoint; expected both")
        if len(self.weights) != len(self.checkpoint or [""]) or not all(
            math.isfinite(weight) and weight > 0 for weight in self.weights
        ):
            raise OptionError(
                f"--checkpoint-weights is {self.checkpoint_weights!r} for {len(self.checkpoint or ())} checkpoints; "
                "expected a number above 0 for each checkpoint, comma-separated"
            )

    @property
    def _has_stored_state(self) -> bool:
        """Whether a gradient store provides the optimiser's state."""
        return False

    @property
    def weights(self) -> list[float]:
        """The weight of each checkpoint (at least one). The weights add up to one; they are NaN if not numbers."""
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
        """Whether a fresh LoRA is warmed up: no checkpoint is given."""
        return not self.given_checkpoints

    @property
    def given_checkpoints(self) -> list[tuple[Path | None, Path | None]]:
        """The adapter's folder and the optimiser state's file of each checkpoint, each None if there is none."""
        if self.parameters is not None:
            adapters: list[Path | None] = [None]
        else:
            adapters = [*(self.checkpoint or ()), *([self.adapter] if self.adapter else [])]
        if self.preconditioner == "sgd":
            return [(adapter, None) for adapter in adapters]
        return [(adapter, self.optimizer or (adapter and optimizer_file(adapter))) for adapter in adapters]

    @property
    def first_adapter(self) -> Path | None:
        """The adapter's folder of the first checkpoint; None if there is none."""
        return next((adapter for adapter, _ in self.given_checkpoints if adapter), None)

    @property
    def parsed_tokens(self) -> list[str]:
        """The tokens in ``special_tokens``."""
        return [token for token in (self.special_tokens or "").split(",") if token]

    @property
    def patterns(self) -> list[str]:
        """The layer names in ``parameters``."""
        return [name.strip() for name in (self.parameters or "").split(",")]

    @property
    def target_layers(self) -> list[str] | None:
        """The layer names in ``lora_targets``, or None for the default choice."""
        return None if self.lora_targets is None else [name.strip() for name in self.lora_targets.split(",")]

    @property
    def sketch(self) -> Sketch:
        """The projection of gradient sketches. It has more nonzeros for raw gradients, which are heavy-tailed."""
        return Sketch(self.sketch_dim, 4 if self.preconditioner == "sgd" else 2, self.seed)

    def deciding(self, *, sketches: bool) -> dict[str, Any]:
        """Return the options that affect the computed numbers, by option name.

        Options without effect are None. So are options that name files, because the fingerprints of the files are
        compared instead. The options for reading rows are left out, because the fingerprint of the pool covers them.

        Args:
            sketches: whether gradients are sketched.
        """
        unused = {*(() if self.warms_up else FRESH_LORA), *(() if sketches else ("sketch_dim",))}
        if not self.lora_only:  # runs of earlier versions do not have it
            unused.add("lora_only")
        return {
            option_name(one.name): None
            if one.name in unused or one.metadata.get("file")
            else getattr(self, one.name)
            for one in fields(self)
            if one.metadata.get("decides", True)
        }


@dataclass(frozen=True, kw_only=True)
class SketchSettings(GradientSettings):
    """Options of a gradient store.

    Attributes:
        store_dtype: How sketches are stored: float16, or int8, a byte for each element and a scale for each sample, in
            half the bytes.
    """

    store_dtype: StoreDtype = FLOAT16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("store_dtype", STORE_DTYPES)

    def deciding(self, *, sketches: bool) -> dict[str, Any]:
        """Return the options that affect the computed numbers, by option name; options without effect are None."""
        found = super().deciding(sketches=sketches)
        if self.store_dtype == FLOAT16:  # stores of earlier versions do not have the option
            del found[option_name("store_dtype")]
        return found
