"""The family description of Transformer-XL: module paths and other properties by which trireme wraps and shards the
model.

Transformer-XL is a causal language model whose layers remember the earlier segments of a text.

The model classes are trireme's own (``models/transformer_xl``), since transformers has removed them.
"""

from __future__ import annotations

from ..family import Carried, ModelFamily, Stack

FAMILY = ModelFamily(
    name="transformer_xl",
    title="Transformer-XL",
    model_type="transfo-xl",
    paper="https://arxiv.org/abs/1901.02860",
    classes="trireme.models.transformer_xl",
    attention=("eager",),
    packs=False,
    stacks=(Stack("transformer.layers", layers="n_layer"),),
    embeddings=("transformer.word_emb",),
    heads=(("causal_lm", "crit"),),
    label_heads=("sequence_classification",),
    carried=(Carried("mems", ("n_layer", "mem_len", "d_model")), Carried("mem_lengths", whole=True)),
    no_tensor="has no tensor plan, since its words are divided into clusters of unequal size",
)
