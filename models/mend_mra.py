"""Fix transformers' MRA model, a text encoder, so that its attention works without a custom CUDA kernel.

In transformers, MRA's attention silently returns zeros if the CUDA kernel is not installed. Here the classes of the
modules are replaced, and their parameters and names stay, so exported folders are loaded by the class of transformers.
Texts of any length are accepted, not only multiples of 32 tokens, and padding does not change the outputs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mra.modeling_mra import MraSelfAttention

from .multi_resolution import multi_resolution_attention


class MultiResolutionAttention(MraSelfAttention):
    """Attention of one layer."""

    block_per_row: int
    """Pairs of blocks that are computed exactly, for each block of a text on average."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        query, key, value = (
            layer(hidden_states).unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        read = multi_resolution_attention(
            query,
            key,
            value,
            real_tokens(attention_mask),
            self.block_per_row,
            self.approx_mode,
            self.initial_prior_first_n_blocks,
            self.initial_prior_diagonal_n_blocks,
        )
        return (read.transpose(1, 2).flatten(2),)


def use_multi_resolution(model: PreTrainedModel) -> None:
    """Change an MRA, also one that ``from_pretrained`` has loaded, in place."""
    for module in model.modules():
        if type(module) is MraSelfAttention:
            module.__class__ = MultiResolutionAttention
            module.block_per_row = model.config.block_per_row


def real_tokens(mask: Any) -> Tensor | None:
    """[texts, tokens], true where there is a token, of a mask in any form that transformers makes.

    Args:
        mask: [texts, tokens], or [texts, 1, queries, keys], of truth values or of numbers that are added to scores.
    """
    if mask is None:
        return None
    if mask.ndim == 2:
        return mask != 0
    row = mask[:, 0, -1]
    return row if row.dtype.is_floating_point is False and row.dtype.itemsize == 1 else row == 0
