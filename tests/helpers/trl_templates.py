"""Chat templates of real models, as TRL carries them, with small tokenizers that know their control tokens."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import files
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from helpers.templates import Shape, byte_level

_CONTROL = re.compile(
    r"<\|\w+\|?>|<\w+\|>|<｜[^｜<>]+｜>|\[gMASK\]|<sop>|</?s>|<bos>|<start_of_turn>|<end_of_turn>"
)
_ORDINARY = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|return|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "<|user|>",
    "<|end|>",
    "<turn|>",
)


@cache
def template(name: str) -> str:
    """Return a chat template of TRL."""
    (file,) = (file for file in files("trl") or () if file.name == f"{name}.jinja")
    return Path(str(file.locate())).read_text()


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with one of TRL's templates."""
    source = template(name)
    special = sorted({*_CONTROL.findall(source), "<bos>"})
    return byte_level(
        Shape(
            source,
            tuple(special),
            "",
            bos="<bos>",
            eos=next(token for token in _ENDS if token in special),
            text=tuple(token for token in _ORDINARY if token in source),
        )
    )
