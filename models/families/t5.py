"""The family description of T5: module paths and other properties by which trireme wraps and shards the model.

T5 is an encoder-decoder with relative positions, for tasks that turn one text into another.

In T5 1.1 (``feed_forward_proj: gated-gelu``, ``tie_word_embeddings: false``) the head is not tied to the embedding.
transformers 5 ties it all the same, and initialises it as if its inputs were scaled. A new model would then begin at a
loss of 16 to 25 nats, so this description unties the head.
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
