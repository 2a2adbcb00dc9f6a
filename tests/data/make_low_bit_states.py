"""Writes tests/data/low_bit_states/: states of few bits by the libraries that people train with, and their decoding.

`decoded.json` has, for each file, a hash of each moment as the library itself decodes it. Runs are those of
`make_optimizer_states`: `STEPS` steps with a learning rate of 0 on the same batch. bitsandbytes has code books and
scales for 256 elements; its matrices here have 320 and 160. torchao compresses matrices of at least 4096 elements
alone.

Run from the root, with bitsandbytes and torchao in DIR (pip install --no-deps --target DIR bitsandbytes torchao):
    TORCHDYNAMO_DISABLE=1 PYTHONPATH=DIR python tests/data/make_low_bit_states.py
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).parent))
import make_optimizer_states as made

from helpers.models import tiny_llama, with_lora

FOLDER = Path(__file__).parent / "low_bit_states"
LORAS = {
    "bitsandbytes": {"r": 40, "target_modules": ["q_proj", "v_proj"]},
    "torchao": {"r": 512, "target_modules": ["q_proj"]},
}
PAGED = "bitsandbytes-paged-32.pt"


def model(library: str) -> nn.Module:
    """Return a tiny model with a LoRA that is wide enough for the library; the same on every machine."""
    base = tiny_llama(vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2)
    lora = with_lora(base, layers_to_transform=[1], **LORAS[library])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in sorted(lora.named_parameters()):
            weight.normal_(std=0.3, generator=draw)
    return lora


def digest(values: torch.Tensor) -> str:
    """Return a hex SHA-256 of the values as little-endian f32."""
    return hashlib.sha256(values.contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def of_bitsandbytes() -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
    """Return optimisers that have taken their steps, by the name of the file."""
    import bitsandbytes

    optimizers = {
        "bitsandbytes-8.pt": (bitsandbytes.optim.AdamW8bit, {"min_8bit_size": 1}),
        "bitsandbytes-mixed.pt": (bitsandbytes.optim.PagedAdam8bit, {"min_8bit_size": 161}),
        PAGED: (bitsandbytes.optim.PagedAdamW32bit, {}),
    }
    stepped = {}
    for name, (kind, options) in optimizers.items():
        lora = model("bitsandbytes")
        made.train(lora, optimizer := kind(made.trainable(lora), **made.SETTINGS, **options))
        stepped[name] = optimizer, lora
    return stepped


def of_torchao() -> dict[str, tuple[torch.optim.Optimizer, nn.Module]]:
    """Return optimisers that have taken their steps, by the name of the file."""
    from torchao.optim import AdamW4bit, AdamW8bit, AdamWFp8

    stepped = {}
    for name, kind in {
        "torchao-8.pt": AdamW8bit,
        "torchao-4.pt": AdamW4bit,
        "torchao-fp8.pt": AdamWFp8,
    }.items():
        lora = model("torchao")
        made.train(lora, optimizer := kind(made.trainable(lora), **made.SETTINGS))
        stepped[name] = optimizer, lora
    return stepped


def decoded(entries: dict) -> list[torch.Tensor]:
    """Return both moments of a parameter as the library decodes them."""
    if "exp_avg" in entries:
        return [entries[name].dequantize() for name in ("exp_avg", "exp_avg_sq")]
    from bitsandbytes.functional import dequantize_blockwise

    return [
        dequantize_blockwise(codes, absmax=entries[f"absmax{at}"], code=entries[f"qmap{at}"], blocksize=256)
        if (codes := entries[f"state{at}"]).dtype == torch.uint8
        else codes
        for at in (1, 2)
    ]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    hashes = {}
    for name, (optimizer, lora) in {**of_bitsandbytes(), **of_torchao()}.items():
        torch.save(optimizer.state_dict(), FOLDER / name)
        names = {id(weight): name for name, weight in lora.named_parameters()}
        hashes[name] = {
            names[id(weight)]: [digest(moment) for moment in decoded(entries)]
            for weight, entries in optimizer.state.items()
        }
    (FOLDER / "decoded.json").write_text(json.dumps(hashes, indent=1) + "\n")
