"""Compare a base model before and after an adapter is loaded, and take adapters off again.

Decisions:
    - Several adapters share one base, and a run may load it again. So the base must be the same after an adapter is
      loaded as before: the same layers, the same weights and the same configuration. All of it is compared, because
      PEFT has ever more options that change a base.
    - PEFT's ``unload`` leaves fully trained modules (``modules_to_save``) in the base; `take_off` does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_SAMPLED = 1 << 12  # groups of eight bytes of each weight that are compared one by one
_WRAPPERS = frozenset(
    {"base_layer", "original_module"}
)  # PEFT's names for a layer of the base inside its own layer
_OWN = frozenset({"modules_to_save", "token_adapter"})  # PEFT's names for what it adds, beside lora_...


@dataclass(frozen=True)
class BaseState:
    """What a base model is, without the layers that PEFT puts around its own.

    Attributes:
        layers: each layer's name, and the name of its class.
        weights: each weight's name, with its shape and what reveals a change of its values.
        config: the configuration.
    """

    layers: dict[str, str]
    weights: dict[str, Tensor]
    config: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> BaseState:
        """Return the state of a base model, which may have adapters."""
        base = base_of(model)
        layers = {own: type(layer).__name__ for own, layer in _without_peft(base.named_modules())}
        tensors = [
            *base.named_parameters(remove_duplicate=False),
            *base.named_buffers(remove_duplicate=False),
        ]
        weights = {own: _some(values) for own, values in _without_peft(tensors)}
        return cls(layers, weights, base.config.to_dict())  # type: ignore[union-attr,operator]

    def change(self, model: nn.Module) -> str:
        """Return what is different in a model now, in words; empty if nothing is.

        Args:
            model: the base model, or a PEFT model of it.
        """
        now = BaseState.of(model)
        if changed := sorted(self.layers.keys() ^ now.layers.keys()):
            verb = "adds" if changed[0] in now.layers else "removes"
            return f"it {verb} {len(changed)} layers, such as {changed[0]}"
        for name, values in self.weights.items():
            other = now.weights.get(name)
            if other is None or other.shape != values.shape or not torch.equal(other, values):
                return f"the weight {name} is another one"
        for key, value in self.config.items():
            if now.config.get(key) != value:
                return f"{key} of its configuration is {now.config.get(key)!r}, and was {value!r}"
        return ""


def _some(values: Tensor) -> Tensor:
    """Return the shape of a weight, the sum of all its bytes in groups of eight, and its values in part, i64[n].

    NaN equals NaN. The sum reveals a change anywhere, the values one that keeps the sum.
    """
    if hasattr(values, "__tensor_flatten__"):  # a quantised weight: packed values, scales, ...
        names, _ = values.__tensor_flatten__()
        return torch.cat([_some(getattr(values, name)) for name in names])
    data = values.detach().contiguous().reshape(-1).view(torch.uint8)
    padded = torch.nn.functional.pad(data, (0, -len(data) % 8)) if len(data) % 8 else data
    words = padded.view(torch.int64)
    some = words[:: max(len(words) // _SAMPLED, 1)]
    parts = (torch.tensor(values.shape, dtype=torch.int64), words.sum().reshape(1).cpu(), some.cpu())
    return torch.cat(parts)


def base_of(model: nn.Module) -> nn.Module:
    """Return the base model of a PEFT model, or the model itself."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _without_peft(named: Any) -> Iterator[tuple[str, Any]]:
    """Yield what belongs to the base model, by its name there."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, value in named:
        parts = name.split(".")
        if "token_adapter" in parts and "base_layer" in parts:
            parts.remove("token_adapter")
        if any(part in _OWN or part.startswith("lora_") for part in parts):
            continue
        if not isinstance(value, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield ".".join(part for part in parts if part not in _WRAPPERS), value


def take_off(model: PeftModel) -> PreTrainedModel:
    """Remove all adapters from a PEFT model, and return its base model with its own layers.

    Fully trained modules are removed too: the base gets its original ones back.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    base: PreTrainedModel = model.get_base_model()
    own: list[tuple[nn.Module, str, nn.Module]] = []
    for name, layer in base.named_modules():
        if isinstance(layer, BaseTunerLayer):
            inner: Any = layer.get_base_layer()
        elif isinstance(layer, AuxiliaryTrainingWrapper):
            inner = layer.original_module
        else:
            continue
        parent, _, attribute = name.rpartition(".")
        holder = base.get_submodule(parent)
        if (
            not isinstance(holder, BaseTunerLayer | AuxiliaryTrainingWrapper)
            and not {*name.split(".")} & _OWN
        ):
            own.append((holder, attribute, inner))
    for holder, attribute, inner in own:  # afterwards: names lead through layers of PEFT until then
        setattr(holder, attribute, inner)
    vars(base).pop("peft_config", None)  # otherwise PEFT warns that the model already has an adapter
    return base
