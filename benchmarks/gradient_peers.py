"""Score samples with other per-sample gradient libraries, in the fastest set-up that each of them supports.

Each library gets the model with its LoRA, the directions and padded batches, keeps everything in memory, and returns
the scores that clusterucb returns: ⟨g, V⟩ / ‖g‖ for every sample and direction.

    bergson     an `InMemoryCollector` whose `Scorer` takes a layer's gradients as they arrive, with unit norm. The loop
                is that of its `CollectorComputer` without the file and the progress bar. The weights are frozen, and
                the graph begins at the embedded tokens: bergson's own set-up lets the embedding's weights require a
                gradient, which is a matrix of the whole vocabulary in each pass.
    dattri-llm  a `HookManager` that skips the gradients of the weights and captures dense per-sample gradients, and the
                products and norms from which its `TracInAttributor` computes cosines

bergson has its own loss. With the mean over the labels of each sample it equals ours, but it computes logits at all
positions. dattri-llm leaves the loss to its user; here it gets one with logits at all positions too. With `label-only`
both get clusterucb's loss, which computes logits at label positions alone. The difference that then remains is the way
of collecting gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clusterucb.gradients import passes
from clusterucb.gradients.loss import sample_losses
from clusterucb.model.parameters import ParameterManifest

if TYPE_CHECKING:
    from peft import PeftModel

Batch = dict[str, Tensor]
Run = Callable[[], Tensor]
Losses = Callable[["PeftModel", Batch], Tensor]


@dataclass(frozen=True)
class Work:
    """A model, the directions and the samples to score.

    Attributes:
        model: the model with its LoRA, in fp32 on the CPU.
        manifest: the offset of each LoRA matrix in a direction.
        directions: the directions, f32[S, P].
        batches: input_ids and labels of each batch, i64[B, T] each; a label of -100 marks a token without a loss.
        labelled: the same batches in the form that `clusterucb.gradients.loss` takes.
    """

    model: PeftModel
    manifest: ParameterManifest
    directions: Tensor
    batches: list[Batch]
    labelled: list[passes.PaddedBatch]

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """Each layer's part f32[S, n] of the directions, copied because contiguous rows are read faster."""
        return {
            one.module: self.directions[:, one.offset : one.offset + one.size].contiguous()
            for one in self.manifest
        }


def bergson(work: Work, losses: Losses | None = None) -> Run:
    """Return a function that scores with bergson, with bergson's own loss unless ``losses`` is given."""
    from bergson import GradientProcessor, IndexConfig, InMemoryCollector, Scorer
    from bergson.collector.collector import fwd_bwd_factory
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from bergson.utils.peft import detect_peft_modules
    from datasets import Dataset

    rows = [row for batch in work.batches for row in batch["input_ids"].tolist()]
    queries = {name.removeprefix("base_model."): part for name, part in work.parts.items()}
    config = IndexConfig("unused", loss_reduction="mean")
    writer = InMemorySequenceScoreWriter(len(rows), len(work.directions))
    collector = InMemoryCollector(
        model=work.model.base_model,
        data=Dataset.from_dict({"input_ids": rows}),
        cfg=config,
        processor=GradientProcessor(),
        target_modules=detect_peft_modules(work.model),
        scorer=Scorer(
            queries, list(queries), writer, torch.device("cpu"), torch.float32, unit_normalize=True
        ),
    )
    forward_backward = fwd_bwd_factory(config)

    def run() -> Tensor:
        work.model.eval()
        done = 0
        with _from_the_embedding(work.model), collector.with_batch():
            for batch in work.batches:
                if losses is None:
                    found = forward_backward(work.model, batch["input_ids"], batch["labels"], batch)
                else:
                    found = losses(work.model, batch)
                    found.sum().backward()
                collector.process_batch(list(range(done, done + len(found))), losses=found)
                done += len(found)
        return writer.scores

    return run


def dattri_llm(work: Work, losses: Losses | None = None) -> Run:
    """Return a function that scores with dattri-llm, with a loss over all logits unless ``losses`` is given."""
    from dattri_llm import Gradient, HookManager, HookManagerConfig
    from dattri_llm.gradient import ops

    # The graph begins at the first layer with LoRA, whose hook therefore warns.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    parts = work.parts
    config = HookManagerConfig(
        hook_types=dict.fromkeys(parts, "invasive_linear_io"), capture_style="materialized"
    )
    directions = Gradient(
        representation=dict.fromkeys(parts, "materialized"),
        data=parts,
        layer_types=dict.fromkeys(parts, "nn.Linear"),
    )

    def run() -> Tensor:
        work.model.eval()
        scores = []
        with HookManager(work.model, config).collect(deregister_on_exit=True) as manager:
            for batch in work.batches:
                (losses or _losses)(work.model, batch).sum().backward()
                found = manager.get_gradient()
                norm2 = sum(ops.grad_norm_sq(found.data[name], "nn.Linear") for name in parts)
                scores.append(ops.layerwise_cross_dot(found, directions) / norm2.sqrt()[:, None])
        return torch.cat(scores)

    return run


@contextmanager
def _from_the_embedding(model: PeftModel) -> Iterator[None]:
    """Freeze all weights and start the graph at the embedded tokens while the block runs."""
    with ExitStack() as undo:
        for weight in model.parameters():
            undo.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(False)
        embedding = model.get_input_embeddings()
        undo.callback(
            embedding.register_forward_hook(lambda _module, _args, out: out.requires_grad_()).remove
        )
        yield


def _losses(model: PeftModel, batch: Batch) -> Tensor:
    """Return each sample's mean cross-entropy f32[B], from logits at all positions."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return losses.sum(dim=1) / (labels != -100).sum(dim=1)


def _label_only_losses(work: Work) -> Losses:
    """Return a function that gives the same losses from logits at label positions alone."""
    labelled = {id(batch): one for batch, one in zip(work.batches, work.labelled, strict=True)}
    return lambda model, batch: sample_losses(model, labelled[id(batch)])


PEERS = {"bergson": bergson, "dattri-llm": dattri_llm}


def versions() -> dict[str, str]:
    """Return the version of each library that is installed."""
    found = {}
    for name in PEERS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def contenders(work: Work) -> dict[str, Run]:
    """Return the scoring functions of the installed libraries by name.

    Each function returns the scores f32[N, S] of all samples in the order of the batches.
    """
    return {
        f"{name}{suffix}": PEERS[name](work, losses)
        for name in versions()
        for suffix, losses in (("", None), (" label-only", _label_only_losses(work)))
    }
