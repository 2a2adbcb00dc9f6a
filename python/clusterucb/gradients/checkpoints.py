"""Load a base model with its adapters and optimiser states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel

from clusterucb.errors import ModelError
from clusterucb.gradients.accumulate import Checkpoint
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.kernels.preconditioner import Preconditioner
from clusterucb.model import adapters
from clusterucb.model import source as model_source
from clusterucb.model.adapter_weights import AdapterWeights
from clusterucb.model.loaded import LoadedModel
from clusterucb.model.moments import load_moments
from clusterucb.model.parameters import ParameterManifest
from clusterucb.model.vocabulary import take_vocabulary
from clusterucb.options.gradients import GradientSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
