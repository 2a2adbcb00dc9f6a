"""Read the weights in an adapter's folder, and explain why they do not fit a model.

Decisions:
    - PEFT loads what fits and says little about the rest. So names and shapes are read before PEFT reads them, and
      compared with the model here: the error names the weight, and not a line of torch's.
    - A file of ``torch.save`` is loaded with ``weights_only``; no code in it runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from clusterucb.errors import ModelError
from clusterucb.model.base_state import base_of
from clusterucb.model.checkpoint_files import adapter_folder
from clusterucb.model.parameters import canonical_name
from clusterucb.wording import counted, one_line

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_MATRIX = re.compile(r"(?P<layer>.+)\.lora_(?P<letter>[AB])")
_AROUND = re.compile(
    r"\.(?:modules_to_save|original_module|token_adapter\.base_layer)(?=\.)"
)  # PEFT's layers


class AdapterWeights:
    """The weights in an adapter's folder.

    Attributes:
        shapes: the shape of each weight by its canonical name; empty if the folder has no weights.

    Args:
        adapter: the folder.

    Raises:
        ModelError: the file is damaged.
    """

    def __init__(self, adapter: Path) -> None:
        folder = adapter_folder(adapter)
        self._path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
        self._own: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        if self._path is None:
            return
        with _opened(self._path) as weights:
            for name in weights:
                self._own[canonical_name(name)] = name
                self.shapes[canonical_name(name)] = weights.shape(name)

    def layers(self) -> set[str]:
        """Return the names of the base model's layers that the LoRA is on."""
        return {name.partition(".lora_")[0] for name in self.shapes if ".lora_" in name}

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Return those of the weights that the folder has, by their canonical names."""
        wanted = set(names) & self._own.keys()
        if self._path is None or not wanted:
            return {}
        with _opened(self._path) as weights:
            return {name: weights.tensor(self._own[name]) for name in sorted(wanted)}


class _Safetensors:
    def __init__(self, file: Any) -> None:
        self._file = file

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._file.keys()))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _Saved:
    def __init__(self, content: dict[str, Tensor]) -> None:
        self._content = content

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._content[name].shape)

    def tensor(self, name: str) -> Tensor:
        return self._content[name]


@contextmanager
def _opened(path: Path) -> Iterator[_Safetensors | _Saved]:
    """Open a file of weights, whose content is read when it is used.

    Raises:
        ModelError: the file is damaged.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                yield _Safetensors(file)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, f"{type(error).__name__}: {one_line(error):.200}") from error
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, and its advice is to run the code in the file
        raise _damaged(path, "it holds something other than tensors, or not all of its bytes") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise _damaged(path, "it does not hold tensors by name")
    yield _Saved({str(name): value for name, value in content.items()})


def _damaged(path: Path, fault: str) -> ModelError:
    return ModelError(
        f"{path} is damaged ({fault}); expected the weights of a PEFT adapter. Save or download them again"
    )


def misfit(model: nn.Module, adapter: Path, weights: AdapterWeights, config: Any) -> str:
    """Return why an adapter's weights do not fit a model, in words; empty if no shape is wrong.

    Args:
        model: the base model, without adapters.
        adapter: the adapter's folder.
        weights: the weights in it.
        config: PEFT's configuration of the adapter.
    """
    from peft.utils.other import get_pattern_key

    layers = dict(model.named_modules())
    own = {name: tuple(values.shape) for name, values in model.named_parameters(remove_duplicate=False)}
    for name, shape in weights.shapes.items():
        expected_shape = own.get(_AROUND.sub("", name), shape)
        if ".lora_" not in name and expected_shape != shape:
            return (
                f"{adapter} has {name} of shape {shape}, and the model's is of shape {expected_shape}; expected the "
                "weights of this model. Give the base model that the adapter was trained on, with its resized "
                "vocabulary if it has one"
            )
        match = _MATRIX.fullmatch(name)
        size = _sizes(layers.get(match["layer"])) if match else None
        if not match or size is None or len(shape) != 2:
            continue
        of_a = match["letter"] == "A"
        rank, width = shape if of_a else shape[::-1]
        if width != (expected := size[0] if of_a else size[1]):
            way = "takes" if of_a else "gives"
            return (
                f"{adapter} is an adapter of another model: its {name} {way} vectors of {width:,}, and the layer of "
                f"this model {way} vectors of {expected:,}. Expected an adapter that was trained on this model: give "
                "the adapter's own base with --model"
            )
        patterns = config.rank_pattern or {}
        named = patterns.get(get_pattern_key(patterns.keys(), match["layer"]), config.r)
        if rank != named:
            return (
                f"{adapter} has a {name} of rank {rank}, and its adapter_config.json says {named}; expected files of "
                f"one training. Copy the configuration of these weights (r, rank_pattern)"
            )
    return ""


def _sizes(layer: nn.Module | None) -> tuple[int, int] | None:
    """Return the lengths of the vectors that a linear layer takes and gives, or None for another layer."""
    if layer is None:
        return None
    sizes: Any = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    if isinstance(layer, Conv1D):
        sizes = layer.weight.shape
    return None if None in sizes else (int(sizes[0]), int(sizes[1]))


def copies(names: Collection[str], model: nn.Module, weights: AdapterWeights) -> set[str]:
    """Return those of the weights without a place that are copies of others in the file.

    With a resized vocabulary, PEFT writes the trained embeddings a second time, and tokens that were trained for the
    input also for the output that is tied to it.

    Args:
        names: names of weights without a place, as PEFT tells them.
        model: the PEFT model.
        weights: the weights in the adapter's folder.
    """
    layers = dict(base_of(model).named_modules())
    found = set()
    for name in names:
        plain = canonical_name(name)
        layer, _, last = plain.rpartition(".")
        holder = layers.get(layer)
        tied = last == "trainable_tokens_delta" and getattr(holder, "tied_adapter", None) is not None
        if tied or (
            ".modules_to_save." in plain and plain.replace(".modules_to_save.", ".") in weights.shapes
        ):
            found.add(name)
    return found


def strangers(names: Collection[str], adapter: Path) -> ModelError:
    """Return the error for weights of an adapter that have no place in the model.

    Args:
        names: the names of these weights.
        adapter: the adapter's folder.
    """
    return ModelError(
        f"{adapter} has {counted(len(names), 'weight')} that fit nowhere in the model, such as "
        f"{min(map(canonical_name, names))}; expected a place for every weight, because without them the scores would "
        "be those of another adapter. Give the base model that the adapter was trained on, and the "
        "adapter_config.json of that training (target_modules, modules_to_save)"
    )


def lacking(names: Collection[str], adapter: Path) -> ModelError:
    """Return the error for weights that an adapter's configuration names, and its file lacks.

    Args:
        names: the names of these weights.
        adapter: the adapter's folder.
    """
    return ModelError(
        f"{adapter} lacks {counted(len(names), 'weight')} that its configuration names, such as "
        f"{min(map(canonical_name, names))}; expected all, because missing weights would be random. Give the base "
        "model that the adapter was trained on, and the adapter_config.json of that training"
    )
