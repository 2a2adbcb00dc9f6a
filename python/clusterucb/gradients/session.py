"""Load the model at its checkpoints: the base model, LoRA with its moments, and per-sample gradients.

Decisions:
    - Each part is loaded only when it is needed: showing a finished run again loads no model at all.
    - A run continues from the files in its folder, even in the session that wrote them: the LoRA that was just warmed
      up is loaded from ``adapter/`` like any other adapter. So a run gives the same bits whether or not it was
      interrupted.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.atomic import whole_folder
from clusterucb.errors import OptionError
from clusterucb.features.base import Feature, Fitted
from clusterucb.gradients import memory_needs as fitting
from clusterucb.gradients.accumulate import Accumulated, Checkpoint, Step
from clusterucb.gradients.checkpoints import at_checkpoint, base_for_adapter, fresh_lora, load_checkpoints
from clusterucb.gradients.directions import UnitSum
from clusterucb.gradients.largest_pass import largest_pass, try_passes
from clusterucb.gradients.order import say_how_states_match
from clusterucb.gradients.passes import CPU_TOKENS, Passes, micro_batches, overhead_of
from clusterucb.gradients.program import (
    FeatureProgram,
    Origin,
    Reduction,
    Spread,
    described_on_workers,
    on_workers,
)
from clusterucb.gradients.warmup import warm_up
from clusterucb.kernels.projection import Sketch
from clusterucb.model import adapters
from clusterucb.model import source as model_source
from clusterucb.model.base_state import take_off
from clusterucb.model.checkpoint_files import adapter_files, optimizer_file, state_files
from clusterucb.model.loaded import LoadedModel
from clusterucb.options.gradients import GradientSettings
from clusterucb.options.workers import WorkersAsked
from clusterucb.progress import Observer
from clusterucb.run.folder import Run
from clusterucb.run.gradient_store import kept_adapter
from clusterucb.run.manifest import Limit
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.pool_and_target import Material
from clusterucb.samples.sample import Sample
from clusterucb.wording import counted
from clusterucb.workers.crew import Crew

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
        spread: spreads passes over other processes that hold the same model; None for this process alone.

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
        spread: Spread | None = None,
    ) -> None:
        self._run = run
        self._settings = settings
        self._source = source
        self._material = material
        self._observer = observer
        self._given = base
        self._spread = spread
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
    ) -> list[Step[Accumulated]]:
        """Return what reduces gradients to norms, inner products and sketches, for each checkpoint.

        Args:
            directions: f32[S, P] for each checkpoint; None computes no inner products.
            sketch: the projection for the first checkpoint; None computes no sketches.
        """
        return self._steps(Reduction(directions=directions, sketch=sketch))

    def unit_gradients(self) -> list[Step[UnitSum]]:
        """Return what sums unit gradients, for each checkpoint."""
        return self._steps(Reduction(unit_sums=True))

    def _steps(self, reduction: Reduction) -> list[Step[Any]]:
        """Return what computes passes, here or on the workers, for each checkpoint."""
        if self._settings.workers is None:
            steps = reduction.steps(self.checkpoints, self.device)
            return self._spread(reduction, steps) if self._spread else steps
        crew, origin = self._crew
        return on_workers(crew, origin, reduction)

    def start_workers(self) -> None:
        """Start the workers, unless they run. The LoRA is warmed up before."""
        self._crew  # noqa: B018

    def note(self) -> str:
        """Return what to show beside the progress: the workers, or "" if there are none."""
        return self._crew[0].note if "_crew" in self.__dict__ else ""

    def say_idle_workers(self, batch_size: int) -> None:
        """Say so if a batch of draws makes fewer passes than there are workers.

        Args:
            batch_size: the samples of a batch of draws.
        """
        if self._settings.workers is None:
            return
        lengths, limit = self._material.encoded.lengths[:batch_size], self.passes.limit
        n_passes, (crew, _) = len(micro_batches(lengths, limit, overhead_of(self.device, limit))), self._crew
        if n_passes < crew.size:
            enough = batch_size * -(-crew.size // n_passes)
            self._observer.step(
                f"A batch of {counted(batch_size, 'draw')} makes {counted(n_passes, 'pass', 'passes')}, so some of the "
                f"{crew.size} workers wait. --batch-size {enough} would keep them busy; it changes the search"
            )

    def describe(
        self, feature: Feature, samples: Sequence[Sample], encoded: Sequence[Encoded], fitted: Fitted
    ) -> dict[str, NDArray[np.float32]]:
        """Return a feature's blocks of m samples, each f32[m, k], computed on the workers.

        Args:
            feature: the feature; it must not use gradients.
            samples: the samples.
            encoded: their tokens.
            fitted: what the feature learnt from the pool.
        """
        crew, origin = self._crew
        return described_on_workers(crew, FeatureProgram(origin, feature, fitted), samples, encoded)

    @cached_property
    def _crew(self) -> tuple[Crew, Origin]:
        """The workers, and what they load. The model is loaded and checked here first, and then let go."""
        from clusterucb.workers.start import start

        settings = self._settings
        if not isinstance(self._source, model_source.ModelSource):
            raise OptionError(
                "--workers is given with a model in memory, which workers cannot load; expected the model's folder or "
                "hub id"
            )
        self.base  # noqa: B018  (loading checks the samples and the checkpoints)
        origin = Origin.of(settings, self._source, settings.given_checkpoints or [self._own_checkpoint()])
        self.passes  # noqa: B018  (a GPU's memory is measured with the model)
        self._let_go()
        crew = start(WorkersAsked.of(settings.workers or "all"), self.device, self._observer.step)
        self._open.callback(crew.close)
        return crew, origin

    def _let_go(self) -> None:
        """Free the memory of the model. It is loaded again if it is needed."""
        self._given = None
        for name in ("base", "checkpoints"):
            self.__dict__.pop(name, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

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
