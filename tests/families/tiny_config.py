"""Make tiny configurations for architectures of transformers: their defaults, with small sizes and few layers."""

from __future__ import annotations

import dataclasses
from typing import Any

SMALL: dict[str, Any] = {
    # widths
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 16, "embedding_size": 32,
    "intermediate_size": 64, "ffn_dim": 64, "d_ff": 64, "dff": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "projection_dim": 16, "d_kv": 8, "head_dim": 8, "state_size": 4, "expand": 2, "q_lora_rank": None,
    "word_embed_proj_dim": 32, "lru_width": 32, "n_inner": 64, "mlp_ratio": 2, "patch_embed_hidden_size": 48,
    "classifier_proj_size": 16, "rotary_dim": 8, "emb_dim": 32, "width_coefficient": 0.1,
    "depth_coefficient": 0.1, "depth_multiplier": 0.25, "fusion_hidden_size": 16, "auxiliary_channels": 16,
    "d_latents": 32, "qk_channels": 32, "v_channels": 32, "entity_emb_size": 16, "visual_embedding_dim": 16,
    "aspp_out_channels": 16, "width_multiplier": 0.25, "patch_embeds_hidden_size": 16, "logits_hidden_size": 32,
    # heads
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "num_self_attention_heads": 4,
    "num_cross_attention_heads": 4,
    # depths
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_decoder_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_self_attends_per_block": 2, "num_encoder_layers": 2,
    # lengths and vocabularies
    "vocab_size": 512, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_sequence_length": 64,
    "type_vocab_size": 2, "max_source_positions": 64, "max_target_positions": 64, "sliding_window": 16,
    "num_latents": 8, "entity_vocab_size": 16, "decoder_vocab_size": 512, "max_encoder_position_embeddings": 64,
    "max_decoder_position_embeddings": 64,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_intermediate_size": 32,
    # images and audio
    "image_size": 32, "patch_size": 8, "num_mel_bins": 8, "num_groups": 4, "num_detection_tokens": 8, "window_size": 2,
    "conv_bias": True, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "seq_len": 64, "spec_size": 64,
}  # fmt: skip
"""Field -> its value in configurations that have the field."""
LISTS: dict[str, list[Any]] = {
    "conv_dim": [32, 32, 32, 32, 32], "conv_stride": [5, 4, 2, 2, 2], "conv_kernel": [10, 8, 4, 4, 4],
    "image_size": [32, 32],
}  # fmt: skip
"""Field -> its value in configurations in which the field is a list."""
DIVIDED = ("hidden_sizes", "embed_dim", "embed_dims", "neck_hidden_sizes", "base_attn_unit_dims", "channels")
"""Lists of widths, one per stage, of which an eighth is taken, rounded down to a multiple of four."""
DEPTHS = ("depths", "depth", "layers", "n_attn_blocks")
"""Lists of depths, one per stage."""
AT_RANDOM = ("drop", "jitter")
"""Parts of the names of fields that make a model draw at random."""
PARTS = (
    "text_config", "vision_config", "audio_config", "encoder", "decoder", "backbone_config", "perceiver_config",
    "qformer_config",
)  # fmt: skip
"""Fields that hold a configuration of their own."""
TWO_PARTS: dict[str, dict[str, str]] = {
    "vision-encoder-decoder": {"encoder": "vit", "decoder": "bert"},
    "encoder-decoder": {"encoder": "bert", "decoder": "bert"},
    "speech-encoder-decoder": {"encoder": "wav2vec2", "decoder": "bert"},
    "vision-text-dual-encoder": {"vision_config": "vit", "text_config": "bert"},
}
"""Architectures that consist of two others -> field and architecture of each half."""
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32},
    "falcon": {"num_kv_heads": 4, "new_decoder_architecture": False},
    "bloom": {"n_head": 4},
    "stablelm": {"num_key_value_heads": 4},
    "mamba": {"time_step_rank": 4},
    "ctrl": {"n_positions": 64},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4},
    "clap_audio_model": {
        "depths": [1, 1, 1, 1], "num_attention_heads": [2, 2, 2, 2], "patch_size": 4, "hidden_size": 128,
        "num_mel_bins": 32, "spec_size": 128, "window_size": 2,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "recurrent_gemma": {"attention_window_size": 16, "num_hidden_layers": 3},
    "fnet": {"tpu_short_seq_length": 32},
    "canine": {"downsampling_rate": 4, "local_transformer_stride": 16, "num_hash_buckets": 256},
    "deberta-v2": {"pos_att_type": ["p2c", "c2p"], "relative_attention": True},
    "electra": {"embedding_size": 16},
    "roberta": {"max_position_embeddings": 66},
    "perceiver": {"max_position_embeddings": 32},
    "whisper": {"max_source_positions": 100},
    "lilt": {"hidden_size": 48},
    "bit": {"embedding_size": 16, "num_groups": 4},
    "dpt": {"backbone_out_indices": [0, 1, 2, 3], "num_hidden_layers": 4},
    "data2vec-vision": {"out_indices": [0, 0, 1, 1]},
    "upernet": {
        "backbone_config": {
            "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
            "layer_type": "basic", "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
    },
    "mobilevitv2": {"image_size": 64},
    **{f"bridgetower{part}": {"hidden_size": 64} for part in ("", "_vision_model", "_text_model")},
    "moonshine": {
        **dict.fromkeys(("encoder_num_attention_heads", "decoder_num_attention_heads"), 2),
        **dict.fromkeys(("encoder_num_key_value_heads", "decoder_num_key_value_heads"), 2),
        **dict.fromkeys(("encoder_num_hidden_layers", "decoder_num_hidden_layers"), 2),
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"head_dim": 16, "num_heads": 4},
    "codegen": {"n_head": 8, "rotary_dim": 4},
    "led": {"attention_window": 8},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
}  # fmt: skip
"""Architecture -> fields that only fit together."""


def tiny_config(model_type: str) -> dict[str, Any]:
    """Fields of a tiny configuration, without dropout, for ``model.config`` with ``model.family=auto``."""
    from transformers import CONFIG_MAPPING

    if model_type in TWO_PARTS:
        parts = TWO_PARTS[model_type]
        return {
            field: {
                "model_type": kind,
                **_with_larger_weights(tiny_config(kind), CONFIG_MAPPING[kind]()),
                **_role(field),
            }
            for field, kind in parts.items()
        }
    cls = CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(cls)}
    defaults = cls()
    chosen = {name: _small(name, getattr(defaults, name, None)) for name in sorted(known)}
    chosen = {name: value for name, value in chosen.items() if value is not Ellipsis}
    heads = getattr(defaults, "num_heads", None)
    if isinstance(heads, list | tuple) and isinstance(getattr(defaults, "embed_dim", None), int):
        chosen["num_heads"] = [2] * len(heads)  # the widths of stages follow from one number
    for name in PARTS:
        part = getattr(defaults, name, None)
        if name in known and hasattr(part, "model_type"):
            chosen[name] = {"model_type": part.model_type, **_with_larger_weights(tiny_config(part.model_type), part)}
    tokens = {name: None for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in known}
    return {**chosen, **tokens, **OWN.get(model_type, {})}


