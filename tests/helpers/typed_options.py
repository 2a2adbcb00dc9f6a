"""Write python/clusterucb/options/typed.py: every option as a type checker and an editor see it.

    python tests/helpers/typed_options.py

The types follow from the settings. A test compares the file with `source`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints

import clusterucb
from clusterucb.engine.aggregate import RULES
from clusterucb.kernels.preconditioner import PRECONDITIONERS
from clusterucb.options.gradients import GradientSettings, ReadSettings, SketchSettings
from clusterucb.options.kinds import AUTO, AUTOCASTS, DTYPES, QUANTIZED, SCORERS, STORE_DTYPES
from clusterucb.options.search import (
    CompareSettings,
    DrawSettings,
    OutputSettings,
    ScoreSettings,
    ScoringSettings,
    SearchSettings,
    SelectSettings,
)
from clusterucb.options.trial import TrialSettings
from clusterucb.samples.shapes import IDS, LEARN, SHAPES

FILE = Path(clusterucb.__file__).parent / "options" / "typed.py"
_WIDTH = 110
_CHOICES = {
    "autocast": AUTOCASTS,
    "dtype": DTYPES,
    "format": tuple(SHAPES),
    "target_format": (AUTO, *SHAPES),
    "ids": IDS,
    "learn": LEARN,
    "preconditioner": PRECONDITIONERS,
    "quantize": QUANTIZED,
    "rule": RULES,
    "scorer": SCORERS,
    "store_dtype": STORE_DTYPES,
}
_AS_GIVEN = {
    "budget": "str | int",
    "select": "str | int",
    "workers": "str | int",
    "export": "str | Sequence[str]",
    "arms": "str | Sequence[str]",
    "lora_targets": "str | Sequence[str]",
    "parameters": "str | Sequence[str]",
    "special_tokens": "str | Sequence[str]",
    "checkpoint_weights": "str | Sequence[float]",
    "checkpoint": "Sequence[_Path]",
    "prior": "_Path | Sequence[_Path]",
    "optimizer": "_Path | torch.optim.Optimizer",
    "tokenizer": "_Path | PreTrainedTokenizerBase",
    "columns": "Mapping[str, str]",
    "target_columns": "Mapping[str, str]",
    "roles": "Mapping[str, str]",
    "subtask_weights": "Mapping[str, float]",
}
# Each class of options, its bases, and the settings whose fields it adds.
_CLASSES = (
    ("ReadOptions", "TypedDict", ReadSettings),
    ("GradientOptions", "ReadOptions", GradientSettings),
    ("SketchOptions", "GradientOptions", SketchSettings),
    ("ScoreOptions", "TypedDict", ScoreSettings),
    ("DrawOptions", "ScoreOptions", DrawSettings),
    ("ScoringOptions", "GradientOptions, ScoreOptions", ScoringSettings),
    ("CompareOptions", "GradientOptions, DrawOptions", CompareSettings),
    ("OutputOptions", "TypedDict", OutputSettings),
    ("SearchOptions", "DrawOptions", SearchSettings),
    ("SelectOptions", "GradientOptions, SearchOptions, OutputOptions", SelectSettings),
    ("TrialOptions", "TypedDict", TrialSettings),
)
_HEAD = '''"""Every option as a type checker and an editor see it: written by tests/helpers/typed_options.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_Path = str | PathLike[str]
'''


def source() -> str:
    """Return the content of the file."""
    parts, known = [_HEAD], dict[str, set[str]]()
    for name, bases, settings in _CLASSES:
        inherited = set[str]().union(*(known.get(base, set()) for base in bases.split(", ")))
        fields = [field for field in dataclasses.fields(settings) if field.name not in inherited]
        hints = get_type_hints(settings)
        lines = [_line(field.name, _typed(field.name, hints[field.name])) for field in fields]
        total = ", total=False" if bases == "TypedDict" or lines else ""
        body = "\n".join(lines)
        doc = f'    """The options of `{settings.__module__}.{settings.__name__}`."""'
        parts.append(f"\n\nclass {name}({bases}{total}):\n{doc}\n" + (f"\n{body}\n" if lines else ""))
        known[name] = inherited | {field.name for field in fields}
    return "".join(parts)


def _line(name: str, typed: str) -> str:
    """Return the line of an option, with a long type in brackets, as the formatter writes it."""
    line = f"    {name}: {typed}"
    if len(line) <= _WIDTH:
        return line
    if len(typed) + 8 > _WIDTH:
        first, *others = typed.split(" | ")
        if len(first) + 8 > _WIDTH:
            choices = first.removeprefix("Literal[").removesuffix("]").split(", ")
            first = "\n".join(["Literal[", *(f"            {choice}," for choice in choices), "        ]"])
        typed = "\n        | ".join([first, *others])
    return f"    {name}: (\n        {typed}\n    )"


def _typed(name: str, hint: object) -> str:
    """Return the type of an option's values as source code."""
    optional = " | None" if type(None) in get_args(hint) else ""
    if name in _CHOICES:
        quoted = ", ".join(f'"{choice}"' for choice in _CHOICES[name])
        return f"Literal[{quoted}]{optional}"
    if name in _AS_GIVEN:
        return f"{_AS_GIVEN[name]}{optional}"
    kinds = {bool: "bool", int: "int", float: "float", str: "str", Path: "_Path"}
    (kind,) = (kind for kind in (get_args(hint) or (hint,)) if kind is not type(None))
    return f"{kinds[kind]}{optional}"


if __name__ == "__main__":
    FILE.write_text(source())
