"""The trainable parameters as one flat space: sorted by name, each at an aligned offset.

Gradients are never joined into one vector. Every module's piece is used at its offset of this
space, in which the moments and the target directions are stored. Sorting by canonical name (PEFT's
prefix and the adapter's name stripped) makes offsets independent of the order in which a model
happens to register its modules, and offsets are multiples of 8 so that vector loads are aligned.

What is trained must be LoRA A and B of linear layers. Anything else is refused by name: a gradient
that leaves parameters out would be wrong without looking wrong.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from clusterucb.errors import ModelError
from clusterucb.loss import vocabulary_head

_ALIGNMENT = 8
_LORA_WEIGHT = re.compile(r"(?P<module>.+\.lora_[AB]\.(?P<adapter>[^.]+))\.weight")
_REMEDIES = {
    "lora_magnitude_vector": "DoRA is not supported; use plain LoRA (use_dora=False)",
    "modules_to_save": "modules_to_save is not supported; train them apart or leave them out",
    "lora_embedding": "LoRA on embeddings is not supported; target linear layers only",
    "trainable_tokens": "trainable tokens are not supported; leave trainable_token_indices out",
}


@dataclass(frozen=True)
class Parameter:
    """One trainable matrix.

    Attributes:
        name: canonical name, such as ``model.layers.0.self_attn.q_proj.lora_A``.
        torch_name: its name in ``model.named_parameters()``.
        module: the name of the linear layer that it is the weight of.
        shape: (out, in).
        offset: where its first element stands in the flat space.
    """

    name: str
    torch_name: str
    module: str
    shape: tuple[int, int]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class ParameterManifest:
    """All trainable matrices in rising order of name and offset.

    Attributes:
        parameters: the matrices.
        size: P, the length of the flat space; holes left by alignment are part of it and hold zeros.
    """

    parameters: tuple[Parameter, ...]
    size: int

    def __iter__(self) -> Iterator[Parameter]:
        """Iterate over the matrices in order of their offsets."""
        return iter(self.parameters)

    @classmethod
    def of(cls, model: nn.Module) -> ParameterManifest:
        """Return the manifest of everything that requires a gradient in a PEFT model.

        Raises:
            ModelError: nothing is trainable, or something other than the LoRA matrices of one adapter is.
        """
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not trainable:
            raise ModelError("the model has no trainable LoRA matrix; expected a PEFT model with LoRA layers")
        head = vocabulary_head(model)
        of_head = set(head.modules()) if head else set()
        found = []
        for name, weight in trainable.items():
            match = _LORA_WEIGHT.fullmatch(name)
            if not match or type(model.get_submodule(match["module"])) is not nn.Linear:
                raise ModelError(_unsupported(name))
            if model.get_submodule(match["module"]) in of_head:
                raise ModelError(
                    f"{name!r} is LoRA on the vocabulary head, which is not supported: logits are computed at label "
                    "positions only. Leave that layer out of the LoRA targets"
                )
            found.append((canonical_name(name), name, match["module"], tuple(weight.shape), match["adapter"]))
        if len(adapters := sorted({adapter for *_, adapter in found})) > 1:
            raise ModelError(f"adapters {', '.join(adapters)} are trainable; expected one at a time")
        parameters = []
        offset = 0
        for canonical, name, module, shape, _ in sorted(found):
            parameters.append(Parameter(canonical, name, module, (shape[0], shape[1]), offset))
            offset += -(-parameters[-1].size // _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(parameters), offset)

    def fingerprint(self) -> str:
        """Return a hex SHA-256 of names, shapes and offsets."""
        lines = [f"{one.name} {one.shape} {one.offset}" for one in self.parameters]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def canonical_name(name: str) -> str:
    """Return a LoRA matrix's canonical name, however its writer spells it.

    Prefixes of PEFT, of wrappers (DDP, ``torch.compile``) and the adapter's name are left out; a name
    of something else comes back without prefixes.
    """
    for wrapper in ("module.", "_orig_mod."):
        name = name.removeprefix(wrapper)
    name = name.removeprefix("base_model.model.")
    match = re.fullmatch(r"(.+\.lora_[AB])(?:\.[^.]+)?\.weight", name)
    return match[1] if match else name


def _unsupported(name: str) -> str:
    remedy = next((text for part, text in _REMEDIES.items() if part in name), "")
    return (
        f"parameter {name!r} is trainable; expected nothing but the A and B matrices of LoRA on linear "
        f"layers. {remedy or 'Take an adapter of that kind (--lora-targets)'}"
    )
