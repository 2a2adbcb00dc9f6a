"""Refuse a model whose configuration has numbers that no model has, before a library acts on them.

``config.json`` says how many layers and labels to make, and libraries make them before they look at the weights. A file
of a hundred bytes can so take all memory, or hours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

from clusterucb.errors import ModelError

_LARGEST = {  # fields by their names, and the largest number of them
    "layers": (re.compile(r"(?:num|n)_(?:\w+_)?layers?|depth"), 5_000),
    "labels": (re.compile(r"num_labels|n_labels|id2label|label2id"), 10_000),
}
_DEEPEST = 20  # configurations inside each other


def check_plausible(name: str, options: dict[str, Any]) -> None:
    """Check the numbers in a model's configuration.

    Args:
        name: the model's folder or hub id.
        options: options of ``from_pretrained``.

    Raises:
        ModelError: a number is far beyond those of models.
    """
    try:
        config, _ = PretrainedConfig.get_config_dict(name, **options)
    except Exception:  # there is no configuration, or none that can be read: the loader says what is wrong
        return
    for field, number, what, largest in _implausible(config, 0):
        raise ModelError(
            f"the model {name!r} says in config.json that {field} is {number:.3g}; expected at most {largest:,} "
            f"{what}. The file is damaged: download it again"
        )


def _implausible(config: object, depth: int) -> Iterator[tuple[str, float, str, int]]:
    if not isinstance(config, dict) or depth > _DEEPEST:
        return
    for field, value in config.items():
        count = len(value) if isinstance(value, dict | list) else value
        if isinstance(count, int | float):
            for what, (pattern, largest) in _LARGEST.items():
                if pattern.fullmatch(str(field)) and count > largest:
                    yield field, float(min(count, 10**300)), what, largest
        yield from _implausible(value, depth + 1)
