"""The model at its checkpoint: the base model, LoRA with its moments, per-sample gradients.

Loaded in steps and only when something needs it: a finished run that is shown again costs no model at
all. A folder always goes on from its files, also in the session that wrote them: the LoRA that was just
warmed up is loaded from ``adapter/`` like any other. So a run gives the same bits whether or not it was
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
from clusterucb.gradients.passes import CPU_TOKENS, Batch, Passes, micro_batches, single_pass
from clusterucb.gradients.peak_memory import peak_bytes
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.gradients.warmup import warm_up
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.kernels.projection import Sketch
from clusterucb.model import source as checkpoint
from clusterucb.model.checkpoint_files import adapter_files, optimizer_file
from clusterucb.model.loaded import LoadedModel
from clusterucb.model.moments import load_moments
from clusterucb.model.parameters import ParameterManifest
from clusterucb.options.gradients import GradientSettings
from clusterucb.progress import Observer
from clusterucb.run.folder import Limit, Run
from clusterucb.run.gradient_store import kept_adapter
from clusterucb.samples.encode import Encoded
from clusterucb.samples.pool_and_target import Material
from clusterucb.samples.tokens import EncodedSamples
from clusterucb.wording import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LONGEST = 64  # samples that the pass which takes most memory is made of


class AdaptedModel:
    """A model with its adapter; a context manager that takes the hooks off again.

    Args:
        run: the folder where a warmed-up adapter is kept.
        settings: the options.
        source: the base model.
        device: where it runs.
        material: the encoded pool, which the warm-up draws from, and the target.
        observer: who is told how it gets on.
        base: the model of `load_base`, where it is loaded already.
    """

    def __init__(
        self,
        run: Run,
        settings: GradientSettings,
        source: checkpoint.ModelSource | LoadedModel,
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
        """Return itself; nothing is loaded yet. Gradients are computed inside, even if the caller switched them off."""
        self._open.enter_context(torch.inference_mode(False))
        self._open.enter_context(torch.enable_grad())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hooks off the model."""
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
        """What puts samples into passes of the model."""
        manifest = self._run.manifest

        def record(limit: Limit) -> None:
            self._observer.step(f"Memory ran out: passes are of {limit.tokens:,} tokens from here on")
            manifest.limits.append(limit)
            self._run.save()

        limits = list(manifest.limits)
        return Passes(self._limit(), self.device, limits=limits, record=record)

    def _limit(self) -> int:
        """Return the padded tokens of a pass: as asked for, or as many as fit, which is measured once in a run."""
        manifest = self._run.manifest
        if self._settings.batch_tokens or torch.device(self.device).type == "cpu":
            return self._settings.batch_tokens or CPU_TOKENS
        if manifest.batch_tokens is None:
            needed = fitting.needs(
                self.checkpoints[0],
                largest_pass(self._settings, self._material, CPU_TOKENS),
                counts=fitting.Counts.of(self._settings, self._material.target),
                device=self.device,
            )
            manifest.batch_tokens = fitting.tokens_that_fit(needed, fitting.available(self.device))
            self._run.save()
        return manifest.batch_tokens

    def accumulators(
        self, *, directions: Sequence[NDArray[np.float32]] | None = None, sketch: Sketch | None = None
    ) -> list[Accumulator]:
        """Return what computes norms, and inner products with directions f32[S, P] or sketches, for each checkpoint."""
        return [
            Accumulator(
                one,
                device=self.device,
                directions=None if directions is None else directions[one.number],
                sketch=sketch,
            )
            for one in self.checkpoints
        ]

    def keep_checkpoints(self) -> None:
        """Copy the given adapters and optimiser states into the folder, for `clusterucb.run.gradient_store`."""
        for number, (adapter, optimizer) in enumerate(self._settings.given_checkpoints):
            folder = self._run.path(kept_adapter(number))
            if folder.exists():
                continue
            with whole_folder(folder) as partial:
                for path in adapter_files(adapter) if adapter else ():
                    shutil.copyfile(path, partial / path.name)
                if optimizer:
                    shutil.copyfile(optimizer, partial / "optimizer.pt")

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """What is differentiated at each checkpoint; at most one at a time may be entered."""
        settings = self._settings
        return load_checkpoints(settings, self.base, settings.given_checkpoints or [self._own_checkpoint()])

    def _own_checkpoint(self) -> tuple[Path, Path]:
        """Return the folder's own adapter, warmed up first if it is not there yet, and its optimiser state."""
        folder = self._warmed_up()
        return folder, optimizer_file(folder)

    def _warmed_up(self) -> Path:
        """Return the folder's own adapter, trained first if it is not there yet."""
        folder = self._run.path("adapter")
        if folder.exists():
            return folder
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
                autocast=checkpoint.DTYPES.get(settings.autocast or ""),
                checkpointing=settings.checkpointing,
                advance=advance,
            )
        lora.unload()
        return folder


