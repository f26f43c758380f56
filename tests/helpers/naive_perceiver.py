"""A plain implementation of the model Perceiver AR, written from the paper, for one text at a time. Tests compare it
with ``models/perceiver_ar``.

The two share only the names of their parameters. This one loops over heads, computes rotary positions with complex
numbers, and needs no padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def naive_logits(
    weights: Mapping[str, Tensor], config: Any, tokens: Sequence[int], latents: int, places: Sequence[int] | None = None
) -> Tensor:
    """Logits [latents, words] of one text.

    Args:
        weights: parameters of a ``PerceiverARForCausalLM`` by name.
        places: position of each token; None counts from 0.
    """
    places = list(range(len(tokens))) if places is None else list(places)
    latents = min(latents, len(tokens))
    prefix = len(tokens) - latents
    hidden = torch.stack([weights["model.embed_tokens.weight"][token] for token in tokens])
    if config.absolute_positions:
        hidden = hidden + torch.stack([weights["model.embed_positions.weight"][place] for place in places])
    for number in range(config.num_hidden_layers):
        layer = _Layer(weights, config, number)
        own = hidden[prefix:] if number == 0 else hidden
        keys = layer.norm("attention_norm", own)
        if number == 0:
            keys = torch.cat([layer.norm("prefix_norm", hidden[:prefix]), keys])
        seen = [[key <= len(keys) - latents + query for key in range(len(keys))] for query in range(latents)]
        own = own + layer.attention(keys, latents, torch.tensor(seen), places[len(places) - len(keys) :])
        hidden = own + layer.feed_forward(layer.norm("mlp_norm", own))
    if config.final_norm:
        hidden = _norm(hidden, weights["model.norm.weight"], weights["model.norm.bias"], config.layer_norm_eps)
    logits = hidden @ weights["model.embed_tokens.weight"].T
    return logits + weights["lm_head.bias"] if config.head_bias else logits


class _Layer:
    def __init__(self, weights: Mapping[str, Tensor], config: Any, number: int) -> None:
        self.weights, self.config, self.number = weights, config, number

    def get(self, name: str) -> Tensor:
        return self.weights[f"model.layers.{self.number}.{name}"]

    def norm(self, name: str, states: Tensor) -> Tensor:
        return _norm(states, self.get(f"{name}.weight"), self.get(f"{name}.bias"), self.config.layer_norm_eps)

    def attention(self, states: Tensor, latents: int, seen: Tensor, places: Sequence[int]) -> Tensor:
        """The attention output of the last ``latents`` positions of ``states`` [tokens, width]."""
        size = self.config.hidden_size // self.config.num_attention_heads
        asked, keys, values = (states @ self.get(f"attention.{part}_proj.weight").T for part in "qkv")
        read = []
        for head in range(self.config.num_attention_heads):
            mine = slice(head * size, (head + 1) * size)
            query, key = asked[len(states) - latents :, mine], keys[:, mine]
            if self.config.rotary_layers is None or self.number < self.config.rotary_layers:
                query, key = self.turned(query, places[len(places) - latents :]), self.turned(key, places)
            scores = torch.where(seen, query @ key.T / math.sqrt(size), -math.inf)
            read.append(scores.softmax(-1) @ values[:, mine])
        output = torch.cat(read, dim=-1) @ self.get("attention.o_proj.weight").T
        biased = self.config.hybrid_bias and self.number == 0
        return output + self.get("attention.o_proj.bias") if biased else output

    def turned(self, states: Tensor, places: Sequence[int]) -> Tensor:
        """The first features of a head [tokens, size], in pairs as complex numbers, turned by their positions."""
        size = int(states.shape[1] * self.config.partial_rotary_factor)
        speeds = [self.config.rope_theta ** (-pair / size) for pair in range(0, size, 2)]
        turns = torch.tensor([[complex(math.cos(p * s), math.sin(p * s)) for s in speeds] for p in places])
        pairs = torch.view_as_complex(states[:, :size].reshape(len(states), -1, 2))
        return torch.cat([torch.view_as_real(pairs * turns.to(pairs.dtype)).flatten(1), states[:, size:]], dim=1)

    def feed_forward(self, states: Tensor) -> Tensor:
        inner = states @ self.get("mlp.up_proj.weight").T
        return (inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))) @ self.get("mlp.down_proj.weight").T


def _norm(states: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = states - states.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias
