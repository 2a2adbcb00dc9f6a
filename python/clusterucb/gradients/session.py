"""Load the model at its checkpoints: the base model, LoRA with its moments, and per-sample gradients.

Decisions:
    - Each part is loaded only when it is needed: showing a finished run again loads no model at all.
    - A run continues from the files in its folder, even in the session that wrote them: the LoRA that was just warmed
      up is loaded from ``adapter/`` like any other adapter. So a run gives the same bits whether or not it was
      interrupted.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.atomic import whole_folder
from clusterucb.errors import ModelError
from clusterucb.gradients import memory_needs as fitting
from clusterucb.gradients.accumulate import Accumulator, Checkpoint
from clusterucb.gradients.largest_pass import largest_pass, try_passes
from clusterucb.gradients.order import say_how_states_match
from clusterucb.gradients.passes import CPU_TOKENS, Passes
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.gradients.warmup import warm_up
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch
from clusterucb.model import adapters
from clusterucb.model import source as model_source
from clusterucb.model.adapter_weights import AdapterWeights
from clusterucb.model.base_state import take_off
from clusterucb.model.checkpoint_files import adapter_files, optimizer_file, state_files
from clusterucb.model.loaded import LoadedModel
from clusterucb.model.moments import load_moments
from clusterucb.model.parameters import ParameterManifest
from clusterucb.model.vocabulary import take_vocabulary
from clusterucb.options.gradients import GradientSettings
from clusterucb.progress import Observer
from clusterucb.run.folder import Run
from clusterucb.run.gradient_store import kept_adapter
from clusterucb.run.manifest import Limit
from clusterucb.samples.pool_and_target import Material
from clusterucb.wording import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AdaptedModel:
    """A model with its adapters; a context manager inside which gradients can be computed.

    Args:
        run: the run, whose folder keeps the warmed-up adapter.
        settings: the options.
        source: the folder or hub id that the base model is loaded from, or the loaded model.
        device: the model's device.
        material: the encoded pool, which the warm-up samples from, and the target.
        observer: shows the progress.
        base: the base model that `load_base` returned; None loads it when it is needed.

    Attributes:
        device: the model's device.
    """

    def __init__(
        self,
        run: Run,
        settings: GradientSettings,
        source: model_source.ModelSource | LoadedModel,
        device: str,
        material: Material,
        observer: Observer,
        base: PreTrainedModel | None = None,
    ) -> None:
        self._run = run
        self._settings = settings
        self._source = source
        self._material = material
        self._observer = observer
        self._given = base
        self._open = ExitStack()
        self.device = device

    def __enter__(self) -> Self:
        """Switch gradients on, even if the caller has switched them off; nothing is loaded yet."""
        self._open.enter_context(torch.inference_mode(False))
        self._open.enter_context(torch.enable_grad())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the caller's gradient modes."""
        self._open.close()

    @cached_property
    def base(self) -> PreTrainedModel:
        """The base model."""
        if self._given is not None:
            return self._given
        return load_base(
            self._settings, self._source, self.device, self._material, self._observer, self._run.folder
        )

    @cached_property
    def passes(self) -> Passes:
        """Groups samples into passes of the model."""
        kept = self._run.manifest.passes.limits

        def record(limit: Limit) -> None:
            self._observer.step(f"Out of memory: from now on, passes have at most {limit.tokens:,} tokens")
            kept.append(limit)
            self._run.save()

        return Passes(self._limit(), self.device, limits=list(kept), record=record)

    def _limit(self) -> int:
        """Return the padded tokens of a pass: as given, or as many as fit, which is measured once in a run."""
        kept = self._run.manifest.passes
        if self._settings.batch_tokens or torch.device(self.device).type == "cpu":
            return self._settings.batch_tokens or CPU_TOKENS
        if kept.batch_tokens is None:
            needed = fitting.needs(
                self.checkpoints[0],
                largest_pass(self._settings, self._material, CPU_TOKENS),
                counts=fitting.Counts.of(self._settings, self._material.target),
                device=self.device,
            )
            kept.batch_tokens = fitting.tokens_that_fit(needed, fitting.available(self.device))
            self._run.save()
        return kept.batch_tokens

    def accumulators(
        self, *, directions: Sequence[NDArray[np.float32]] | None = None, sketch: Sketch | None = None
    ) -> list[Accumulator]:
        """Return an accumulator for each checkpoint.

        Args:
            directions: f32[S, P] for each checkpoint; None computes no inner products.
            sketch: the projection for the first checkpoint; None computes no sketches.
        """
        return [
            Accumulator(
                checkpoint,
                device=self.device,
                directions=None if directions is None else directions[checkpoint.number],
                sketch=sketch,
            )
            for checkpoint in self.checkpoints
        ]

    def keep_checkpoints(self) -> None:
        """Copy the given adapters and optimiser states into the run's folder, for `clusterucb.run.gradient_store`."""
        for number, (adapter, optimizer) in enumerate(self._settings.given_checkpoints):
            name = kept_adapter(number)
            if self._run.files.find_folder(name) is not None:
                continue
            with whole_folder(self._run.path(name)) as partial:
                for path in adapter_files(adapter) if adapter else ():
                    shutil.copyfile(path, partial / path.name)
                if optimizer:
                    for path in state_files(optimizer):
                        kept = partial / ("optimizer.pt" if path == optimizer else f"optimizer/{path.name}")
                        kept.parent.mkdir(exist_ok=True)
                        shutil.copyfile(path, kept)
            self._run.files.record_folder(name)

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints; at most one of them may be entered at a time."""
        settings = self._settings
        return load_checkpoints(settings, self.base, settings.given_checkpoints or [self._own_checkpoint()])

    def _own_checkpoint(self) -> tuple[Path, Path]:
        """Return the run's own adapter and its optimiser state, warming the adapter up if there is none yet."""
        folder = self._warmed_up()
        return folder, optimizer_file(folder)

    def _warmed_up(self) -> Path:
        """Return the folder of the run's own adapter, training it if there is none yet."""
        name = kept_adapter(0)
        if (kept := self._run.files.find_folder(name)) is not None:
            return kept
        folder = self._run.path(name)
        settings = self._settings
        lora = fresh_lora(settings, self.base)
        steps = self._material.warmup_rows(settings.warmup_steps, settings.seed)
        batches = [[self._material.encoded[row] for row in rows] for rows in steps]
        title = f"Warming up LoRA ({counted(len(batches), 'step')})"
        with self._run.phase("warm-up"), self._observer.count(title, steps.size) as advance:
            warm_up(
                lora,
                batches,
                folder,
                learning_rate=settings.warmup_lr,
                device=self.device,
                autocast=model_source.DTYPES.get(settings.autocast or ""),
                checkpointing=settings.checkpointing,
                advance=advance,
            )
        take_off(lora)
        self._run.files.record_folder(name)
        return folder