def _with_larger_weights(config: dict[str, Any], part: Any) -> dict[str, Any]:
    """``config`` with larger initial weights, so that features are not near zero; losses normalise them to length 1."""
    return {**config, "initializer_range": 0.1} if hasattr(part, "initializer_range") else config


def _small(name: str, default: Any) -> Any:
    """The value of a field; the ellipsis leaves the default."""
    if any(part in name for part in AT_RANDOM):
        if isinstance(default, list | tuple):
            return [0.0 for _ in default]
        return 0.0 if isinstance(default, float) else ...
    if isinstance(default, list | tuple):
        if name in LISTS:
            return LISTS[name]
        if name in DIVIDED:
            return [max(size // 32, 1) * 4 for size in default]
        # Each stage has more than the one before it, as CvT needs.
        return [stage + 1 if name == "depth" else 1 for stage, _ in enumerate(default)] if name in DEPTHS else ...
    if name not in SMALL:
        return ...
    if name == "patch_size" and isinstance(default, int) and default < 14:
        return ...
    value = SMALL[name]
    if value is not None and default is not None and isinstance(default, bool) != isinstance(value, bool):
        return ...
    return float(value) if isinstance(default, float) and isinstance(value, int) else value


def _role(field: str) -> dict[str, Any]:
    return {"is_decoder": True, "add_cross_attention": True} if field == "decoder" else {}
