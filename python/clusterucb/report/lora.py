"""The LoRA that an exported configuration trains.

Decisions:
    - It is that of the adapter, checkpoints or store that were given: rank, alpha, how they scale it, and layers. What
      else its configuration says, a note in each file names: every tool has keys for another part of it.
    - Without one, also where the model's own layers were differentiated, it is as the options say, and on all linear
      layers where they do not: PEFT's choice, fewer of them, is for gradients that cost less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from clusterucb.options.search import Settings

ALL_LINEAR = "all-linear"  # PEFT's name for these layers
_WRITTEN = frozenset({"r", "lora_alpha", "target_modules", "use_rslora"})
_OF_ITS_FILE = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"}
)
_OF_THE_MODEL = frozenset({"fan_in_fan_out", "revision", "task_type"})


class Lora(NamedTuple):
    """What configurations say of a LoRA.

    Attributes:
        rank, alpha: its size, and how much it counts.
        targets: names of its layers, a pattern for their whole names, or `ALL_LINEAR`; None: PEFT's choice.
        rslora: whether alpha is divided by the root of the rank, not by the rank.
        left_out: the keys of what its own configuration says beside these.
    """

    rank: int
    alpha: float
    targets: list[str] | str | None
    rslora: bool = False
    left_out: Sequence[str] = ()

    def notes(self, cannot: str = "") -> list[str]:
        """Return what a tool's configuration does not say.

        Args:
            cannot: the key for the layers where it cannot have these ``targets``.
        """
        notes = []
        if cannot:
            kind = "PEFT's choice for the model" if self.targets is None else "a pattern"
            notes.append(
                f"The adapter's layers are {kind}, which {cannot} cannot be: all linear layers instead."
            )
        if self.left_out:
            keys = ", ".join(self.left_out)
            notes.append(
                f"Left out of the adapter's configuration: {keys}. Add what the training should have."
            )
        return notes


def lora_of(settings: Settings) -> Lora:
    """Return the LoRA of the adapter, checkpoints or store that were given, or of the options."""
    adapter = next((one for one, _ in settings.given_checkpoints if one), None)
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
            # The file is someone else's: what is no name could lead out of a comment.
            left_out=sorted(filter(str.isidentifier, {*unusual} - _WRITTEN - _OF_ITS_FILE - _OF_THE_MODEL)),
        )
    alpha, targets = lora.alpha, lora.targets
    if targets == [ALL_LINEAR]:
        targets = ALL_LINEAR
    elif isinstance(targets, list):
        targets = sorted(targets)  # PEFT writes them in an order that is another one tomorrow
    return lora._replace(alpha=int(alpha) if float(alpha).is_integer() else alpha, targets=targets)