def load_base(
    settings: GradientSettings,
    source: model_source.ModelSource | LoadedModel,
    device: str,
    material: Material,
    observer: Observer,
    folder: Path,
) -> PreTrainedModel:
    """Load the base model, and check that it takes the samples and the adapter or fresh LoRA that the options ask for.

    This writes nothing, and computes a few gradients of the shortest samples alone, so a mistake costs nothing.

    Args:
        settings, source, device, material, observer: as for `AdaptedModel`.
        folder: the run's folder, whose disk must have room.

    Raises:
        ModelError: the model, the samples and the adapter do not fit together.
        OptionError: the job needs more memory or more disk space than there is.
    """
    observer.step(f"Loading {source.name} on {device}")
    model, count = base_for_adapter(settings, source, device)
    if count:
        observer.step(
            f"Vocabulary: {count:,} tokens, with the embeddings that {settings.first_adapter} holds"
        )
    model_source.check_limits(model, longest=material.longest(), largest_token=material.largest_token())
    if settings.given_checkpoints:
        checkpoints = load_checkpoints(settings, model, settings.given_checkpoints)
        say_how_states_match(checkpoints, settings.given_checkpoints, material, device, observer)
        if left_out := adapters.left_out(checkpoints[0].gradients.model, checkpoints[0].gradients.manifest):
            observer.step(
                f"Left out of the gradients: {counted(len(left_out), 'weight')} of the adapter, such as "
                f"{left_out[0]} (frozen, --lora-only, or no text reaches it)"
            )
    else:
        lora = fresh_lora(settings, model)
        if settings.target_layers is None and not adapters.knows_default(model):
            observer.step(
                f"LoRA on {adapters.described_targets(lora)}: the projections that every token reaches. PEFT has no "
                f"choice for {model.config.model_type}. Name others with --lora-targets"
            )
        checkpoints = [at_checkpoint(settings, lora)]
    limit = settings.batch_tokens or CPU_TOKENS
    fitting.check(
        checkpoints[0],
        largest_pass(settings, material, limit),
        try_passes(checkpoints[0], material.encoded, limit, device),
        folder,
        counts=fitting.Counts.of(settings, material.target),
        device=device,
        checkpointing=settings.checkpointing,
    )
    adapted = checkpoints[0].gradients.model
    if isinstance(adapted, PeftModel):
        take_off(adapted)
    return model


