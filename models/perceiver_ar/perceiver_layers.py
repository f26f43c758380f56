"""The layers of Perceiver AR: attention whose queries are only the last positions of a text, and an MLP.

The last positions are called latents, and the text before them is the prefix. All layers are pre-norm. In the first
layer, keys are made from the prefix, which has a norm of its own, and from the latents. The first layer outputs the
latents alone, and the later layers see nothing else. Rotary positions rotate pairs of neighbouring features
(https://arxiv.org/abs/2104.09864), as in perceiver-io, the library that published the weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .perceiver_config import PerceiverARConfig


class PerceiverARLayer(GradientCheckpointingLayer):
    """One layer; the first is the hybrid."""

    def __init__(self, config: PerceiverARConfig, number: int) -> None:
        super().__init__()
        hybrid, width, eps = number == 0, config.hidden_size, config.layer_norm_eps
        self.prefix_norm = nn.LayerNorm(width, eps) if hybrid else None
        self.attention_norm = nn.LayerNorm(width, eps)
        self.attention = PerceiverARAttention(config, number)
        self.mlp_norm = nn.LayerNorm(width, eps)
        inner = (config.hybrid_intermediate_size if hybrid else None) or config.intermediate_size
        self.mlp = PerceiverARMLP(width, inner, config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        latents: int,
        positions: Tensor,
        hybrid_mask: Tensor | None,
        latent_mask: Tensor | None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """Latents [rows, latents, width].

        Args:
            hidden_states: those of prefix and latents in the hybrid layer, else of the latents.
            latents: number of last positions, which have queries.
            positions: [rows or 1, tokens], those of the latents last.
            hybrid_mask: [rows or 1, 1, latents, keys], true where a latent sees a token, for the hybrid layer.
            latent_mask: the same for the other layers; None where each sees itself and those before it.
        """
        mask, own = latent_mask, hidden_states
        if self.prefix_norm is None:
            keys = self.attention_norm(hidden_states)
        else:
            mask, own = hybrid_mask, hidden_states[:, -latents:]
            keys = torch.cat([self.prefix_norm(hidden_states[:, :-latents]), self.attention_norm(own)], dim=1)
        own = own + self.dropout(self.attention(keys, latents, positions, mask, past_key_values))
        return own + self.dropout(self.mlp(self.mlp_norm(own)))


class PerceiverARAttention(nn.Module):
    """Attention of the last positions to all positions."""

    is_causal = True

    def __init__(self, config: PerceiverARConfig, number: int) -> None:
        super().__init__()
        self.config, self.number = config, number
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        rotates = config.rotary_layers is None or number < config.rotary_layers
        self.rotated = config.rotated if rotates else 0
        self.attention_dropout = config.attention_dropout
        width, bias = config.hidden_size, config.hybrid_bias and number == 0
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        hidden_states: Tensor,
        latents: int,
        positions: Tensor,
        mask: Tensor | None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """Outputs [rows, latents, width] of the last ``latents`` of ``hidden_states`` [rows, tokens, width]."""
        query = self._heads(self.q_proj(hidden_states[:, -latents:]))
        key, value = self._heads(self.k_proj(hidden_states)), self._heads(self.v_proj(hidden_states))
        if self.rotated:
            theta = self.config.rope_theta
            query = rotate(query, positions[:, -query.shape[2] :], self.rotated, theta)
            key = rotate(key, positions[:, -key.shape[2] :], self.rotated, theta)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.number)
        attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation or "eager", attend_eagerly)
        dropout = self.attention_dropout if self.training else 0.0
        read, _ = attend(self, query, key, value, mask, dropout=dropout, scaling=self.scaling)
        return self.o_proj(read.flatten(2))

    def _heads(self, states: Tensor) -> Tensor:
        """[rows, heads, tokens, features of a head]; a tensor rank has some of the heads."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class PerceiverARMLP(nn.Module):
    """The feed-forward part."""

    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.act = ACT2FN[activation]
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(self.act(self.up_proj(hidden_states)))


def attend_eagerly(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Attention with all its scores: (outputs [rows, queries, heads, features], shares)."""
    scores = query @ key.transpose(2, 3) * options["scaling"]
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    shares = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    shares = F.dropout(shares, options["dropout"], module.training)
    return (shares @ value).transpose(1, 2), shares


def rotate(states: Tensor, positions: Tensor, size: int, theta: float) -> Tensor:
    """The first ``size`` features of each head, turned in neighbouring pairs by angles that grow with the position.

    Args:
        states: [rows, heads, tokens, features].
        positions: [rows or 1, tokens].
    """
    pair = torch.arange(0, size, 2, device=states.device, dtype=torch.float32)
    angles = positions[:, None, :, None].float() * theta ** (-pair / size)
    first, second = states[..., :size].unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
    return torch.cat([turned.to(states.dtype), states[..., size:]], dim=-1)
