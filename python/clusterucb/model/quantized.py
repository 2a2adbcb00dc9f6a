"""Quantise the linear layers of a base model while it is loaded, with bitsandbytes.

Decisions:
    - 4 bits are NF4 with double quantisation, as in QLoRA (Dettmers et al. 2023), computed in the model's dtype.
    - 8 bits are LLM.int8 without its outliers (``llm_int8_threshold`` 0). Which columns hold outliers depends on all
      tokens of a batch, and so a sample's gradient would depend on the samples beside it.
    - The gradients are those of a LoRA on the quantised base, which is what a QLoRA training computes.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from clusterucb.errors import OptionError


def quantization(bits: str | None, dtype: Any, device: str) -> dict[str, Any]:
    """Return the keywords of ``from_pretrained`` that quantise a model; none for None.

    Args:
        bits: ``4bit``, ``8bit`` or None.
        dtype: the data type of the passes, or ``auto``.
        device: the model's device.

    Raises:
        OptionError: bitsandbytes is not installed.
    """
    if bits is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise OptionError(
            f"--quantize {bits} needs bitsandbytes, which is not installed; expected it: pip install bitsandbytes"
        )
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else torch.bfloat16,
        )
    return {"quantization_config": config, "device_map": {"": device}}