def base_for_adapter(
    settings: GradientSettings, source: model_source.ModelSource | LoadedModel, device: str
) -> tuple[PreTrainedModel, int | None]:
    """Load the base model in the class and with the vocabulary that the first adapter was trained with.

    Returns:
        The model; and the number of tokens if the adapter changes it, else None.
    """
    given = settings.first_adapter
    layers = AdapterWeights(given).layers() if given else set()
    model = source.model(settings.dtype, device, layers, settings.quantize)
    from_files = isinstance(source, model_source.ModelSource)
    return model, take_vocabulary(model, given) if given and from_files else None


def fresh_lora(settings: GradientSettings, base: PreTrainedModel) -> PeftModel:
    """Put a fresh LoRA on the base model."""
    return adapters.attach_lora(
        base,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        targets=settings.target_layers,
        seed=settings.seed,
    )


def load_checkpoints(
    settings: GradientSettings, base: PreTrainedModel, given: Sequence[tuple[Path | None, Path | None]]
) -> list[Checkpoint]:
    """Load the checkpoints of a base model; its adapters stay disabled until a checkpoint is entered.

    Args:
        settings: the options.
        base: the base model.
        given: the adapter's folder and the optimiser state's file of each checkpoint; either may be None.

    Raises:
        ModelError: an adapter or an optimiser state does not fit the model, or two adapters have different LoRAs.
    """
    model: PreTrainedModel | PeftModel = base
    checkpoints: list[Checkpoint] = []
    for number, (adapter, optimizer) in enumerate(given):
        if adapter is None:
            for weight in base.parameters():  # assume that the optimiser's run trained all parameters
                weight.requires_grad_(weight.is_floating_point())
        else:
            model = adapters.load_adapter(model, adapter, number)
        checkpoints.append(at_checkpoint(settings, model, optimizer, number))
        first, last = checkpoints[0].gradients.manifest, checkpoints[number].gradients.manifest
        if first.fingerprint() != last.fingerprint():
            raise ModelError(
                f"{adapter} has a LoRA on {_about(last)}, {given[0][0]} on {_about(first)}; expected "
                "checkpoints of one training, with the same LoRA"
            )
    if isinstance(model, PeftModel):
        model.base_model.disable_adapter_layers()
    return checkpoints


def _about(manifest: ParameterManifest) -> str:
    layers = sorted({parameter.name.split(".")[-2] for parameter in manifest})
    return f"{', '.join(layers)} with {manifest.size:,} parameters"


def at_checkpoint(
    settings: GradientSettings, model: PreTrainedModel | PeftModel, state: Path | None = None, number: int = 0
) -> Checkpoint:
    """Return the checkpoint of a model in which just the trained parameters require a gradient.

    Args:
        settings: the options.
        model: the model.
        state: the file of the optimiser state; None for no moments.
        number: the checkpoint's number, counted from 0.

    Raises:
        ModelError: a parameter cannot be differentiated, or the optimiser state does not fit.
    """
    if settings.parameters is None:
        manifest = ParameterManifest.of(model, lora_only=settings.lora_only)
    else:
        manifest = ParameterManifest.matching(model, settings.patterns)
    gradients = PerSampleGradients(
        model,
        manifest,
        adapter=adapters.adapter_name(number) if isinstance(model, PeftModel) else None,
        autocast=model_source.DTYPES.get(settings.autocast or ""),
        checkpointing=settings.checkpointing,
        compiling=settings.compile,
    )
    share = settings.weights[number]
    if settings.preconditioner == "sgd" or state is None:
        return Checkpoint(gradients, manifest.size, weight=share, number=number)
    moments = load_moments(state, model, manifest)
    if not moments.first and settings.preconditioner != "second_moment":
        raise ModelError(
            f"{state} has no first moment ({moments.matched}), which --preconditioner {settings.preconditioner} needs; "
            "expected --preconditioner second_moment, or sgd, which needs no state"
        )
    preconditioner = Preconditioner(
        settings.preconditioner, moments.beta1, moments.beta2, moments.eps, moments.step
    )
    return Checkpoint(gradients, manifest.size, preconditioner, moments, share, number)
