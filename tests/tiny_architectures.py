"""Build tiny models of every causal architecture in the installed transformers, by shrinking sizes in configurations.

Configurations of transformers name their sizes in many ways. `build` sets those that exist, including nested ones.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

MOST_PARAMETERS = 3_000_000

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "dim": 32,
    "emb_dim": 32,
    "embedding_size": 32,
    "dim_model": 32,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "n_inner": 48,
    "d_ff": 48,
    "ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
}

LATENT: dict[str, Any] = {
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
}
"""Sizes of multi-head latent attention (DeepSeek)."""

SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": LATENT,
    "axk2": LATENT,
    "deepseek_v2": LATENT | {"num_experts_per_tok": 2},
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT | {"index_n_heads": 2, "index_head_dim": 8},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8},
    "gemma4_text": {
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT | {"index_n_heads": 2, "index_head_dim": 8},
    "hy_v4": LATENT | {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 16},
    "kimi_linear": LATENT | {"linear_num_heads": 4, "linear_head_dim": 8},
    "longcat_flash": LATENT,
    "minicpm3": LATENT,
    "youtu": LATENT,
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "reformer": {
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "feed_forward_size": 48,
        "num_buckets": 4,
    },
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "attention_head_dim": 16,
        "n_mamba_heads": 2,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 8, "mamba_d_state": 8},
    "zaya": {"num_experts_per_tok": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
}
"""Additional settings of single architectures."""

_SET_IF_NONE = ("pad_token_id", "bos_token_id", "eos_token_id", "head_dim", "num_key_value_heads", "n_inner")


def build(kind: str) -> Any:
    """Return a tiny causal language model of a model type in evaluation mode, or None if it cannot be built."""
    try:
        config = _configuration(kind)
        (model_class,) = {MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]}
        with torch.device("meta"):
            if sum(parameter.numel() for parameter in model_class(config).parameters()) > MOST_PARAMETERS:
                return None
        torch.manual_seed(0)
        model = model_class(config).eval()
        rows = torch.arange(5, 29).view(2, 12)
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)
        return model
    except Exception:  # the sizes do not suit the architecture; the exceptions differ
        return None


def _configuration(kind: str) -> Any:
    configuration_class = CONFIG_MAPPING[kind]
    config = configuration_class()
    values = _shrunk(config)
    for name, part_class in getattr(configuration_class, "sub_configs", {}).items():
        part = getattr(config, name, None)
        with contextlib.suppress(Exception):
            values[name] = _shrunk(part if part is not None and not isinstance(part, dict) else part_class())
    return configuration_class(**values | SPECIAL.get(kind, {}))


def _shrunk(config: Any) -> dict[str, Any]:
    names = {*vars(config), *getattr(config, "attribute_map", {})}
    return {
        key: size
        for key, size in SIZES.items()
        if key in names and (key in _SET_IF_NONE or getattr(config, key, None) is not None)
    }
