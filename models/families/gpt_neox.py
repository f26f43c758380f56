"""GPT-NeoX (also Pythia): attention and feed-forward in parallel, rotary position on part of each head."""

from __future__ import annotations

from ..family import ModelFamily

FAMILY = ModelFamily(
    name="gpt_neox",
    title="GPT-NeoX",
    model_type="gpt_neox",
    paper="https://arxiv.org/abs/2204.06745",
    embedding="gpt_neox.embed_in",
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    head="lm_head",
    stored_names=(("embed_out", "lm_head"),),
    config_extras=("rotary_pct", "rotary_emb_base", "rope_scaling"),
)
