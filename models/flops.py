"""Floating-point operations of one training token, for model FLOPs utilisation (MFU)."""

from __future__ import annotations

from transformers import PreTrainedModel


def training_flops_per_token(model: PreTrainedModel, embedding: str, length: int) -> float:
    """Floating point operations of forward and backward per token.

    The count is 6 per parameter that takes part in a matrix product, plus 12 x layers x hidden x length for attention
    scores and values (PaLM, appendix B, https://arxiv.org/abs/2204.02311). The token embedding is a look-up and does
    not count, unless it is tied to the head. Recomputation does not count, because MFU is about *model* FLOPs.

    Args:
        model: may be on the meta device.
        embedding: module path of the token embedding.
        length: tokens per sequence.
    """
    config = model.config
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim >= 2)
    if not config.tie_word_embeddings:
        matrices -= model.get_parameter(f"{embedding}.weight").numel()
    return 6.0 * matrices + 12.0 * config.num_hidden_layers * config.hidden_size * length