def load_base(
    settings: GradientSettings,
    source: checkpoint.ModelSource | LoadedModel,
    device: str,
    material: Material,
    observer: Observer,
    folder: Path,
) -> PreTrainedModel:
    """Load the base model, and check that it takes the samples and the adapter or fresh LoRA asked for.

    Nothing is written yet and a few gradients of the shortest samples are computed, so a mistake costs nothing.

    Args:
        settings, source, device, material, observer: as of `AdaptedModel`.
        folder: of the run, whose disk has to have room.

    Raises:
        ModelError: something does not fit.
        OptionError: there is no room for what the job needs.
    """
    observer.step(f"Loading {source.name} on {device}")
    model = source.model(settings.dtype, device)
    checkpoint.check_limits(model, longest=material.longest(), largest_token=material.largest_token())
    if settings.given_checkpoints:
        found = load_checkpoints(settings, model, settings.given_checkpoints)
    else:
        found = [at_checkpoint(settings, fresh_lora(settings, model))]
    limit = settings.batch_tokens or CPU_TOKENS
    fitting.check(
        found[0],
        largest_pass(settings, material, limit),
        _try(found[0], material.encoded, limit, device),
        folder,
        counts=fitting.Counts.of(settings, material.target),
        device=device,
        checkpointing=settings.checkpointing,
    )
    adapted = found[0].gradients.model
    if isinstance(adapted, PeftModel):
        adapted.unload()
    return model


def largest_pass(
    settings: GradientSettings, material: Material, limit: int, together: int = _LONGEST
) -> list[Encoded]:
    """Return the samples of the pass, over ``together`` of the pool or over the target, that takes most memory."""
    lengths = material.encoded.lengths
    longest = [material.encoded[int(row)] for row in np.argsort(-lengths, kind="stable")[:together]]
    if getattr(settings, "free_scores", False):
        longest = []
    passes = [
        [samples[at] for at in batch]
        for samples in (longest, *material.target.values())
        for batch in micro_batches([len(sample) for sample in samples], limit)[:1]
    ]
    return max(passes, key=lambda samples: len(samples) * max(map(len, samples)))


def _try(checkpoint: Checkpoint, encoded: EncodedSamples, limit: int, device: str) -> int:
    """Take gradients of the two shortest samples, of two lengths if there are; return the bytes for each token.

    What cannot be right at all is refused here.
    """
    order = np.argsort(encoded.lengths, kind="stable")
    longer = np.flatnonzero(encoded.lengths[order] > encoded.lengths[order[0]])
    rows = [order[0], *order[longer[:1] if len(longer) else slice(1, 2)]]
    shared = micro_batches(encoded.lengths[rows], limit)[0]

    def attempt(batch: Batch) -> int:
        gradients.backward(batch, lambda *_: None)
        return peak_bytes(lambda: gradients.backward(batch, lambda *_: None)) // batch.ids.numel()

    with checkpoint.gradients as gradients:
        return single_pass([encoded[int(rows[at])] for at in shared], device, attempt)


def fresh_lora(settings: GradientSettings, base: PreTrainedModel) -> PeftModel:
    """Put a fresh LoRA on the base model."""
    return checkpoint.attach_lora(
        base,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        targets=settings.target_layers,
        seed=settings.seed,
    )


def load_checkpoints(
    settings: GradientSettings, base: PreTrainedModel, given: Sequence[tuple[Path | None, Path | None]]
) -> list[Checkpoint]:
    """Return the checkpoints that adapters and optimiser states make of a base model.

    No adapter is in force until one of them is entered.
    """
    model: PreTrainedModel | PeftModel = base
    found: list[Checkpoint] = []
    for number, (adapter, optimizer) in enumerate(given):
        if adapter is None:
            for weight in base.parameters():  # everything was trained, as far as its optimiser knows
                weight.requires_grad_(weight.is_floating_point())
        else:
            model = checkpoint.load_adapter(model, adapter, number)
        found.append(at_checkpoint(settings, model, optimizer, number))
        manifests = [one.gradients.manifest for one in (found[0], found[number])]
        if manifests[0].fingerprint() != manifests[1].fingerprint():
            raise ModelError(
                f"{adapter} has a LoRA on {_about(manifests[1])}, {given[0][0]} on {_about(manifests[0])}; expected "
                "checkpoints of one training, with the same LoRA"
            )
    if isinstance(model, PeftModel):
        model.base_model.disable_adapter_layers()
    return found


def _about(manifest: ParameterManifest) -> str:
    layers = sorted({one.name.split(".")[-2] for one in manifest})
    return f"{', '.join(layers)} with {manifest.size:,} parameters"


def at_checkpoint(
    settings: GradientSettings, model: PreTrainedModel | PeftModel, state: Path | None = None, number: int = 0
) -> Checkpoint:
    """Return what is differentiated of a model whose trained parameters require a gradient, with moments of a file."""
    if settings.parameters is None:
        manifest = ParameterManifest.of(model)
    else:
        manifest = ParameterManifest.matching(model, settings.patterns)
    gradients = PerSampleGradients(
        model,
        manifest,
        adapter=checkpoint.adapter_name(number) if isinstance(model, PeftModel) else None,
        autocast=checkpoint.DTYPES.get(settings.autocast or ""),
        checkpointing=settings.checkpointing,
        compiling=settings.compile,
    )
    share = settings.weights[number]
    if settings.preconditioner == "sgd" or state is None:
        return Checkpoint(gradients, manifest.size, weight=share, number=number)
    moments = load_moments(state, model, manifest)
    preconditioner = Preconditioner(
        settings.preconditioner, moments.beta1, moments.beta2, moments.eps, moments.step
    )
    return Checkpoint(gradients, manifest.size, preconditioner, moments, share, number)
