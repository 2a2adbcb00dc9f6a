"""Score samples by other libraries that take per-sample gradients, as whoever wants speed from them would.

All get the model with its LoRA, the directions and padded batches, keep everything in memory, and return what
clusterucb returns: ⟨g, V⟩ / ‖g‖ for every sample and direction.

    bergson     an `InMemoryCollector` whose `Scorer` takes a layer's gradients as they arrive, with unit norm; the loop
                is that of its `CollectorComputer` without the file and the progress bar. Weights are frozen, and the
                graph begins at the embedded tokens: its own set-up lets the embedding's weights require a gradient,
                a matrix of the whole vocabulary in each pass.
    dattri-llm  a `HookManager` that skips the gradients of weights and captures dense ones of samples, and the
                products and norms that its `TracInAttributor` takes for cosines

bergson's loss is its own: with the mean over labels for each sample it is ours, of logits at all positions. dattri-llm
leaves the loss to its user; it gets the same. With `label-only` both get the one of clusterucb, which makes logits at
label positions alone: what then remains is how gradients are collected.
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
    """What is to be scored.

    Attributes:
        model: with LoRA, in fp32 on the CPU.
        manifest: where its matrices stand in a direction.
        directions: f32[S, P].
        batches: input_ids and labels, i64[B, T] each, -100 where nothing is predicted.
        labelled: the same batches as `clusterucb.gradients.loss` takes them.
    """

    model: PeftModel
    manifest: ParameterManifest
    directions: Tensor
    batches: list[Batch]
    labelled: list[passes.Batch]

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """The directions' part f32[S, n] of each layer, a copy: rows that lie together are read faster."""
        return {
            one.module: self.directions[:, one.offset : one.offset + one.size].contiguous()
            for one in self.manifest
        }


def bergson(work: Work, losses: Losses | None = None) -> Run:
    """Return what scores by bergson, with its own loss unless one is given."""
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
    """Return what scores by dattri-llm, with a loss of all logits unless one is given."""
    from dattri_llm import Gradient, HookManager, HookManagerConfig
    from dattri_llm.gradient import ops

    # The graph begins at the first layer with LoRA, whose hook says so.
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
    """Freeze all weights, and let the graph begin at the embedded tokens."""
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
    """Return each sample's mean cross-entropy f32[B], of logits at all positions."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return losses.sum(dim=1) / (labels != -100).sum(dim=1)


def _label_only_losses(work: Work) -> Losses:
    """Return what gives the same, of logits at label positions."""
    labelled = {id(batch): one for batch, one in zip(work.batches, work.labelled, strict=True)}
    return lambda model, batch: sample_losses(model, labelled[id(batch)])


PEERS = {"bergson": bergson, "dattri-llm": dattri_llm}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are installed."""
    found = {}
    for name in PEERS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def contenders(work: Work) -> dict[str, Run]:
    """Return, by name, what scores all samples, f32[N, S] in the order of the batches, as far as it is installed."""
    return {
        f"{name}{suffix}": PEERS[name](work, losses)
        for name in versions()
        for suffix, losses in (("", None), (" label-only", _label_only_losses(work)))
    }
