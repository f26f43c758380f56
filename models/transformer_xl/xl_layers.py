"""The layers of Transformer-XL: a feed-forward part, and attention to the current segment and to the memory of earlier
segments. Attention uses relative distances instead of positions.

An attention score is (q + u) k + (q + v) r. Here r is a projection of the sines and cosines of the distance between
query and key (paper, section 3.3). Only distances are used, so the memory needs no positions of its own. Modules have
the names of the published weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .xl_config import TransfoXLConfig

Biases = tuple[Tensor, Tensor]
"""Biases of content and of position, [heads, features] each."""


class TransfoXLLayer(GradientCheckpointingLayer):
    """Attention and a feed-forward part."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.dec_attn = RelativeAttention(config)
        self.pos_ff = FeedForward(config)

    def forward(
        self,
        hidden_states: Tensor,
        memory: Tensor | None,
        distances: Tensor,
        seen: Tensor,
        biases: Biases | None = None,
    ) -> Tensor:
        """[rows, tokens, width].

        Args:
            hidden_states: [rows, tokens, width].
            memory: [rows, memory, width], what this layer saw before these tokens; None for nothing.
            distances: [keys, width], encodings of the distances keys - 1, ..., 1, 0.
            seen: [rows or 1, 1, tokens, keys], true where a token sees a key.
            biases: those that all layers share; None if each has its own.
        """
        return self.pos_ff(self.dec_attn(hidden_states, memory, distances, seen, biases))


class RelativeAttention(nn.Module):
    """Attention of tokens to those before them in their segment, and to a memory."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.n_head, self.d_head, self.pre_lnorm = config.n_head, config.d_head, config.pre_lnorm
        inner = config.n_head * config.d_head
        self.qkv_net = nn.Linear(config.d_model, 3 * inner, bias=False)
        self.r_net = nn.Linear(config.d_model, inner, bias=False)
        self.o_net = nn.Linear(inner, config.d_model, bias=False)
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.drop, self.dropatt = nn.Dropout(config.dropout), nn.Dropout(config.dropatt)
        if config.untie_r:
            self.r_w_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
            self.r_r_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))

    def forward(
        self, hidden_states: Tensor, memory: Tensor | None, distances: Tensor, seen: Tensor, biases: Biases | None
    ) -> Tensor:
        """[rows, tokens, width]; arguments as of the layer."""
        content, position = (self.r_w_bias, self.r_r_bias) if biases is None else biases
        states = hidden_states if memory is None else torch.cat([memory, hidden_states], dim=1)
        states = self.layer_norm(states) if self.pre_lnorm else states
        query, key, value = (self._heads(part) for part in self.qkv_net(states).chunk(3, dim=-1))
        query = query[:, :, -hidden_states.shape[1] :]
        by_distance = self._heads(self.r_net(distances)[None])
        scores = (query + content[:, None]) @ key.transpose(2, 3)
        scores = scores + by_key((query + position[:, None]) @ by_distance.transpose(2, 3))
        scores = (scores * self.d_head**-0.5).masked_fill(~seen, torch.finfo(scores.dtype).min)
        shares = self.dropatt(scores.softmax(-1, dtype=torch.float32).to(value.dtype))
        output = hidden_states + self.drop(self.o_net((shares @ value).transpose(1, 2).flatten(2)))
        return output if self.pre_lnorm else self.layer_norm(output)

    def _heads(self, states: Tensor) -> Tensor:
        """[rows, heads, positions, features of a head]."""
        return states.unflatten(-1, (self.n_head, self.d_head)).transpose(1, 2)


class FeedForward(nn.Module):
    """The feed-forward part."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.pre_lnorm = config.pre_lnorm
        self.CoreNet = nn.Sequential(
            nn.Linear(config.d_model, config.d_inner),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.d_inner, config.d_model),
            nn.Dropout(config.dropout),
        )
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[rows, tokens, width]."""
        if self.pre_lnorm:
            return hidden_states + self.CoreNet(self.layer_norm(hidden_states))
        return self.layer_norm(hidden_states + self.CoreNet(hidden_states))


def by_key(scores: Tensor) -> Tensor:
    """Scores [rows, heads, tokens, distances] -> [rows, heads, tokens, keys], both of equal length.

    Distances fall from keys - 1 to 0. A token and a key at distance d get the score of d; the scores of keys behind a
    token are of no meaning. A column before the first makes each row one longer, so that, read as rows of as many
    numbers as there are tokens, row i begins one distance later than row i - 1 (paper, appendix B).
    """
    *outer, tokens, keys = scores.shape
    return F.pad(scores, (1, 0)).view(*outer, keys + 1, tokens)[..., 1:, :].reshape(*outer, tokens, keys)


def encoded_distances(count: int, most: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of the distances count - 1, ..., 1, 0: [count, width], fp32.

    Args:
        most: distances beyond this are taken as this one; 0 or less for no limit.
    """
    distances = torch.arange(count - 1, -1, -1, device=device, dtype=torch.float32)
    distances = distances.clamp(max=most) if most > 0 else distances
    speeds = 10000 ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angles = distances[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
