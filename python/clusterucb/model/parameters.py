"""Lay the differentiated parameters out in one flat space: sorted by name, each at an aligned offset.

Decisions:
    - Gradients are never joined into one vector. Each module's piece is used at its offset in this space. The moments
      and the target directions are stored in the same space.
    - The parameters are sorted by canonical name, which lacks PEFT's prefix and the adapter's name. So the offsets do
      not depend on the order in which a model registers its modules.
    - Offsets are multiples of 8, so that vector loads are aligned.
    - The differentiated parameters are the matrices of LoRA on linear layers with DoRA's magnitudes, or the weights of
      the linear layers that patterns name. Anything else is refused by name: a gradient that leaves parameters out
      would be wrong without looking wrong. Two things are left out, and said: layers that no text reaches, and with
      ``lora_only`` what the adapter trained beside its matrices.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Self, cast

from torch import nn
from transformers.pytorch_utils import Conv1D

from clusterucb.errors import ModelError

_ALIGNMENT = 8
_LORA_WEIGHT = re.compile(r"(?P<module>.+\.lora_(?:[AB]|magnitude_vector)\.(?P<adapter>[^.]+))\.weight")
_MAGNITUDE = ".lora_magnitude_vector"  # of DoRA
_LEFT_OUT = re.compile(
    r"\.(?:modules_to_save|token_adapter|trainable_tokens_\w+)\."
)  # what lora_only leaves out
_OTHER_INPUTS = re.compile(r"vision|visual|image|audio|speech|multi_?modal")
# Parts of a name that are no layer of the model: they come from DDP, FSDP, torch.compile and activation checkpoints.
_WRAPPERS = {"module", "_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}
_REMEDIES = {
    "modules_to_save": "Leave the gradients of fully trained modules (modules_to_save) out with --lora-only",
    "trainable_tokens": "Leave the gradients of trained tokens (trainable_token_indices) out with --lora-only",
    "lora_embedding": "LoRA on embeddings is not supported; target linear layers only",
    ".lora_B.": "a bias of LoRA is not supported; use plain LoRA (lora_bias=False)",
}


@dataclass(frozen=True)
class Parameter:
    """One differentiated matrix, or DoRA's magnitude of a layer as a matrix of one row.

    Attributes:
        name: the canonical name, such as ``model.layers.0.self_attn.q_proj.lora_A``.
        torch_name: the name in ``model.named_parameters()``.
        module: the name of the layer whose weight this matrix is.
        shape: (out, in); for the weight of a `Conv1D`, as in GPT-2, (in, out).
        offset: the position of the matrix's first element in the flat space.
        transposed: whether the layer is a `Conv1D`.
        magnitude: whether this is DoRA's magnitude vector of a layer, f[out], with the shape (1, out) here.
    """

    name: str
    torch_name: str
    module: str
    shape: tuple[int, int]
    offset: int
    transposed: bool = False
    magnitude: bool = False

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class ParameterManifest:
    """All differentiated matrices, in ascending order of name and offset.

    Attributes:
        parameters: the matrices.
        size: P, the length of the flat space; the alignment leaves holes in it, which hold zeros.
    """

    parameters: tuple[Parameter, ...]
    size: int

    def __iter__(self) -> Iterator[Parameter]:
        """Iterate over the matrices in the order of their offsets."""
        return iter(self.parameters)

    @classmethod
    def of(cls, model: nn.Module, *, lora_only: bool = False) -> Self:
        """Return the manifest of all parameters of a PEFT model that require a gradient.

        Matrices on layers that no text reaches, such as an encoder of images, are left out: their gradient is zero.

        Args:
            model: a PEFT model.
            lora_only: whether fully trained modules and tokens are left out. By default, they are refused.

        Raises:
            ModelError: no parameter is trainable, or a trainable one is neither a LoRA matrix nor DoRA's magnitude, or
                several adapters have trainable matrices.
        """
        trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
        trainable = [name for name in trainable if not (lora_only and _LEFT_OUT.search(name))]
        if not trainable:
            raise ModelError("the model has no trainable LoRA matrix; expected a PEFT model with LoRA layers")
        adapters = set()
        for name in trainable:
            match = _LORA_WEIGHT.fullmatch(name)
            if not match or not _is_supported(model, match["module"]):
                raise ModelError(_unsupported(name))
            adapters.add(match["adapter"])
            _refuse_experts(model, match["module"])
        if len(adapters) > 1:
            raise ModelError(f"adapters {', '.join(sorted(adapters))} are trainable; expected one at a time")
        reached = [name for name in trainable if not of_other_inputs(model, canonical_name(name))]
        if not reached:
            raise ModelError(
                f"the LoRA is on layers that no text reaches, such as {trainable[0]}; expected one on the "
                "language model"
            )
        return cls._at_offsets(
            model, (_Matrix(canonical_name(name), name.removesuffix(".weight")) for name in reached)
        )

    @classmethod
    def matching(cls, model: nn.Module, patterns: Sequence[str]) -> Self:
        """Return the manifest of the weights of the linear layers that patterns name, without their biases.

        Args:
            model: a model without LoRA.
            patterns: layer names in which ``*`` stands for any characters, also for dots, such as
                ``model.layers.*.mlp.down_proj``.

        Raises:
            ModelError: a pattern names no linear layer, or a layer whose gradient cannot be computed.
        """
        linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
        chosen = set()
        for pattern in patterns:
            layers = {name for name in linear if fnmatchcase(name, pattern)}
            if not layers:
                numbered = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in linear)
                raise ModelError(
                    f"--parameters {pattern!r} matches no linear layer; this model has {', '.join(numbered)}"
                )
            chosen |= layers
        return cls._at_offsets(model, (_Matrix(name, name) for name in chosen))

    @classmethod
    def _at_offsets(cls, model: nn.Module, matrices: Iterable[_Matrix]) -> Self:
        head = vocabulary_head(model)
        of_head = set(head.modules()) if head else set()
        # A tied weight is counted several times.
        uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
        parameters: list[Parameter] = []
        offset = 0
        for name, module in sorted(matrices):
            layer = model.get_submodule(module)
            if layer in of_head:
                raise ModelError(
                    f"{name!r} belongs to the vocabulary head, which is not supported: logits are computed at label "
                    "positions only. Leave it out (--lora-targets, --parameters)"
                )
            magnitude = name.endswith(_MAGNITUDE)
            if not magnitude and type(layer) is not nn.Linear and not isinstance(layer, Conv1D):
                raise ModelError(
                    f"{name!r} is a {type(layer).__name__}; expected a linear layer whose weight is a matrix of "
                    "floating-point numbers. Leave it out of --parameters, or put LoRA on it"
                )
            weight = cast(nn.Parameter, layer.weight)
            if uses[id(weight)] > 1:
                raise ModelError(
                    f"the weight of {name!r} is shared with another layer, which is not supported. Leave it out "
                    "(--lora-targets, --parameters)"
                )
            parameters.append(
                Parameter(
                    name,
                    f"{module}.weight",
                    module,
                    (1, weight.shape[0]) if magnitude else (weight.shape[0], weight.shape[1]),
                    offset,
                    isinstance(layer, Conv1D),
                    magnitude,
                )
            )
            offset += -(-parameters[-1].size // _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(parameters), offset)

    def fingerprint(self) -> str:
        """Return a hex SHA-256 of all names, shapes and offsets."""
        lines = [f"{matrix.name} {matrix.shape} {matrix.offset}" for matrix in self.parameters]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Matrix(NamedTuple):
    name: str
    module: str


def canonical_name(name: str) -> str:
    """Return a LoRA matrix's canonical name, however its writer spells it.

    The canonical name lacks PEFT's prefix, the wrappers of DDP, FSDP and ``torch.compile`` at any depth, and the
    adapter's name. The name of another parameter loses prefix and wrappers alone.
    """
    *layers, last = name.split(".")
    name = ".".join([*(layer for layer in layers if layer not in _WRAPPERS), last])
    name = name.removeprefix("base_model.model.")
    match = re.fullmatch(r"(.+\.lora_(?:[AB]|magnitude_vector))(?:\.[^.]+)?\.weight", name)
    return match[1] if match else name


def _is_supported(model: nn.Module, name: str) -> bool:
    """Return whether a layer of PEFT is a linear layer, or DoRA's magnitude of one."""
    from peft.tuners.lora.dora import DoraLinearLayer

    return type(model.get_submodule(name)) in (nn.Linear, DoraLinearLayer)


