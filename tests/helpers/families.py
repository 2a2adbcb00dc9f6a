"""Tiny random models of the families of transformers."""

from __future__ import annotations

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from helpers.models import VOCABULARY

_SHAPE = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "shared_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "moe_intermediate_size": 24,
    "hidden_size_per_layer_input": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "state_size": 8,
    "sliding_window": 64,
}
_MLA = {  # DeepSeek's attention: the rotary part of a head has a size of its own
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 4,
}


def tiny(family: str, seed: int = 0, **changes):
    """Return a causal language model of a family, such as ``phi3``."""
    config = CONFIG_MAPPING[family]
    known = config().to_dict()
    shape = {**_SHAPE, **(_MLA if "kv_lora_rank" in known else {}), **changes}
    torch.manual_seed(seed)
    made = config(**{name: value for name, value in shape.items() if name in known})
    return AutoModelForCausalLM.from_config(made).eval()


TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def gemma3(text=TEXT):
    """Return a model for images and texts, whose encoder of images has a q_proj and a v_proj too."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config={**text, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=1,
        eoi_token_index=2,
        image_token_index=3,
    )
    return Gemma3ForConditionalGeneration(config)


def qwen3_5(text=TEXT):
    """Return a model for images and texts whose family has a class for texts alone as well."""
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 14, "spatial_merge_size": 2, "num_position_embeddings": 16}
    tokens = {
        f"{name}_token_id": at for at, name in enumerate(("image", "video", "vision_start", "vision_end"), 1)
    }
    return Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config={**text, "head_dim": 8, **linear}, vision_config=vision, **tokens)
    )
