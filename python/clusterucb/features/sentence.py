"""Run a sentence-embedding model from a folder in the format of sentence-transformers, with plain transformers.

Decisions:
    - The folder must say how token states become a vector (``1_Pooling/config.json``); nothing is guessed. Unknown
      modules, unknown poolings and prompts put before texts are refused, since the vectors would not be the model's.
    - Weights are loaded as float32, whatever the saved type. Code that comes with a model never runs, and pickled
      weights are read only as tensors.
    - Texts go through the model one by one: a row must not depend on the other texts of its batch, not even in its
      last bit. Batches of texts of equal length would need no padding and take between a quarter and four fifths of
      the time on two cores (MiniLM, 16 texts per batch), but their bits are not always those of a single text: with
      one thread, texts of 3 tokens differ.
    - A pass counts as a fraction of a pass of the base model: the ratio of the parameters that are multiplied in it.
      Those are all but embedding tables, which are looked up, and include the base model's output layer.
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

from clusterucb.atomic import file_sha256
from clusterucb.errors import ModelError
from clusterucb.wording import one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

_POOLINGS = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
_MODULES = ("Transformer", "Pooling", "Normalize")


class SentenceModel:
    """A sentence-embedding model. The configuration is read at once, the weights on first use.

    Args:
        folder: the model's folder, with ``modules.json``.

    Raises:
        ModelError: there is no such folder, it is incomplete, or it has unknown modules or options.
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
                f"it adds the prompt {prompts['default_prompt_name']!r} to every text",
                "a model without a default prompt",
            )

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the names and contents of all of the model's files."""
        digest = hashlib.sha256()
        for path in sorted(path for path in self._folder.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(self._folder)} {file_sha256(path)}\n".encode())
        return digest.hexdigest()

    def passes(self, base: nn.Module) -> float:
        """Return the cost of a pass of this model, as a fraction of a pass of the base model."""
        head = base.get_output_embeddings()  # type: ignore[operator]
        multiplied = _multiplied(base)
        if head is not None and head.weight is base.get_input_embeddings().weight:  # type: ignore[operator]
            multiplied += head.weight.numel()
        return _multiplied(self._loaded[1]) / multiplied

    def vectors(self, texts: Sequence[str], device: str) -> NDArray[np.float32]:
        """Return a vector for each text, f32[m, width]; zeros for a text that is empty or white space.

        Args:
            texts: texts of any length; the model reads only as many tokens as it takes.
            device: the device that the model runs on.
        """
        import torch

        tokenizer, model = self._loaded
        model.to(device)
        vectors = np.zeros((len(texts), model.config.hidden_size), np.float32)
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
                    vectors[row] = self._pooled(states).cpu().numpy()
        return vectors

    def _pooled(self, states: Tensor) -> Tensor:
        """Pool the states [T, width] of a text's tokens into its vector f32[width]."""
        import torch

        at = {"cls": 0, "lasttoken": -1}
        vector = states.mean(dim=0) if self._pooling == "mean" else states[at[self._pooling]]
        return torch.nn.functional.normalize(vector, dim=0) if self._normalize else vector

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The tokenizer and the model, loaded on first use."""
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
        except (
            Exception
        ) as error:  # transformers raises errors of every kind, and all concern the user's files
            raise self._refusal(
                f"it cannot be loaded: {type(error).__name__}: {one_line(error):.300}",
                "a folder that transformers can load",
            ) from error
        if model.config.is_encoder_decoder:
            raise self._refusal("it has an encoder and a decoder", "a model with only one of the two")
        return tokenizer, model.eval()

    @property
    def _longest(self) -> int:
        """The largest number of tokens that the model takes: the smallest limit that its files name."""
        tokenizer, model = self._loaded
        positions = getattr(model.config, "max_position_embeddings", None)
        known = (self._max_length, tokenizer.model_max_length, positions)
        return min(int(length) for length in known if length)

    def _modules(self) -> dict[str, str]:
        """Return the folder of each module by its kind."""
        path = self._folder / "modules.json"
        listed = self._json(path, None)
        if listed is None:
            raise self._refusal("it has no modules.json", "this file, which names the pooling")
        try:
            folders = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in listed}
        except (TypeError, KeyError) as error:
            raise self._refusal("its modules.json cannot be read", "a list of modules") from error
        if tuple(folders) not in (_MODULES[:2], _MODULES):
            raise self._refusal(
                f"its modules are {', '.join(folders) or 'none'}",
                "Transformer, Pooling and optionally Normalize",
            )
        return folders

    def _pooling_of(self, folder: Path) -> str:
        """Return the pooling that the folder's configuration names, a key of `_POOLINGS`."""
        options = self._json(folder / "config.json", {})
        modes = [key for key, value in options.items() if key.startswith("pooling_mode_") and value is True]
        modes = [key.removeprefix("pooling_mode_") for key in modes]
        if isinstance(mode := options.get("pooling_mode"), str):
            modes = [_POOLINGS.get(mode, mode)]
        for name, key in _POOLINGS.items():
            if modes == [key]:
                return name
        raise self._refusal(
            f"its pooling is {' and '.join(modes) or 'unknown'} ({folder / 'config.json'})",
            f"one of {', '.join(_POOLINGS.values())}",
        )

    def _json(self, path: Path, default: Any) -> Any:
        """Return the contents of a JSON file, or ``default`` if there is no such file."""
        if not path.is_file():
            return default
        try:
            return json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise self._refusal(f"{path.name} is not JSON ({one_line(error)})", "valid JSON") from error

    def _refusal(self, got: str, expected: str) -> ModelError:
        return ModelError(
            f"the sentence-embedding model {str(self._folder)!r} cannot be used: {got}; expected {expected}. Use "
            "another folder, or --features embedding without a model"
        )


def _multiplied(model: nn.Module) -> int:
    """Return the number of parameters that are multiplied in a pass: all but embedding tables, which are looked up."""
    from torch import nn

    tables = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in tables)
