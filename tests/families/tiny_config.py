"""Tiny configurations of any architecture of transformers: its own defaults, with every size that it has made small."""

from __future__ import annotations

import dataclasses
from typing import Any

SMALL: dict[str, Any] = {
    # widths
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 16, "embedding_size": 32,
    "intermediate_size": 64, "ffn_dim": 64, "d_ff": 64, "dff": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "projection_dim": 16, "d_kv": 8, "head_dim": 8, "state_size": 4, "expand": 2, "q_lora_rank": None,
    "word_embed_proj_dim": 32, "lru_width": 32, "n_inner": 64, "mlp_ratio": 2,
    # heads
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2,
    # depths
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_decoder_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2,
    # lengths and vocabularies
    "vocab_size": 512, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_sequence_length": 64,
    "type_vocab_size": 2, "max_source_positions": 64, "max_target_positions": 64, "sliding_window": 16,
    # pictures and sounds
    "image_size": 32, "patch_size": 8, "num_mel_bins": 8,
}  # fmt: skip
"""Field -> its value where the configuration has it."""
PARTS = ("text_config", "vision_config", "audio_config", "encoder", "decoder", "backbone_config")
"""Fields that hold a configuration of their own."""
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32},
    "falcon": {"num_kv_heads": 4, "new_decoder_architecture": False},
    "bloom": {"n_head": 4},
    "stablelm": {"num_key_value_heads": 4},
    "mamba": {"time_step_rank": 4},
    "ctrl": {"n_positions": 64},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "recurrent_gemma": {"attention_window_size": 16},
    "fnet": {"tpu_short_seq_length": 32},
    "canine": {"downsampling_rate": 4, "local_transformer_stride": 16, "num_hash_buckets": 256},
    "deberta-v2": {"pos_att_type": ["p2c", "c2p"], "relative_attention": True},
    "electra": {"embedding_size": 16},
}
"""Architecture -> fields that only fit together."""


def tiny_config(model_type: str) -> dict[str, Any]:
    """Fields of a tiny configuration, without dropout, for ``model.config`` with ``model.family=auto``."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(cls)}
    defaults = cls()
    chosen = {name: value for name, value in SMALL.items() if name in known}
    chosen = {
        name: float(value) if isinstance(getattr(defaults, name, None), float) else value
        for name, value in chosen.items()
    }
    chosen |= {
        name: 0.0
        for name in known
        if ("drop" in name or name.endswith("pdrop")) and isinstance(getattr(defaults, name, None), float)
    }
    for name in PARTS:
        part = getattr(defaults, name, None)
        if name in known and part is not None and hasattr(part, "model_type"):
            chosen[name] = {"model_type": part.model_type, **tiny_config(part.model_type)}
    chosen = {name: value for name, value in chosen.items() if not isinstance(getattr(defaults, name, 0), list | tuple)}
    tokens = {name: None for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in known}
    return {**chosen, **tokens, **OWN.get(model_type, {})}
