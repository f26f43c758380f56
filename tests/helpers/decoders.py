"""Small configurations for decoders of several architectures, and the names of those that have only eager attention."""

from __future__ import annotations

from typing import Any

COMMON: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4}
DROPOUT = {"embd_pdrop": 0.5, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
GPT: dict[str, Any] = {"vocab_size": 96, "n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 64, **DROPOUT}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "codegen": {**GPT, "rotary_dim": 4},
    "gpt_neox": {**COMMON, "intermediate_size": 64},
    "llama": {**COMMON, "intermediate_size": 64},
    "opt": {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 16, "dropout": 0.0},
    "persimmon": {**COMMON, "intermediate_size": 64},
    "perceiver_ar": {**COMMON, "intermediate_size": 64, "max_latents": 8, "absolute_positions": True},
    "phi": {**COMMON, "intermediate_size": 64, "embd_pdrop": 0.5},
    "recurrent_gemma": {**COMMON, "num_key_value_heads": 1, "intermediate_size": 64, "lru_width": 32, "head_dim": 8},
}
"""Dropout of embeddings is on where a family has it, which a test must switch off or expect."""
EAGER_ONLY = ("gptj", "codegen")
"""Decoders for which transformers has no attention kernel but the eager one."""
