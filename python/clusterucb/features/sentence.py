"""A sentence-embedding model in a folder of sentence-transformers' form, run with plain transformers.

Decisions:
    - A folder has to say how its token states become a vector (``1_Pooling/config.json``); nothing is guessed. What
      is not known (other modules, other poolings, prompts put before texts) is refused, since the vectors would be
      those of another model.
    - Weights are float32, whatever they were saved as; code that comes with a model never runs, and pickled weights
      are only read as tensors.
    - Texts go through the model one by one: a row must not depend, even in its last bit, on what it shares a batch
      with. Batches of texts of one length need no padding and take between a quarter and four fifths of the time on
      two cores (MiniLM, 16 a batch), but their bits are not always those of a text alone: with one thread, texts of
      3 tokens differ.
    - A pass counts as a part of a pass of the base model, in proportion to the parameters that take part in it:
      all but embedding tables, which are looked up, not multiplied, and of the base model the output layer too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ModelError
from clusterucb.wording import one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

_POOLINGS = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
_MODULES = ("Transformer", "Pooling", "Normalize")


class SentenceModel:
    """A sentence-embedding model; its files are read at once, its weights when it is used.

    Args:
        folder: with ``modules.json``.

    Raises:
        ModelError: it is no such folder, or one with modules or options that are not known.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise ModelError(
                f"there is no folder {folder!r}; expected the folder of a sentence-embedding model, with modules.json"
            )
        modules = self._modules()
        self._transformer = self._folder / modules["Transformer"]
        self._pooling = self._pooling_of(self._folder / modules["Pooling"])
        self._normalize = "Normalize" in modules
        options = self._json(self._transformer / "sentence_bert_config.json", {})
        self._max_length: int | None = options.get("max_seq_length")
        self._lower = bool(options.get("do_lower_case"))
        prompts = self._json(self._folder / "config_sentence_transformers.json", {})
        if prompts.get("default_prompt_name"):
            raise self._refusal(
                f"it puts the prompt {prompts['default_prompt_name']!r} before every text", "a model without"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of every file of the model."""
        digest = hashlib.sha256()
        for path in sorted(path for path in self._folder.rglob("*") if path.is_file()):
            with path.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            digest.update(f"{path.relative_to(self._folder)} {found}\n".encode())
        return digest.hexdigest()

    def passes(self, base: nn.Module) -> float:
        """Return which part of a pass of the base model one of this model is."""
        head = base.get_output_embeddings()  # type: ignore[operator]
        multiplied = _multiplied(base)
        if head is not None and head.weight is base.get_input_embeddings().weight:  # type: ignore[operator]
            multiplied += head.weight.numel()
        return _multiplied(self._loaded[1]) / multiplied

    def vectors(self, texts: Sequence[str], device: str) -> NDArray[np.float32]:
        """Return a vector for each text, f32[m, width]; zeros for a text without a character.

        Args:
            texts: of any length; only their beginning goes through the model.
            device: where it runs.
        """
        import torch

        tokenizer, model = self._loaded
        model.to(device)
        found = np.zeros((len(texts), model.config.hidden_size), np.float32)
        for row, text in enumerate(texts):
            if text.strip():
                tokens = tokenizer(
                    text.lower() if self._lower else text,
                    truncation=True,
                    max_length=self._longest,
                    return_tensors="pt",
                )["input_ids"]
                with torch.inference_mode():
                    states = model(input_ids=tokens.to(device)).last_hidden_state[0]
                    found[row] = self._pooled(states).cpu().numpy()
        return found

    def _pooled(self, states: Tensor) -> Tensor:
        """Return the vector f32[width] of states [T, width]."""
        import torch

        at = {"cls": 0, "lasttoken": -1}
        vector = states.mean(dim=0) if self._pooling == "mean" else states[at[self._pooling]]
        return torch.nn.functional.normalize(vector, dim=0) if self._normalize else vector

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The tokenizer and the model."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        from clusterucb.model.source import without_bars

        options = {"trust_remote_code": False, "local_files_only": True}
        try:
            with without_bars():
                tokenizer = AutoTokenizer.from_pretrained(self._transformer, **options)
                model = AutoModel.from_pretrained(
                    self._transformer, dtype=torch.float32, weights_only=True, **options
                )
        except Exception as error:  # of every kind, and all of them are about the user's files
            raise self._refusal(
                f"it cannot be loaded: {type(error).__name__}: {one_line(error):.300}", "one that can"
            ) from error
        if model.config.is_encoder_decoder:
            raise self._refusal("it has an encoder and a decoder", "a model of one stack")
        return tokenizer, model.eval()

    @property
    def _longest(self) -> int:
        tokenizer, model = self._loaded
        positions = getattr(model.config, "max_position_embeddings", None)
        known = (self._max_length, tokenizer.model_max_length, positions)
        return min(int(length) for length in known if length)

    def _modules(self) -> dict[str, str]:
        """Return the folder of each module by its kind."""
        path = self._folder / "modules.json"
        listed = self._json(path, None)
        if listed is None:
            raise self._refusal("it has no modules.json", "one, which says how token states are pooled")
        try:
            found = {str(one["type"]).rpartition(".")[2]: str(one["path"]) for one in listed}
        except (TypeError, KeyError) as error:
            raise self._refusal("its modules.json cannot be read", "a list of modules") from error
        if tuple(found) not in (_MODULES[:2], _MODULES):
            raise self._refusal(
                f"its modules are {', '.join(found) or 'none'}", "Transformer, Pooling, perhaps Normalize"
            )
        return found

    def _pooling_of(self, folder: Path) -> str:
        options = self._json(folder / "config.json", {})
        modes = [key for key, value in options.items() if key.startswith("pooling_mode_") and value is True]
        modes = [key.removeprefix("pooling_mode_") for key in modes]
        if isinstance(mode := options.get("pooling_mode"), str):
            modes = [_POOLINGS.get(mode, mode)]
        for name, key in _POOLINGS.items():
            if modes == [key]:
                return name
        raise self._refusal(
            f"its pooling is {' and '.join(modes) or 'not known'} ({folder / 'config.json'})",
            f"one of {', '.join(_POOLINGS.values())}",
        )

    def _json(self, path: Path, default: Any) -> Any:
        if not path.is_file():
            return default
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise self._refusal(
                f"{path.name} is no JSON ({one_line(error)})", "what it was saved with"
            ) from error

    def _refusal(self, got: str, expected: str) -> ModelError:
        return ModelError(
            f"the sentence-embedding model {str(self._folder)!r} cannot be used: {got}; expected {expected}. Use "
            "another folder, or --features embedding without a model"
        )


def _multiplied(model: nn.Module) -> int:
    """Return how many parameters are multiplied in a pass: all but those of embedding tables."""
    from torch import nn

    tables = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in tables)
