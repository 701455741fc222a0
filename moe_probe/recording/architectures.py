"""Every Mixture-of-Experts text architecture of the installed transformers, and a tiny random model of each.

They are found in the library itself: the configurations that have a field of experts, and the model that each
configuration belongs to. It knows sizes that make a model small, and nothing about routers.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedModel

VOCABULARY = 64
_EXPERTS = re.compile(r"expert|moe")
_SIZES: dict[str, object] = {
    # Set where a configuration has a field of this name.
    "bos_token_id": 1,
    "d_ff": 32,
    "d_kv": 8,
    "d_model": 32,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 32,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "encoder_layers": 4,
    "eos_token_id": 2,
    "expert_capacity": 3,  # few enough that tokens are dropped
    "expert_ffn_hidden_size": 32,
    "ffn_hidden_size": 32,
    "first_k_dense_replace": 0,
    "head_dim": 8,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "intermediate_size": 32,
    "kv_lora_rank": 16,
    "linear_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 8,
    "max_position_embeddings": 64,
    "mlp_layer_types": ["sparse", "sparse"],
    "moe_hidden_size": 16,
    "moe_intermediate_size": 32,
    "moe_k": 2,
    "moe_num_experts": 8,
    "moe_shared_expert_intermediate_size": 32,
    "moe_topk": 2,
    "n_group": 2,
    "n_routed_experts": 8,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "num_local_experts": 8,
    "num_sparse_decoder_layers": 1,
    "num_sparse_encoder_layers": 1,
    "o_lora_rank": 16,
    "pad_token_id": 0,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "shared_expert_intermediate_size": 32,
    "sliding_window": 16,
    "top_k_experts": 2,
    "topk_group": 1,
    "v_head_dim": 8,
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "zero_expert_num": 4,
}
_LINEAR_AND_FULL = ["linear_attention", "full_attention"]
_FURTHER: dict[str, dict[str, object]] = {
    # What else a configuration needs to make a small model that has routers and one layer of attention.
    "bailing_hybrid": {"layer_types": _LINEAR_AND_FULL},
    "dbrx": {
        "attn_config": {"clip_qkv": 8.0, "kv_n_heads": 4, "rope_theta": 10_000.0},
        "ffn_config": {"ffn_hidden_size": 32, "hidden_size": 32, "moe_num_experts": 8, "moe_top_k": 2},
        "n_heads": 4,
        "n_layers": 2,
    },
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe"]},
    "doge": {"is_moe": True},
    "dots1": {"n_shared_experts": 1},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [32, 32],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    },
    "flint": {"mlp_only_layers": []},
    "gemma4_text": {"enable_moe_block": True, "global_head_dim": 8},
    "glm4v_moe_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 1, 1],
            "partial_rotary_factor": 1.0,
        }
    },
    "glm5_next_text": {"layer_types": _LINEAR_AND_FULL, "linear_num_heads": 4, "qk_rope_head_dim": 0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_d_state": 16, "mamba_n_heads": 8},
    "hy_v4_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 0,
        "expert_layer_period": 1,
        "use_mamba_kernels": False,
    },
    "kimi_linear": {"layer_types": _LINEAR_AND_FULL, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 0},
    "llama4_text": {"interleave_moe_layer_step": 1},
    "mimo_v2_flash": {
        "layer_types": ["full_attention", "sliding_attention"],
        "num_key_value_heads": 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "nemotron_h": {"layers_block_type": ["attention", "moe"]},
    "qwen3_5_moe_text": {"layer_types": _LINEAR_AND_FULL},
    "qwen3_next": {"layer_types": _LINEAR_AND_FULL},
    "qwen4_exp_text": {
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "indexer_head_dim": 8,
        "indexer_kv_heads": 1,
        "indexer_n_heads": 2,
        "layer_types": _LINEAR_AND_FULL,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


@functools.cache
def find_architectures() -> dict[str, type[Any]]:
    """Return the configuration classes that have a field of experts, by model type, in alphabetical order.

    Configurations that belong to no text are among them; `read_model_class` tells.
    """
    found = {}
    for model_type in sorted(CONFIG_MAPPING):
        config_class = CONFIG_MAPPING[model_type]
        parts = [part for part in (getattr(config_class, "sub_configs", None) or {}).values() if isinstance(part, type)]
        # A part with a model type of its own is an architecture of its own.
        nested = [part for part in parts if getattr(part, "model_type", "auto") == ""]
        if any(_EXPERTS.search(name) for one in (config_class, *nested) for name in _fields(one)):
            found[model_type] = config_class
    return found


def read_model_class(config_class: type[Any]) -> type[PreTrainedModel]:
    """Return a configuration's model without a head: that of the library's mapping, else the first in its file."""
    if config_class in MODEL_MAPPING:
        mapped: Any = MODEL_MAPPING[config_class]
        first: type[PreTrainedModel] = mapped[0] if isinstance(mapped, tuple) else mapped
        return first
    module = importlib.import_module(config_class.__module__.replace("configuration_", "modeling_"))
    return next(
        one
        for one in vars(module).values()
        if inspect.isclass(one)
        and issubclass(one, PreTrainedModel)
        and getattr(one, "config_class", None) is config_class
        and "forward" in vars(one)
    )


def is_text(model_class: type[PreTrainedModel]) -> bool:
    """Say whether a model reads the tokens of a text."""
    return model_class.main_input_name == "input_ids" and "text" in model_class.input_modalities


def build(model_type: str, *, seed: int = 0) -> PreTrainedModel:
    """Return a tiny random model of an architecture, in float32 on the CPU and in evaluation mode.

    Its weights are large enough that routers differ in what they choose.
    """
    config_class = find_architectures()[model_type]
    names = _fields(config_class)
    options = {name: value for name, value in _SIZES.items() if name in names} | _FURTHER.get(model_type, {})
    model_class: Any = read_model_class(config_class)
    torch.manual_seed(seed)
    with torch.device("cpu"):
        model: PreTrainedModel = model_class._from_config(config_class(**options)).eval()
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
        for name, buffer in model.named_buffers():
            if name.endswith("bias") and buffer.is_floating_point():
                buffer.normal_(std=0.1)
            if name.endswith("tid2eid"):  # a token's experts, fixed: (tokens, slots)
                order = torch.rand(len(buffer), model.config.num_local_experts).argsort(dim=-1)
                buffer.copy_(order[:, : buffer.shape[1]])
    return model


def _fields(config_class: type[Any]) -> set[str]:
    return {name for one in config_class.__mro__ for name in getattr(one, "__annotations__", {})}
