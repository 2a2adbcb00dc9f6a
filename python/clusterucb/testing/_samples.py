"""Make samples, a model and gradient sketches in memory for the suite of features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.features.base import Feature, FeatureBatch, Fitted
from clusterucb.samples.encoded import Encoded
from clusterucb.samples.message import Message
from clusterucb.samples.sample import Sample

if TYPE_CHECKING:
    from torch import nn

N_SAMPLES = 7
_VOCABULARY = 64
_WORDS = ("add", "sum", "red", "blue", "cow", "hill", "far", "small", "bright", "young")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Bench:
    """A test bench: gives a feature batches of the same few samples, and observes what the feature uses and changes.

    Args:
        model: the model that the feature gets; None makes a tiny random Llama on first use.

    Attributes:
        samples, encoded: all samples, of two to twelve tokens; one sample has no content tokens.
        n_gradients: how often gradient sketches were taken.
        n_passes: how often the model, or a module of it that has submodules, was called.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.samples, self.encoded = _samples()
        self.n_gradients = 0
        self.n_passes = 0
        self._model = model
        self._undo: list[
            Callable[[], object]
        ] = []  # undo what the bench itself changed in the model and in torch
        self._before: dict[str, Any] | None = None

    def compute(self, feature: Feature, rows: Sequence[int] = range(N_SAMPLES)) -> object:
        """Fit a feature, and return what it computes for some samples; leave no hook of the bench on the model."""
        return self.compute_with(self.fit(feature), feature, rows)

    def compute_with(
        self, fitted: Fitted, feature: Feature, rows: Sequence[int] = range(N_SAMPLES)
    ) -> object:
        """Return what a feature computes for some samples from arrays that were learnt before."""
        return self._clean(lambda: feature.compute(replace(self.batch(rows), fitted=fitted)))

    def fit(self, feature: Feature) -> Fitted:
        """Fit a feature to all samples; return its arrays read-only, as a run would pass them, or {} if not a dict."""
        returned = self.fit_raw(feature)
        arrays = {} if not isinstance(returned, Mapping) else dict(returned)
        learnt = {name: np.array(array) for name, array in arrays.items()}
        for array in learnt.values():
            array.flags.writeable = False
        return learnt

    def fit_raw(self, feature: Feature) -> object:
        """Return what `Feature.fit` returns for all samples; None if a run would not call it."""
        if not feature.fit_samples:
            return None
        return self._clean(lambda: feature.fit(self.batch().spread(feature.fit_samples)))

    def batch(self, rows: Sequence[int] = range(N_SAMPLES)) -> FeatureBatch:
        """Return a batch of some samples; it has its own lists, but shares the samples' arrays with the bench."""
        return FeatureBatch(
            [self.samples[row] for row in rows],
            [self.encoded[row] for row in rows],
            self._load,
            lambda: self._sketches(rows),
        )

    def _clean(self, call: Callable[[], object]) -> object:
        """Return ``call()``, and undo the bench's own changes of the model and of torch."""
        try:
            return call()
        finally:
            for undo in self._undo:
                undo()
            self._undo.clear()

    def changes_of_model(self, feature: Feature) -> list[str]:
        """Return the names of what `Feature.compute` changed in the model and did not restore."""
        self._before = {}
        self.compute(feature)
        before = self._before
        after = _state_of(self._model) if before and self._model is not None else {}
        self._before = None
        return sorted(name for name in before | after if not _equal(before.get(name), after.get(name)))

    def _load(self) -> Any:
        """Return the model; record its state if that is wanted, and hook it to count passes."""
        if self._model is None:
            self._model = _tiny_llama()
        if self._before == {}:
            self._before = _state_of(self._model)
        if not self._undo:
            import torch

            self._undo.append(partial(torch.set_num_threads, torch.get_num_threads()))
            torch.set_num_threads(1)  # more threads would be slower for such a small model
            for module in self._model.modules():
                if next(module.children(), None) is not None:  # an embedding lookup does not count as a pass
                    self._undo.append(module.register_forward_pre_hook(self._count).remove)
        return self._model

    def _count(self, module: nn.Module, inputs: object) -> None:  # noqa: ARG002
        self.n_passes += 1

    def _sketches(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return a random unit row for each sample, but zeros for the last sample, whose gradient "fails"."""
        self.n_gradients += 1
        sketches = np.random.default_rng(0).normal(size=(N_SAMPLES, 32))
        sketches /= np.linalg.norm(sketches, axis=1, keepdims=True)
        sketches[-1] = 0
        return sketches[list(rows)].astype(np.float32)


def _samples() -> tuple[list[Sample], list[Encoded]]:
    """Return `N_SAMPLES` random samples and their tokens."""
    rng = np.random.default_rng(0)
    samples, encoded = [], []
    for row, length in enumerate((12, 2, 7, 3, 9, 5, 6)):
        prompt, answer = (" ".join(rng.choice(_WORDS, 3)) for _ in range(2))
        vector = rng.normal(size=4).tolist()
        raw = json.dumps({"prompt": prompt, "completion": answer, "vector": vector}).encode()
        digest = hashlib.sha256(raw).hexdigest()
        messages = (Message("user", prompt), Message("assistant", answer))
        source = f"source {row % 3}"
        samples.append(Sample(messages, digest, source, "", digest, raw, "pool.jsonl", row + 1))
        labels = np.arange(length) >= max(length // 2, 1)
        content = (np.arange(length) % 3 != 0) & (row != 3)
        encoded.append(Encoded(rng.integers(0, _VOCABULARY, length), labels, content))
    return samples, encoded


def _tiny_llama() -> nn.Module:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=_VOCABULARY,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
                initializer_range=0.3,
            )
        )
    return model.eval()


def _state_of(model: nn.Module) -> dict[str, Any]:
    """Return the parts of a model's state that a feature could change, by name."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        state[f"training mode of {name or 'the model'}"] = module.training
        for kind in _HOOKS:
            hooks = getattr(module, kind, None) or {}
            state[f"{kind.strip('_').replace('_', ' ')} of {name or 'the model'}"] = list(hooks)
    for name, weight in model.named_parameters():
        state[f"weight {name}"] = weight.detach().clone()
        state[f"gradient of {name}"] = weight.grad is None
        state[f"requires_grad of {name}"] = weight.requires_grad
    return state


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    return bool(one.equal(other)) if hasattr(one, "equal") else bool(one == other)
