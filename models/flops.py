"""Count the floating-point operations of training per token, to compute model FLOPs utilisation (MFU)."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from .family import ModelFamily
from .find_blocks import blocks_of, embeddings_of
from .hidden_size import hidden_size
from .quantization.quantised_layer import quantised_layers


def training_flops_per_token(model: PreTrainedModel, family: ModelFamily, length: float) -> float:
    """Floating point operations of forward and backward per token.

    The count is 6 per parameter that takes part in a matrix product (4 if it is frozen, and so needs no gradient of its
    own), plus 12 x layers x hidden x length for attention scores and values (PaLM, appendix B,
    https://arxiv.org/abs/2204.02311). The token embedding is a look-up and does not count, unless it is tied to the
    head. Recomputation does not count, because MFU is about *model* FLOPs.

    Args:
        model: may be on the meta device.
        length: tokens per sequence, or of the document that a token sees part of, as a mean over tokens.
    """
    quantised = [layer for _, layer in quantised_layers(model)]
    packed = {id(part) for layer in quantised for part in layer.parts().values()}
    operations = sum(_cost(one) for one in model.parameters() if one.ndim >= 2 and id(one) not in packed)
    operations += sum(4.0 * layer.sizes[0] * layer.sizes[1] for layer in quantised)
    if not getattr(model.config, "tie_word_embeddings", False):
        operations -= sum(_cost(p) for _, module in embeddings_of(model, family) for p in module.parameters())
    blocks, latents = blocks_of(model, family), family.latents(model.config)
    attention = 12.0 * hidden_size(model.config)
    if latents is None or latents >= length:
        return operations + attention * len(blocks) * length
    # Only the latents go through all layers; keys and values of the first block are computed for every token.
    share, prefix = latents / length, _operations_of_keys(blocks[0])
    return share * (operations + attention * (length + (len(blocks) - 1) * latents)) + (1 - share) * prefix


def _operations_of_keys(block: nn.Module) -> float:
    """Operations per token of the projections to keys and values in a block."""
    names = ("k_proj.weight", "v_proj.weight")
    return sum(_cost(one) for name, one in block.named_parameters() if name.endswith(names))


def _cost(parameter: Tensor) -> float:
    """Operations per token with a matrix: two for each product, forward, for the inputs, and for the matrix itself."""
    return (6.0 if parameter.requires_grad else 4.0) * parameter.numel()
