"""Read Perceiver AR models that were saved by the library perceiver-io (https://github.com/krasserm/perceiver-io).

This file translates the names of configuration fields and weights. In perceiver-io's folders the fields are in
``model_config``; in its Lightning checkpoints they are among the hyperparameters.
"""

from __future__ import annotations

import re
from typing import Any

FIELDS = {
    "vocab_size": "vocab_size",
    "num_channels": "hidden_size",
    "num_heads": "num_attention_heads",
    "max_seq_len": "max_position_embeddings",
    "max_latents": "max_latents",
    "num_latents": "max_latents",
    "output_norm": "final_norm",
    "output_bias": "head_bias",
    "abs_pos_emb": "absolute_positions",
    "init_scale": "initializer_range",
    "post_attention_dropout": "attention_dropout",
    "residual_dropout": "hidden_dropout",
}
"""Field of the library -> our field. Versions before 0.8 have ``num_latents`` for ``max_latents``."""
DEFAULTS = {
    "num_channels": 512,
    "num_heads": 8,
    "max_seq_len": 4096,
    "max_latents": 512,
    "num_self_attention_layers": 8,
    "num_self_attention_rotary_layers": 1,
    "output_norm": False,
    "output_bias": True,
    "abs_pos_emb": True,
}
"""The library's default for each field that a configuration may leave out."""
NAMES = (
    (r"input_adapter\.(?:txt|token)_embedding", "model.embed_tokens"),
    (r"input_adapter\.pos_embedding", "model.embed_positions"),
    (r"input_adapter\.frq_pos_encoding\.inv_freq", "inv_freq"),
    (r"out_norm", "model.norm"),
    (r"output_adapter\.bias", "lm_head.bias"),
    (r"cross_attention\.0\.module\.q_norm", "model.layers.0.attention_norm"),
    (r"cross_attention\.0\.module\.kv_norm", "model.layers.0.prefix_norm"),
)
"""(pattern of a name of the library, ours)."""
INSIDE = ((r"0\.module\.norm", "attention_norm"), (r"0\.module\.attention", "attention"))
INSIDE += ((r"1\.module\.0", "mlp_norm"), (r"1\.module\.1", "mlp.up_proj"), (r"1\.module\.3", "mlp.down_proj"))
"""(pattern of a name inside of a layer, ours)."""


def config(values: dict[str, Any]) -> dict[str, Any] | None:
    """Fields of ``PerceiverARConfig`` from those of the library; None if these are not a Perceiver AR's."""
    given = values.get("model_config", values)
    if not isinstance(given, dict) or not {"num_channels", "max_seq_len", "num_self_attention_layers"} <= given.keys():
        return None
    given = {**{name: value for name, value in DEFAULTS.items() if name != "max_latents"}, **given}
    if not {"max_latents", "num_latents"} & given.keys():
        given["max_latents"] = DEFAULTS["max_latents"]
    found = {ours: given[theirs] for theirs, ours in FIELDS.items() if theirs in given}
    rotary, width = int(given["num_self_attention_rotary_layers"]), int(given["num_channels"])
    inner, hybrid = (int(given.get(f"{kind}_attention_widening_factor", 4)) * width for kind in ("self", "cross"))
    special = {name: values[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in values}
    return {
        **special,
        **found,
        "model_type": "perceiver_ar",
        "num_hidden_layers": int(given["num_self_attention_layers"]) + 1,
        "rotary_layers": None if rotary == -1 else rotary + 1,
        "partial_rotary_factor": 0.5 if given["abs_pos_emb"] else 1.0,
        "intermediate_size": inner,
        "hybrid_intermediate_size": None if hybrid == inner else hybrid,
    }


def name(stored: str) -> str:
    """Our name of a tensor of the library; a name that is none of its stays."""
    plain = re.sub(r"^(backend_model|model)\.(?=(input_adapter|output_adapter|out_norm|\w+_attention)\.)", "", stored)
    plain = plain.replace("_checkpoint_wrapped_module.", "")
    for pattern, ours in NAMES:
        if found := re.match(rf"{pattern}(?=\.|$)", plain):
            return ours + plain[found.end() :]
    layer = re.match(r"(?:cross_attention|self_attention\.(\d+))\.(?=\d\.module)", plain)
    if layer is None:
        return stored
    rest, number = plain[layer.end() :], 0 if layer[1] is None else int(layer[1]) + 1
    for pattern, ours in INSIDE:
        if found := re.match(rf"{pattern}(?=\.)", rest):
            return f"model.layers.{number}.{ours}{rest[found.end() :]}"
    return stored
