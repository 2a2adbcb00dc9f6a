"""Measure how far a model's scores on this machine deviate from exact ones, and name the option that prevents it.

A score should depend on nothing but the sample, the model and the target. On a real machine it also depends on the
other samples in the pass, on the padding, on the attention kernel and on the dtype. The effect is no more than rounding
if all is well, and larger if it is not. The probes run a few samples through the classes that a selection uses, in all
of these ways. They report the largest change of a score (a difference of cosines) and of a gradient (the length of the
difference, relative to the gradient's length).

Decisions:
    - The promise: the same pass gives the same bits. In float32, whatever else changes, a score moves by at most 1e-6,
      and a gradient by at most 1e-4 of its length. In bfloat16 and float16, rounding alone causes far larger changes,
      so their bounds (`_PROMISED`) only separate rounding from faults. The bounds of bfloat16 are three to five times
      the largest changes that were measured on sound models (SmolLM2-135M: a score moved by 0.0065 against float32, and
      a gradient by 0.11 against eager attention; random models of 2 to 30 layers moved less). The bounds of float16 are
      an eighth of those, because it keeps three more bits (gradients of the random models moved by at most 0.012).
    - The target consists of the probed samples themselves. A direction made of gradients is as close to a sample's
      gradient as the directions of a selection are. A random direction is orthogonal to every gradient, so it would not
      show any rounding.
    - A LoRA that a selection would warm up gets random matrices here. Its matrices B are about as large as a warm-up
      leaves them. The warm-up costs minutes and reveals nothing about rounding. Without it there are no optimiser
      moments, so the gradients are scored without a preconditioner. Of several checkpoints, only the first is probed.
    - If `clusterucb.gradients.per_sample` refuses the model, the refusal is a finding with the same message, and the
      other probes go on. If the model cannot be loaded at all, that is an error, as in a selection.
    - The probes join samples into passes whatever --batch-tokens says, because a user should see how much the model
      depends on that option before changing it. If the option leaves every sample a pass of its own, the change does
      no harm, and the finding is fine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.errors import InputError, ModelError
from clusterucb.gradients.accumulate import Checkpoint
from clusterucb.gradients.accumulate import fault as fault_of
from clusterucb.gradients.checkpoints import at_checkpoint, base_for_adapter, fresh_lora, load_checkpoints
from clusterucb.gradients.memory_needs import available
from clusterucb.gradients.passes import out_of_memory
from clusterucb.gradients.per_sample import PerSampleGradients
from clusterucb.jobs.doctor.measuring import Autograd, Change, Measured, direction_of, measure
from clusterucb.jobs.doctor.probe_samples import probing_samples
from clusterucb.jobs.stages.prepare import Model, check_model
from clusterucb.model.base_state import take_off
from clusterucb.model.loaded import LoadedModel, keep
from clusterucb.model.source import ModelSource, check_limits, resolve_device
from clusterucb.options.gradients import GradientSettings
from clusterucb.progress import Observer
from clusterucb.samples.encoded import Encoded
from clusterucb.wording import counted, in_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRADIENTS = "usable gradients"
AGAIN = "the same pass again"
BESIDE = "with samples of equal length"
PADDED = "with longer samples"
AUTOGRAD = "against plain autograd"
EAGER = "against eager attention"
FLOAT32 = "against float32"

_SAME = Change(0.0, 0.0)
_PROMISED = {
    "float64": Change(1e-6, 1e-4),
    "float32": Change(1e-6, 1e-4),
    "bfloat16": Change(0.032, 0.32),
    "float16": Change(0.004, 0.04),
}
_SHARING = 2  # samples in a pass of samples of one length
_SHARED = 4  # padded tokens of the smallest pass that two samples can share
_LORA_B = 0.005  # approximate size of the entries of a matrix B after a warm-up
_ROOM = 1.5  # memory for a float32 copy and its gradients, relative to the copy's weights
_NOISE = (
    "remove from the model what draws random numbers in evaluation mode, or adds up in a different order every time; "
    "no option does this"
)
_OTHER_LOSS = (
    "check the model's own loss and its attention mask: scores need the mean cross-entropy, and a mask that only hides "
    "the padding; no option changes this"
)
_OTHER_LAYERS = "choose layers that the loss depends on (--lora-targets, --parameters)"
_FINITE_WEIGHTS = "check the model's weights for NaN and infinity"
_ALONE = "--batch-tokens 1, which gives every sample its own pass"
_IN_PYTHON = (
    "in Python, load the model with attn_implementation='eager' and give it to clusterucb.select(model=..., "
    "tokenizer=...)"
)


class Finding(msgspec.Struct):
    """The finding of one probe.

    Attributes:
        name: the name of the probe: what it compares or tries.
        score: the largest change of a score, a difference of cosines; None if it was not measured or is not finite.
        gradient: the largest change of a gradient, relative to its length; None if it was not measured or is not
            finite.
        promised: the largest changes that are fine; None if nothing is compared.
        fine: whether the probe found no fault; None if it did not measure anything.
        note: a remark: why the model was refused, why nothing was measured, or a detail.
        remedy: what removes the fault; "" if there is none.
    """

    name: str
    score: float | None = None
    gradient: float | None = None
    promised: Change | None = None
    fine: bool | None = None
    note: str = ""
    remedy: str = ""


class Probed(msgspec.Struct):
    """The findings of all probes of a model on this machine.

    Attributes:
        model: the name of the model.
        device: the device that the model ran on.
        dtype: the dtype of the model's weights.
        autocast: the dtype that the layers compute in under --autocast, or None.
        attention: the attention implementation.
        samples: a description of the samples.
        parameters: the number of values in a gradient.
        findings: one finding for each probe.
    """

    model: str
    device: str
    dtype: str
    autocast: str | None
    attention: str
    samples: str
    parameters: int = 0
    findings: list[Finding] = []


def probe(
    model: Model, settings: GradientSettings, observer: Observer, samples: Sequence[Encoded] | None = None
) -> Probed:
    """Measure how far a model's scores deviate from exact ones. This takes a few seconds for a small model.

    Args:
        model: a folder, a hub id, or a loaded model, which is left as it was.
        settings: the options of a selection.
        observer: receives the progress.
        samples: samples of the pool to probe with. By default, samples are made up and rendered with the model's chat
            template, or consist of random tokens if that fails.

    Raises:
        ClusterUCBError: the model, its adapter or an option cannot be used at all.
    """
    check_model(model)
    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        source: ModelSource | LoadedModel
        if isinstance(model, LoadedModel):
            source, device = model, model.device(settings.device)
            keep(model.given, undo)
        else:
            source = ModelSource(str(model), settings.revision, settings.trust_remote_code)
            device = resolve_device(settings.device)
        observer.step(f"Loading {source.name} on {device}")
        base, _ = base_for_adapter(settings, source, device)
        chosen, note = probing_samples(samples, source, settings, base)
        largest = max(int(sample.tokens.max()) for sample in chosen)
        check_limits(base, longest=max(map(len, chosen)), largest_token=largest)
        probed = Probed(
            model=source.name,
            device=device,
            dtype=str(base.dtype).removeprefix("torch."),
            autocast=settings.autocast,
            attention=str(base.config._attn_implementation),
            samples=note,
        )
        observer.step(f"Probing the model with {note}")
        with _at_checkpoint(settings, base) as checkpoint:
            probed.parameters = checkpoint.size
            probes = _Probes(checkpoint, chosen, base, probed, settings)
            probed.findings = list(probes)
        if probes.alone is not None and _lowered(probed):
            observer.step("Comparing the model with float32")
            probed.findings.append(probes.float32(source, settings))
    return probed


@contextmanager
def _at_checkpoint(settings: GradientSettings, base: PreTrainedModel) -> Iterator[Checkpoint]:
    """Yield the first checkpoint, or one with a LoRA of random matrices. Remove the LoRA when the block ends."""
    if settings.given_checkpoints:
        (checkpoint,) = load_checkpoints(settings, base, settings.given_checkpoints[:1])
    else:
        checkpoint = at_checkpoint(settings, _drawn(fresh_lora(settings, base), settings.seed))
    try:
        yield checkpoint
    finally:
        if isinstance(checkpoint.gradients.model, PeftModel):
            take_off(checkpoint.gradients.model)


def _drawn(lora: PeftModel, seed: int) -> PeftModel:
    """Fill the LoRA's matrices with random numbers, which are the same whatever the dtype of the base model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(lora.named_parameters()):
            if weight.requires_grad:
                size = _LORA_B if ".lora_B." in name else weight.shape[1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * size)
    return lora


