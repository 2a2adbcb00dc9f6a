"""The model at its checkpoint: the base model, LoRA with its moments, per-sample gradients.

Loaded in steps and only when something needs it: a finished run that is shown again costs no model at
all. A folder always goes on from its files, also in the session that wrote them: the LoRA that was just
warmed up is loaded from ``adapter/`` like any other. So a run gives the same bits whether or not it was
interrupted.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb import checkpoint
from clusterucb.accumulate import Accumulator
from clusterucb.atomic import whole_folder
from clusterucb.errors import counted
from clusterucb.gradients import PerSampleGradients
from clusterucb.loaded import LoadedModel
from clusterucb.material import Material
from clusterucb.moments import Moments, load_moments
from clusterucb.parameters import ParameterManifest
from clusterucb.preconditioner import Preconditioner
from clusterucb.prepared import adapter_files
from clusterucb.progress import Observer
from clusterucb.projection import Sketch
from clusterucb.run import Run
from clusterucb.settings import GradientSettings
from clusterucb.warmup import warm_up

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


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
        return load_base(self._settings, self._source, self.device, self._material, self._observer)

    @property
    def gradients(self) -> PerSampleGradients:
        """Per-sample gradients at the checkpoint."""
        return self._checkpoint[0]

    @property
    def size(self) -> int:
        """P, the length of the flat parameter space."""
        return self._checkpoint[1].size

    def accumulator(
        self, *, directions: NDArray[np.float32] | None = None, sketch: Sketch | None = None
    ) -> Accumulator:
        """Return what computes norms, and inner products with directions f32[S, P] or sketches."""
        gradients, _, preconditioner, moments = self._checkpoint
        return Accumulator(
            gradients, preconditioner, moments, device=self.device, directions=directions, sketch=sketch
        )

    def keep_adapter(self) -> None:
        """Copy a given adapter and its optimiser state into the folder, as ``adapter/``."""
        given, folder = self._settings.adapter, self._run.path("adapter")
        if given is None or folder.exists():
            return
        with whole_folder(folder) as partial:
            for path in adapter_files(given):
                shutil.copyfile(path, partial / path.name)
            if self._settings.optimizer_file:
                shutil.copyfile(self._settings.optimizer_file, partial / "optimizer.pt")

    @cached_property
    def _checkpoint(
        self,
    ) -> tuple[PerSampleGradients, ParameterManifest, Preconditioner, Moments | None]:
        adapter = self._settings.adapter or self._warmed_up()
        model, manifest, moments = _load_checkpoint(self._settings, self.base, adapter)
        preconditioner = Preconditioner("sgd")
        if moments:
            preconditioner = Preconditioner(
                self._settings.preconditioner, moments.beta1, moments.beta2, moments.eps, moments.step
            )
        gradients = self._open.enter_context(PerSampleGradients(model, manifest))
        return gradients, manifest, preconditioner, moments

    def _warmed_up(self) -> Path:
        """Return the folder's own adapter, trained first if it is not there yet."""
        folder = self._run.path("adapter")
        if folder.exists():
            return folder
        settings = self._settings
        lora = _fresh_lora(settings, self.base)
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
) -> PreTrainedModel:
    """Load the base model, and check that it takes the samples and the adapter or fresh LoRA asked for.

    Nothing is computed and nothing written yet, so a mistake costs nothing.

    Raises:
        ModelError: something does not fit.
    """
    observer.step(f"Loading {source.name} on {device}")
    model = source.model(settings.dtype, device)
    checkpoint.check_limits(model, longest=material.longest(), largest_token=material.largest_token())
    if settings.adapter:
        adapted, _, _ = _load_checkpoint(settings, model, settings.adapter)
    else:
        adapted = _fresh_lora(settings, model)
        ParameterManifest.of(adapted)
    adapted.unload()
    return model


def _fresh_lora(settings: GradientSettings, base: PreTrainedModel) -> PeftModel:
    return checkpoint.attach_lora(
        base,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        targets=settings.target_layers,
        seed=settings.seed,
    )


def _load_checkpoint(
    settings: GradientSettings, base: PreTrainedModel, adapter: Path
) -> tuple[PeftModel, ParameterManifest, Moments | None]:
    """Return an adapter on the base model, where its matrices stand, and its moments unless unused."""
    model = checkpoint.load_adapter(base, adapter)
    manifest = ParameterManifest.of(model)
    if settings.preconditioner == "sgd":
        return model, manifest, None
    path = settings.optimizer_file or adapter / "optimizer.pt"
    return model, manifest, load_moments(path, model, manifest)
