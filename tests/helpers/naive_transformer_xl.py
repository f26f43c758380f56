"""A plain implementation of the model Transformer-XL, written from the paper, for one text at a time. Tests compare it
with ``models/transformer_xl``.

The two share only the names of their parameters. This one loops over tokens, keys and heads, and stores the inputs of
each layer as its memory, up to the memory's length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class NaiveTransformerXL:
    """Reads a text in segments, one after the other."""

    def __init__(self, weights: Mapping[str, Tensor], config: Any) -> None:
        """``weights``: parameters of a ``TransfoXLLMHeadModel`` by each of their names."""
        self.weights, self.config = weights, config
        self.ends = [0, *config.cutoffs, config.vocab_size]
        self.memory: list[list[Tensor]] = [[] for _ in range(config.n_layer)]

    def log_probabilities(self, tokens: Sequence[int]) -> Tensor:
        """[tokens, words] of a segment; the memory goes on to the next one."""
        hidden = [self.embedded(token) for token in tokens]
        for number in range(self.config.n_layer):
            before = self.memory[number]
            seen = [*before, *(state.detach() for state in hidden)]
            self.memory[number] = seen[max(len(seen) - self.config.mem_len, 0) :]
            hidden = self.layer(number, before, hidden)
        return torch.stack([self.words(state) for state in hidden])

    def get(self, name: str) -> Tensor:
        return self.weights[name]

    def embedded(self, token: int) -> Tensor:
        cluster = next(number for number in range(len(self.ends) - 1) if token < self.ends[number + 1])
        if self.config.div_val == 1:
            state = self.get("transformer.word_emb.emb_layers.0.weight")[token]
            if self.config.d_model != self.config.d_embed:
                state = self.get("transformer.word_emb.emb_projs.0") @ state
        else:
            row = token - self.ends[cluster]
            state = self.get(f"transformer.word_emb.emb_layers.{cluster}.weight")[row]
            state = self.get(f"transformer.word_emb.emb_projs.{cluster}") @ state
        return state * math.sqrt(self.config.d_model)

    def layer(self, number: int, memory: Sequence[Tensor], hidden: Sequence[Tensor]) -> list[Tensor]:
        config, path = self.config, f"transformer.layers.{number}"
        states = [*memory, *hidden]
        normed = [self.norm(f"{path}.dec_attn", state) for state in states] if config.pre_lnorm else states
        size = config.d_head
        inner = config.n_head * size
        made = [self.get(f"{path}.dec_attn.qkv_net.weight") @ state for state in normed]
        shared = "transformer" if not config.untie_r else f"{path}.dec_attn"
        content, position = (self.get(f"{shared}.{name}") for name in ("r_w_bias", "r_r_bias"))
        found = []
        for place in range(len(hidden)):
            query_at = len(memory) + place
            read = []
            for head in range(config.n_head):
                mine = slice(head * size, (head + 1) * size)
                query = made[query_at][:inner][mine]
                scores, values = [], []
                for key_at in range(query_at + 1):
                    distance = query_at - key_at
                    if config.same_length and config.mem_len and distance >= config.mem_len:
                        continue
                    key = made[key_at][inner : 2 * inner][mine]
                    far = (self.get(f"{path}.dec_attn.r_net.weight") @ self.encoded(distance))[mine]
                    score = (query + content[head]) @ key + (query + position[head]) @ far
                    scores.append(score / math.sqrt(size))
                    values.append(made[key_at][2 * inner :][mine])
                read.append(torch.stack(scores).softmax(0) @ torch.stack(values))
            output = hidden[place] + self.get(f"{path}.dec_attn.o_net.weight") @ torch.cat(read)
            output = output if config.pre_lnorm else self.norm(f"{path}.dec_attn", output)
            found.append(self.feed_forward(f"{path}.pos_ff", output))
        return found

    def encoded(self, distance: int) -> Tensor:
        """Sines, then cosines, of a distance."""
        width = self.config.d_model
        distance = min(distance, self.config.clamp_len) if self.config.clamp_len > 0 else distance
        angles = [distance / 10000 ** (pair / width) for pair in range(0, width, 2)]
        return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])

    def feed_forward(self, path: str, state: Tensor) -> Tensor:
        entered = self.norm(path, state) if self.config.pre_lnorm else state
        inner = self.get(f"{path}.CoreNet.0.weight") @ entered + self.get(f"{path}.CoreNet.0.bias")
        output = state + self.get(f"{path}.CoreNet.3.weight") @ inner.clamp(min=0) + self.get(f"{path}.CoreNet.3.bias")
        return output if self.config.pre_lnorm else self.norm(path, output)

    def norm(self, path: str, state: Tensor) -> Tensor:
        centred = state - state.mean()
        scaled = centred / (centred.square().mean() + self.config.layer_norm_epsilon).sqrt()
        return scaled * self.get(f"{path}.layer_norm.weight") + self.get(f"{path}.layer_norm.bias")

    def words(self, state: Tensor) -> Tensor:
        """Log-probabilities of all words."""
        first = torch.cat([self.scores(state, 0), self.cluster_scores(state)]).log_softmax(0)
        found = [first[: self.ends[1]]]
        for cluster in range(1, len(self.ends) - 1):
            found.append(first[self.ends[1] + cluster - 1] + self.scores(state, cluster).log_softmax(0))
        return torch.cat(found)

    def cluster_scores(self, state: Tensor) -> Tensor:
        if len(self.ends) == 2:
            return state.new_zeros(0)
        return self.get("crit.cluster_weight") @ self.inward(state, 0) + self.get("crit.cluster_bias")

    def scores(self, state: Tensor, cluster: int) -> Tensor:
        layer = cluster if self.config.div_val != 1 else 0
        rows = slice(None) if self.config.div_val != 1 else slice(self.ends[cluster], self.ends[cluster + 1])
        weight, bias = (self.get(f"crit.out_layers.{layer}.{name}")[rows] for name in ("weight", "bias"))
        return weight @ self.inward(state, cluster) + bias

    def inward(self, state: Tensor, cluster: int) -> Tensor:
        if self.config.div_val == 1 and self.config.d_model == self.config.d_embed:
            return state
        return self.get(f"crit.out_projs.{cluster}").T @ state