class _Probes:
    """The probes of samples at a checkpoint. Iterating over them runs them.

    Attributes:
        alone: the measurements of each usable sample in a pass of its own; None if no sample is usable.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        samples: Sequence[Encoded],
        base: PreTrainedModel,
        probed: Probed,
        settings: GradientSettings,
    ) -> None:
        self._checkpoint = checkpoint
        self._samples = list(samples)
        self._base = base
        self._probed = probed
        self._promised = _PROMISED[probed.autocast or probed.dtype]
        self._exact = " and ".join(_lowered(probed))
        self._shared = settings.batch_tokens is None or settings.batch_tokens >= _SHARED
        self._noise = ""
        self._directions: NDArray[np.float32] | None = None
        self.alone: Measured | None = None

    def __iter__(self) -> Iterator[Finding]:
        """Yield the finding of each probe. If there are no gradients to compare, yield only the first one."""
        yield self._guarded(GRADIENTS, self._gradients)
        if self.alone is None:
            return
        again = self._guarded(AGAIN, self._again)
        self._noise = again.remedy and f"that of {AGAIN!r}, because its noise affects this probe too"
        yield again
        yield self._guarded(BESIDE, self._beside)
        yield self._guarded(PADDED, self._padded)
        yield self._guarded(AUTOGRAD, self._autograd)
        yield self._guarded(EAGER, self._eager)

    def _gradients(self) -> Finding:
        """Measure each sample alone. The later probes leave out the samples without a usable gradient."""
        device = self._probed.device
        with suppress(InputError):  # raised if no sample is usable
            self._directions = direction_of(self._checkpoint, self._samples, device)
        alone = self._measure(self._each)
        usable = [at for at, fault in enumerate(alone.faults) if fault is None]
        if usable:
            self._samples = [self._samples[at] for at in usable]
            self.alone = alone.take(usable)
        bad = [fault for fault in alone.faults if fault]
        if not bad:
            return Finding(GRADIENTS, fine=True)
        remedy = _OTHER_LAYERS if bad[0] == fault_of(0.0) else self._exact or _FINITE_WEIGHTS
        note = f"{bad[0]}, for {len(bad)} of {counted(len(alone.faults), 'sample')}"
        return Finding(GRADIENTS, fine=False, note=note, remedy=remedy)

    def _again(self) -> Finding:
        at = (
            "" if self._probed.device == "cpu" else f"; on a GPU the cause may be the attention: {_IN_PYTHON}"
        )
        return self._compared(AGAIN, self._measure(self._each), f"{_NOISE}{at}", promised=_SAME)

    def _beside(self) -> Finding:
        groups = [
            [Encoded(np.roll(one.tokens, by), one.labels, one.content) for by in range(_SHARING)]
            for one in self._samples
        ]
        return self._joined(BESIDE, self._measure(groups).take(slice(None, None, _SHARING)))

    def _padded(self) -> Finding:
        return self._joined(PADDED, self._measure([self._samples]))

    def _joined(self, name: str, measured: Measured) -> Finding:
        """Judge measurements from passes that samples share."""
        found = self._compared(name, measured, " or ".join(filter(None, [self._exact, _ALONE])))
        if not (self._shared or found.fine):
            found.fine, found.remedy = True, ""
            found.note = "every sample has its own pass"
        return found

    def _autograd(self) -> Finding:
        plain = Autograd.of(self._checkpoint.gradients)
        measured = self._measure(self._each, plain)
        return self._compared(AUTOGRAD, measured, self._exact or _OTHER_LOSS)

    def _eager(self) -> Finding:
        used = self._probed.attention
        if used == "eager":
            return Finding(EAGER, fine=True, note="eager is in use")
        with _eager_attention(self._base) as switched:
            if not switched:
                return Finding(EAGER, note=f"{type(self._base).__name__} cannot change from {used} to eager")
            measured = self._measure(self._each)
        return self._compared(EAGER, measured, self._exact or _IN_PYTHON, note=f"{used} is in use")

    def float32(self, source: ModelSource | LoadedModel, settings: GradientSettings) -> Finding:
        """Compare scores with those computed entirely in float32, including the target's direction."""
        return self._guarded(FLOAT32, lambda: self._float32(source, settings))

    def _float32(self, source: ModelSource | LoadedModel, settings: GradientSettings) -> Finding:
        base, device = self._base, self._probed.device
        if base.dtype != torch.float32:
            needed = int(_ROOM * 4 * sum(weight.numel() for weight in base.parameters()))
            if needed > (free := available(device)):
                note = f"a float32 copy takes {in_bytes(needed)} of memory, {in_bytes(free)} are free"
                return Finding(FLOAT32, note=note)
            given = isinstance(source, LoadedModel)
            base = copy.deepcopy(base).float() if given else source.model("float32", device)
        with _at_checkpoint(replace(settings, autocast=None), base) as checkpoint:
            directions = direction_of(checkpoint, self._samples, device)
            exact = measure(checkpoint, self._each, device, directions)
        assert self.alone is not None
        change = self.alone.change(exact)
        found = _judged(FLOAT32, change, self._promised, self._noise or self._exact)
        found.note = f"the smallest cosine with the float32 gradient is {self.alone.cosine(exact):.4f}"
        return found

    @property
    def _each(self) -> list[list[Encoded]]:
        return [[sample] for sample in self._samples]

    def _measure(
        self, groups: Sequence[Sequence[Encoded]], gradients: PerSampleGradients | None = None
    ) -> Measured:
        checkpoint = self._checkpoint if gradients is None else replace(self._checkpoint, gradients=gradients)
        return measure(checkpoint, groups, self._probed.device, self._directions)

    def _guarded(self, name: str, run: Callable[[], Finding]) -> Finding:
        """Run a probe and return its finding. It is a finding, too, if the model is refused or memory runs out."""
        try:
            return run()
        except (ModelError, InputError) as error:
            rounding = f"{self._exact}, if the cause is rounding" if self._exact else ""
            return Finding(name, fine=False, note=str(error), remedy=self._noise or rounding)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return Finding(name, note="out of memory")

    def _compared(
        self, name: str, measured: Measured, remedy: str, note: str = "", promised: Change | None = None
    ) -> Finding:
        """Judge how far measurements deviate from those of each sample alone.

        If the same pass again gives other numbers, that noise is in every comparison, so its remedy comes first.
        """
        assert self.alone is not None
        change = measured.change(self.alone)
        return _judged(name, change, promised or self._promised, self._noise or remedy, note)


def _judged(name: str, change: Change, promised: Change, remedy: str, note: str = "") -> Finding:
    fine = change.score <= promised.score and change.gradient <= promised.gradient
    if not all(map(math.isfinite, change)):
        return Finding(name, promised=promised, fine=False, note="the gradient is not finite", remedy=remedy)
    return Finding(name, *change, promised, fine, note, "" if fine else remedy)


def _lowered(probed: Probed) -> list[str]:
    """Return the options that restore float32 where the model keeps fewer bits."""
    dtype = [] if probed.dtype in ("float32", "float64") else ["--dtype float32"]
    return dtype if probed.autocast is None else [*dtype, "no --autocast"]


@contextmanager
def _eager_attention(base: PreTrainedModel) -> Iterator[bool]:
    """Switch a model to eager attention while the block runs. Yields whether the model accepts it."""
    config = base.config
    parts = {
        name: part._attn_implementation for name in config.sub_configs if (part := getattr(config, name))
    }
    before = {"": config._attn_implementation, **parts}
    try:
        base.set_attn_implementation("eager")
        yield config._attn_implementation == "eager"
    finally:
        base.set_attn_implementation(before)
