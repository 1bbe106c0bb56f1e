"""Tiny models of many architectures, made from transformers' configurations alone. Not run by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
"""Given to every architecture that has the field."""
MORE: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "layer_types": ["mamba", "attention"]},
    "codegen": {"rotary_dim": 8, "num_attention_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "helium": {"head_dim": 16},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8},
    "mpt": {"max_seq_len": 256},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "qwen3_next": {"num_hidden_layers": 4},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "head_dim": 16},
    "xglm": {"ffn_dim": 48},
}
"""What an architecture needs beside."""


def tiny_model(kind: str, rows: int = 420, **fields: Any) -> Any:
    """A random causal LM of an architecture, by its transformers name, with an embedding of so many rows."""
    config_class = transformers.CONFIG_MAPPING[kind]
    known = set(config_class().to_dict()) | set(config_class.attribute_map)
    shape = {name: value for name, value in SHAPE.items() if name in known} | MORE.get(kind, {})
    special = {"vocab_size": rows, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config_class(**{**shape, **special, **fields})).eval()


def tiny_folder(folder: Path, tokenizer: Any, kind: str, rows: int = 420, **fields: Any) -> Path:
    """A folder with such a model and a tokenizer."""
    tiny_model(kind, rows, **fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