def _refuse_experts(model: nn.Module, name: str) -> None:
    """Refuse a LoRA on the stacked weights of experts, or on an expert.

    Args:
        model: a PEFT model.
        name: the name of one of its matrices.

    Raises:
        ModelError: the matrix adapts experts.
    """
    from peft.tuners.lora.layer import ParamWrapper

    around, *_ = re.split(r"\.lora_(?:[AB]|magnitude_vector)\.", name)
    layer = model.get_submodule(around)
    stacked = isinstance(layer, ParamWrapper)
    if stacked or re.search(r"\.experts\.(?:\d+|\w+\.\d+)\.", f"{around}."):
        what = canonical_name(around).replace(".base_layer", "")
        what += f".{layer.parameter_name}" if isinstance(layer, ParamWrapper) else ""
        if re.search(r"\.(?:gate|router)(?:\.weight)?$", what):
            raise ModelError(
                f"the LoRA is on a router ({what}), which chooses the experts of each token; this is not supported. "
                "Expected a LoRA on layers that every token reaches, such as attention: name them with --lora-targets"
            )
        raise ModelError(
            f"the LoRA is on experts ({what}), each of which only some tokens reach; this is not supported. Expected a "
            "LoRA on layers that every token reaches, such as attention: name them with --lora-targets, or train the "
            "adapter without target_parameters on experts"
        )


def _unsupported(name: str) -> str:
    remedy = next((text for part, text in _REMEDIES.items() if part in name), "")
    return (
        f"parameter {name!r} is trainable; expected only the A and B matrices of LoRA on linear "
        f"layers. {remedy or 'Use LoRA on linear layers only (--lora-targets)'}"
    )


def of_other_inputs(model: nn.Module, name: str) -> bool:
    """Return whether a layer belongs to a part that reads images or sounds, so that no text reaches it.

    Args:
        model: the model.
        name: the layer's name in the base model.
    """
    config = getattr(model, "config", None)
    if not any(hasattr(config, f"{kind}_config") for kind in ("vision", "audio")):
        return False
    return any(_OTHER_INPUTS.search(part) for part in name.split("."))


def vocabulary_head(model: nn.Module) -> nn.Module | None:
    """Return the layer that turns hidden states into logits, or None if the model has none."""
    find: Any = getattr(model, "get_output_embeddings", lambda: None)
    return head if isinstance(head := find(), nn.Module) else None
