"""T5: an encoder and a decoder with relative positions, for tasks that turn one text into another.

T5 1.1 (``feed_forward_proj: gated-gelu``, ``tie_word_embeddings: false``) has a head of its own. transformers 5 ties it
to the embedding all the same, and initialises it as if its inputs were scaled, so that a fresh model would begin at a
loss of 16 to 25 nats.
"""

from __future__ import annotations

from ..family import encoder_decoder

FAMILY = encoder_decoder(
    name="t5",
    title="T5",
    model_type="t5",
    paper="https://arxiv.org/abs/1910.10683",
    embeddings=("shared",),
    encoder_blocks="encoder.block",
    encoder_layers="num_layers",
    decoder_blocks="decoder.block",
    decoder_layers="num_decoder_layers",
    head="lm_head",
    attention=("sdpa", "eager"),
    untied=(("scale_decoder_outputs", False, "lm_head.weight"),),
    smaller=(("lm_head.weight", "d_model"),),
    fp16="overflows in its feed-forward parts under fp16",
    config_extras=("tie_word_embeddings",),
)
