"""Determine the LoRA that an exported configuration trains.

Decisions:
    - If an adapter, checkpoints or a store were given, the exported LoRA has the rank, alpha, scaling and layers of
      their LoRA. A note in each file names the other keys of its configuration, because every tool supports a
      different part of them.
    - Otherwise, and also if the model's own layers were differentiated, the LoRA follows the options. If these name no
      layers, it goes on all linear layers: PEFT's choice has fewer layers, which serves to make gradients cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from clusterucb.options.search import Settings

ALL_LINEAR = "all-linear"  # PEFT's name for these layers
# Keys of an adapter's configuration that need no note: the export has them, or they describe the file or the model.
_WRITTEN = frozenset({"r", "lora_alpha", "target_modules", "use_rslora"})
_OF_ITS_FILE = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"}
)
_OF_THE_MODEL = frozenset({"fan_in_fan_out", "revision", "task_type"})


class Lora(NamedTuple):
    """The values of a LoRA that go into configurations.

    Attributes:
        rank: the rank of the matrices.
        alpha: the numerator of the factor that scales the update.
        targets: the names of the layers, a pattern for their whole names, or `ALL_LINEAR`; None for PEFT's choice.
        rslora: whether alpha is divided by the root of the rank, and not by the rank.
        left_out: the keys of the adapter's configuration that the other attributes do not cover.
    """

    rank: int
    alpha: float
    targets: list[str] | str | None
    rslora: bool = False
    left_out: Sequence[str] = ()

    def notes(self, cannot: str = "") -> list[str]:
        """Return notes about the parts of the LoRA that a tool's configuration does not have.

        Args:
            cannot: the tool's key for the layers if it cannot express these ``targets``; else empty.
        """
        notes = []
        if cannot:
            kind = "PEFT's choice for the model" if self.targets is None else "a pattern"
            notes.append(
                f"The adapter's layers are {kind}, which {cannot} cannot express: it names all linear layers."
            )
        if self.left_out:
            keys = ", ".join(self.left_out)
            notes.append(f"Left out of the adapter's configuration: {keys}. Add what the training needs.")
        return notes


def lora_of(settings: Settings) -> Lora:
    """Return the LoRA of the given adapter, checkpoints or store, or else the LoRA of the options."""
    adapter = next((folder for folder, _ in settings.given_checkpoints if folder), None)
    if settings.store is not None and settings.parameters is None:
        adapter = settings.store / "adapter"
    if adapter is None:
        lora = Lora(settings.lora_rank, settings.lora_alpha, settings.target_layers or ALL_LINEAR)
    else:
        from peft import LoraConfig

        usual = LoraConfig().to_dict()
        given = msgspec.json.decode((adapter / "adapter_config.json").read_bytes())
        config = usual | given
        unusual = (key for key, value in given.items() if value not in (None, [], {}, usual.get(key, False)))
        lora = Lora(
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=config["target_modules"],
            rslora=bool(config["use_rslora"]),
            # Others wrote the file: a key that is not an identifier could break out of a comment.
            left_out=sorted(filter(str.isidentifier, {*unusual} - _WRITTEN - _OF_ITS_FILE - _OF_THE_MODEL)),
        )
    alpha, targets = lora.alpha, lora.targets
    if targets == [ALL_LINEAR]:
        targets = ALL_LINEAR
    elif isinstance(targets, list):
        targets = sorted(targets)  # PEFT writes sets, whose order varies between processes
    return lora._replace(alpha=int(alpha) if float(alpha).is_integer() else alpha, targets=targets)
