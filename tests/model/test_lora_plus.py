"""The groups of LoRA+ are matched for every kind of LoRA: matrices A, then matrices B and vectors."""

from __future__ import annotations

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from clusterucb.model.moments import decay_groups, load_moments
from clusterucb.model.parameters import ParameterManifest
from helpers.models import tiny_gpt2, tiny_llama, with_lora


def of_peft(model):
    return create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4)


def of_llama_factory(model):
    """Group the parameters as LLaMA-Factory does (`train/trainer_utils.py`): A, B, B without weight decay."""
    with_decay, _ = decay_groups(model)
    groups = {"a": [], "b": [], "b without decay": []}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            of_b = "lora_B" in name or weight.ndim == 1
            groups["a" if not of_b else "b" if name in with_decay else "b without decay"].append(weight)
    return torch.optim.AdamW([{"params": weights} for weights in groups.values()], lr=1e-3)


@pytest.mark.parametrize("make", [of_peft, of_llama_factory])
@pytest.mark.parametrize(
    ("build", "lora"),
    [
        (tiny_llama, {}),
        (tiny_llama, {"use_dora": True}),
        (tiny_llama, {"use_dora": True, "target_modules": "all-linear"}),
        (tiny_llama, {"modules_to_save": ["norm", "lm_head"]}),
        (tiny_llama, {"use_dora": True, "modules_to_save": ["norm", "input_layernorm"]}),
        (tiny_gpt2, {"use_dora": True, "target_modules": ["c_attn"], "modules_to_save": ["ln_f", "mlp"]}),
    ],
)
def test_moments_are_those_of_the_optimiser(tmp_path, make, build, lora):
    model = with_lora(build(), **lora)
    optimizer = make(model)
    ids = torch.arange(20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    manifest = ParameterManifest.of(model, lora_only=True)
    moments = load_moments(tmp_path / "optimizer.pt", model, manifest)
    for one in manifest:
        kept = optimizer.state[model.get_parameter(one.torch_name)]
        for values, entry in ((moments.m, "exp_avg"), (moments.v, "exp_avg_sq")):
            assert (values[one.offset : one.offset + one.size] == kept[entry].flatten().numpy()).all()
    assert "A before B" in moments.matched
